"""Shares and win rates, drawn on one line each, and bars: SVG that fits any width. Pure.

Each has a name for those who do not see it, and tells a pointer the number behind a mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from factory.reports.page import formatting
from factory.reports.page.benchmarks import Delta
from factory.reports.page.findings import Duel, Win
from factory.reports.page.svg import Scale, element, picture, ticks, tip

PERCENT = Scale(0, 100)
# Points on both sides of 50 that win rates may be drawn over.
_REACHES = (10.0, 20.0, 30.0, 40.0, 50.0)
_ROW = 30.0  # px, the height of a line in a plot of lines


def _at(x: str, y: float, *inside: Markup) -> Markup:
    """Shapes around a point that is given in percent."""
    return element("svg", *inside, x=x, y=y, overflow="visible")


def rates(duels: Iterable[Duel]) -> Scale:
    """One scale for all win rates of a page, with 50 in the middle and every interval on it."""
    rows = [row for duel in duels for row in duel.rows]
    ends = [end for row in rows for end in (row.rate, row.low, row.high) if end is not None]
    furthest = max((abs(end - 50) for end in ends), default=0.0)
    reach = next((reach for reach in _REACHES if furthest < reach), _REACHES[-1])
    return Scale(50 - reach, 50 + reach)


def axis(scale: Scale = PERCENT, parts: int = 4) -> Markup:
    """The numbers under lines of shares, at the ends of so many parts."""
    return element(
        "svg",
        ticks(scale, _parts(scale, parts), 13, " %"),
        class_="plot",
        width="100%",
        height=16,
        aria_hidden="true",
    )


def _parts(scale: Scale, number: int = 4) -> list[float]:
    width = (scale.high - scale.low) / number
    return [scale.low + part * width for part in range(number + 1)]


def _share_lines(scale: Scale, middle: bool) -> Markup:
    lines = [
        element(
            "line",
            class_="half" if middle and value == 50 else "grid",
            x1=scale.x(value),
            x2=scale.x(value),
            y1=0,
            y2=_ROW,
        )
        for value in _parts(scale)
    ]
    return Markup("").join(lines)


def outcome(row: Win) -> str:
    """better, worse or even: what the interval lets one say."""
    if row.rate is None or row.low is None or row.high is None or "too few" in row.shown:
        return "even"
    return "better" if row.low > 50 else "worse" if row.high < 50 else "even"


def forest_line(row: Win, model: str, scale: Scale) -> Markup:
    """A win rate with its interval; a diamond for all languages."""
    name = f"{model} against {row.reference}, {formatting.language(row.language)}: {row.shown}"
    if row.rate is None:
        return picture(_ROW, name, _share_lines(scale, middle=True))
    middle = _ROW / 2
    marks = [_share_lines(scale, middle=True)]
    if row.low is not None and row.high is not None:
        low, high = scale.x(row.low), scale.x(row.high)
        marks.append(element("line", class_="reach", x1=low, x2=high, y1=middle, y2=middle))
        marks += [element("line", class_="reach", x1=x, x2=x, y1=middle - 4, y2=middle + 4)
                  for x in (low, high)]  # fmt: skip
    shape = (
        element("path", d="M-7 0 0 -7 7 0 0 7Z", class_="mark")
        if row.language == "all"
        else element("circle", r=4.5, class_="mark")
    )
    told = tip(f"{name}\n{row.won} won, {row.tied} tied, {row.lost} lost")
    marks.append(_at(scale.x(row.rate), middle, shape))
    return picture(_ROW, name, told, *marks, class_=f"plot {outcome(row)}")


def change_line(before: float | None, after: float | None, name: str) -> Markup:
    """From the reference's share (a ring) to the model's (a dot), both in percent."""
    middle = _ROW / 2
    marks = [_share_lines(PERCENT, middle=False)]
    if before is not None and after is not None:
        marks.append(
            element(
                "line",
                class_="way",
                x1=PERCENT.x(before),
                x2=PERCENT.x(after),
                y1=middle,
                y2=middle,
            )
        )
    if before is not None:
        ring = element("circle", r=5.0, class_="ring")
        marks.append(_at(PERCENT.x(before), middle, ring))
    if after is not None:
        marks.append(_at(PERCENT.x(after), middle, element("circle", r=4.0, class_="dot")))
    return picture(_ROW, name, tip(name), *marks)


def heat(delta: Delta) -> str:
    """How strongly a difference is coloured, as a class of the page: by its size in points, and
    only where its interval leaves out 0."""
    if delta.change is None:
        return "none"
    if not delta.significant:
        return "flat"
    level = 1 if abs(delta.change) < 2 else 2 if abs(delta.change) < 5 else 3
    return f"{'u' if delta.better else 'd'}{level}"


def bar(parts: Sequence[tuple[str, float]], whole: float, name: str, height: float = 8) -> Markup:
    """Parts (class, amount) of a whole, side by side."""
    marks, at = [element("rect", class_="empty", width="100%", height=height, rx=1.5)], 0.0
    for kind, amount in parts:
        width = 100 * amount / whole if whole else 0.0
        if width:
            marks.append(
                element(
                    "rect",
                    class_=kind,
                    x=f"{at:.2f}%",
                    width=f"{max(width, 0.4):.2f}%",
                    height=height,
                    rx=1.5,
                )
            )
        at += width
    return picture(height, name, tip(name), *marks, class_="plot bar")

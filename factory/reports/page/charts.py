"""Charts of shares and win rates, a line each, and bars: SVG that fits any width. Pure.

Each has an accessible name, and tooltips with its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from factory.reports import formatting
from factory.reports.benchmarks import Delta
from factory.reports.page.svg import Scale, element, line, picture, ticks, tip
from factory.reports.win_rates import JudgedModel, WinRateRow

PERCENT = Scale(0, 100)
# Points on both sides of 50 that win rates may be drawn over.
_REACHES = (10.0, 20.0, 30.0, 40.0, 50.0)
_ROW = 30.0  # px, the height of a line in a plot of lines


def _at(x: str, y: float, *inside: Markup) -> Markup:
    """Return shapes around a point that is given in percent."""
    return element("svg", *inside, x=x, y=y, overflow="visible")


def rates(models: Iterable[JudgedModel]) -> Scale:
    """Return one scale for all win rates of a page, with 50 in the middle and every interval on
    it."""
    shown = [row.overall for judged in models for row in judged.rows]
    ends = [end for rate in shown for end in (rate.rate, rate.low, rate.high)]
    furthest = max((abs(end - 50) for end in ends if end is not None), default=0.0)
    reach = next((reach for reach in _REACHES if furthest < reach), _REACHES[-1])
    return Scale(50 - reach, 50 + reach)


def axis(scale: Scale = PERCENT, parts: int = 4) -> Markup:
    """Return the axis below lines of shares, with numbers at the ends of equal parts."""
    numbers = ticks(scale, _parts(scale, parts), 13, " %")
    return element("svg", numbers, class_="plot", width="100%", height=16, aria_hidden="true")


def _parts(scale: Scale, number: int = 4) -> list[float]:
    width = (scale.high - scale.low) / number
    return [scale.low + part * width for part in range(number + 1)]


def _share_lines(scale: Scale, middle: bool) -> Markup:
    lines = [
        line("half" if middle and value == 50 else "grid", scale.x(value), 0, scale.x(value), _ROW)
        for value in _parts(scale)
    ]
    return Markup("").join(lines)


def outcome(row: WinRateRow) -> str:
    """Return better, worse or even: even where the interval covers 50."""
    low, high = row.overall.low, row.overall.high
    if row.overall.rate is None or low is None or high is None or "too few" in row.shown:
        return "even"
    return "better" if low > 50 else "worse" if high < 50 else "even"


def forest_line(row: WinRateRow, scale: Scale) -> Markup:
    """Draw a win rate with its interval; a diamond for all languages."""
    against = f"{row.model} against the {formatting.model_name(row.reference)}"
    name = f"{against}, {formatting.language(row.language)}: {row.shown}"
    rate = row.overall
    if rate.rate is None:
        return picture(_ROW, name, _share_lines(scale, middle=True))
    middle = _ROW / 2
    marks = [_share_lines(scale, middle=True)]
    if rate.low is not None and rate.high is not None:
        low, high = scale.x(rate.low), scale.x(rate.high)
        marks.append(line("reach", low, middle, high, middle))
        marks += [line("reach", x, middle - 4, x, middle + 4) for x in (low, high)]
    shape = (
        element("path", d="M-7 0 0 -7 7 0 0 7Z", class_="mark")
        if row.language == "all"
        else element("circle", r=4.5, class_="mark")
    )
    tooltip = tip(f"{name}\n{row.won} won, {row.tied} tied, {row.lost} lost")
    marks.append(_at(scale.x(rate.rate), middle, shape))
    return picture(_ROW, name, tooltip, *marks, class_=f"plot {outcome(row)}")


def change_line(before: float | None, after: float | None, name: str) -> Markup:
    """Draw the change from the reference's share (a ring) to the model's (a dot), in percent."""
    middle = _ROW / 2
    marks = [_share_lines(PERCENT, middle=False)]
    if before is not None and after is not None:
        marks.append(line("way", PERCENT.x(before), middle, PERCENT.x(after), middle))
    if before is not None:
        ring = element("circle", r=5.0, class_="ring")
        marks.append(_at(PERCENT.x(before), middle, ring))
    if after is not None:
        marks.append(_at(PERCENT.x(after), middle, element("circle", r=4.0, class_="dot")))
    return picture(_ROW, name, tip(name), *marks)


def describe(delta: Delta) -> str:
    """Describe a benchmark's difference in a sentence."""
    before, after = formatting.figure(delta.before), formatting.figure(delta.after)
    text = f"{delta.dataset}, {delta.metric}: {before} before, {after} after"
    if delta.low is not None and delta.high is not None:
        text += f", difference [{formatting.gain(delta.low)}, {formatting.gain(delta.high)}]"
    text += ", less is better" if delta.lower_is_better else ""
    return f"{text}; {delta.why}" if delta.why else text


def heat(delta: Delta) -> str:
    """Return the CSS class of a difference: its strength by size in points, only where its
    interval leaves out 0."""
    if delta.change is None:
        return "none"
    if not delta.significant:
        return "flat"
    level = 1 if abs(delta.change) < 2 else 2 if abs(delta.change) < 5 else 3
    return f"{'u' if delta.better else 'd'}{level}"


def bar(parts: Sequence[tuple[str, float]], total: float, name: str, height: float = 8) -> Markup:
    """Draw parts (class, amount) of a total side by side."""
    marks, at = [element("rect", class_="empty", width="100%", height=height, rx=1.5)], 0.0
    for kind, amount in parts:
        width = 100 * amount / total if total else 0.0
        if width:
            x, wide = f"{at:.2f}%", f"{max(width, 0.4):.2f}%"
            marks.append(element("rect", class_=kind, x=x, width=wide, height=height, rx=1.5))
        at += width
    return picture(height, name, tip(name), *marks, class_="plot bar")

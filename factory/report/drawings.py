"""Drawings of figures: SVG that takes its colours from the page and fits any width. Pure.

Each has a name for those who do not see it, and tells a pointer the number behind a mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from factory.report import words
from factory.report.findings import Duel, Win
from factory.report.ink import Scale, element, over, said, tick_label, tip
from factory.report.learning import Curve, Histogram

PERCENT = Scale(0, 100)
_REACHES = (
    10.0,
    20.0,
    30.0,
    40.0,
    50.0,
)  # points on both sides of 50 that win rates are drawn over
_ROW = 30.0  # px, the height of a line in a plot of lines
_PLOT, _TICKS = 96.0, 18.0  # px, the height of a panel and of the numbers below it
_POINTS = 400  # most points of a curve that are drawn


def _svg(height: float, name: str, *inside: Markup, class_: str = "plot") -> Markup:
    return element(
        "svg",
        *inside,
        class_=class_,
        width="100%",
        height=height,
        role="img",
        aria_label=name,
    )


def _at(x: str, y: float, *inside: Markup) -> Markup:
    """Shapes around a point that is given in percent."""
    return element("svg", *inside, x=x, y=y, overflow="visible")


def _ticks(scale: Scale, values: Sequence[float], y: float, unit: str = "") -> Markup:
    step = values[1] - values[0] if len(values) > 1 else abs(values[0]) if values else 1.0
    shown = []
    for value in values:
        at = scale.at(value)
        anchor = "start" if at < 6 else "end" if at > 94 else "middle"
        label = tick_label(value, step) + unit
        shown.append(
            element("text", said(label), class_="tick", x=scale.x(value), y=y, text_anchor=anchor)
        )
    return Markup("").join(shown)


# ---- win rates and shares -----------------------------------------------------------------------


def rates(duels: Iterable[Duel]) -> Scale:
    """One scale for all win rates of a page, with 50 in the middle and every interval on it."""
    rows = [row for duel in duels for row in duel.rows]
    ends = [end for row in rows for end in (row.rate, row.low, row.high) if end is not None]
    furthest = max((abs(end - 50) for end in ends), default=0.0)
    reach = next((reach for reach in _REACHES if furthest < reach), _REACHES[-1])
    return Scale(50 - reach, 50 + reach)


def axis(scale: Scale = PERCENT, unit: str = " %") -> Markup:
    """The numbers under lines of shares."""
    return element(
        "svg",
        _ticks(scale, _quarters(scale), 13, unit),
        class_="plot",
        width="100%",
        height=16,
        aria_hidden="true",
    )


def _quarters(scale: Scale) -> list[float]:
    return [scale.low + part * (scale.high - scale.low) / 4 for part in range(5)]


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
        for value in _quarters(scale)
    ]
    return Markup("").join(lines)


def outcome(row: Win) -> str:
    """better, worse or even: what the interval lets one say."""
    if row.rate is None or row.low is None or row.high is None or "too few" in row.shown:
        return "even"
    return "better" if row.low > 50 else "worse" if row.high < 50 else "even"


def forest_line(row: Win, model: str, scale: Scale) -> Markup:
    """A win rate with its interval; a diamond for all languages."""
    name = f"{model} against {row.reference}, {words.language(row.language)}: {row.shown}"
    if row.rate is None:
        return _svg(_ROW, name, _share_lines(scale, middle=True))
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
    return _svg(_ROW, name, told, *marks, class_=f"plot {outcome(row)}")


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
    return _svg(_ROW, name, tip(name), *marks)


def heat(change: float | None) -> str:
    """How strongly a difference in points is coloured, as a class of the page."""
    if change is None:
        return "none"
    size = abs(change)
    level = 0 if size < 0.5 else 1 if size < 2 else 2 if size < 5 else 3
    return f"{'u' if change > 0 else 'd'}{level}" if level else "flat"


# ---- bars ---------------------------------------------------------------------------------------


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
    return _svg(height, name, tip(name), *marks, class_="plot bar")


# ---- panels -------------------------------------------------------------------------------------


def histogram(drawn: Histogram, scale: Scale, title: str) -> Markup:
    """How often values fall where; each series as shares of itself, all on one height."""
    shares = {
        name: [count / sum(counts) for count in counts]
        for name, counts in drawn.series.items()
        if sum(counts)
    }
    top = max((max(values) for values in shares.values()), default=1.0) or 1.0
    areas = [
        element("path", d=_steps(drawn.edges, values, top, scale), class_=f"area {_safe(name)}")
        for name, values in shares.items()
    ]
    stretched = element(
        "svg", *areas, width="100%", height=_PLOT, view_box="0 0 100 100", keep="none"
    )
    ticks = scale.ticks(4)
    base = element("line", class_="axis", x1="0", x2="100%", y1=_PLOT, y2=_PLOT)
    marks = [
        element(
            "line",
            tip(f"{name} {words.figure(value)}"),
            class_="at",
            x1=scale.x(value),
            x2=scale.x(value),
            y1=0,
            y2=_PLOT,
        )
        for name, value in drawn.marks.items()
    ]
    bins = [
        element("rect", tip(_bin(drawn, n)), class_="bin", y=0, height=_PLOT,
                x=scale.x(low), width=f"{max(scale.at(high) - scale.at(low), 0.2):.2f}%")
        for n, (low, high) in enumerate(zip(drawn.edges, drawn.edges[1:], strict=False))
    ]  # fmt: skip
    return _svg(
        _PLOT + _TICKS, title, stretched, base, *marks, *bins,
        _ticks(scale, ticks, _PLOT + 13),
    )  # fmt: skip


def _bin(drawn: Histogram, number: int) -> str:
    low, high = drawn.edges[number], drawn.edges[number + 1]
    counts = ", ".join(f"{c[number]} of {sum(c)} {name}" for name, c in drawn.series.items())
    return f"{words.figure(low)} to {words.figure(high)}: {counts}"


def _steps(edges: Sequence[float], shares: Sequence[float], top: float, scale: Scale) -> str:
    path = [f"M{scale.at(edges[0]):.2f} 100"]
    for low, high, share in zip(edges, edges[1:], shares, strict=False):
        y = 100 - 94 * share / top
        path.append(f"L{scale.at(low):.2f} {y:.2f}L{scale.at(high):.2f} {y:.2f}")
    return "".join(path) + f"L{scale.at(edges[-1]):.2f} 100Z"


def _safe(name: str) -> str:
    """A series' name as a class of the page; others are drawn as a pool is."""
    return name if name in ("pool", "chosen", "rejected", "margin", "reward") else "pool"


def curve(drawn: Curve, title: str) -> Markup:
    """A logged number over optimizer steps, and what held-out rows gave as rings."""
    points = _thinned(drawn.points)
    reach = over([x for x, _ in (*drawn.points, *drawn.held)], 0.03)
    # the numbers of the levels stand left of the first point
    across = Scale(reach.low - 0.13 * (reach.high - reach.low), reach.high)
    up = over([y for _, y in (*drawn.points, *drawn.held)], 0.12)

    def y(value: float) -> float:
        return _PLOT * (1 - up.at(value) / 100)

    levels = up.ticks(3)
    step = levels[1] - levels[0] if len(levels) > 1 else abs(levels[0]) if levels else 1.0
    grid = [
        element("line", class_="grid", x1="0", x2="100%", y1=y(level), y2=y(level))
        for level in levels
    ]
    labels = [
        element(
            "text", said(tick_label(level, step)), class_="tick halo", x=0, y=max(y(level) - 3, 8.0)
        )
        for level in levels
    ]
    path = " ".join(f"{across.at(x):.2f},{100 - up.at(v):.2f}" for x, v in points)
    line = element(
        "svg",
        element("polyline", points=path, class_="line"),
        width="100%",
        height=_PLOT,
        view_box="0 0 100 100",
        keep="none",
    )
    dots = [
        element("circle", tip(_told(drawn.name, x, v)), class_="logged", r=2.2, cx=across.x(x),
                cy=y(v))
        for x, v in points
    ]  # fmt: skip
    rings = [
        element("circle", tip(f"held out: {_told(drawn.name, x, v)}"), class_="held", r=4.0,
                cx=across.x(x), cy=y(v))
        for x, v in drawn.held
    ]  # fmt: skip
    few = len(points) <= 60
    steps = [tick for tick in across.ticks(5, whole=True) if tick >= reach.low]
    base = element("line", class_="axis", x1="0", x2="100%", y1=_PLOT, y2=_PLOT)
    return _svg(
        _PLOT + _TICKS, title, *grid, base, line, *(dots if few else []), *rings, *labels,
        _ticks(across, steps, _PLOT + 13),
    )  # fmt: skip


def _told(name: str, step: float, value: float) -> str:
    return f"{name} {words.figure(value)} after step {step:.0f}"


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every so many-th point, the last with them, where there are more than can be seen."""
    every = -(-len(points) // _POINTS)
    kept = list(points[::every]) if every > 1 else list(points)
    return kept if kept[-1:] == list(points[-1:]) else [*kept, points[-1]]


def shared(drawn: Sequence[Histogram]) -> Scale:
    """One scale for panels that are to be compared."""
    edges = [edge for one in drawn for edge in (one.edges[0], one.edges[-1])]
    return over(edges, 0.01)

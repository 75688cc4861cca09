"""Panels of histograms and curves: small SVG charts that fit any width. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from factory.reports import formatting
from factory.reports.checkpoint_curves import Course
from factory.reports.learning import Curve, Histogram, Training
from factory.reports.page.svg import (
    Scale,
    element,
    line,
    over,
    picture,
    spacing,
    text_node,
    tick_label,
    ticks,
    tip,
)  # fmt: skip

_PLOT, _TICKS = 96.0, 18.0  # px, the height of a panel and of the numbers below it
_POINTS = 400  # most points of a curve that are drawn
_BASE = line("axis", "0", _PLOT, "100%", _PLOT)


def _stretched(*shapes: Markup) -> Markup:
    """Return shapes on a grid of 100 by 100, stretched over the panel."""
    return element("svg", *shapes, width="100%", height=_PLOT, view_box="0 0 100 100", keep="none")


def _y(scale: Scale, value: float) -> float:
    return _PLOT * (1 - scale.at(value) / 100)


def _labels(levels: Sequence[float], heights: Sequence[float]) -> list[Markup]:
    return [
        element("text", text_node(tick_label(level, spacing(levels))), class_="tick halo", x=0, y=y)
        for level, y in zip(levels, heights, strict=True)
    ]


def histogram(drawn: Histogram, scale: Scale, title: str) -> Markup:
    """Draw a histogram; each series as shares of itself, all to one height."""
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
    marks = [
        line("at", scale.x(value), 0, scale.x(value), _PLOT,
             tip(f"{name} {formatting.figure(value)}"))
        for name, value in drawn.marks.items()
    ]  # fmt: skip
    bins = [
        element("rect", tip(_bin(drawn, n)), class_="bin", y=0, height=_PLOT,
                x=scale.x(low), width=f"{max(scale.at(high) - scale.at(low), 0.2):.2f}%")
        for n, (low, high) in enumerate(zip(drawn.edges, drawn.edges[1:], strict=False))
    ]  # fmt: skip
    return picture(
        _PLOT + _TICKS, title, _stretched(*areas), _BASE, *marks, *bins,
        ticks(scale, scale.ticks(4), _PLOT + 13),
    )  # fmt: skip


def _bin(drawn: Histogram, number: int) -> str:
    low, high = drawn.edges[number], drawn.edges[number + 1]
    counts = ", ".join(f"{c[number]} of {sum(c)} {name}" for name, c in drawn.series.items())
    return f"{formatting.figure(low)} to {formatting.figure(high)}: {counts}"


def _steps(edges: Sequence[float], shares: Sequence[float], top: float, scale: Scale) -> str:
    path = [f"M{scale.at(edges[0]):.2f} 100"]
    for low, high, share in zip(edges, edges[1:], shares, strict=False):
        y = 100 - 94 * share / top
        path.append(f"L{scale.at(low):.2f} {y:.2f}L{scale.at(high):.2f} {y:.2f}")
    return "".join(path) + f"L{scale.at(edges[-1]):.2f} 100Z"


def _safe(name: str) -> str:
    """Return a series' name as a CSS class; unknown ones are drawn as the pool is."""
    return name if name in ("pool", "chosen", "rejected", "margin", "reward") else "pool"


def curve(drawn: Curve, title: str) -> Markup:
    """Draw a logged number over optimizer steps, and held-out values as rings."""
    points = _thinned(drawn.points)
    reach = over([x for x, _ in (*drawn.points, *drawn.held_out)], 0.03)
    # the numbers of the levels stand left of the first point
    across = Scale(reach.low - 0.13 * (reach.high - reach.low), reach.high)
    up = over([y for _, y in (*drawn.points, *drawn.held_out)], 0.12)

    levels = up.ticks(3)
    grid = [line("grid", "0", _y(up, level), "100%", _y(up, level)) for level in levels]
    labels = _labels(levels, [max(_y(up, level) - 3, 8.0) for level in levels])
    path = " ".join(f"{across.at(x):.2f},{100 - up.at(v):.2f}" for x, v in points)
    drawn_line = _stretched(element("polyline", points=path, class_="line"))
    dots = [
        element("circle", tip(_tooltip(drawn.name, x, v)), class_="logged", r=2.2, cx=across.x(x),
                cy=_y(up, v))
        for x, v in points
    ]  # fmt: skip
    rings = [
        element("circle", tip(f"held out: {_tooltip(drawn.name, x, v)}"), class_="held", r=4.0,
                cx=across.x(x), cy=_y(up, v))
        for x, v in drawn.held_out
    ]  # fmt: skip
    few = len(points) <= 60
    steps = [tick for tick in across.ticks(5, integers=True) if tick >= reach.low]
    return picture(
        _PLOT + _TICKS, title, *grid, _BASE, drawn_line, *(dots if few else []), *rings, *labels,
        ticks(across, steps, _PLOT + 13),
    )  # fmt: skip


def course(drawn: Course) -> Markup:
    """Draw evaluations over the share of the training steps, or rounds; the reference is the dashed
    line."""
    points = [point for points in drawn.lines.values() for point in points]
    ends = [end for p in points for end in (p.value, p.low, p.high) if end is not None]
    up, across = (
        over([*ends, drawn.even], 0.1),
        Scale(-0.14 * drawn.ticks[-1], 1.04 * drawn.ticks[-1]),
    )

    levels = up.ticks(3)
    labels = _labels(levels, [_y(up, level) + 3 for level in levels])
    marks = []
    for name, course_points in drawn.lines.items():
        marks += [
            line("line", across.x(drawn.at(a)), _y(up, a.value), across.x(drawn.at(b)),
                 _y(up, b.value))
            for a, b in pairwise(course_points)
        ]  # fmt: skip
        for point in course_points:
            at = across.x(drawn.at(point))
            value = formatting.figure(point.value)
            after = (
                f"round {point.share:.0f}" if drawn.rounds else f"{point.share:.0%} of the steps"
            )
            tooltip = f"{name} {value} after {after}"
            if point.low is not None and point.high is not None:
                tooltip += f" [{formatting.figure(point.low)}, {formatting.figure(point.high)}]"
                if len(drawn.lines) == 1:
                    marks.append(line("spread", at, _y(up, point.low), at, _y(up, point.high)))
            marks.append(element("circle", tip(tooltip), class_="logged", r=3.0, cx=at,
                                 cy=_y(up, point.value)))  # fmt: skip
    even = _y(up, drawn.even)
    return picture(
        _PLOT + _TICKS, drawn.title, line("even", "0", even, "100%", even), _BASE, *marks, *labels,
        ticks(across, drawn.ticks, _PLOT + 13, "" if drawn.rounds else " %"),
    )  # fmt: skip


def facts(training: Training) -> str:
    """Describe a training in numbers: rows, optimizer steps, held-out rows, wall time."""
    counts = ((training.n_rows, "rows"), (training.n_steps, "optimizer steps"),
              (training.n_held_out, "rows held out"))  # fmt: skip
    parts = [f"{formatting.count(n)} {noun}" for n, noun in counts if n is not None]
    return ", ".join(
        parts + ([] if training.seconds is None else [formatting.span(training.seconds)])
    )


def _tooltip(name: str, step: float, value: float) -> str:
    return f"{name} {formatting.figure(value)} after step {step:.0f}"


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most _POINTS points, evenly spaced, and always the last."""
    stride = -(-len(points) // _POINTS)
    thinned = list(points[::stride]) if stride > 1 else list(points)
    return thinned if thinned[-1:] == list(points[-1:]) else [*thinned, points[-1]]


def shared(histograms: Sequence[Histogram]) -> Scale:
    """Return one scale for panels that are to be compared."""
    edges = [edge for bins in histograms for edge in (bins.edges[0], bins.edges[-1])]
    return over(edges, 0.01)

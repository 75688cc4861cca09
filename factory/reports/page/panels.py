"""Panels of histograms and curves: small SVG charts that fit any width. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from factory.reports.checkpoint_curves import Course
from factory.reports.learning import Curve, Histogram, Training
from factory.reports.page import formatting
from factory.reports.page.svg import (
    Scale,
    element,
    over,
    picture,
    text_node,
    tick_label,
    ticks,
    tip,
)

_PLOT, _TICKS = 96.0, 18.0  # px, the height of a panel and of the numbers below it
_POINTS = 400  # most points of a curve that are drawn


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
    stretched = element(
        "svg", *areas, width="100%", height=_PLOT, view_box="0 0 100 100", keep="none"
    )
    base = element("line", class_="axis", x1="0", x2="100%", y1=_PLOT, y2=_PLOT)
    marks = [
        element(
            "line",
            tip(f"{name} {formatting.figure(value)}"),
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
    return picture(
        _PLOT + _TICKS, title, stretched, base, *marks, *bins,
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
            "text",
            text_node(tick_label(level, step)),
            class_="tick halo",
            x=0,
            y=max(y(level) - 3, 8.0),
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
        element("circle", tip(_tooltip(drawn.name, x, v)), class_="logged", r=2.2, cx=across.x(x),
                cy=y(v))
        for x, v in points
    ]  # fmt: skip
    rings = [
        element("circle", tip(f"held out: {_tooltip(drawn.name, x, v)}"), class_="held", r=4.0,
                cx=across.x(x), cy=y(v))
        for x, v in drawn.held_out
    ]  # fmt: skip
    few = len(points) <= 60
    steps = [tick for tick in across.ticks(5, integers=True) if tick >= reach.low]
    base = element("line", class_="axis", x1="0", x2="100%", y1=_PLOT, y2=_PLOT)
    return picture(
        _PLOT + _TICKS, title, *grid, base, line, *(dots if few else []), *rings, *labels,
        ticks(across, steps, _PLOT + 13),
    )  # fmt: skip


def course(drawn: Course) -> Markup:
    """Draw evaluations over the share of the training steps; the reference is the dashed line."""
    points = [point for line in drawn.lines.values() for point in line]
    ends = [end for p in points for end in (p.value, p.low, p.high) if end is not None]
    up, across = over([*ends, drawn.even], 0.1), Scale(-14, 104)

    def y(value: float) -> float:
        return _PLOT * (1 - up.at(value) / 100)

    levels = up.ticks(3)
    step = levels[1] - levels[0] if len(levels) > 1 else 1.0
    labels = [
        element("text", text_node(tick_label(level, step)), class_="tick halo", x=0, y=y(level) + 3)
        for level in levels
    ]
    even = element("line", class_="even", x1="0", x2="100%", y1=y(drawn.even), y2=y(drawn.even))
    marks = []
    for name, line in drawn.lines.items():
        marks += [
            element("line", class_="line", x1=across.x(100 * a.share), x2=across.x(100 * b.share),
                    y1=y(a.value), y2=y(b.value))
            for a, b in pairwise(line)
        ]  # fmt: skip
        for point in line:
            at = across.x(100 * point.share)
            tooltip = (
                f"{name} {formatting.figure(point.value)} after {point.share:.0%} of the steps"
            )
            if point.low is not None and point.high is not None:
                tooltip += f" [{formatting.figure(point.low)}, {formatting.figure(point.high)}]"
                if len(drawn.lines) == 1:
                    marks.append(
                        element("line", class_="spread", x1=at, x2=at, y1=y(point.low),
                                y2=y(point.high))
                    )  # fmt: skip
            marks.append(element("circle", tip(tooltip), class_="logged", r=3.0, cx=at,
                                 cy=y(point.value)))  # fmt: skip
    base = element("line", class_="axis", x1="0", x2="100%", y1=_PLOT, y2=_PLOT)
    return picture(
        _PLOT + _TICKS, drawn.title, even, base, *marks, *labels,
        ticks(across, [0, 25, 50, 75, 100], _PLOT + 13, " %"),
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

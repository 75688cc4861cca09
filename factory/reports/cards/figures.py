"""Figures of a card: small PNG files, drawn with matplotlib (Agg) from a manifest's numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.artifacts.manifest import Manifest, Rows
from factory.reports import learning
from factory.reports.benchmarks import Delta, deltas
from factory.reports.checkpoint_curves import Course, courses
from factory.reports.learning import Curve, Histogram
from factory.reports.results import tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ANATOMY = "anatomy.png"  # of pairs: in the manifest's list of files, so drawn before it
CURVE, REWARDS, DELTAS = "curve.png", "rewards.png", "deltas.png"
CHECKPOINTS = "checkpoints.png"
_COLOURS = {
    "pool": "#c8c8c8", "chosen": "#2a7f9e", "rejected": "#c4622d", "margin": "#5a5a8c",
    "reward": "#5a7d4f",
}  # fmt: skip
_INK = "#444444"
_ACROSS = 4  # panels in a row, where there are many of a kind


def captions_of(manifest: Manifest) -> dict[str, str]:
    """Return the figures that this manifest's numbers allow, by file name, with their captions.
    The anatomy of pairs is not among them."""
    captions = {}
    if any(len(curve.points) > 1 for curve in _curves(manifest)):
        captions[CURVE] = "Training log by optimizer step; dots are held-out rows"
    if learning.rewards([manifest]):
        captions[REWARDS] = "Rewards of all samples, by language"
    if _cells(deltas(manifest)):
        captions[DELTAS] = "Deltas to the reference by language and task, starred if significant"
    if courses(tidy([manifest])):
        captions[CHECKPOINTS] = (
            "Evaluation of checkpoints, by share of the training steps, or by round"
        )
    return captions


def draw(manifest: Manifest, directory: Path) -> None:
    """Draw the figures that this manifest's numbers allow into `directory`."""
    files = captions_of(manifest)
    if CURVE in files:
        draw_curves(directory / CURVE, _curves(manifest))
    if REWARDS in files:
        draw_rewards(directory / REWARDS, learning.rewards([manifest]))
    if DELTAS in files:
        draw_deltas(directory / DELTAS, deltas(manifest))
    if CHECKPOINTS in files:
        draw_courses(directory / CHECKPOINTS, courses(tidy([manifest])))


def draw_curves(path: Path, curves: Sequence[Curve]) -> None:
    """Draw the logged numbers over optimizer steps, a panel each, with held-out rows as dots."""
    grid = _grid(1, [curve.name for curve in curves], [""], height=1.7)
    for axes, curve in zip(grid[0], curves, strict=True):
        axes.plot(*zip(*curve.points, strict=True), color=_COLOURS["chosen"], lw=1)
        if curve.held_out:
            dots = zip(*curve.held_out, strict=True)
            axes.plot(*dots, "o", color=_COLOURS["rejected"], ms=3)
    _save(grid, path)


def draw_rewards(path: Path, languages: Sequence[Histogram]) -> None:
    """Draw histograms of rewards, one panel a language, on one scale."""
    low = min(bins.edges[0] for bins in languages)
    high = max(bins.edges[-1] for bins in languages)
    grid, panels = _wrapped(len(languages))
    for axes, bins in zip(panels, languages, strict=True):
        _bars(axes, bins)
        axes.set_xlim(low, high if high > low else low + 1)
        axes.set_title(bins.name, loc="left", y=0.86, fontsize=8, color=_INK)
    _save(grid, path)


def draw_deltas(path: Path, rows: Sequence[Delta]) -> None:
    """Draw deltas as a heat map: a row for each language and model, a column for each task (several
    where a language has several benchmarks of one). Cells name the benchmark and its delta, with *
    where that is significant. Blue is better, on one scale; a cell without a delta is empty."""
    cells = _cells(rows)
    lines = list(dict.fromkeys(line for line, _ in cells))
    columns = sorted({column for _, column in cells})
    most = max((abs(change) for _, change in cells.values()), default=0) or 1.0
    labels = [f"{language} {model}" for language, model in lines]
    grid = _grid(
        1, [""], [""], height=0.5 + 0.42 * len(lines), margin=1.6, width=1.05 * len(columns)
    )
    axes = grid[0][0]
    shades = [[cells[r, c][1] if (r, c) in cells else float("nan") for c in columns] for r in lines]
    axes.imshow(shades, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for (line, column), (delta, change) in cells.items():
        star = "*" if delta.significant else ""
        dark = abs(change) > 0.6 * most
        axes.text(columns.index(column), lines.index(line),
                  f"{delta.dataset[:20]}\n{change:+.1f}{star}", fontsize=5, ha="center",
                  va="center", color="white" if dark else _INK)  # fmt: skip
    axes.set_xticks(range(len(columns)), [task.replace("-", "\n", 1) for task, _ in columns])
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", labelsize=5, length=0)
    axes.set_yticks(range(len(lines)), labels)
    axes.spines[:].set_visible(False)
    _save(grid, path)


def draw_courses(path: Path, courses: Sequence[Course]) -> None:
    """Draw evaluations over the share of the training steps, or rounds, a panel for each model
    and language. The dashed line is the reference. A single line has intervals; several are
    benchmarks, labelled at their ends."""
    grid, panels = _wrapped(len(courses), height=1.7)
    for axes, course in zip(panels, courses, strict=True):
        axes.axhline(course.even, color=_COLOURS["pool"], lw=1, ls="--")
        for name, points in course.lines.items():
            at = [course.at(point) for point in points]
            axes.plot(at, [p.value for p in points], "o-", color=_COLOURS["chosen"], lw=1, ms=3)
            if len(course.lines) > 1:
                axes.annotate(f" {name[:16]}", (at[-1], points[-1].value), fontsize=4)
                continue
            for point in points:
                if point.low is not None and point.high is not None:
                    ends = [point.low, point.high]
                    axes.plot([course.at(point)] * 2, ends, color=_COLOURS["chosen"], lw=0.8)
        axes.set_title(course.title[:48], fontsize=6, color=_INK)
        axes.set_xlim(0, 1.05 * course.ticks[-1])
        axes.set_xticks(course.ticks)
    _save(grid, path)


def _curves(manifest: Manifest) -> list[Curve]:
    return [curve for run in learning.trainings([manifest]) for curve in run.curves]


def _cells(
    rows: Iterable[Delta],
) -> dict[tuple[tuple[str, str], tuple[str, int]], tuple[Delta, float]]:
    """Return deltas by (language, model) and (task, which of its benchmarks), with the change;
    those without one are left out."""
    cells: dict[tuple[tuple[str, str], tuple[str, int]], tuple[Delta, float]] = {}
    counts: Counter[tuple[str, str, str]] = Counter()
    for delta in rows:
        if delta.change is not None:
            key = (delta.language, delta.model, delta.task)
            cells[key[:2], (delta.task, counts[key])] = (delta, delta.change)
            counts[key] += 1
    return cells


def draw_anatomy(path: Path, slices: Mapping[str, tuple[Mapping[str, Any], Rows]]) -> None:
    """Draw one row a slice: scores of the pool and both sides, margins, lengths, dropped
    prompts, and for a cross-lingual pool the languages of both sides. `slices` are figures of
    pairs.statistics.describe with the slice's counts."""
    mixed = {name: f for name, (f, _) in slices.items() if len(f.get("languages", ())) > 1}
    columns = ["scores", "margins", "tokens of an answer", "prompts"]
    if not any("margins" in figures for figures, _ in slices.values()):
        columns.remove("margins")
    if mixed:
        columns.append("chosen (down), rejected (across)")
    grid = _grid(len(slices), columns, list(slices))
    for axes, (name, (figures, rows)) in zip(grid, slices.items(), strict=True):
        panels = dict(zip(columns, axes, strict=True))
        for title, key in (("scores",) * 2, ("margins",) * 2, ("tokens of an answer", "tokens")):
            if title in panels:
                _bars(panels[title], learning.histogram(key, figures.get(key)))
        _fates(panels["prompts"], rows)
        if mixed:
            _languages(axes[-1], mixed.get(name, {}).get("languages", []))
    _save(grid, path)


def draw_comparison(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw strategies side by side, summed over slices: pairs, mean margin, mean tokens of both
    sides, share across languages and overlap with the first. `rows` are those of compare.totals."""
    panels = {
        "pairs": ("rows",),
        "mean margin": ("mean_margin",),
        "tokens: chosen, rejected": ("chosen_tokens", "rejected_tokens"),
        "share across languages": ("cross",),
        "overlap with the first": ("overlap",),
    }
    names = [row["strategy"] for row in rows]
    grid = _grid(1, list(panels), [""], height=0.8 + 0.3 * len(rows), margin=1.6)
    for number, (axes, keys) in enumerate(zip(grid[0], panels.values(), strict=True)):
        for place, key in enumerate(keys):
            colour = _COLOURS["rejected" if key == "rejected_tokens" else "chosen"]
            size = 0.7 / len(keys)
            at = [y + place * size for y in range(len(rows))]
            axes.barh(at, [row[key] or 0 for row in rows], height=size, color=colour)
        axes.set_yticks([y + 0.35 - 0.35 / len(keys) for y in range(len(rows))], names)
        axes.invert_yaxis()
        axes.tick_params(labelleft=number == 0)
    _save(grid, path)


def _grid(
    rows: int,
    columns: list[str],
    names: list[str],
    height: float = 1.5,
    margin: float = 0.5,
    width: float = 2.6,
) -> Any:
    """Return axes, placed by hand in inches: matplotlib's own layouts take seconds. `width` is
    of one column."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide, high = margin + width * len(columns), 0.3 + height * rows
    figure = Figure(figsize=(wide, high))
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        rows,
        len(columns),
        squeeze=False,
        gridspec_kw={
            "left": margin / wide,
            "right": 1 - 0.1 / wide,
            "bottom": 0.25 / high,
            "top": 1 - 0.3 / high,
            "wspace": 0.28,
            "hspace": 0.3,
        },
    )
    for axes, name in zip(grid, names, strict=True):
        axes[0].set_ylabel(name, color=_INK)
        for panel in axes:
            panel.tick_params(labelsize=6, colors=_INK)
            panel.spines[["top", "right"]].set_visible(False)
    for panel, title in zip(grid[0], columns, strict=True):
        panel.set_title(title, fontsize=8, color=_INK)
    return grid


def _wrapped(count: int, height: float = 1.5) -> tuple[Any, list[Axes]]:
    """Return the grid and its first `count` axes, four in a row; the others are empty."""
    rows = -(-count // _ACROSS)
    grid = _grid(rows, [""] * min(_ACROSS, count), [""] * rows, height=height)
    panels = [axes for line in grid for axes in line]
    for axes in panels[count:]:
        axes.set_axis_off()
    return grid, panels[:count]


def _save(grid: Any, path: Path) -> None:
    grid[0][0].figure.savefig(path, format="png", dpi=90, metadata={"Software": None})


def _bars(axes: Axes, bins: Histogram | None) -> None:
    """Draw histograms over each other, each as shares of itself."""
    axes.set_yticks([])
    if bins is None:
        return
    for name, counts in bins.series.items():
        if sum(counts):
            shares = [count / sum(counts) for count in counts]
            colour = _COLOURS.get(name, _COLOURS["pool"])
            axes.stairs(shares, bins.edges, fill=name == "pool", color=colour, label=name)
    if len(bins.series) > 1:
        axes.legend(fontsize=5, frameon=False)


def _fates(axes: Axes, rows: Rows) -> None:
    fates = {"kept": rows.out, **rows.dropped}
    names = list(fates)
    axes.barh(range(len(names)), list(fates.values()), height=0.6, color=_COLOURS["pool"])
    axes.set_yticks([])
    for place, name in enumerate(names):  # inside the panel: names of reasons are long
        axes.text(0, place, f" {name} {fates[name]}", fontsize=6, va="center", color=_INK)
    axes.set_ylim(max(len(names), 3) - 0.5, -0.5)


def _languages(axes: Axes, mix: list[dict[str, Any]]) -> None:
    if not mix:
        axes.set_axis_off()
        return
    codes = sorted({row[side] for row in mix for side in ("chosen_language", "rejected_language")
                    if side in row})  # fmt: skip
    counts = [[0] * len(codes) for _ in codes]
    for row in mix:
        across = codes.index(row.get("rejected_language", row["chosen_language"]))
        counts[codes.index(row["chosen_language"])][across] += row["rows"]
    axes.imshow(counts, cmap="Blues", aspect="auto")
    for down, line in enumerate(counts):
        for across, count in enumerate(line):
            dark = count > max(map(max, counts)) / 2
            axes.text(across, down, str(count), fontsize=6, ha="center", va="center",
                      color="white" if dark else _INK)  # fmt: skip
    axes.set_xticks(range(len(codes)), codes)
    axes.set_yticks(range(len(codes)), codes)

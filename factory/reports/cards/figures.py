"""Drawings of what the manifest says in numbers: small PNG files, drawn with matplotlib (Agg)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.artifacts.manifest import Manifest, Rows
from factory.reports.checkpoint_curves import CheckpointFigure, Course, courses
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


# What a curve shows: the first of each that was logged. DPO's names, and the reward trainer's.
_CURVES = (
    ("loss",),
    ("rewards/margins", "margin"),
    ("rewards/accuracies", "accuracy"),
    ("logps/chosen", "mean_token_accuracy"),
    ("grad_norm",),
    ("learning_rate",),
)


def wanted(manifest: Manifest) -> dict[str, str]:
    """The drawings that this manifest's numbers allow beside that of pairs: file to
    what it shows."""
    found = {}
    if len(_logged(manifest)) > 1:
        found[CURVE] = "Training: what was logged, by optimizer step; dots are held-out rows"
    if _rewards(manifest):
        found[REWARDS] = "Rewards of all samples, by language"
    if manifest.stage == "euroeval" and _cells(manifest.stats.get("deltas", [])):
        found[DELTAS] = "Deltas to the reference by language and task, starred where it differs"
    if _courses(manifest):
        found[CHECKPOINTS] = "Along the training: what was measured after a share of its steps"
    return found


def draw(manifest: Manifest, directory: Path) -> None:
    """Draw what is `wanted` into `directory`."""
    files = wanted(manifest)
    if CURVE in files:
        draw_curve(directory / CURVE, _logged(manifest), manifest.stats.get("held_out_curve", []))
    if REWARDS in files:
        draw_rewards(directory / REWARDS, _rewards(manifest))
    if DELTAS in files:
        draw_deltas(directory / DELTAS, manifest.stats["deltas"])
    if CHECKPOINTS in files:
        draw_courses(directory / CHECKPOINTS, _courses(manifest))


def draw_curve(
    path: Path,
    entries: Sequence[Mapping[str, float]],
    held_out: Sequence[Mapping[str, float]] = (),
) -> None:
    """Loss, margin, accuracy, the chosen answers' log-probability, gradient norm and learning rate
    over optimizer steps, as far as they were logged, with the held-out rows as dots. Each point
    stands at its own step, whatever other entries lack."""
    keys = [next((k for k in names if any(k in e for e in entries)), "") for names in _CURVES]
    keys = [key for key in keys if key]
    grid = _grid(1, keys, [""], height=1.7)
    for axes, key in zip(grid[0], keys, strict=True):
        points = [(e.get("step", n + 1), e[key]) for n, e in enumerate(entries) if key in e]
        axes.plot([x for x, _ in points], [y for _, y in points], color=_COLOURS["chosen"], lw=1)
        dots = [(e["step"], e[f"eval_{key}"]) for e in held_out if f"eval_{key}" in e]
        axes.plot([x for x, _ in dots], [y for _, y in dots], "o", color=_COLOURS["rejected"], ms=3)
    _save(grid, path)


def draw_rewards(path: Path, languages: Mapping[str, Mapping[str, Any]]) -> None:
    """Histograms of rewards, one panel a language, on one scale."""
    names = list(languages)
    edges = [bins["edges"] for bins in languages.values()]
    low, high = min(e[0] for e in edges), max(e[-1] for e in edges)
    grid, panels = _wrapped(len(names))
    for axes, name in zip(panels, names, strict=True):
        _bars(axes, languages[name])
        axes.set_xlim(low, high if high > low else low + 1)
        axes.set_title(name, loc="left", y=0.86, fontsize=8, color=_INK)
    _save(grid, path)


def draw_deltas(path: Path, deltas: Sequence[Mapping[str, Any]]) -> None:
    """A heat map of deltas: a row for each language and model, a column for each task (several
    where a language has several benchmarks of one), each cell with its benchmark and its delta,
    and * where that is significant. Blue is better, on one scale; what has no delta is empty."""
    cells = _cells(deltas)
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = sorted({column for _, column in cells})
    most = max((abs(d["delta"]) for d in cells.values()), default=0) or 1.0
    labels = [f"{language} {model}" for language, model in rows]
    grid = _grid(1, [""], [""], height=0.5 + 0.42 * len(rows), left=1.6, width=1.05 * len(columns))
    axes = grid[0][0]
    shades = [
        [cells[r, c]["delta"] if (r, c) in cells else float("nan") for c in columns] for r in rows
    ]
    axes.imshow(shades, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for (row, column), found in cells.items():
        star = "*" if found["significant"] else ""
        dark = abs(found["delta"]) > 0.6 * most
        axes.text(columns.index(column), rows.index(row),
                  f"{found['dataset'][:20]}\n{found['delta']:+.1f}{star}", fontsize=5, ha="center",
                  va="center", color="white" if dark else _INK)  # fmt: skip
    axes.set_xticks(range(len(columns)), [task.replace("-", "\n", 1) for task, _ in columns])
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", labelsize=5, length=0)
    axes.set_yticks(range(len(rows)), labels)
    axes.spines[:].set_visible(False)
    _save(grid, path)


def draw_courses(path: Path, drawn: Sequence[Course]) -> None:
    """What was measured over the share of a training, a panel for each model and language: the
    dashed line is the reference. A single line has its intervals; of several each is a benchmark,
    named at its end."""
    grid, panels = _wrapped(len(drawn), height=1.7)
    for axes, one in zip(panels, drawn, strict=True):
        axes.axhline(one.even, color=_COLOURS["pool"], lw=1, ls="--")
        for name, points in one.lines.items():
            at = [100 * point.share for point in points]
            axes.plot(at, [p.value for p in points], "o-", color=_COLOURS["chosen"], lw=1, ms=3)
            if len(one.lines) > 1:
                axes.annotate(f" {name[:16]}", (at[-1], points[-1].value), fontsize=4)
                continue
            for point in points:
                if point.low is not None and point.high is not None:
                    ends = [point.low, point.high]
                    axes.plot([100 * point.share] * 2, ends, color=_COLOURS["chosen"], lw=0.8)
        axes.set_title(one.title[:48], fontsize=6, color=_INK)
        axes.set_xlim(0, 105)
    _save(grid, path)


def _courses(manifest: Manifest) -> list[Course]:
    """What a manifest says of models along their trainings."""
    return courses(
        CheckpointFigure(
            model=one.model,
            language=one.language,
            name=one.evaluation if one.metric.endswith(" delta") else "win rate",
            value=one.value,
            low=one.ci_low,
            high=one.ci_high,
            against=one.against,
            by=one.by,
            even=0.0 if one.metric.endswith(" delta") else 50.0,
        )
        for one in tidy([manifest])
        if one.value is not None and (one.metric.endswith(" delta") or one.metric == "win_rate")
    )


def _cells(deltas: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, Any], Mapping[str, Any]]:
    """Deltas by (language, model) and (task, which of its benchmarks): those that there are."""
    found: dict[tuple[Any, Any], Mapping[str, Any]] = {}
    counts: dict[tuple[Any, ...], int] = {}
    for delta in deltas:
        if delta["delta"] is None:
            continue
        row = (delta["language"], delta["model"])
        number = counts[row, delta["task"]] = counts.get((row, delta["task"]), -1) + 1
        found[row, (delta["task"], number)] = delta
    return found


def _logged(manifest: Manifest) -> list[Mapping[str, float]]:
    return [entry for entry in manifest.stats.get("curve", []) if "loss" in entry]


def _rewards(manifest: Manifest) -> dict[str, Mapping[str, Any]]:
    """The histograms of a score manifest, of languages that have any reward."""
    found = manifest.stats.get("by_language", {}) if manifest.stage == "score" else {}
    return {
        name: figures["rewards"]
        for name, figures in found.items()
        if figures.get("rewards", {}).get("edges")
    }


def draw_anatomy(path: Path, slices: Mapping[str, tuple[Mapping[str, Any], Rows]]) -> None:
    """One row a slice: scores of the pool and of both sides, margins, lengths, what became of
    the prompts, and for a cross-lingual pool which languages met. `slices` are figures of
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
        _bars(panels["scores"], figures["scores"])
        if "margins" in panels:
            _bars(panels["margins"], figures.get("margins", {"edges": []}))
        _bars(panels["tokens of an answer"], figures["tokens"])
        _fates(panels["prompts"], rows)
        if mixed:
            _languages(axes[-1], mixed.get(name, {}).get("languages", []))
    _save(grid, path)


def draw_comparison(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Strategies side by side, summed over slices: pairs, mean margin, mean tokens of both sides,
    share across languages and overlap with the first. `rows` are compare.totals'."""
    panels = {
        "pairs": ("rows",),
        "mean margin": ("mean_margin",),
        "tokens: chosen, rejected": ("chosen_tokens", "rejected_tokens"),
        "share across languages": ("cross",),
        "overlap with the first": ("overlap",),
    }
    names = [row["strategy"] for row in rows]
    grid = _grid(1, list(panels), [""], height=0.8 + 0.3 * len(rows), left=1.6)
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
    left: float = 0.5,
    width: float = 2.6,
) -> Any:
    """Axes, placed by hand in inches: matplotlib's own layouts take seconds. `width` is of one
    column."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide, high = left + width * len(columns), 0.3 + height * rows
    figure = Figure(figsize=(wide, high))
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        rows,
        len(columns),
        squeeze=False,
        gridspec_kw={
            "left": left / wide,
            "right": 1 - 0.1 / wide,
            "bottom": 0.25 / high,
            "top": 1 - 0.3 / high,
            "wspace": 0.28,
            "hspace": 0.3,
        },
    )
    for axes, name in zip(grid, names, strict=True):
        axes[0].set_ylabel(name, color=_INK)
        for one in axes:
            one.tick_params(labelsize=6, colors=_INK)
            one.spines[["top", "right"]].set_visible(False)
    for one, title in zip(grid[0], columns, strict=True):
        one.set_title(title, fontsize=8, color=_INK)
    return grid


def _wrapped(count: int, height: float = 1.5) -> tuple[Any, list[Axes]]:
    """So many axes, four in a row, and what they are on; places that are left over are empty."""
    rows = -(-count // _ACROSS)
    grid = _grid(rows, [""] * min(_ACROSS, count), [""] * rows, height=height)
    panels = [axes for line in grid for axes in line]
    for axes in panels[count:]:
        axes.set_axis_off()
    return grid, panels[:count]


def _save(grid: Any, path: Path) -> None:
    grid[0][0].figure.savefig(path, format="png", dpi=90, metadata={"Software": None})


def _bars(axes: Axes, bins: Mapping[str, Any]) -> None:
    """Histograms over each other, each as shares of itself."""
    axes.set_yticks([])
    edges = bins["edges"]
    for name, counts in bins.items():
        if name == "edges" or not sum(counts):
            continue
        shares = [count / sum(counts) for count in counts]
        axes.stairs(shares, edges, fill=name == "pool", color=_COLOURS[name], label=name)
    if len(bins) > 2 and edges:
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

"""A board of all collections: models by languages, with win rates and differences of benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlencode

from factory.artifacts import checkpoints
from factory.artifacts.manifest import Manifest
from factory.pages.visit import Version
from factory.reports import formatting
from factory.reports.benchmarks import deltas
from factory.reports.page import charts
from factory.reports.win_rates import win_rates

_SCORE = ("model", "dataset", "metric", "value", "ci_low", "ci_high")  # columns of a benchmark


@dataclass(frozen=True)
class Cell:
    """A number with its interval, what it says, and where its rows can be read, if they can."""

    value: str
    interval: str
    says: str
    link: str


@dataclass
class BoardRow:
    """A model of a recipe under one judge or on one benchmark, with a cell for each language."""

    recipe: str
    model: str
    against: str
    by: str
    cells: dict[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True)
class Board:
    """Both tables with their columns."""

    rates: list[BoardRow]
    benchmarks: list[BoardRow]

    def languages(self, rows: list[BoardRow]) -> list[str]:
        """Return the languages of a table, all together first."""
        codes = dict.fromkeys(code for row in rows for code in row.cells)
        return sorted(codes, key=lambda code: (code != "all", code))


def board(versions: Iterable[Version]) -> Board:
    """Return the board of these artifacts."""
    rates: dict[tuple[str, ...], BoardRow] = {}
    benchmarks: dict[tuple[str, ...], BoardRow] = {}
    for version in versions:
        manifest = version.manifest
        if manifest is None:
            continue
        for row in win_rates(manifest) if manifest.kind == "verdicts" else ():
            if checkpoints.split_label(row.model)[1] != 1:
                continue  # of a training that was not over
            key = (manifest.recipe, row.model, row.reference, str(manifest.stats.get("judge")))
            cells = rates.setdefault(key, BoardRow(*key)).cells
            rate = row.overall
            where = _slice(manifest, row.language, row.model)
            cells[row.language] = Cell(
                formatting.points(rate.rate),
                _interval(rate.low, rate.high, 0),
                charts.outcome(row),
                f"{version.link('read')}?{urlencode({'slice': where})}" if where else "",
            )
        for delta in deltas(manifest) if manifest.kind == "results" else ():
            key = (
                manifest.recipe,
                delta.model,
                delta.reference,
                f"{delta.dataset}, {delta.metric}",
            )
            cells = benchmarks.setdefault(key, BoardRow(*key)).cells
            where = _slice(manifest, delta.language, delta.model)
            rows = {"table": where, "search": delta.dataset, "column": _SCORE}
            cells[delta.language] = Cell(
                formatting.MISSING if delta.change is None else formatting.gain(delta.change),
                _interval(delta.low, delta.high, 1),
                charts.heat(delta),
                f"{version.link('viewer')}?{urlencode(rows, doseq=True)}" if where else "",
            )
    return Board(list(rates.values()), list(benchmarks.values()))


def _slice(manifest: Manifest, language: str, model: str) -> str:
    """Return the slice of a model in a language, or of the language; empty for neither: a number
    over all languages has none."""
    names = (f"{language}/{model}", language)
    return next((name for name in names if name in manifest.slices), "")


def _interval(low: float | None, high: float | None, digits: int) -> str:
    if low is None or high is None:
        return ""
    return formatting.signed(f"{low:.{digits}f} to {high:.{digits}f}")

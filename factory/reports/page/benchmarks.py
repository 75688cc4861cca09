"""Benchmark scores of tuned models less those of their bases, from manifests. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from factory.artifacts.manifest import Manifest
from factory.reports.page import formatting


@dataclass(frozen=True)
class Delta:
    """A benchmark in one language: the scores of both models and how far the tuned one is from its
    base, with an interval. `significant` is None, and `why` says so, where it cannot be told."""

    language: str
    benchmark: str
    task: str
    metric: str
    base: float | None
    tuned: float | None
    change: float | None
    low: float | None
    high: float | None
    significant: bool | None
    why: str
    fewer: bool  # whether less of its metric is better

    @property
    def better(self) -> bool:
        """Whether the tuned model is the better one, as far as chance lets one say."""
        return (
            bool(self.significant) and self.change is not None and (self.change > 0) != self.fewer
        )

    @property
    def told(self) -> str:
        """All of it in a sentence."""
        before, after = formatting.figure(self.base), formatting.figure(self.tuned)
        found = f"{self.benchmark}, {self.metric}: {before} before, {after} after"
        if self.low is not None and self.high is not None:
            found += f", difference [{formatting.gain(self.low)}, {formatting.gain(self.high)}]"
        found += ", less is better" if self.fewer else ""
        return f"{found}; {self.why}" if self.why else found


@dataclass(frozen=True)
class Benchmarks:
    """Benchmark scores of one model less those of another. `without` are languages that have no
    benchmarks, `missing` what was asked for and has no score, with the reason."""

    step: str
    model: str
    reference: str
    made: str
    deltas: tuple[Delta, ...]
    without: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def languages(self) -> list[str]:
        """Lines of the table."""
        return list(dict.fromkeys(one.language for one in self.deltas))

    @property
    def tasks(self) -> list[str]:
        """Columns of the table: a task has a benchmark of its own in each language."""
        return list(dict.fromkeys(one.task for one in self.deltas))

    def at(self, language: str, task: str) -> list[Delta]:
        """The benchmarks of a task in a language."""
        return [one for one in self.deltas if (one.language, one.task) == (language, task)]


def benchmarks(manifests: Iterable[Manifest]) -> list[Benchmarks]:
    """Benchmark scores of every model that has a base to be set beside."""
    found = []
    for manifest in manifests:
        if manifest.kind != "results":
            continue
        stats = manifest.stats
        fewer = {
            _named(row)
            for row in formatting.tables(stats.get("scores"))
            if row.get("lower_is_better") is True
        }
        by_model: dict[tuple[str, str], list[Delta]] = {}
        for row in formatting.tables(stats.get("deltas")):
            key = (str(row.get("model")), str(row.get("reference")))
            by_model.setdefault(key, []).append(_delta(row, _named(row) in fewer))
        made = [f"EuroEval {stats['tool_version']}" if "tool_version" in stats else "EuroEval"]
        made += [str(stats[key]) for key in ("backend", "split") if key in stats]
        missing = [
            f"{row.get('dataset')} of {row.get('slice')}: {row.get('why')}"
            for row in formatting.tables(stats.get("missing"))
        ]
        missing += [
            f"{row.get('dataset')} in {row.get('language')}: it needs "
            f"{' and '.join(formatting.texts(row.get('metrics')))}, not here"
            for row in formatting.tables(stats.get("left_out"))
        ]
        found += [
            Benchmarks(
                step=manifest.step,
                model=model,
                reference=reference,
                made=", ".join(made),
                deltas=tuple(deltas),
                without=formatting.texts(stats.get("without_suite")),
                missing=tuple(missing),
            )
            for (model, reference), deltas in by_model.items()
        ]
    return found


def _named(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(row.get("dataset")), str(row.get("metric"))


def _delta(row: Mapping[str, Any], fewer: bool) -> Delta:
    significant = row.get("significant")
    return Delta(
        language=str(row.get("language")),
        benchmark=str(row.get("dataset")),
        task=str(row.get("task") or row.get("dataset")),
        metric=str(row.get("metric")),
        base=formatting.real(row.get("reference_value")),
        tuned=formatting.real(row.get("value")),
        change=formatting.real(row.get("delta")),
        low=formatting.real(row.get("low")),
        high=formatting.real(row.get("high")),
        significant=significant if isinstance(significant, bool) else None,
        why=str(row.get("why") or ""),
        fewer=fewer,
    )

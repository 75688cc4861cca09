"""Benchmark scores, read from the manifests of results: for cards, page and table. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from factory.artifacts.manifest import Manifest
from factory.reports import values

# The Hub's names of metrics, where EuroEval has others.
_METRICS = {
    "mcc": "matthews_correlation", "macro_f1": "f1", "micro_f1": "f1", "micro_f1_no_misc": "f1",
    "em": "exact_match", "chr_f3pp": "chrf", "chr_f4pp": "chrf",
}  # fmt: skip


@dataclass(frozen=True)
class BenchmarkScore:
    """Score of one model on one benchmark, on the scale of its metric, with EuroEval's interval.
    `value` is None where there is none: `status` says why."""

    model: str
    language: str
    dataset: str
    metric: str
    task: str
    source: str
    split: str
    backend: str
    version: str
    status: str
    value: float | None
    low: float | None
    high: float | None
    iterations: int
    few_shot: bool


@dataclass(frozen=True)
class Delta:
    """Score of a model minus that of its reference on one benchmark, with a 95 % interval.
    `significant` is None where the two cannot be compared: `why` says so."""

    model: str
    reference: str
    language: str
    dataset: str
    metric: str
    task: str
    why: str
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    significant: bool | None
    lower_is_better: bool

    @property
    def better(self) -> bool:
        """Whether the model is significantly better than its reference."""
        gained = self.change is not None and (self.change > 0) != self.lower_is_better
        return bool(self.significant) and gained


@dataclass(frozen=True)
class BenchmarkedModel:
    """All deltas of one model to its reference. `settings` name EuroEval's version, backend and
    split, `without` the languages without benchmarks, `missing` each score that is not there with
    its reason."""

    step: str
    model: str
    reference: str
    settings: str
    deltas: tuple[Delta, ...]
    without: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def languages(self) -> list[str]:
        """Lines of the table."""
        return list(dict.fromkeys(delta.language for delta in self.deltas))

    @property
    def tasks(self) -> list[str]:
        """Columns of the table: a task has a benchmark of its own in each language."""
        return list(dict.fromkeys(delta.task for delta in self.deltas))

    def at(self, language: str, task: str) -> list[Delta]:
        """Return the benchmarks of a task in a language."""
        return [delta for delta in self.deltas if (delta.language, delta.task) == (language, task)]


@dataclass(frozen=True)
class BenchmarkResult:
    """A score of one published model with its delta; the results are `repo` at `tag`."""

    score: BenchmarkScore
    delta: Delta
    repo: str
    tag: str

    @property
    def contest(self) -> tuple[str, str, str, str]:
        """What the rows of one table share: the artifact of results, settings and reference."""
        score = self.score
        settings = (
            f"EuroEval {score.version}, {score.split}, {score.iterations} iterations, "
            f"{'few' if score.few_shot else 'zero'}-shot, {score.backend}"
        )
        return self.repo, self.tag, settings, self.delta.reference


def scores(manifest: Manifest) -> list[BenchmarkScore]:
    """Read the scores of one artifact of results, in their order."""
    return [
        BenchmarkScore(
            **_texts(row, "model", "language", "dataset", "metric", "task", "source", "split",
                     "backend", "status"),
            version=str(row.get("tool_version")),
            value=values.number(row.get("value")),
            low=values.number(row.get("ci_low")),
            high=values.number(row.get("ci_high")),
            iterations=values.integer(row.get("n_iterations")),
            few_shot=row.get("few_shot") is True,
        )
        for row in values.mappings(manifest.stats.get("scores"))
    ]  # fmt: skip


def deltas(manifest: Manifest) -> list[Delta]:
    """Read the deltas of one artifact of results, in their order."""
    inverted = {
        (row.get("dataset"), row.get("metric"))
        for row in values.mappings(manifest.stats.get("scores"))
        if row.get("lower_is_better") is True
    }
    return [
        Delta(
            **_texts(row, "model", "reference", "language", "dataset", "metric"),
            task=str(row.get("task") or row.get("dataset")),
            why=str(row.get("why") or ""),
            before=values.number(row.get("reference_value")),
            after=values.number(row.get("value")),
            change=values.number(row.get("delta")),
            low=values.number(row.get("low")),
            high=values.number(row.get("high")),
            significant=flag if isinstance(flag := row.get("significant"), bool) else None,
            lower_is_better=(row.get("dataset"), row.get("metric")) in inverted,
        )
        for row in values.mappings(manifest.stats.get("deltas"))
    ]


def benchmarked_models(manifests: Iterable[Manifest]) -> list[BenchmarkedModel]:
    """Read every model that was benchmarked beside its reference."""
    models = []
    for manifest in manifests:
        if manifest.kind != "results":
            continue
        stats = manifest.stats
        by_model: dict[tuple[str, str], list[Delta]] = {}
        for delta in deltas(manifest):
            by_model.setdefault((delta.model, delta.reference), []).append(delta)
        settings = [f"EuroEval {stats['tool_version']}" if "tool_version" in stats else "EuroEval"]
        settings += [str(stats[key]) for key in ("backend", "split") if key in stats]
        models += [
            BenchmarkedModel(
                step=manifest.step,
                model=model,
                reference=reference,
                settings=", ".join(settings),
                deltas=tuple(rows),
                without=values.texts(stats.get("without_suite")),
                missing=tuple(_missing(manifest)),
            )
            for (model, reference), rows in by_model.items()
        ]
    return models


def benchmark_results(model: Manifest, manifests: Iterable[Manifest]) -> list[BenchmarkResult]:
    """Return the scores of `model` in the results among `manifests`.

    Models are matched by the digests of the weights that were evaluated: scores of another draw
    of the same recipe do not count."""
    digests = {record.digest for record in model.slices.values()}
    rows: list[BenchmarkResult] = []
    for results in manifests:
        names = {
            name
            for name, record in results.slices.items()
            if results.kind == "results"
            and any(
                source.role == "adapter" and source.digest in digests for source in record.inputs
            )
        }
        by_key = {(d.model, d.language, d.dataset, d.metric): d for d in deltas(results)}
        for score in scores(results):
            delta = by_key.get((score.model, score.language, score.dataset, score.metric))
            if f"{score.language}/{score.model}" not in names or delta is None:
                continue  # another model's, or a second metric of the same answers
            if score.value is not None:
                rows.append(BenchmarkResult(score, delta, results.repo, results.tag))
    return rows


def index_entry(row: BenchmarkResult) -> dict[str, Any]:
    """Return a result as an entry of the Hub's `model-index`."""
    score, delta = row.score, row.delta
    figures = {
        "low": _round(score.low),
        "high": _round(score.high),
        "iterations": score.iterations,
        "few_shot": score.few_shot,
        "backend": score.backend,
        "delta": _round(delta.change),
        "delta_low": _round(delta.low),
        "delta_high": _round(delta.high),
    }
    metric = {
        "type": _METRICS.get(score.metric, score.metric),
        "name": f"{score.metric}, mean of {score.iterations}, EuroEval {score.version}",
        "value": _round(score.value),
        "args": {key: value for key, value in figures.items() if value is not None},
    }
    entry: dict[str, Any] = {
        "task": {"type": "text-generation", "name": score.task},
        "dataset": {
            "name": score.dataset,
            "type": score.source,
            "config": score.language,
            "split": score.split,
        },
        "metrics": [metric],
    }
    if origin := _origin(row):
        entry["source"] = origin
    return entry


def eval_results(rows: Iterable[BenchmarkResult]) -> str | None:
    """Return results as a file of the Hub's `.eval_results/`, None where there are none. Those
    whose data is no dataset of a hub are left out: the form wants its name."""
    entries = [
        {
            "dataset": {"id": row.score.source.partition("@")[0], "task_id": row.score.dataset},
            "value": _round(row.score.value),
            **({"source": origin} if (origin := _origin(row)) else {}),
            "notes": f"{row.score.metric}, {row.score.language}, {row.contest[2]}",
        }
        for row in rows
        if row.score.source.count("/") == 1
    ]
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True) if entries else None


def _origin(row: BenchmarkResult) -> dict[str, str]:
    """Return where the records of a result lie; nothing for a repo that no public hub has."""
    if row.repo.startswith("local/"):
        return {}
    url = f"https://huggingface.co/datasets/{row.repo}/tree/{row.tag}"
    return {"name": "EuroEval", "url": url}


def _missing(manifest: Manifest) -> list[str]:
    """List scores that were asked for and are not there, each with its reason."""
    absent = [
        f"{row.get('dataset')} of {row.get('slice')}: {row.get('why')}"
        for row in values.mappings(manifest.stats.get("missing"))
    ]
    return absent + [
        f"{row.get('dataset')} in {row.get('language')}: it needs "
        f"{' and '.join(values.texts(row.get('metrics')))}, not here"
        for row in values.mappings(manifest.stats.get("left_out"))
    ]


def _texts(row: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: str(row.get(key)) for key in keys}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)

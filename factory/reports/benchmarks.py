"""What benchmarks found of a model, gathered from the manifests of its collection. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from factory.artifacts.manifest import Manifest

# The Hub's words for a metric, where EuroEval has others.
_METRICS = {
    "mcc": "matthews_correlation", "macro_f1": "f1", "micro_f1": "f1", "micro_f1_no_misc": "f1",
    "em": "exact_match", "chr_f3pp": "chrf", "chr_f4pp": "chrf",
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One benchmark of a model: its score with EuroEval's interval, the delta to the reference
    with its own (None where there is none: `why` says what stands against it), all on the scale
    of the metric. `scored` is the repo, at its tag, of the results."""

    language: str
    dataset: str
    task: str
    metric: str
    source: str
    split: str
    value: float
    low: float | None
    high: float | None
    iterations: int
    few_shot: bool
    backend: str
    version: str
    reference: str
    delta: float | None
    delta_low: float | None
    delta_high: float | None
    significant: bool | None
    why: str
    scored: tuple[str, str]


def measured(model: Manifest, others: Iterable[Manifest]) -> list[Measured]:
    """What the evaluations among `others` found of `model`, by the content that was really
    evaluated: scores of another draw of the same recipe are none of this."""
    mine = {record.digest for record in model.slices.values()}
    found: list[Measured] = []
    for results in others:
        names = {
            name
            for name, record in results.slices.items()
            if results.kind == "results"
            and any(read.role == "adapter" and read.digest in mine for read in record.inputs)
        }
        deltas = {
            (d["model"], d["language"], d["dataset"], d["metric"]): d
            for d in results.stats.get("deltas", [])
        }
        for score in results.stats.get("scores", []):
            key = tuple(score[part] for part in ("model", "language", "dataset", "metric"))
            if f"{score['language']}/{score['model']}" not in names or key not in deltas:
                continue  # another model's, or a second metric of the same answers
            if score["value"] is not None:
                found.append(_measured(results, score, deltas[key]))
    return found


def result(one: Measured) -> dict[str, Any]:
    """It as an entry of the Hub's `model-index`."""
    more = {
        "low": _round(one.low),
        "high": _round(one.high),
        "iterations": one.iterations,
        "few_shot": one.few_shot,
        "backend": one.backend,
        "delta": _round(one.delta),
        "delta_low": _round(one.delta_low),
        "delta_high": _round(one.delta_high),
    }
    metric = {
        "type": _METRICS.get(one.metric, one.metric),
        "name": f"{one.metric}, mean of {one.iterations}, EuroEval {one.version}",
        "value": round(one.value, 2),
        "args": {key: value for key, value in more.items() if value is not None},
    }
    entry: dict[str, Any] = {
        "task": {"type": "text-generation", "name": one.task},
        "dataset": {
            "name": one.dataset,
            "type": one.source,
            "config": one.language,
            "split": one.split,
        },
        "metrics": [metric],
    }
    repo, tag = one.scored
    if not repo.startswith("local/"):  # which no public hub has
        url = f"https://huggingface.co/datasets/{repo}/tree/{tag}"
        entry["source"] = {"name": "EuroEval", "url": url}
    return entry


def _measured(results: Manifest, score: dict[str, Any], delta: dict[str, Any]) -> Measured:
    return Measured(
        **{key: score[key] for key in ("language", "dataset", "task", "metric", "source", "split",
                                       "value", "few_shot", "backend")},
        low=score["ci_low"],
        high=score["ci_high"],
        iterations=score["n_iterations"],
        version=score["tool_version"],
        reference=delta["reference"],
        delta=delta["delta"],
        delta_low=delta["low"],
        delta_high=delta["high"],
        significant=delta["significant"],
        why=delta["why"],
        scored=(results.repo, results.tag),
    )  # fmt: skip


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)

"""Records that EuroEval writes of a run, and the rows of `results` in them. Pure.

One line of JSON for each benchmark, in the form called Every Eval Ever 0.2.1. Numbers among its
details are strings, scores of single iterations a JSON text, 0 to 1 where the score is 0 to 100.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from factory.errors import redact
from factory.evaluation.euroeval.suites import Benchmark

Record = dict[str, Any]

# Rows of a benchmark without a record, where a recipe keeps these.
NO_RECORD = "no_record"


def read(text: str) -> dict[str, Record]:
    """Return the last complete record of each benchmark in a results file. Blank and half-written
    lines are passed over: the last line of a run that was killed may be one."""
    by_benchmark: dict[str, Record] = {}
    for line in text.splitlines():
        try:
            record = json.loads(line)
            name = record["eval_library"]["additional_details"]["dataset"]
        except (ValueError, KeyError, TypeError):
            continue
        by_benchmark[str(name)] = record
    return by_benchmark


def cleaned(record: Record, model: str, paths: Iterable[str]) -> Record:
    """Return the record as it may be published: the model by its name, no path of a machine."""
    longest = sorted(paths, key=len, reverse=True)

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            for path in longest:
                value = value.replace(path, ".")
            return redact(value)
        if isinstance(value, Mapping):
            return {key: clean(item) for key, item in value.items()}
        return [clean(item) for item in value] if isinstance(value, list) else value

    published: Record = clean(record)
    published["model_info"] = {**published["model_info"], "name": model, "id": model}
    return published


def rows(record: Record | None, benchmark: Benchmark, common: Mapping[str, Any]) -> list[Any]:
    """Return the rows of `results` of one benchmark, one for each of its metrics; `common` is what
    they share. A score that is not there, or not finite, is null with a `status` that says why."""
    results = []
    raw = _raw(record) if record else []
    scored = {
        item["evaluation_name"].removeprefix("test_"): item
        for item in (record or {}).get("evaluation_results", [])
    }
    for place, metric in enumerate(benchmark.metrics):
        item = scored.get(metric, {})
        details = item.get("score_details", {})
        value = number(details.get("score"))
        interval = details.get("uncertainty", {}).get("confidence_interval", {})
        status = "ok" if value is not None else "not_finite" if item else "no_score"
        results.append(
            {
                **common,
                "dataset": benchmark.name,
                "task": benchmark.task,
                "metric": metric,
                "primary": place == 0,
                "value": value,
                "ci_low": number(interval.get("lower")),
                "ci_high": number(interval.get("upper")),
                "n_iterations": len(raw),
                "values": _values(raw, metric, value),
                "failed": _count(details.get("details", {}).get("num_failed_instances")),
                "lower_is_better": item.get("metric_config", {}).get("lower_is_better"),
                "status": status if record else NO_RECORD,
            }
        )
    return results


def number(text: Any) -> float | None:
    """Read a number that may have come as text; None for what is none, or not finite."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _count(text: Any) -> int | None:
    value = number(text)
    return None if value is None else round(value)


def _raw(record: Record) -> list[dict[str, Any]]:
    """Return the scores of each iteration."""
    raw = record["eval_library"]["additional_details"].get("raw_results")
    try:
        iterations = json.loads(raw) if isinstance(raw, str) else raw
    except ValueError:
        return []
    return (
        [scores for scores in iterations if isinstance(scores, dict)]
        if isinstance(iterations, list)
        else []
    )


def _values(raw: list[dict[str, Any]], metric: str, value: float | None) -> list[float] | None:
    """Return the score of each iteration, on the scale of `value`; None where one has none. Which
    scale that is shows in their mean."""
    scores = [number(score.get(metric, score.get(f"test_{metric}"))) for score in raw]
    if not scores or value is None or any(score is None for score in scores):
        return None
    each = [score for score in scores if score is not None]
    mean = sum(each) / len(each)
    for scale in (1.0, 100.0):
        if math.isclose(mean * scale, value, rel_tol=1e-6, abs_tol=1e-6):
            return [score * scale for score in each]
    return None

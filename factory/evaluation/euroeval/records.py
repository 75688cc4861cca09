"""What EuroEval writes down of a run: its records, and the rows of `results` in them. Pure.

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
    """The last whole record of each benchmark in a results file. Blank and half-written lines
    are passed over: the last line of a run that was killed may be one."""
    found: dict[str, Record] = {}
    for line in text.splitlines():
        try:
            record = json.loads(line)
            name = record["eval_library"]["additional_details"]["dataset"]
        except (ValueError, KeyError, TypeError):
            continue
        found[str(name)] = record
    return found


def cleaned(record: Record, model: str, paths: Iterable[str]) -> Record:
    """The record as it may be published: the model by its name, no path of a machine."""
    longest = sorted(paths, key=len, reverse=True)

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            for path in longest:
                value = value.replace(path, ".")
            return redact(value)
        if isinstance(value, Mapping):
            return {key: clean(item) for key, item in value.items()}
        return [clean(item) for item in value] if isinstance(value, list) else value

    found: Record = clean(record)
    found["model_info"] = {**found["model_info"], "name": model, "id": model}
    return found


def rows(record: Record | None, benchmark: Benchmark, common: Mapping[str, Any]) -> list[Any]:
    """The rows of `results` of one benchmark, one for each of its metrics; `common` is what they
    share. A score that is not there, or not finite, is null with a `status` that says why."""
    found = []
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
        found.append(
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
    return found


def number(said: Any) -> float | None:
    """A number that may have come as text; None for what is none, or not finite."""
    try:
        value = float(said)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _count(said: Any) -> int | None:
    value = number(said)
    return None if value is None else round(value)


def _raw(record: Record) -> list[dict[str, Any]]:
    """What each iteration gave."""
    said = record["eval_library"]["additional_details"].get("raw_results")
    try:
        found = json.loads(said) if isinstance(said, str) else said
    except ValueError:
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _values(raw: list[dict[str, Any]], metric: str, value: float | None) -> list[float] | None:
    """The score of each iteration, on the scale of `value`; None where one has none. Which scale
    that is shows in their mean."""
    found = [number(one.get(metric, one.get(f"test_{metric}"))) for one in raw]
    if not found or value is None or any(one is None for one in found):
        return None
    each = [one for one in found if one is not None]
    mean = sum(each) / len(each)
    for scale in (1.0, 100.0):
        if math.isclose(mean * scale, value, rel_tol=1e-6, abs_tol=1e-6):
            return [one * scale for one in each]
    return None

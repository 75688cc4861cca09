"""Tuned minus base, benchmark by benchmark. Pure.

EuroEval draws the rows of every iteration by one seed, so iteration i of two models is asked the
same rows after the same examples: iterations are pairs. Over them the standard deviation of the
differences, s, is the bootstrap's standard error of a delta (Efron and Tibshirani 1993, chapter 6).
The mean of n of them is off by s / sqrt(n) besides, so the interval is delta +- t(0.975, n - 1) s
sqrt(1 + 1/n). EuroEval's own intervals of single scores have s / sqrt(n) alone: they say how far
the mean of its iterations is known, not how far another test set would move it, and get as narrow
as one has patience for iterations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from factory.evaluation.euroeval.suites import Benchmark

# 97.5 % points of Student's t by degrees of freedom; above 30 the normal's is near enough.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
      2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
      2.052, 2.048, 2.045, 2.042)  # fmt: skip
_ALIKE = ("backend", "tool_version", "split", "few_shot", "n_iterations", "source_digest")


def deltas(
    rows: Iterable[Mapping[str, Any]], reference: str, benchmarks: Mapping[str, Benchmark]
) -> list[dict[str, Any]]:
    """Compare every model but `reference`: its first metric of each benchmark minus the reference's
    in the same language. A row that has nothing to be compared with, or was measured in another
    way, has a null delta and `why`; one without an interval, a null `significant` and `why`."""
    every = [row for row in rows if row["primary"]]
    base = {(r["language"], r["dataset"]): r for r in every if r["model"] == reference}
    return [
        _delta(row, base.get((row["language"], row["dataset"])), reference, benchmarks)
        for row in every
        if row["model"] != reference
    ]


def _delta(
    row: Mapping[str, Any],
    other: Mapping[str, Any] | None,
    reference: str,
    benchmarks: Mapping[str, Benchmark],
) -> dict[str, Any]:
    delta: dict[str, Any] = {
        **{key: row[key] for key in ("model", "language", "dataset", "task", "metric", "value")},
        "reference": reference,
        "reference_value": other["value"] if other else None,
        "delta": None,
        "low": None,
        "high": None,
        "significant": None,
        "why": "",
    }
    if other is None:
        return delta | {"why": f"{reference} was not evaluated on it"}
    if unlike := [key for key in _ALIKE if row[key] != other[key]]:
        return delta | {"why": f"not comparable: {unlike[0]} differs"}
    if row["value"] is None or other["value"] is None:
        return delta | {"why": row["status"] if row["value"] is None else other["status"]}
    delta["delta"] = row["value"] - other["value"]
    ours, theirs = row["values"], other["values"]
    if not benchmarks[row["dataset"]].drawn_anew:
        return delta | {"why": "every iteration has the same rows"}
    if ours is None or theirs is None or len(ours) != len(theirs) or len(ours) < 2:
        return delta | {"why": "two iterations or more are needed"}
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if max(differences) == min(differences) != 0:  # no spread to tell chance by
        return delta | {"why": "every iteration differs by the same"}
    low, high = interval(differences)
    return delta | {"low": low, "high": high, "significant": low > 0 or high < 0}


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean of paired bootstrap differences, two or more."""
    count = len(differences)
    mean = math.fsum(differences) / count
    error = math.sqrt(
        math.fsum((difference - mean) ** 2 for difference in differences) / (count - 1)
    )
    point = _T[count - 2] if count - 2 < len(_T) else 1.96
    reach = point * error * math.sqrt(1 + 1 / count)
    return mean - reach, mean + reach

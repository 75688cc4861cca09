"""Finish rates: the share of answers that end by themselves, tuned model beside its reference. A
measure that no reward model has a part in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from factory.evaluation.statistics.intervals import FEWEST, LEVEL, Floats, Ints, residuals


def finish_rates(
    model: Sequence[bool], reference: Sequence[bool], questions: Sequence[str]
) -> dict[str, Any]:
    """Return both finish rates in percent, the model's less the reference's in points, and the 95 %
    interval of this difference, from paired answers: `model[i]` and `reference[i]` say whether the
    answers to comparison i ended before the token limit.

    The interval is clustered by question, with Student's t, and counts two questions more of which
    half a one went each way (Agresti and Min 2005), so it does not shrink to a point where all
    answers end alike. `shown` is a sentence for people. Raises ValueError for no comparisons.
    """
    if not len(model):
        raise ValueError("no comparisons")
    ours, theirs = np.asarray(model, dtype=float), np.asarray(reference, dtype=float)
    _, question = np.unique(np.asarray(questions), return_inverse=True)
    count = int(question.max()) + 1
    difference = 100 * float((ours - theirs).mean())
    low, high = _interval(ours - theirs, question, count)
    shown = f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"
    if count < FEWEST:
        shown = f"{difference:+.1f}, too few questions for an interval"
    elif low <= 0 <= high:
        shown += " no difference shown"
    return {
        "model": 100 * float(ours.mean()),
        "reference": 100 * float(theirs.mean()),
        "difference": difference,
        "low": low,
        "high": high,
        "answers": len(ours),
        "questions": count,
        "shown": shown,
    }


def _interval(differences: Floats, question: Ints, count: int) -> tuple[float, float]:
    """Return the interval of the mean of `differences` (-1, 0 or 1) in points."""
    from scipy.special import stdtrit

    if count < 2:
        return -100.0, 100.0
    parts = residuals(differences, question)
    shrink = count / (count + 2)
    spread = shrink**2 * count / (count - 1) * float(parts @ parts) + 1 / (count + 2) ** 2
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * spread**0.5
    middle = shrink * float(differences.mean())
    return 100 * max(-1.0, middle - half), 100 * min(1.0, middle + half)

"""Paired figures of both sides' answers: finish rates (the share of answers that end by themselves,
a measure that no reward model has a part in) and ratings by a rubric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from factory.evaluation.statistics.intervals import FEWEST, LEVEL, Floats, Ints, residuals


def finish_rates(
    model: Sequence[bool], reference: Sequence[bool], questions: Sequence[str]
) -> dict[str, Any]:
    """Return the finish rates as `paired` does, in percent: `model[i]` and `reference[i]` say
    whether the answers to comparison i ended before the token limit."""
    ours, theirs = (100 * np.asarray(side, dtype=float) for side in (model, reference))
    return paired(ours, theirs, questions, 100.0)


def paired(
    ours: Sequence[float] | Floats,
    theirs: Sequence[float] | Floats,
    questions: Sequence[str],
    span: float,
) -> dict[str, Any]:
    """Return the mean of the model's values and of the reference's, the difference of these, and
    its 95 % interval. `span` is the largest difference that two values may have.

    The interval is clustered by question, with Student's t, and counts two questions more, of which
    half a one went each way by the whole span (Agresti and Min 2005). So it does not shrink to a
    point where all values are alike. `shown` is a sentence for people. Raises ValueError for no
    comparisons.
    """
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    if not len(ours):
        raise ValueError("no comparisons")
    _, question = np.unique(np.asarray(questions), return_inverse=True)
    count = int(question.max()) + 1
    difference = float((ours - theirs).mean())
    low, high = (span * end for end in _interval((ours - theirs) / span, question, count))
    digits = 1 if span >= 100 else 2
    shown = f"{difference:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    if count < FEWEST:
        shown = f"{difference:+.{digits}f}, too few questions for an interval"
    elif low <= 0 <= high:
        shown += " no difference shown"
    return {
        "model": float(ours.mean()),
        "reference": float(theirs.mean()),
        "difference": difference,
        "low": low,
        "high": high,
        "answers": len(ours),
        "questions": count,
        "shown": shown,
    }


def _interval(differences: Floats, question: Ints, count: int) -> tuple[float, float]:
    """Return the interval of the mean of `differences` (-1 to 1)."""
    from scipy.special import stdtrit

    if count < 2:
        return -1.0, 1.0
    parts = residuals(differences, question)
    shrink = count / (count + 2)
    spread = shrink**2 * count / (count - 1) * float(parts @ parts) + 1 / (count + 2) ** 2
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * spread**0.5
    middle = shrink * float(differences.mean())
    return max(-1.0, middle - half), min(1.0, middle + half)

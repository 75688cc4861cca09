"""Paired figures of both sides' answers: finish rates (the share of answers that end by themselves,
a measure that no reward model has a part in) and ratings by a rubric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from factory.evaluation.statistics.intervals import FEWEST, Floats
from factory.evaluation.statistics.rates import win_rate


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

    Half the difference of a comparison, as a share of the span, is its distance from a tie: the
    mean difference is the win rate's distance from one half. So the interval is paired, is
    clustered by question, and stays wide where few questions were asked. `shown` is a sentence
    for people. Raises ValueError for no comparisons.
    """
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    rate = win_rate(((ours - theirs) / span + 1) / 2, questions)
    difference, low, high = (span * (v / 50 - 1) for v in (rate.rate, rate.low, rate.high))
    digits = 1 if span >= 100 else 2
    shown = f"{difference:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    if rate.questions < FEWEST:
        shown = f"{difference:+.{digits}f}, too few questions for an interval"
    elif low <= 0 <= high:
        shown += " no difference shown"
    return {
        "model": float(ours.mean()),
        "reference": float(theirs.mean()),
        "difference": difference,
        "low": low,
        "high": high,
        "answers": rate.comparisons,
        "questions": rate.questions,
        "shown": shown,
    }

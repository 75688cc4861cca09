"""Finish rates: the share of answers that end by themselves, tuned model beside its reference. A
measure that no reward model has a part in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from factory.evaluation.statistics.intervals import FEWEST
from factory.evaluation.statistics.rates import win_rate


def finish_rates(
    model: Sequence[bool], reference: Sequence[bool], questions: Sequence[str]
) -> dict[str, Any]:
    """Return both finish rates in percent, the model's less the reference's in points, and the 95 %
    interval of this difference, from paired answers: `model[i]` and `reference[i]` say whether the
    answers to comparison i ended before the token limit.

    A comparison that only the model finished is won, one that only the reference finished is lost
    and any other is a tie: the difference is the win rate's distance from one half, doubled. So the
    interval is paired, is clustered by question, and stays wide where few questions were asked.
    `shown` is a sentence for people. Raises ValueError for no comparisons.
    """
    ours, theirs = np.asarray(model, dtype=float), np.asarray(reference, dtype=float)
    rate = win_rate((ours - theirs + 1) / 2, questions)
    difference, low, high = (2 * (value - 50) for value in (rate.rate, rate.low, rate.high))
    shown = f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"
    if rate.questions < FEWEST:
        shown = f"{difference:+.1f}, too few questions for an interval"
    elif low <= 0 <= high:
        shown += " no difference shown"
    return {
        "model": 100 * float(ours.mean()),
        "reference": 100 * float(theirs.mean()),
        "difference": difference,
        "low": low,
        "high": high,
        "answers": rate.comparisons,
        "questions": rate.questions,
        "shown": shown,
    }

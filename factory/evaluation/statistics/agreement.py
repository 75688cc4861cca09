"""Agreement of two judges on the same answers, beyond chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from factory.evaluation.statistics.intervals import (
    RESAMPLES,
    Floats,
    Ints,
    bootstrap,
    residuals,
    score,
)

OUTCOMES = ("model", "tie", "reference")


@dataclass(frozen=True)
class Agreement:
    """Agreement on `compared` verdicts of two judges on the same answers to `questions` questions:
    the share in percent that are alike, and Cohen's kappa, (share - chance) / (1 - chance), where
    chance is how often two judges with these habits would agree about nothing; each with its 95 %
    interval, clustered by question. None without a verdict, kappa also where chance is 1: both say
    one thing always. `unread`: one or both gave none; `other_answers`: they read other texts, and
    are in no figure."""

    compared: int
    questions: int
    unread: int
    other_answers: int
    share: float | None = None
    share_low: float | None = None
    share_high: float | None = None
    kappa: float | None = None
    kappa_low: float | None = None
    kappa_high: float | None = None


def outcome(points: float | None) -> str | None:
    """Return the outcome of a question from the mean worth of its verdicts (1: the model's answer
    is better, 0: the reference's); None where there is none."""
    if points is None:
        return None
    return "tie" if points == 0.5 else "model" if points > 0.5 else "reference"


def agreement(
    first: Sequence[str | None],
    second: Sequence[str | None],
    questions: Sequence[str],
    other_answers: int = 0,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Agreement:
    """Compare the verdicts of two judges (`model`, `tie`, `reference`; None for no verdict) of the
    same comparisons, each with its question. kappa's interval is a bootstrap over questions, the
    share's as a win rate's."""
    read = [
        (OUTCOMES.index(a), OUTCOMES.index(b), question)
        for a, b, question in zip(first, second, questions, strict=True)
        if a is not None and b is not None
    ]
    unread = len(first) - len(read)
    if not read:
        return Agreement(0, 0, unread, other_answers)
    ours, theirs = (np.array([row[side] for row in read], np.int64) for side in (0, 1))
    names, cluster = np.unique([row[2] for row in read], return_inverse=True)
    alike = (ours == theirs).astype(float)
    share = float(alike.mean())
    low, high = score(share, residuals(alike, cluster))
    estimate = kappa(np.ones((1, len(read))), ours, theirs)[0]
    spread = bootstrap(lambda weights: kappa(weights, ours, theirs), cluster, seed, resamples)
    defined = bool(np.isfinite(estimate))
    return Agreement(
        compared=len(read),
        questions=len(names),
        unread=unread,
        other_answers=other_answers,
        share=100 * share,
        share_low=100 * low,
        share_high=100 * high,
        kappa=float(estimate) if defined else None,
        kappa_low=spread[0] if defined and np.isfinite(spread[0]) else None,
        kappa_high=spread[1] if defined and np.isfinite(spread[1]) else None,
    )


def kappa(weights: Floats, first: Ints, second: Ints) -> Floats:
    """Return Cohen's kappa (1960) in each sample: `weights` say how often each comparison is in it,
    sample by comparison. NaN where both judges say one and the same thing always."""
    count = len(OUTCOMES)
    table = (weights @ np.eye(count * count)[first * count + second]).reshape(-1, count, count)
    table = table / table.sum(axis=(1, 2), keepdims=True)
    alike = np.trace(table, axis1=1, axis2=2)
    chance = (table.sum(axis=2) * table.sum(axis=1)).sum(axis=1)
    rest = 1 - chance
    return np.where(rest > 1e-12, (alike - chance) / np.where(rest > 1e-12, rest, 1), np.nan)

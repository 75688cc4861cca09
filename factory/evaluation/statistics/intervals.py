"""Intervals of figures when the same questions are asked in several languages.

A question fails and succeeds in all its languages together, so it is questions that are drawn
anew in thought, with all that was said to them: clusters, and not single comparisons.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL = 0.95
RESAMPLES = 1000
FEWEST = 5  # questions; an interval over fewer is one in name only


def score(rate: float, residuals: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Return an interval for a share: Wilson's score interval at the sample size that the questions
    are worth, with Student's t.

    `residuals`: for each question its part in rate - truth, to first order (they sum to 0). Their
    spread is the variance v of the rate, with G / (G - 1) for G questions; n = rate (1 - rate) / v
    is how many independent comparisons would be as sure. Where nothing varies, v says nothing and
    n is G. Unlike a bootstrap's it does not shrink to a point when all questions end alike.
    """
    from scipy.special import stdtrit

    count = len(residuals)
    if count < 2:
        return 0.0, 1.0
    spread = count / (count - 1) * float(residuals @ residuals)
    variance = rate * (1 - rate)
    worth = variance / spread if spread > 1e-12 and variance > 1e-12 else float(count)
    squared = float(stdtrit(count - 1, (1 + level) / 2)) ** 2
    middle = (rate + squared / (2 * worth)) / (1 + squared / worth)
    half = np.sqrt(squared * (variance / worth + squared / (4 * worth**2))) / (1 + squared / worth)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def residuals(points: Floats, question: Ints, group: Ints | None = None) -> Floats:
    """Return the residuals that `score` takes for the mean of `points`, or with `group` for the
    mean over groups of each group's mean (the macro average over languages)."""
    groups = np.zeros(len(points), np.int64) if group is None else group
    size = np.bincount(groups).astype(float)
    means = np.bincount(groups, weights=points) / np.where(size > 0, size, 1)
    parts = (points - means[groups]) / size[groups] / np.count_nonzero(size)
    _, cluster = np.unique(question, return_inverse=True)
    return np.bincount(cluster, weights=parts).astype(float)


def draws(question: Ints, seed: int, resamples: int = RESAMPLES) -> tuple[Floats, Ints]:
    """Draw a bootstrap's samples of questions: how often each was drawn, by sample and question,
    and which question each comparison belongs to."""
    names, cluster = np.unique(question, return_inverse=True)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return weights.astype(float), cluster


def bootstrap(
    figure: Callable[[Floats], Floats],
    question: Ints,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Return an interval for any figure: its quantiles over resampled questions, moved outwards to
    where Student's t would have them (Hesterberg 2015, the expanded percentile interval: plain
    quantiles are too narrow for few questions). `figure` is given weights, sample by comparison,
    and answers with one value a sample; NaN where there is none."""
    from scipy.special import ndtr, stdtrit

    weights, cluster = draws(question, seed, resamples)
    count = weights.shape[1]
    if count < 2:
        return float("nan"), float("nan")
    values = figure(weights[:, cluster])
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    t = float(stdtrit(count - 1, (1 - level) / 2))
    tail = float(ndtr(np.sqrt(count / (count - 1)) * t))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def percent(value: float | None) -> float | None:
    """Return a share as a percentage; None for one that is not a number."""
    return None if value is None or not np.isfinite(value) else 100 * float(value)

"""Win rates with ties, what unreadable verdicts could have made of them, and whether a judge
says the same when the answers change places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from factory.evaluation.statistics.intervals import FEWEST, Floats, Ints, residuals, score


@dataclass(frozen=True)
class WinRate:
    """Share of comparisons won, ties worth half, in percent; its 95 % interval, clustered by
    question; how many comparisons and questions it rests on."""

    rate: float
    low: float
    high: float
    comparisons: int
    questions: int

    def shown(self) -> str:
        """A sentence for people: an interval that covers 50 shows no difference."""
        if self.questions < FEWEST:
            return f"{self.rate:.1f} % of {self.comparisons}, too few questions for an interval"
        span = f"{self.rate:.1f} % [{self.low:.1f}, {self.high:.1f}]"
        return f"{span} no difference shown" if self.low <= 50 <= self.high else span

    def dump(self) -> dict[str, Any]:
        """Return plain values for a manifest."""
        return asdict(self)


def win_rate(
    points: Sequence[float] | Floats,
    questions: Sequence[str] | Ints,
    groups: Sequence[str] | Ints | None = None,
) -> WinRate:
    """Return the win rate over comparisons worth 1 (won), 0.5 (tie) or 0 (lost), or anything
    between.

    The same question asked in several languages is one cluster. With `groups` (languages) it is
    the mean of the groups' win rates, whatever their sizes. Raises ValueError for no comparisons.
    """
    values = np.asarray(points, dtype=float)
    if not len(values):
        raise ValueError("no comparisons")
    _, cluster = np.unique(np.asarray(questions), return_inverse=True)
    group = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if group is None:
        rate = float(values.mean())
    else:
        rate = float((np.bincount(group, weights=values) / np.bincount(group)).mean())
    low, high = score(rate, residuals(values, cluster, group))
    return WinRate(
        rate=100 * rate,
        low=100 * low,
        high=100 * high,
        comparisons=len(values),
        questions=int(cluster.max()) + 1,
    )


def merged(points: Floats) -> Floats:
    """Return one value a comparison from `points`, comparison by order of presentation: the mean of
    the orders whose verdict could be read; NaN where none could."""
    readable = np.isfinite(points)
    count = readable.sum(axis=1)
    total = np.where(readable, points, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def bounds(points: Floats) -> tuple[float, float]:
    """Return the win rate in percent if every verdict that could not be read had gone against the
    model, and if every one had gone for it; `points` as for `merged`. Every comparison counts
    alike."""
    worst = np.where(np.isfinite(points), points, 0.0).mean()
    best = np.where(np.isfinite(points), points, 1.0).mean()
    return 100 * float(worst), 100 * float(best)


@dataclass(frozen=True)
class Consistency:
    """Consistency of `both` comparisons read in both orders: how many ended alike (`same`); of
    `decided`
    verdicts that were no tie, how many went to the answer that stood first (`first`)."""

    both: int
    same: int
    decided: int
    first: int

    def dump(self) -> dict[str, Any]:
        """Return plain values, shares in percent; None where there is nothing to share."""
        return asdict(self) | {
            "same_share": 100 * self.same / self.both if self.both else None,
            "first_share": 100 * self.first / self.decided if self.decided else None,
        }


def consistency(points: Floats) -> Consistency:
    """Count verdicts in two columns: with the model's answer first, and with it second."""
    read = np.isfinite(points).all(axis=1)
    decided = np.isfinite(points) & (points != 0.5)
    first = (decided[:, 0] & (points[:, 0] == 1)).sum() + (
        decided[:, 1] & (points[:, 1] == 0)
    ).sum()
    return Consistency(
        both=int(read.sum()),
        same=int((read & (points[:, 0] == points[:, 1])).sum()),
        decided=int(decided.sum()),
        first=int(first),
    )

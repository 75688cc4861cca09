"""Figures about comparisons: win rates with intervals. Pure numpy; nothing is read or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
FEWEST = 5  # questions; a bootstrap over fewer clusters is an interval in name only


@dataclass(frozen=True)
class WinRate:
    """Share of comparisons won, ties worth half, in percent; a bootstrap interval at `LEVEL`
    clustered by question; how many comparisons and questions it rests on."""

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
        """As plain values, for a manifest."""
        return asdict(self)


def win_rate(points: Sequence[float], questions: Sequence[str], seed: int) -> WinRate:
    """Win rate over comparisons worth 1 (won), 0.5 (tie) or 0 (lost).

    The same question asked in several languages is one cluster: its comparisons are resampled
    together, since they fail and succeed together. Raises ValueError for no comparisons.
    """
    if not len(points):
        raise ValueError("no comparisons")
    names, cluster = np.unique(np.asarray(questions), return_inverse=True)
    won = np.bincount(cluster, weights=np.asarray(points, dtype=float))
    count = np.bincount(cluster)
    drawn = np.random.default_rng(seed).integers(len(names), size=(RESAMPLES, len(names)))
    rates = won[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    low, high = np.quantile(rates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return WinRate(
        rate=100 * float(won.sum() / count.sum()),
        low=100 * float(low),
        high=100 * float(high),
        comparisons=len(points),
        questions=len(names),
    )

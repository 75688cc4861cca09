"""Intervals of shares. Pure."""

from __future__ import annotations


def interval(count: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, from 0 to 1; all of that where nothing was
    counted."""
    from scipy.stats import binomtest

    if not total:
        return 0.0, 1.0
    low, high = map(float, binomtest(count, total).proportion_ci(method="wilson"))
    return low, high


def fell(before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Return whether a share (count, total) is lower than before by more than chance: the two
    intervals do not meet."""
    return interval(*after)[1] < interval(*before)[0]

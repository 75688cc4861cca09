"""chrF: how much of a reference's character n-grams a translation has (Popović, 2015; chrF2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

ORDER = 6  # the longest n-gram
BETA = 2  # recall counts twice as much as precision


def chrf(pairs: Iterable[tuple[str, str]]) -> float | None:
    """chrF2 of (translation, reference) pairs as a whole, from 0 to 100; None without a pair.

    As sacrebleu counts by default: white space is left out, n-grams of one to six characters are
    added up over all pairs (but for those longer than the reference), and precision and recall are
    averaged over the lengths that both sides have.
    """
    hits, in_hypothesis, in_reference = ([0] * ORDER for _ in range(3))
    any_pair = False
    for translation, reference in pairs:
        any_pair = True
        for n in range(ORDER):
            ours, theirs = _grams(translation, n + 1), _grams(reference, n + 1)
            hits[n] += (ours & theirs).total()
            in_hypothesis[n] += ours.total() if theirs else 0
            in_reference[n] += theirs.total()
    if not any_pair:
        return None
    orders = [n for n in range(ORDER) if in_hypothesis[n] and in_reference[n]]
    if not orders:
        return 0.0
    precision = sum(hits[n] / in_hypothesis[n] for n in orders) / len(orders)
    recall = sum(hits[n] / in_reference[n] for n in orders) / len(orders)
    weight = BETA**2
    below = weight * precision + recall
    return 100 * (1 + weight) * precision * recall / below if below else 0.0


def _grams(text: str, n: int) -> Counter[str]:
    solid = "".join(text.split())
    return Counter(solid[at : at + n] for at in range(len(solid) - n + 1))

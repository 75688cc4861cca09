"""Figures of a reward model on pairs whose better answer is known: accuracy, calibration, accuracy
by category, agreement with English. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from factory.stage.preference_pairs import SIDES
from factory.stage.proportions import interval

_BINS = 10  # of confidence, from one half to 1
# Categories of RewardBench and M-RewardBench, by their subsets; any other is its own.
_CATEGORIES = (
    ("Chat", r"alpacaeval-\w+|mt-bench-(easy|med)"),
    ("Chat Hard", r"mt-bench-hard|llmbar-[\w-]+"),
    ("Safety", r"refusals-\w+|xstest-[\w-]+|donotanswer"),
    ("Reasoning", r"math-prm|hep-\w+"),
)
_AS_MUCH_AS_CODE = "math-prm"  # counts as much as all subsets of code together
_SUBSETS = ("subset", "category", "source")  # columns that may name one


def subset_of(row: Mapping[str, Any]) -> str | None:
    """Return the subset of a benchmark that a row says it is of."""
    named = (row.get(name) for name in _SUBSETS)
    return next((value for value in named if value and isinstance(value, str)), None)


def describe(table: pa.Table, english: pa.Table | None) -> dict[str, Any]:
    """Return the field of the matrix for the rankings of one reward model in one language.
    `english`: its rankings there of pairs of the same ids."""
    chosen, rejected = (table.column(f"reward_{side}").to_pylist() for side in SIDES)
    figures = cell(chosen, rejected)
    if (error := calibration_error(chosen, rejected)) is not None:
        figures["calibration_error"] = error
    if "subset" in table.column_names:
        figures |= by_category(table.column("subset").to_pylist(), chosen, rejected)
    if english is not None and english is not table:
        right_in_english = _right(english)
        here = {name: right for name, right in _right(table).items() if name in right_in_english}
        both = [(right, right_in_english[name]) for name, right in here.items()]
        if (value := kappa(both)) is not None:
            figures |= {"kappa_english": value, "pairs_in_english": len(both)}
    return figures


def cell(chosen: Sequence[float | None], rejected: Sequence[float | None]) -> dict[str, Any]:
    """Return one field of the matrix from the rewards of both sides: counts, and the share of pairs
    ranked right with Wilson's 95 % interval. A tie is not right; a pair without a reward counts on
    neither side."""
    scored = [(c, r) for c, r in zip(chosen, rejected, strict=True) if None not in (c, r)]
    right = sum(c > r for c, r in scored)  # type: ignore[operator]
    figures: dict[str, Any] = {
        "pairs": len(scored),
        "right": right,
        "tied": sum(c == r for c, r in scored),
        "without": len(chosen) - len(scored),
        "shown": "no pair has rewards",
    }
    if scored:
        low, high = interval(right, len(scored))
        share = right / len(scored)
        figures |= {"share": share, "low": low, "high": high}
        figures["shown"] = f"{share:.1%} [{low:.1%}, {high:.1%}]"
    return figures


def calibration_error(
    chosen: Sequence[float | None], rejected: Sequence[float | None]
) -> float | None:
    """Return the expected calibration error: how far the share of pairs ranked right is from the
    mean confidence, over ten bins of confidence, weighted by pairs. The confidence is the logistic
    function of the margin, the probability that Bradley and Terry's model gives."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for c, r in zip(chosen, rejected, strict=True):
        if c is not None and r is not None:
            confidence = 1 / (1 + math.exp(-min(abs(c - r), 700.0)))
            number = min(_BINS - 1, int((confidence - 0.5) * 2 * _BINS))
            bins.setdefault(number, []).append((confidence, c > r))
    count = sum(map(len, bins.values()))
    gaps = (
        abs(math.fsum(confidence - right for confidence, right in some)) for some in bins.values()
    )
    return math.fsum(gaps) / count if count else None


def by_category(
    subsets: Sequence[str | None],
    chosen: Sequence[float | None],
    rejected: Sequence[float | None],
) -> dict[str, Any]:
    """Return the accuracy of each category and their mean. In a category a subset counts by its
    pairs, and math-prm as much as all of code together (as M-RewardBench counts them)."""
    counts: dict[str, dict[str, list[bool]]] = {}
    for subset, c, r in zip(subsets, chosen, rejected, strict=True):
        if subset is not None and c is not None and r is not None:
            counts.setdefault(_category(subset), {}).setdefault(subset, []).append(c > r)
    categories = {}
    for category, parts in counts.items():
        sizes = {name: len(right) for name, right in parts.items()}
        if code := sum(size for name, size in sizes.items() if name.startswith("hep-")):
            sizes = {name: code if name == _AS_MUCH_AS_CODE else n for name, n in sizes.items()}
        weighted = sum(sizes[name] * sum(right) / len(right) for name, right in parts.items())
        categories[category] = weighted / sum(sizes.values())
    if not categories:
        return {}
    return {"categories": categories, "category_mean": sum(categories.values()) / len(categories)}


def kappa(both: Iterable[tuple[bool, bool]]) -> float | None:
    """Return Cohen's kappa of two raters who each say yes or no; None where chance alone would
    always agree, and for nothing."""
    pairs = list(both)
    if not pairs:
        return None
    first, second = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    chance = first * second + (1 - first) * (1 - second)
    agreed = sum(one == other for one, other in pairs) / len(pairs)
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def _category(subset: str) -> str:
    matching = (name for name, pattern in _CATEGORIES if re.fullmatch(pattern, subset))
    return next(matching, subset)


def _right(table: pa.Table) -> dict[str, bool]:
    columns = (table.column(n).to_pylist() for n in ("pair_id", "reward_chosen", "reward_rejected"))
    return {
        name: c > r for name, c, r in zip(*columns, strict=True) if c is not None and r is not None
    }

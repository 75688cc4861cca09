"""Scores that the rules of pairing compare: rewards in deviations of their language, or less a
price of length; and seeded random numbers for answers. Pure."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from factory.pairs.rules import MISSING_LIMIT, Rule, pair

_Array = npt.NDArray[Any]

_ENDS = Rule("max", "min")
# ICR (arXiv 2503.04647) tries these prices of a character.
ALPHAS = np.arange(0, 1, 0.001)


def zscored(answers: pl.DataFrame) -> pl.DataFrame:
    """Return scores in standard deviations from the mean of their language.

    Then a reward model that likes one language better by a constant chooses as if it did not.
    Rounded to nine digits: the last bits of a mean would part what is equal.
    """
    score = pl.col("score")
    figures = answers.group_by("language").agg(mean=score.mean(), std=score.std(ddof=0))
    rows = answers.join(figures, on="language", maintain_order="left")
    z = pl.when(pl.col("std") > 0).then((score - pl.col("mean")) / pl.col("std")).otherwise(0.0)
    return rows.with_columns(score=pl.when(score.is_not_null()).then(z.round(9))).drop(
        "mean", "std"
    )


def length_controlled(answers: pl.DataFrame, rule: Rule = _ENDS) -> tuple[pl.DataFrame, float]:
    """Return scores less alpha a character, and that alpha: the one of `ALPHAS` that brings the
    mean length of the chosen nearest to that of the rejected.

    Of the highest and the lowest it is ICR's (for the answers of one language), the smallest of
    several. For another rule it lies where the mean gap changes its sign, as it does once where a
    higher price makes the chosen shorter."""
    if rule != _ENDS:
        return _evened(answers, rule)
    score, size = pl.col("score"), pl.len().over("prompt_id")
    rows = answers.filter(
        score.is_not_null(), score.count().over("prompt_id") >= size * MISSING_LIMIT
    ).with_columns(prompt=pl.col("prompt_id").rank("dense"))
    ends = [
        _lengths(rows.filter("may_choose"), 1.0),
        _lengths(rows.filter("may_reject"), -1.0),
    ]
    both = np.intersect1d(ends[0][0], ends[1][0])
    if not len(both):
        return answers, 0.0
    highest, lowest = (length[:, np.searchsorted(ids, both)] for ids, length in ends)
    gaps = np.abs((highest - lowest).mean(axis=1))
    alpha = float(ALPHAS[int(np.argmin(gaps))])
    return _priced(answers, alpha), alpha


def _evened(answers: pl.DataFrame, rule: Rule) -> tuple[pl.DataFrame, float]:
    @cache
    def gap(number: int) -> float:
        pairs = pair(_priced(answers, float(ALPHAS[number])), rule).pairs
        return float((pairs["chosen_n_chars"] - pairs["rejected_n_chars"]).mean() or 0.0)  # type: ignore[arg-type]

    first = bisect.bisect_left(range(len(ALPHAS) - 1), True, key=lambda number: gap(number) <= 0)
    number = min(range(max(0, first - 1), first + 1), key=lambda near: abs(gap(near)))
    return _priced(answers, float(ALPHAS[number])), float(ALPHAS[number])


def _priced(answers: pl.DataFrame, alpha: float) -> pl.DataFrame:
    return answers.with_columns(score=pl.col("score") - alpha * pl.col("n_chars"))


def _lengths(rows: pl.DataFrame, sign: float) -> tuple[_Array, _Array]:
    """Return prompts (by number), and for each alpha and prompt the length in characters of the
    answer with the highest (`sign` 1) or lowest (-1) controlled score."""
    rows = rows.select("prompt", "k", "n_chars", value=sign * pl.col("score"))
    # An answer that is worse on this side and no better in length is nobody's end at any alpha:
    # of a pool of sixty-four a handful is left.
    front = rows.sort(
        "prompt", sign * pl.col("n_chars"), pl.col("value"), descending=[False, False, True]
    ).filter(pl.col("value") == pl.col("value").cum_max().over("prompt"))
    front = front.sort("prompt", "k")
    prompt = front["prompt"].to_numpy()
    value, chars = front["value"].to_numpy(), front["n_chars"].to_numpy()
    ids, starts, sizes = np.unique(prompt, return_index=True, return_counts=True)
    group = np.repeat(np.arange(len(ids)), sizes)
    lengths = np.empty((len(ALPHAS), len(ids)))
    for number, alpha in enumerate(ALPHAS if len(ids) else ()):
        controlled = value - sign * alpha * chars
        at = np.flatnonzero(controlled == np.maximum.reduceat(controlled, starts)[group])
        lengths[number] = chars[at[np.unique(group[at], return_index=True)[1]]]
    return ids, lengths


def draws(
    seed: int, prompt_ids: pl.Series, languages: pl.Series, ks: pl.Series, codes: Sequence[str]
) -> pl.Series:
    """Return a random number for each answer, from the seed, its prompt, the code of its language
    and its k alone: more languages or prompts do not change those of others."""
    ids = prompt_ids.unique().sort()
    of_prompt = np.array([_number(f"{seed}\0{name}") for name in ids], np.uint64)
    of_language = np.array([_number(code) for code in codes], np.uint64)
    place = prompt_ids.rank("dense").to_numpy().astype(np.int64) - 1
    mixed = _mixed(of_prompt[place] ^ of_language[languages.to_numpy()])
    return pl.Series("draw", _mixed(mixed ^ ks.to_numpy().astype(np.uint64)))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _mixed(values: _Array) -> _Array:
    """Apply the finalizer of splitmix64: polars' own hash may differ between versions."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _Array = values ^ (values >> np.uint64(31))
    return mixed

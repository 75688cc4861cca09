"""Several rewards as one: every reward reads every answer, and what they say is combined in
standard deviations of each reward in the language. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

Combine = Literal["mean", "min", "vote"]
Rewards = Sequence[float | None]  # of one answer, one of each reward
_DIGITS = 9  # the last bits of a mean would part what is equal


def combined(scores: pl.DataFrame, combine: Combine) -> pl.DataFrame:
    """Return the scores of one language with `reward`, the rewards of each answer as one, and
    `disagreement`, the population standard deviation of its z-scores over the rewards.

    scores: prompt_id, and rewards (a list, one of each reward; null where one has none). An answer
    that lacks one of them has no reward. `mean` and `min` are over z-scores in the language. `vote`
    is over ranks within the prompt: the share of its other answers that a reward puts below this
    one, ties half, averaged over the rewards; of a single answer, one half.
    """
    z = _deviations(scores)
    names = z.columns
    whole = z.with_columns(prompt_id=scores["prompt_id"]).with_columns(
        pl.when(pl.all_horizontal(pl.col(name).is_not_null() for name in names)).then(name)
        for name in names
    )
    reward = {
        "mean": pl.mean_horizontal(names),
        "min": pl.min_horizontal(names),
        "vote": pl.mean_horizontal(_share_below(name) for name in names),
    }[combine]
    values = whole.select(
        reward=reward.round(_DIGITS),
        disagreement=pl.when(pl.col(names[0]).is_not_null()).then(
            pl.concat_list(names).list.std(ddof=0).round(_DIGITS)
        ),
    )
    return scores.with_columns(values["reward"], values["disagreement"])


def combined_pairs(
    scores: pl.DataFrame, pairs: Sequence[tuple[Rewards, Rewards]], combine: Combine
) -> list[tuple[float | None, float | None]]:
    """Return the combined rewards of both sides of preference pairs. Z-scores are those of the
    language's answers (`scores`); a `vote` is the share of rewards that prefer the side."""
    moments = _moments(scores)

    def one(sides: tuple[Rewards, Rewards]) -> tuple[float | None, float | None]:
        both = [(c, r) for c, r in zip(*sides, strict=True) if c is not None and r is not None]
        if len(both) < len(moments):
            return None, None
        if combine == "vote":
            share = sum((c > r) + (c == r) / 2 for c, r in both) / len(both)
            return share, 1 - share
        chosen, rejected = (
            [(value - mean) / std for value, (mean, std) in zip(side, moments, strict=True)]
            for side in zip(*both, strict=True)
        )
        if combine == "min":
            return min(chosen), min(rejected)
        return sum(chosen) / len(chosen), sum(rejected) / len(rejected)

    return [one(sides) for sides in pairs]


def agreement(scores: pl.DataFrame, first: int, second: int) -> float | None:
    """Return Spearman's rank correlation of two rewards within a prompt, averaged over the prompts
    in which it is defined; None where it is in none."""
    rewards = pl.col("rewards")
    ranked = scores.select(
        "prompt_id", a=rewards.list.get(first), b=rewards.list.get(second)
    ).drop_nulls()
    correlation = pl.corr(pl.col("a").rank(), pl.col("b").rank())
    by_prompt = ranked.group_by("prompt_id").agg(rho=correlation).fill_nan(None)
    return by_prompt["rho"].mean()  # type: ignore[return-value]


def _columns(scores: pl.DataFrame) -> pl.DataFrame:
    """Return one column of each reward."""
    count = int(scores["rewards"].list.len().max() or 0)  # type: ignore[arg-type]
    return scores.select(
        pl.col("rewards").list.get(number).alias(f"reward_{number}") for number in range(count)
    )


def _moments(scores: pl.DataFrame) -> list[tuple[float, float]]:
    """Return mean and population standard deviation of each reward (1 where all are equal)."""
    return [
        (float(column.mean() or 0.0), float(column.std(ddof=0) or 1.0))  # type: ignore[arg-type]
        for column in _columns(scores)
    ]


def _deviations(scores: pl.DataFrame) -> pl.DataFrame:
    columns = _columns(scores)
    return columns.select(
        (pl.col(name) - mean) / std
        for name, (mean, std) in zip(columns.columns, _moments(scores), strict=True)
    )


def _share_below(name: str) -> pl.Expr:
    column, others = pl.col(name), pl.col(name).count().over("prompt_id") - 1
    below = column.rank("average").over("prompt_id") - 1
    return pl.when(column.is_null()).then(None).when(others > 0).then(below / others).otherwise(0.5)

"""Which answers become a preference pair: pure polars over score columns.

CroCo's rule, as its published script states it: chosen is the highest reward of the pool;
rejected is the answer nearest to mean - 2 sigma (population sigma, chosen included) among those
strictly below the chosen. Ties break by lowest k.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

MISSING_LIMIT = 0.5  # a prompt with under half its pool scored is dropped: its mean says little


@dataclass(frozen=True)
class Pairing:
    """The pairs, one row a prompt, and the prompts that gave none, by reason."""

    pairs: pl.DataFrame
    dropped: dict[str, int]


def allowed(finished: bool, languages: Collection[str] | None) -> pl.Expr:
    """Which answers may stand on a side: those that ended by themselves, if `finished`; those
    whose detected language is one of `languages`, if any are given (no label is no match)."""
    rule = pl.lit(True)
    if finished:
        rule = rule & (pl.col("finish_reason") == "stop")
    if languages is not None:
        rule = rule & pl.col("detected_language").is_in(list(languages)).fill_null(False)
    return rule


def pool(scores: pa.Table, samples: pa.Table, chosen: pl.Expr, rejected: pl.Expr) -> pl.DataFrame:
    """Scored answers with what `pair` needs; the two expressions say who is allowed where.

    An empty answer is never chosen. Joined by prompt_id, k and response_hash, never by text.
    """
    known = pl.DataFrame(samples).select(
        "prompt_id", "k", "response_hash", "finish_reason", "detected_language", "n_chars"
    )
    return (
        pl.DataFrame(scores)
        .join(known, on=["prompt_id", "k", "response_hash"], how="inner")
        .select(
            "prompt_id",
            "k",
            "reward",
            may_choose=chosen & (pl.col("n_chars") > 0),
            may_reject=rejected,
        )
    )


def texts(samples: pa.Table, pairs: pl.DataFrame) -> dict[tuple[str, int], str]:
    """The answers on either side of `pairs`, by prompt_id and k; no other text is gathered."""
    wanted = pl.concat([pairs.select("prompt_id", k=side) for side in ("chosen_k", "rejected_k")])
    rows = pl.DataFrame(samples).join(wanted.unique(), on=["prompt_id", "k"], how="semi")
    return {(row["prompt_id"], row["k"]): row["response"] for row in rows.iter_rows(named=True)}


def pair(scores: pl.DataFrame, sigma: float) -> Pairing:
    """Chosen and rejected for each prompt.

    scores: one row an answer, columns prompt_id, k, reward (null or not finite = none),
        may_choose and may_reject (bool: who is allowed on which side).
    sigma: rejected aims at pool mean + sigma * pool standard deviation (CroCo: -2).

    Returns one row a prompt with prompt_id, chosen_k, rejected_k, score_chosen, score_rejected,
    pool_size, pool_mean, pool_std, in the order of prompt_id; every other prompt is counted
    under pool_incomplete, none_to_choose, no_lower_answer.
    """
    # In a total order: mean and standard deviation are then the same whatever the row order.
    rows = scores.sort("prompt_id", "k").with_columns(
        pl.when(pl.col("reward").is_finite()).then(pl.col("reward")).alias("reward")
    )
    of_prompt = pl.col("reward").count().over("prompt_id")
    rows = rows.with_columns(
        asked=pl.len().over("prompt_id"),
        pool_size=of_prompt.cast(pl.Int64),
        pool_mean=pl.col("reward").mean().over("prompt_id"),
        pool_std=pl.col("reward").std(ddof=0).over("prompt_id"),
    )
    n_prompts = rows["prompt_id"].n_unique()
    complete = rows.filter(
        pl.col("reward").is_not_null() & (pl.col("pool_size") >= pl.col("asked") * MISSING_LIMIT)
    )
    n_complete = complete["prompt_id"].n_unique()

    chosen = (
        complete.filter("may_choose")
        .sort("prompt_id", -pl.col("reward"), "k")
        .group_by("prompt_id", maintain_order=True)
        .first()
        .select(
            "prompt_id", "pool_size", "pool_mean", "pool_std", chosen_k="k", score_chosen="reward"
        )
    )
    rejected = (
        complete.filter("may_reject")
        .join(chosen.select("prompt_id", "score_chosen"), on="prompt_id")
        .filter(pl.col("reward") < pl.col("score_chosen"))
        .with_columns(
            distance=(pl.col("reward") - (pl.col("pool_mean") + sigma * pl.col("pool_std"))).abs()
        )
        .sort("prompt_id", "distance", "k")
        .group_by("prompt_id", maintain_order=True)
        .first()
        .select("prompt_id", rejected_k="k", score_rejected="reward")
    )
    pairs = chosen.join(rejected, on="prompt_id").sort("prompt_id")
    counts = {
        "pool_incomplete": n_prompts - n_complete,
        "none_to_choose": n_complete - len(chosen),
        "no_lower_answer": len(chosen) - len(pairs),
    }
    return Pairing(pairs, {reason: n for reason, n in counts.items() if n})

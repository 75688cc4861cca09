"""Which answers become a preference pair, or the best of a pool: pure polars over score columns.

CroCo's rule, as its published script states it: chosen is the highest reward of the pool; rejected
is the answer nearest to mean - 2 sigma (population sigma, chosen included) among those strictly
below the chosen. The other points of the sweet-spot study (arXiv 2502.16825) are aimed at in the
same way. Ties break by lowest k, then by the order of languages; or the other way round, which is
the order of the published files.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl
import pyarrow as pa

from factory.artifacts.schemas import GOLD, OTHERS

MISSING_LIMIT = 0.5  # a prompt with under half its pool scored is dropped: its mean says little
_ROUNDING = 1e-12  # of the largest score of a pool: distances closer than this are equal

# A point of a pool: its ends, its lower quartile, or mean + so many population deviations.
Point = Literal["max", "min", "q1"] | float
# Which of equals is first: the lowest k, then the first language; or the first language, then k.
Ties = Literal["k", "language"]


@dataclass(frozen=True)
class Rule:
    """Points of the pool that chosen and rejected are nearest to. With `min_of`, rejected is the
    lowest of so many answers, drawn by the column `draw`. `ties`: see Ties."""

    chosen: Point = "max"
    rejected: Point = -2.0
    min_of: int | None = None
    ties: Ties = "k"


@dataclass(frozen=True)
class PairLimits:
    """Reasons to drop a pair that the rule selected; each field is one.

    `chosen_below_quantile`: of all rewards of the chosen's language. `over_budget`: conversations
    longer than so many tokens on either side."""

    std_below: float | None = None
    chosen_below_quantile: float | None = None
    margin_below: float | None = None
    margin_above: float | None = None
    duplicates: bool = False
    disagreement_above: float | None = None
    length_gap_above: float | None = None
    over_budget: int | None = None


@dataclass(frozen=True)
class Pairing:
    """The pairs, one row a prompt, and the prompts that gave none, by reason."""

    pairs: pl.DataFrame
    dropped: dict[str, int]


def pool(
    scores: pa.Table,
    samples: pa.Table,
    accepted: Collection[str],
    language: int = 0,
    gold: bool = False,
) -> pl.DataFrame:
    """The answers of one language as the rules see them, one row each.

    `accepted` are the labels of the language that is asked for (`in_language` is null for an answer
    that has no label; with nothing accepted no detector knows the language, and it is true),
    `language` its place among the languages; answers that people wrote (k -1) stay out unless
    `gold`.
    Joined by prompt_id, k and response_hash, never by text. `row` is the row in `samples`.
    """
    keys = ["prompt_id", "k", "response_hash"]
    answers = pl.DataFrame(samples).with_row_index("row").select(
        *keys,
        *(["source"] if "source" in samples.column_names else []),
        "row",
        "n_chars",
        n_tokens="n_tokens",
        # of somebody else's answer nobody may know: that is no reason against it
        finished=pl.col("finish_reason").is_in(["stop", "unknown"]),
        in_language=pl.col("detected_language").is_in(list(accepted)) if accepted else pl.lit(True),
    )  # fmt: skip
    columns = sorted({"reward", "disagreement", "log_prob"} & set(scores.column_names))
    rewards = pl.DataFrame(scores).select(*keys, *columns, conversation=pl.col("n_tokens"))
    if all(scores.column(key).equals(samples.column(key)) for key in keys):
        # row for row the same answers, as the stages leave them
        rows = answers.with_columns(rewards.drop(keys))
    else:
        rows = rewards.join(answers, on=keys, how="inner", maintain_order="left")
    return (
        (rows if gold else rows.filter(pl.col("k") != GOLD))
        .with_columns(
            # only ever asked whether it is equal to another: a quarter of the string
            text=pl.col("response_hash").hash(),
            language=pl.lit(language, pl.UInt8),
            reward=pl.when(pl.col("reward").is_finite()).then("reward"),
            score=pl.when(pl.col("reward").is_finite()).then("reward"),
        )
        .drop("response_hash")
    )


def own(k: str = "k") -> pl.Expr:
    """Return whether the answer of a draw was drawn by the model that `generate` names first."""
    return (pl.col(k) > GOLD) & (pl.col(k) < OTHERS)


def objections(
    finished: bool,
    in_language: bool,
    nonempty: bool,
    source: str = "any",
    reward_above: float | None = None,
    reward_below: float | None = None,
) -> dict[str, pl.Expr]:
    """Return the filters of a side, by name: expressions that are true for unfit answers. An answer
    that is too short or too mixed to tell its language is not known to be in the right one.
    `source`: `own` or `others` for answers of that model, or of any but it. `reward_above`,
    `reward_below`: bounds that the raw reward must keep to."""
    reward = pl.col("reward")
    rules = {
        "unfinished": (finished, ~pl.col("finished")),
        "wrong_language": (in_language, ~pl.col("in_language").fill_null(True)),
        "no_language": (in_language, pl.col("in_language").is_null()),
        "empty": (nonempty, pl.col("n_chars") == 0),
        "other_source": (source != "any", own() if source == "others" else ~own()),
        "reward_too_low": (reward_above is not None, ~(reward > (reward_above or 0.0))),
        "reward_too_high": (reward_below is not None, ~(reward < (reward_below or 0.0))),
    }
    return {name: rule for name, (applies, rule) in rules.items() if applies}


def pair(answers: pl.DataFrame, rule: Rule, limits: PairLimits | None = None) -> Pairing:
    """Chosen and rejected for each prompt.

    answers: one row an answer, with prompt_id, language (a number that breaks ties), k, score
        (what is compared; null or not finite = none), may_choose and may_reject (who is allowed
        on which side), `draw` for `min_of`, and whatever `limits` look at.

    Returns one row a prompt in the order of prompt_id: prompt_id, pool_size, pool_mean, pool_std,
    and every other column of `answers` as chosen_… and rejected_…. Every other prompt is counted
    under pool_incomplete, none_to_choose, no_lower_answer or the limit that it failed.
    """
    rows, dropped = _complete(answers, (rule.chosen, rule.rejected), rule.ties)
    chosen = _nearest(rows.filter("may_choose"), rule.chosen)
    dropped["none_to_choose"] = rows["prompt_id"].n_unique() - len(chosen)
    losers = rows.filter("may_reject")
    if rule.min_of is not None:
        losers = losers.filter(pl.col("draw").rank("ordinal").over("prompt_id") <= rule.min_of)
    below = losers.join(
        chosen.select("prompt_id", best="score"), on="prompt_id", maintain_order="left"
    ).filter(pl.col("score") < pl.col("best"))
    rejected = _nearest(below, rule.rejected)
    pairs = _side(chosen, "chosen", answers).join(
        _side(rejected, "rejected", answers).drop("pool_size", "pool_mean", "pool_std"),
        on="prompt_id",
        maintain_order="left",
    )
    dropped["no_lower_answer"] = len(chosen) - len(pairs)
    return _limited(pairs, rows, limits or PairLimits(), dropped, ("chosen", "rejected"))


def best(
    answers: pl.DataFrame, point: Point, limits: PairLimits | None = None, ties: Ties = "k"
) -> Pairing:
    """The chosen side alone: no second answer is asked for. Otherwise like `pair`."""
    rows, dropped = _complete(answers, (point,), ties)
    chosen = _nearest(rows.filter("may_choose"), point)
    dropped["none_to_choose"] = rows["prompt_id"].n_unique() - len(chosen)
    pairs = _side(chosen, "chosen", answers)
    return _limited(pairs, rows, limits or PairLimits(), dropped, ("chosen",))


def _complete(
    answers: pl.DataFrame, points: Sequence[Point], ties: Ties
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Scored answers of prompts with enough of them, beside the figures of their pool."""
    score = pl.col("score")
    # In a total order: mean and standard deviation are then the same whatever the row order. Of
    # the rest of an answer `at` is enough, until it is known who is wanted.
    names = {"prompt_id", "k", "language", "score", "may_choose", "may_reject", "draw"}
    rows = (
        answers.with_row_index("at")
        .select("at", *(name for name in answers.columns if name in names))
        .sort("prompt_id", *(("k", "language") if ties == "k" else ("language", "k")))
        .with_columns(score=pl.when(score.is_finite()).then(score))
    )
    quartile = {"q1": score.quantile(0.25, "linear")} if "q1" in points else {}
    figures = rows.group_by("prompt_id", maintain_order=True).agg(
        asked=pl.len(),
        pool_size=score.count().cast(pl.Int64),
        pool_mean=score.mean(),
        pool_std=score.std(ddof=0),
        **quartile,
    )
    enough = figures.filter(
        (pl.col("pool_size") > 0) & (pl.col("pool_size") >= pl.col("asked") * MISSING_LIMIT)
    )
    rows = rows.filter(score.is_not_null()).join(
        enough.drop("asked"), on="prompt_id", maintain_order="left"
    )
    return rows, {"pool_incomplete": len(figures) - len(enough)}


def _nearest(rows: pl.DataFrame, point: Point) -> pl.DataFrame:
    """Return the row nearest to `point` for each prompt; the first of those equally near. Answers
    on both sides of a point may be so up to rounding: q1 of a pool of three lies half-way."""
    score = pl.col("score")
    slack: pl.Expr = pl.lit(0.0)
    if point not in ("max", "min"):
        slack = _ROUNDING * score.abs().max().over("prompt_id")
    if point == "max":
        distance = -score
    elif point == "min":
        distance = score
    elif point == "q1":
        distance = (score - pl.col("q1")).abs()
    else:
        distance = (score - (pl.col("pool_mean") + point * pl.col("pool_std"))).abs()
    return rows.filter(distance <= distance.min().over("prompt_id") + slack).unique(
        "prompt_id", keep="first", maintain_order=True
    )


def _side(rows: pl.DataFrame, side: str, answers: pl.DataFrame) -> pl.DataFrame:
    """Return the selected rows of a side, with all columns of these answers."""
    own = [n for n in answers.columns if n not in ("prompt_id", "may_choose", "may_reject")]
    return pl.concat(
        [
            rows.select("prompt_id", "pool_size", "pool_mean", "pool_std"),
            answers.select(pl.col(name).alias(f"{side}_{name}") for name in own)[rows["at"]],
        ],
        how="horizontal",
    )


def _limited(
    pairs: pl.DataFrame,
    rows: pl.DataFrame,
    limits: PairLimits,
    dropped: dict[str, int],
    sides: Sequence[str],
) -> Pairing:
    """Without the pairs that fail a limit; each is counted under the first one that it fails."""
    tests: dict[str, pl.Expr] = {}
    if limits.std_below is not None:
        tests["std_below"] = pl.col("pool_std") < limits.std_below
    if limits.chosen_below_quantile is not None:
        floor = rows.group_by("language").agg(
            floor=pl.col("score").quantile(limits.chosen_below_quantile, "linear")
        )
        pairs = pairs.join(
            floor, left_on="chosen_language", right_on="language", maintain_order="left"
        )
        tests["chosen_below_quantile"] = pl.col("chosen_score") < pl.col("floor")
    if "rejected" in sides:
        margin = pl.col("chosen_score") - pl.col("rejected_score")
        if limits.margin_below is not None:
            tests["margin_below"] = margin < limits.margin_below
        if limits.margin_above is not None:
            tests["margin_above"] = margin > limits.margin_above
        if limits.length_gap_above is not None:
            chars = [pl.col(f"{side}_n_chars") for side in sides]
            share = (chars[0] - chars[1]).abs() / pl.max_horizontal(*chars, 1)
            tests["length_gap_above"] = share > limits.length_gap_above
        tests["same_text"] = pl.col("chosen_text") == pl.col("rejected_text")
    if limits.duplicates:
        text = pl.col("chosen_text")
        tests["duplicate_text"] = text.is_duplicated() & ~text.is_first_distinct()
    if limits.disagreement_above is not None:
        apart = pl.max_horizontal(f"{side}_disagreement" for side in sides)
        tests["disagreement_above"] = apart > limits.disagreement_above
    if limits.over_budget is not None:
        longest = pl.max_horizontal(f"{side}_conversation" for side in sides)
        tests["length_unknown"] = longest.is_null()  # somebody else's, who did not count
        tests["over_budget"] = longest > limits.over_budget
    for reason, failed in tests.items():
        passing = pairs.filter(~failed)
        dropped[reason] = len(pairs) - len(passing)
        pairs = passing
    return Pairing(
        pairs.drop("floor", strict=False), {reason: n for reason, n in dropped.items() if n}
    )

"""The rules of pairing against a second statement of them in plain Python, pool by pool."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.artifacts.hashing import text_hash
from factory.artifacts.schemas import from_rows
from factory.pairs.normalize import ALPHAS, draws, length_controlled, zscored
from factory.pairs.rules import GOLD, Pairing, PairLimits, Rule, best, objections, pair
from factory.pairs.rules import pool as make_pool
from factory.pairs.statistics import passed_over


@dataclass(frozen=True)
class Answer:
    """One answer of a pool."""

    k: int
    reward: float | None
    may_choose: bool = True
    may_reject: bool = True
    language: int = 0
    chars: int = 1
    tokens: int = 1
    text: str = field(default="", compare=False)
    draw: int = 0


Pool = list[Answer]
SCHEMA = {
    "prompt_id": pl.String,
    "k": pl.Int64,
    "score": pl.Float64,
    "may_choose": pl.Boolean,
    "may_reject": pl.Boolean,
    "language": pl.UInt8,
    "n_chars": pl.Int64,
    "conversation": pl.Int64,
    "text": pl.String,
    "draw": pl.UInt64,
}


def frame(pools: dict[str, Pool]) -> pl.DataFrame:
    """Pools as the table that `pair` reads."""
    rows = [
        (name, a.k, a.reward, a.may_choose, a.may_reject, a.language, a.chars, a.tokens,
         a.text or f"{a.language}/{a.k}", a.draw)
        for name, pool in pools.items()
        for a in pool
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def found(pool: Pool, rule: Rule | None = None, **limits: object) -> tuple[int, int] | str:
    """(chosen k, rejected k) of one pool, or why there is none."""
    result = pair(frame({"p": pool}), rule or Rule(), PairLimits(**limits))
    if len(result.pairs):
        return result.pairs["chosen_k"][0], result.pairs["rejected_k"][0]
    [reason] = result.dropped
    return reason


# the rule, stated anew


def scored(pool: Pool) -> Pool:
    return [a for a in pool if a.reward is not None and math.isfinite(a.reward)]


def moments(pool: Pool) -> tuple[float, float]:
    """Mean and population standard deviation, exact until the last root."""
    values = [Fraction(a.reward) for a in scored(pool) if a.reward is not None]
    mean = sum(values) / len(values)
    return float(mean), math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


def distance(pool: Pool, point: str | float) -> dict[tuple[int, int], float]:
    """How far each scored answer lies from a point, by k and language."""
    rewards = [a.reward for a in scored(pool)]
    if point == "max":
        target = max(rewards)
    elif point == "min":
        target = min(rewards)
    elif point == "q1":
        target = float(np.percentile(rewards, 25))
    else:
        mean, std = moments(pool)
        target = mean + point * std
    return {(a.k, a.language): abs(a.reward - target) for a in scored(pool)}


def nearest(pool: Pool, among: Pool, point: str | float) -> set[tuple[int, int]]:
    """Who among some is nearest to a point of the pool: one answer, unless rounding parts what is
    equally near on both sides of the point. Ties: the lowest k, then the first language."""
    if point == "min" and among:  # the lowest of those that are left, wherever that lies
        low = min(a.reward for a in among)
        return {min((a.k, a.language) for a in among if a.reward == low)}
    far = distance(pool, point)
    least = min(far[a.k, a.language] for a in among)
    rewards = {a.reward for a in among if far[a.k, a.language] < least + 1e-9}
    return {min((a.k, a.language) for a in among if a.reward == reward) for reward in rewards}


def agrees(pool: Pool, rule: Rule, row: dict | None, reason: str | None) -> None:
    """Whether what was found for a pool is what the rule says."""
    if not scored(pool) or 2 * len(scored(pool)) < len(pool):
        assert reason == "pool_incomplete"
        return
    allowed = [a for a in scored(pool) if a.may_choose]
    if not allowed:
        assert reason == "none_to_choose"
        return
    choices = nearest(pool, allowed, rule.chosen)
    by_place = {(a.k, a.language): a for a in scored(pool)}
    if row is not None:
        assert (row["chosen_k"], row["chosen_language"]) in choices
        choices = {(row["chosen_k"], row["chosen_language"])}
    others = [a for a in scored(pool) if a.may_reject]
    if rule.min_of is not None:
        others = sorted(others, key=lambda a: a.draw)[: rule.min_of]
    below = {
        choice: [a for a in others if a.reward < by_place[choice].reward] for choice in choices
    }
    if row is None:
        assert reason == "no_lower_answer"
        assert any(not some for some in below.values())
        return
    [choice] = choices
    assert row["chosen_score"] == by_place[choice].reward
    assert (row["rejected_k"], row["rejected_language"]) in nearest(
        pool, below[choice], rule.rejected
    )
    mean, std = moments(pool)
    assert row["pool_size"] == len(scored(pool))
    assert row["pool_mean"] == pytest.approx(mean, abs=1e-12)
    assert row["pool_std"] == pytest.approx(std, abs=1e-12)


def check(pools: dict[str, Pool], rule: Rule) -> Pairing:
    """Every pool against the rule; how many there are of each reason must add up."""
    result = pair(frame(pools), rule)
    rows = {row["prompt_id"]: row for row in result.pairs.to_dicts()}
    counted: dict[str, int] = {}
    for name, pool in pools.items():
        reason = None
        if name not in rows:
            # the reasons are counts: ask for this one alone
            [reason] = pair(frame({name: pool}), rule).dropped
            counted[reason] = counted.get(reason, 0) + 1
        agrees(pool, rule, rows.get(name), reason)
    assert counted == result.dropped
    assert len(pools) == len(result.pairs) + sum(result.dropped.values())
    return result


POINTS = (-2.0, -1.0, 0.0, 1.0, 2.0)
PAIRINGS = [
    *[Rule("max", low) for low in ("min", "q1", *POINTS)],
    *[Rule(high, "min") for high in POINTS],
    *[Rule(high, low) for high in POINTS for low in POINTS if low < high],
    *[Rule("max", "min", n) for n in (1, 3, 5)],
]
assert len(PAIRINGS) == 21 + 1 + 3  # the 21 of the sweet-spot study, q1, and lowest of n

REWARDS = (
    st.none()
    | st.sampled_from([math.nan, math.inf, -math.inf])
    | st.integers(-8, 8).map(lambda n: n / 2)
    | st.integers(-8, 8).map(lambda n: n / 2)
)
SIDES = st.sampled_from([True, True, True, False])
LANGUAGES = st.sampled_from([0, 0, 1, 2])
POOLS = st.lists(st.tuples(REWARDS, SIDES, SIDES, LANGUAGES), min_size=1, max_size=9).map(
    lambda rows: [
        # the same k in several languages, as a cross-lingual pool has it
        Answer(number // 2 if len(rows) % 2 else number, *row[:3], row[3] if not len(rows) % 2
               else number % 2, draw=(number * 7919 + len(rows)) % 101)
        for number, row in enumerate(rows)
    ]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(POOLS, st.sampled_from(PAIRINGS))
def test_any_pool_gives_the_pair_that_the_rule_names(pool, rule):
    check({"p": pool}, rule)


def drawn(dice: random.Random, languages: int = 1) -> Pool:
    odd = [None, math.nan, math.inf, -math.inf]
    share = dice.choice([0.0, 0.0, 0.2, 0.6])
    few = dice.random() < 0.5  # few values: many ties
    return [
        Answer(
            k,
            dice.choice(odd)
            if dice.random() < share
            else dice.randint(-8, 8) // (4 if few else 1) / 2,
            dice.random() < 0.8,
            dice.random() < 0.8,
            language,
            chars=dice.randint(0, 40),
            draw=dice.getrandbits(60),
        )
        for k in range(dice.randint(1, 9))
        for language in range(languages)
    ]


@pytest.mark.parametrize("rule", PAIRINGS, ids=str)
@pytest.mark.parametrize("languages", [1, 3])
def test_thousands_of_pools_at_once_give_what_each_gives_alone(rule, languages):
    dice = random.Random(f"{rule} {languages}")
    pools = {f"p{number}": drawn(dice, languages) for number in range(400)}
    result = pair(frame(pools), rule)
    rows = {row["prompt_id"]: row for row in result.pairs.to_dicts()}
    assert len(rows) > 10
    assert {"pool_incomplete", "no_lower_answer"} <= set(result.dropped)
    assert len(pools) == len(rows) + sum(result.dropped.values())
    for name, row in rows.items():
        agrees(pools[name], rule, row, None)
    check({name: pools[name] for name in list(set(pools) - set(rows))[:8]}, rule)


@pytest.mark.parametrize("rule", [Rule(), Rule(1.0, "min"), Rule("max", "q1")], ids=str)
def test_the_order_of_rows_does_not_matter(rule):
    dice = random.Random(1)
    table = frame({f"p{number}": drawn(dice, 2) for number in range(200)})
    expected = pair(table, rule)
    for seed in range(3):
        again = pair(table.sample(fraction=1, shuffle=True, seed=seed), rule)
        assert again.pairs.equals(expected.pairs)
        assert again.dropped == expected.dropped


def pool(*rewards: float | None) -> Pool:
    return [Answer(k, reward) for k, reward in enumerate(rewards)]


def test_rejected_is_the_one_nearest_to_so_many_deviations_from_the_mean():
    values = pool(2, 4, 4, 4, 5, 5, 7, 9)
    assert moments(values) == (5, 2)
    assert found(values, Rule("max", -2.0)) == (7, 0)  # aims at 1
    assert found(values, Rule("max", -0.5)) == (7, 1)  # aims at 4
    assert found(values, Rule("max", 0.0)) == (7, 4)  # aims at 5
    assert found(values, Rule("max", 1.0)) == (7, 6)  # aims at 7


def test_chosen_may_aim_at_a_point_as_well():
    values = pool(2, 4, 4, 4, 5, 5, 7, 9)
    assert found(values, Rule(1.0, "min")) == (6, 0)  # 7 against 2
    assert found(values, Rule(0.0, -1.0)) == (4, 0)  # 5 against 2: 4 is as near 3
    assert found(values, Rule(-2.0, "min")) == "no_lower_answer"


def test_the_lower_quartile_is_interpolated_as_numpy_does_it():
    assert found(pool(0, 1, 2, 10), Rule("max", "q1")) == (3, 1)  # aims at 0.75


@pytest.mark.parametrize("seed", range(40))
def test_a_tie_about_the_quartile_does_not_hang_on_rounding(seed: int) -> None:
    """q1 of three lies half-way between the lower two: the lower k is rejected, whatever the last
    bits of the distances say."""
    draw = random.Random(seed)
    low, middle, high = sorted(draw.gauss(0, 10 ** draw.randint(-3, 3)) for _ in range(3))
    for rewards in ((low, middle, high), (middle, low, high), (high, middle, low)):
        best = rewards.index(high)
        expected = min(k for k in range(3) if k != best)
        assert found(pool(*rewards), Rule("max", "q1")) == (best, expected)
    # a clear difference is none of rounding's
    assert found(pool(low, middle, high, high + 1), Rule("max", "min")) == (3, 0)


def test_the_lowest_of_some_is_drawn_from_the_whole_pool():
    values = [Answer(k, float(k), draw=draw) for k, draw in enumerate([9, 8, 1, 2, 3])]
    assert found(values, Rule("max", "min", 1)) == (4, 2)
    assert found(values, Rule("max", "min", 2)) == (4, 2)
    assert found(values, Rule("max", "min", 4)) == (4, 1)
    assert found(values, Rule("max", "min", 5)) == (4, 0)
    assert found([Answer(0, 1.0, draw=9), Answer(1, 2.0, draw=1)], Rule("max", "min", 1)) == (
        "no_lower_answer"
    )


def test_between_two_that_are_equally_near_the_lower_k_is_rejected():
    assert found(pool(3, 1, 4, 0), Rule("max", 0.0)) == (2, 0)
    assert found(pool(1, 3, 4, 0), Rule("max", 0.0)) == (2, 0)


def test_among_equal_rewards_the_lower_k_is_taken_on_both_sides():
    assert found(pool(0, 1, 0, 1)) == (1, 0)
    assert found(pool(1, 1, 0, 0)) == (0, 2)


def test_among_equal_rewards_the_lower_k_goes_before_the_first_language():
    answers = [Answer(1, 1.0, language=0), Answer(0, 1.0, language=2), Answer(0, 1.0, language=1),
               Answer(1, 0.0, language=1), Answer(1, 0.0, language=0)]  # fmt: skip
    [row] = pair(frame({"p": answers}), Rule()).pairs.to_dicts()
    assert (row["chosen_k"], row["chosen_language"]) == (0, 1)
    assert (row["rejected_k"], row["rejected_language"]) == (1, 0)


def test_ties_by_language_are_those_of_the_published_files():
    """The script's rule, over pools with many ties: files language by language, answers by k; the
    first of equals is chosen, and rejected the first of those equally far from the target."""
    dice, different = random.Random(9), 0
    for number in range(200):
        file = [
            Answer(k, float(dice.randint(0, 4)), language=language)
            for language in range(3)
            for k in range(5)
        ]
        rewards = [a.reward for a in file]
        target = np.mean(rewards) - 2 * np.std(rewards)
        chosen = max(file, key=lambda a: a.reward)
        lower = (a for a in sorted(file, key=lambda a: abs(a.reward - target)))
        rejected = next(a for a in lower if a.reward < chosen.reward)
        pools = frame({"p": dice.sample(file, len(file))})
        names = [f"{side}_{what}" for side in ("chosen", "rejected") for what in ("language", "k")]
        sides = [
            pair(pools, Rule(ties=ties)).pairs.select(names).row(0) for ties in ("language", "k")
        ]
        assert sides[0] == (chosen.language, chosen.k, rejected.language, rejected.k), number
        different += sides[0] != sides[1]
        [alone] = best(pools, "max", ties="language").pairs.to_dicts()
        assert (alone["chosen_language"], alone["chosen_k"]) == (chosen.language, chosen.k)
    assert different > 40, "the other order is another choice"


def test_rejected_may_lie_above_the_mean_but_never_as_high_as_chosen():
    assert found(pool(5, 5, 5, 4), Rule("max", 2.0)) == (0, 3)
    assert found(pool(5, 5, 5)) == "no_lower_answer"


def test_one_answer_alone_makes_no_pair():
    assert found(pool(1.0)) == "no_lower_answer"


def test_half_a_pool_is_enough_and_less_is_not():
    assert found(pool(1, 2, None, None)) == (1, 0)
    assert found(pool(1, 2, None, None, None)) == "pool_incomplete"
    assert found(pool(None, None)) == "pool_incomplete"


@pytest.mark.parametrize("failed", [None, math.nan, math.inf, -math.inf])
def test_a_failed_score_is_missing_and_never_a_number(failed):
    result = pair(frame({"p": pool(1, failed, 2, 3)}), Rule())
    [row] = result.pairs.to_dicts()
    assert (row["pool_size"], row["pool_mean"]) == (3, 2.0)
    assert (row["chosen_k"], row["rejected_k"]) == (3, 0)


def test_who_may_not_be_chosen_still_counts_in_the_pool_and_may_be_rejected():
    first = Answer(0, 9.0, may_choose=False)
    [row] = pair(frame({"p": [first, *pool(8, 8, 1)[1:]]}), Rule("max", 2.0)).pairs.to_dicts()
    assert (row["chosen_k"], row["rejected_k"]) == (1, 2)
    assert row["pool_mean"] == 6.0
    low = Answer(3, 0.0, may_choose=False)
    assert found([*pool(8, 7, 6), low]) == (0, 3)


def test_who_may_not_be_rejected_is_passed_over():
    low = Answer(3, 0.0, may_reject=False)
    assert found([*pool(8, 7, 6), low]) == (0, 2)
    assert found([Answer(0, 1.0), low]) == "no_lower_answer"


def test_when_nobody_may_be_chosen_the_prompt_is_dropped():
    assert found([Answer(0, 1.0, may_choose=False), Answer(1, 0.0, False)]) == "none_to_choose"


def test_duplicate_prompts_stay_separate():
    ids = ["a", "a-2", "a ", "A"]
    result = pair(
        frame({name: pool(number, number + 1) for number, name in enumerate(ids)}), Rule()
    )
    assert sorted(result.pairs["prompt_id"]) == sorted(ids)
    assert dict(result.pairs.select("prompt_id", "rejected_score").iter_rows()) == {
        "a": 0, "a-2": 1, "a ": 2, "A": 3,
    }  # fmt: skip


def test_pairs_come_in_the_order_of_their_ids():
    ids = ["b", "a", "c"]
    assert pair(frame({i: pool(0, 1) for i in ids}), Rule()).pairs["prompt_id"].to_list() == [
        "a", "b", "c",
    ]  # fmt: skip


def test_no_rows_give_no_pairs_and_no_drops():
    result = pair(frame({}), Rule())
    assert len(result.pairs) == 0
    assert result.dropped == {}
    assert len(best(frame({}), "max").pairs) == 0


# the best alone


def test_best_needs_no_second_answer_and_no_lower_one():
    result = best(frame({"a": pool(1.0), "b": pool(2, 2), "c": pool(None, None)}), "max")
    assert result.pairs["chosen_k"].to_list() == [0, 0]
    assert result.dropped == {"pool_incomplete": 1}


@pytest.mark.parametrize("point", ["max", *POINTS])
def test_best_is_the_chosen_side_of_the_pair(point):
    dice = random.Random(int(10 * point) if point != "max" else 99)
    pools = frame({f"p{number}": drawn(dice) for number in range(300)})
    pairs = pair(pools, Rule(point, "min")).pairs.select("prompt_id", "chosen_k", "chosen_score")
    alone = best(pools, point).pairs.select(pairs.columns)
    assert pairs.equals(alone.join(pairs.select("prompt_id"), on="prompt_id", how="semi"))


# what is dropped though the rule found it


def test_43_every_limit_counts_under_its_own_name():
    wide = [Answer(0, 9.0, text="x", tokens=5), Answer(1, 0.0, text="y", tokens=50)]
    assert found(wide) == (0, 1)
    assert found(wide, margin_below=9.5) == "margin_below"
    assert found(wide, margin_below=9.0) == (0, 1)
    assert found(wide, margin_above=8.5) == "margin_above"
    assert found(wide, margin_above=9.0) == (0, 1)
    assert found(wide, std_below=5) == "std_below"
    assert found(wide, std_below=4.5) == (0, 1)
    assert found(wide, over_budget=49) == "over_budget"
    assert found(wide, over_budget=50) == (0, 1)
    same = [Answer(0, 9.0, text="x"), Answer(1, 0.0, text="x")]
    assert found(same) == "same_text"


def test_a_text_that_was_chosen_before_is_a_duplicate_and_the_first_stays():
    pools = {name: [Answer(0, 9.0, text="same"), Answer(1, 0.0, text=name)] for name in "abc"}
    result = pair(frame(pools), Rule(), PairLimits(duplicates=True))
    assert result.pairs["prompt_id"].to_list() == ["a"]
    assert result.dropped == {"duplicate_text": 2}


def test_a_quantile_of_the_language_is_a_floor_for_the_chosen():
    pools = {"a": pool(0, 1), "b": pool(2, 3), "c": pool(10, 11)}
    elsewhere = {"d": [Answer(0, -5.0, language=1), Answer(1, -4.0, language=1)]}
    result = pair(frame(pools | elsewhere), Rule(), PairLimits(chosen_below_quantile=0.5))
    assert result.pairs["prompt_id"].to_list() == ["b", "c", "d"], "each language has its own"
    assert result.dropped == {"chosen_below_quantile": 1}
    assert "floor" not in result.pairs.columns


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 4), st.floats(0.1, 8), st.floats(0, 3))
def test_limits_drop_what_they_say_and_nothing_else(seed, low, high, std):
    dice = random.Random(seed)
    pools = frame({f"p{number}": drawn(dice) for number in range(30)})
    free = pair(pools, Rule())
    bound = pair(pools, Rule(), PairLimits(margin_below=low, margin_above=high, std_below=std))
    kept = [
        row
        for row in free.pairs.to_dicts()
        if row["pool_std"] >= std and low <= row["chosen_score"] - row["rejected_score"] <= high
    ]
    assert bound.pairs.to_dicts() == kept
    assert sum(bound.dropped.values()) + len(kept) == 30


# what is compared


@pytest.mark.parametrize("offset", [10.0, -3.7, 1e4])
def test_language_offset_does_not_change_all_lang_pairs_when_normalised(offset):
    dice = random.Random(int(offset))
    pools = {f"p{number}": drawn(dice, 3) for number in range(200)}
    moved = {
        name: [
            Answer(a.k, a.reward + offset if a.language == 1 and a.reward is not None else a.reward,
                   a.may_choose, a.may_reject, a.language)
            for a in pool
        ]
        for name, pool in pools.items()
    }  # fmt: skip
    keys = ["prompt_id", "chosen_k", "chosen_language", "rejected_k", "rejected_language"]

    def finite(table: pl.DataFrame) -> pl.DataFrame:
        return table.with_columns(score=pl.when(pl.col("score").is_finite()).then("score"))

    def normal(pools: dict[str, Pool]) -> Pairing:
        return pair(zscored(finite(frame(pools))), Rule())

    assert normal(pools).pairs.select(keys).equals(normal(moved).pairs.select(keys))
    assert normal(pools).dropped == normal(moved).dropped
    assert (
        not pair(frame(pools), Rule())
        .pairs.select(keys)
        .equals(pair(frame(moved), Rule()).pairs.select(keys))
    ), "without it the offset decides"


def test_normalised_scores_have_mean_nought_and_deviation_one_in_each_language():
    dice = random.Random(3)
    answers = [Answer(k, dice.gauss(language, 2 + language), language=language)
               for language in range(3) for k in range(50)]  # fmt: skip
    table = zscored(frame({"p": answers}))
    for _, part in table.group_by("language"):
        assert part["score"].mean() == pytest.approx(0, abs=1e-8)
        assert part["score"].std(ddof=0) == pytest.approx(1, abs=1e-8)
    assert zscored(frame({"p": pool(2, 2, None)}))["score"].to_list() == [0, 0, None]


def controlled(pools: dict[str, Pool]) -> float:
    """ICR's alpha, stated anew: every price tried on every pool."""
    gaps = []
    for alpha in ALPHAS:
        lengths = []
        for pool in pools.values():
            if 2 * len(scored(pool)) < len(pool):
                continue
            high = [(-(a.reward - alpha * a.chars), a.k, a.chars) for a in scored(pool)
                    if a.may_choose]  # fmt: skip
            low = [(a.reward - alpha * a.chars, a.k, a.chars) for a in scored(pool)
                   if a.may_reject]  # fmt: skip
            if high and low:
                lengths.append(min(high)[2] - min(low)[2])
        gaps.append(abs(sum(lengths) / len(lengths)) if lengths else 0.0)
    return float(ALPHAS[int(np.argmin(gaps))])


@pytest.mark.parametrize("seed", range(4))
def test_length_control_finds_the_price_that_evens_lengths_out(seed):
    dice = random.Random(seed)
    pools = {f"p{number}": drawn(dice) for number in range(40)}
    longer = {  # rewards that like length
        name: [Answer(a.k, a.reward + 0.125 * a.chars if a.reward is not None else None,
                      a.may_choose, a.may_reject, chars=a.chars) for a in pool]
        for name, pool in pools.items()
    }  # fmt: skip
    table = frame(longer).with_columns(score=pl.when(pl.col("score").is_finite()).then("score"))
    answers, alpha = length_controlled(table)
    assert alpha == controlled(longer)
    assert answers["score"].to_list() == (table["score"] - alpha * table["n_chars"]).to_list()


def test_length_control_of_nothing_costs_nothing():
    assert length_controlled(frame({}))[1] == 0.0
    assert length_controlled(frame({"p": [Answer(0, 1.0, may_choose=False)]}))[1] == 0.0


def test_a_draw_depends_on_what_is_drawn_for_and_nothing_else():
    table = frame({name: [Answer(k, 0.0, language=n) for n in (0, 1) for k in (-1, 0, 1)]
                   for name in ("a", "b")})  # fmt: skip

    def of(part: pl.DataFrame, codes: list[str], seed: int = 0) -> list[int]:
        return draws(seed, part["prompt_id"], part["language"], part["k"], codes).to_list()

    every = of(table, ["es", "da"])
    assert len(set(every)) == len(table)
    assert of(table, ["es", "da"], seed=1) != every
    later = table.filter(pl.col("prompt_id") == "b")
    assert of(later, ["es", "da"]) == every[6:]
    alone = later.filter(pl.col("language") == 1).with_columns(language=pl.lit(0, pl.UInt8))
    assert of(alone, ["da"]) == every[9:], "another place among the languages changes nothing"
    assert every[0] == 16166226937107128289, "pinned: a draw is the same everywhere and for good"


# from tables of samples and scores to pools

SAMPLES = [
    {"k": 0, "response": "Ja, det er det.", "finish_reason": "stop", "detected_language": "da"},
    {"k": 1, "response": "Ja, det er", "finish_reason": "length", "detected_language": "no"},
    {"k": 2, "response": "Yes, it is.", "finish_reason": "stop", "detected_language": "en"},
    {"k": 3, "response": "Ja", "finish_reason": "stop", "detected_language": None},
    {"k": 4, "response": "", "finish_reason": "stop", "detected_language": "da"},
]


def samples(rows: list[dict] = SAMPLES) -> pa.Table:
    made = [
        {
            "prompt_id": "p",
            "language": "da",
            "prompt_hash": "h",
            "response_hash": text_hash(row["response"]),
            "n_tokens": 1,
            "n_chars": len(row["response"]),
            "seed": 0,
            **row,
        }
        for row in rows
    ]
    return from_rows(made, "samples")


def scores(rows: list[dict] = SAMPLES) -> pa.Table:
    made = [
        {
            "prompt_id": "p",
            "language": "da",
            "k": row["k"],
            "response_hash": text_hash(row["response"]),
            "reward": float(row["k"]),
            "n_tokens": 7,
            "status": "ok",
        }
        for row in rows
    ]
    return from_rows(made, "scores")


@pytest.mark.parametrize(
    ("asked", "may"),
    [
        ((False, False, False), [0, 1, 2, 3, 4]),
        ((True, False, False), [0, 2, 3, 4]),
        ((False, True, False), [0, 1, 4]),
        ((False, False, True), [0, 1, 2, 3]),
        ((True, True, True), [0]),
    ],
)
def test_a_side_asks_for_whole_answers_and_for_a_language_and_no_label_is_no_match(asked, may):
    answers = make_pool(scores(), samples(), {"da", "no"})
    against = pl.any_horizontal(pl.lit(False), *objections(*asked).values())
    assert answers.filter(~against)["k"].to_list() == may
    assert len(answers) == len(SAMPLES), "who may not be chosen still counts in the pool"


def test_an_answer_without_a_label_is_not_said_to_be_in_a_wrong_language():
    rows = [{**row, "detected_language": label} for row, label in zip(
        SAMPLES, ["da", "en", None, "no", None], strict=True)]  # fmt: skip
    answers = make_pool(scores(), samples(rows), {"da", "no"})
    assert passed_over(answers, objections(False, True, False)) == {
        "wrong_language": 1, "no_language": 2,
    }  # fmt: skip


def test_a_score_belongs_to_the_text_that_was_scored_and_to_no_later_one():
    rewritten = [{**row, "response": f"{row['response']}!"} if row["k"] == 2 else row
                 for row in SAMPLES]  # fmt: skip
    assert make_pool(scores(), samples(rewritten), {"da"})["k"].to_list() == [0, 1, 3, 4]


def test_each_answer_knows_its_row_and_how_long_its_conversation_is():
    backwards = SAMPLES[::-1]
    answers = make_pool(scores(), samples(backwards), {"da"}, language=2)
    assert answers["k"].to_list() == [0, 1, 2, 3, 4]
    assert answers["row"].to_list() == [4, 3, 2, 1, 0]
    assert answers["conversation"].to_list() == [7] * 5
    assert answers["language"].to_list() == [2] * 5


def test_scores_beside_their_answers_and_in_another_order_make_the_same_pool():
    beside = make_pool(scores(), samples(), {"da"})
    apart = make_pool(scores(SAMPLES[::-1]), samples(), {"da"}).sort("k")
    assert beside.select(sorted(beside.columns)).equals(apart.select(sorted(apart.columns)))


def test_answers_that_people_wrote_join_the_pool_only_when_asked_for():
    gold = [*SAMPLES, {**SAMPLES[0], "k": GOLD, "response": "Ja."}]
    assert GOLD not in make_pool(scores(gold), samples(gold), {"da"})["k"]
    assert GOLD in make_pool(scores(gold), samples(gold), {"da"}, gold=True)["k"]


def test_without_answers_there_is_an_empty_pool():
    empty = make_pool(scores([]), samples([]), {"da"})
    assert len(empty) == 0
    sides = empty.with_columns(may_choose=pl.lit(True), may_reject=pl.lit(True))
    assert pair(sides, Rule()).dropped == {}

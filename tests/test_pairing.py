"""CroCo's rule against a second statement of it in plain Python, on thousands of small pools."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from fractions import Fraction

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.artifact import text_hash
from factory.pairing import Pairing, allowed, pair, texts
from factory.pairing import pool as make_pool
from factory.schemas import from_rows


@dataclass(frozen=True)
class Answer:
    """One answer of a pool."""

    k: int
    reward: float | None
    may_choose: bool = True
    may_reject: bool = True


Pool = list[Answer]
SCHEMA = {
    "prompt_id": pl.String,
    "k": pl.Int64,
    "reward": pl.Float64,
    "may_choose": pl.Boolean,
    "may_reject": pl.Boolean,
}


def frame(pools: dict[str, Pool]) -> pl.DataFrame:
    """Pools as the table that `pair` reads."""
    rows = [
        (name, a.k, a.reward, a.may_choose, a.may_reject) for name, pool in pools.items()
        for a in pool
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def found(pool: Pool, sigma: float = -2.0) -> tuple[int, int] | str:
    """(chosen k, rejected k) of one pool, or why there is none."""
    result = pair(frame({"p": pool}), sigma)
    if len(result.pairs):
        return result.pairs["chosen_k"][0], result.pairs["rejected_k"][0]
    [reason] = result.dropped
    return reason


def scored(pool: Pool) -> Pool:
    return [a for a in pool if a.reward is not None and math.isfinite(a.reward)]


def moments(pool: Pool) -> tuple[float, float]:
    """Mean and population standard deviation, exact until the last root."""
    values = [Fraction(a.reward) for a in scored(pool) if a.reward is not None]
    mean = sum(values) / len(values)
    return float(mean), math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


def agrees(pool: Pool, sigma: float, row: dict | None, reason: str | None) -> None:
    """Whether what was found for a pool is what the rule says, stated anew."""
    if not scored(pool) or 2 * len(scored(pool)) < len(pool):
        assert reason == "pool_incomplete"
        return
    allowed = [a for a in scored(pool) if a.may_choose]
    if not allowed:
        assert reason == "none_to_choose"
        return
    best = max(a.reward for a in allowed)
    chosen = min(a.k for a in allowed if a.reward == best)
    below = [a for a in scored(pool) if a.may_reject and a.reward < best]
    if not below:
        assert reason == "no_lower_answer"
        return
    assert row is not None
    assert (row["chosen_k"], row["score_chosen"]) == (chosen, best)
    mean, std = moments(pool)
    assert row["pool_size"] == len(scored(pool))
    assert row["pool_mean"] == pytest.approx(mean, abs=1e-12)
    assert row["pool_std"] == pytest.approx(std, abs=1e-12)
    distance = {a.k: abs(a.reward - (mean + sigma * std)) for a in below}
    nearest = min(distance.values())
    # Rounding may part what is equally near on both sides, but never answers of one reward.
    near = {a.reward for a in below if distance[a.k] < nearest + 1e-9}
    assert row["score_rejected"] in near
    assert row["rejected_k"] == min(a.k for a in below if a.reward == row["score_rejected"])


def check(pools: dict[str, Pool], sigma: float) -> Pairing:
    """Every pool against the rule; how many there are of each reason must add up."""
    result = pair(frame(pools), sigma)
    rows = {row["prompt_id"]: row for row in result.pairs.to_dicts()}
    counted: dict[str, int] = {}
    for name, pool in pools.items():
        reason = None
        if name not in rows:
            # the reasons are counts: ask for this one alone
            [reason] = pair(frame({name: pool}), sigma).dropped
            counted[reason] = counted.get(reason, 0) + 1
        agrees(pool, sigma, rows.get(name), reason)
    assert counted == result.dropped
    assert len(pools) == len(result.pairs) + sum(result.dropped.values())
    return result


REWARDS = (
    st.none()
    | st.sampled_from([math.nan, math.inf, -math.inf])
    | st.integers(-8, 8).map(lambda n: n / 2)
    | st.integers(-8, 8).map(lambda n: n / 2)
)
SIDES = st.sampled_from([True, True, True, False])
POOLS = st.lists(st.tuples(REWARDS, SIDES, SIDES), min_size=1, max_size=8).map(
    lambda rows: [Answer(k, *row) for k, row in enumerate(rows)]
)
SIGMAS = st.sampled_from([-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])


@settings(max_examples=150, deadline=None)
@given(POOLS, SIGMAS)
def test_any_pool_gives_the_pair_that_the_rule_names(pool, sigma):
    check({"p": pool}, sigma)


def drawn(dice: random.Random) -> Pool:
    odd = [None, math.nan, math.inf, -math.inf]
    share = dice.choice([0.0, 0.0, 0.2, 0.6])
    few = dice.random() < 0.5  # few values: many ties
    return [
        Answer(
            k,
            dice.choice(odd) if dice.random() < share else dice.randint(-8, 8) // (4 if few else 1)
            / 2,
            dice.random() < 0.8,
            dice.random() < 0.8,
        )
        for k in range(dice.randint(1, 9))
    ]  # fmt: skip


@pytest.mark.parametrize("sigma", [-2.0, -1.0, 0.0, 1.0])
def test_thousands_of_pools_at_once_give_what_each_gives_alone(sigma):
    dice = random.Random(int(10 * sigma))
    pools = {f"p{number}": drawn(dice) for number in range(1500)}
    result = pair(frame(pools), sigma)
    rows = {row["prompt_id"]: row for row in result.pairs.to_dicts()}
    assert len(rows) > 400
    assert set(result.dropped) == {"pool_incomplete", "none_to_choose", "no_lower_answer"}
    assert len(pools) == len(rows) + sum(result.dropped.values())
    for name, row in rows.items():
        agrees(pools[name], sigma, row, None)
    for name in list(set(pools) - set(rows))[:40]:
        check({name: pools[name]}, sigma)


@pytest.mark.parametrize("sigma", [-2.0, 0.0])
def test_the_order_of_rows_does_not_matter(sigma):
    dice = random.Random(1)
    table = frame({f"p{number}": drawn(dice) for number in range(200)})
    expected = pair(table, sigma)
    for seed in range(3):
        again = pair(table.sample(fraction=1, shuffle=True, seed=seed), sigma)
        assert again.pairs.equals(expected.pairs)
        assert again.dropped == expected.dropped


def pool(*rewards: float | None) -> Pool:
    return [Answer(k, reward) for k, reward in enumerate(rewards)]


def test_rejected_is_the_one_nearest_to_so_many_deviations_from_the_mean():
    values = pool(2, 4, 4, 4, 5, 5, 7, 9)
    assert moments(values) == (5, 2)
    assert found(values, sigma=-2.0) == (7, 0)  # aims at 1
    assert found(values, sigma=-0.5) == (7, 1)  # aims at 4
    assert found(values, sigma=0.0) == (7, 4)  # aims at 5
    assert found(values, sigma=1.0) == (7, 6)  # aims at 7


def test_between_two_that_are_equally_near_the_lower_k_is_rejected():
    assert found(pool(3, 1, 4, 0), sigma=0.0) == (2, 0)
    assert found(pool(1, 3, 4, 0), sigma=0.0) == (2, 0)


def test_among_equal_rewards_the_lower_k_is_taken_on_both_sides():
    assert found(pool(0, 1, 0, 1)) == (1, 0)
    assert found(pool(1, 1, 0, 0)) == (0, 2)


def test_rejected_may_lie_above_the_mean_but_never_as_high_as_chosen():
    assert found(pool(5, 5, 5, 4), sigma=2.0) == (0, 3)
    assert found(pool(5, 5, 5)) == "no_lower_answer"


def test_one_answer_alone_makes_no_pair():
    assert found(pool(1.0)) == "no_lower_answer"


def test_half_a_pool_is_enough_and_less_is_not():
    assert found(pool(1, 2, None, None)) == (1, 0)
    assert found(pool(1, 2, None, None, None)) == "pool_incomplete"
    assert found(pool(None, None)) == "pool_incomplete"


@pytest.mark.parametrize("failed", [None, math.nan, math.inf, -math.inf])
def test_a_score_that_failed_is_missing_and_never_a_number(failed):
    result = pair(frame({"p": pool(1, failed, 2, 3)}), sigma=-2.0)
    [row] = result.pairs.to_dicts()
    assert (row["pool_size"], row["pool_mean"]) == (3, 2.0)
    assert (row["chosen_k"], row["rejected_k"]) == (3, 0)


def test_who_may_not_be_chosen_still_counts_in_the_pool_and_may_be_rejected():
    best = Answer(0, 9.0, may_choose=False)
    [row] = pair(frame({"p": [best, *pool(8, 8, 1)[1:]]}), sigma=2.0).pairs.to_dicts()
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


def test_prompts_under_ids_that_look_alike_stay_apart():
    ids = ["a", "a-2", "a ", "A"]
    result = pair(frame({name: pool(number, number + 1) for number, name in enumerate(ids)}), -2.0)
    assert sorted(result.pairs["prompt_id"]) == sorted(ids)
    assert dict(result.pairs.select("prompt_id", "score_rejected").iter_rows()) == {
        "a": 0, "a-2": 1, "a ": 2, "A": 3,
    }  # fmt: skip


def test_pairs_come_in_the_order_of_their_ids():
    ids = ["b", "a", "c"]
    assert pair(frame({i: pool(0, 1) for i in ids}), -2.0).pairs["prompt_id"].to_list() == [
        "a", "b", "c",
    ]  # fmt: skip


def test_no_rows_give_no_pairs_and_no_drops():
    result = pair(frame({}), -2.0)
    assert len(result.pairs) == 0
    assert result.dropped == {}


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
            "n_tokens": 1,
            "status": "ok",
        }
        for row in rows
    ]
    return from_rows(made, "scores")


@pytest.mark.parametrize(
    ("finished", "languages", "may"),
    [
        (False, None, [0, 1, 2, 3, 4]),
        (True, None, [0, 2, 3, 4]),
        (False, {"da", "no"}, [0, 1, 4]),
        (True, {"da", "no"}, [0, 4]),
    ],
)
def test_a_side_asks_for_whole_answers_and_for_a_language_and_no_label_is_no_match(
    finished, languages, may
):
    rule, anything = allowed(finished, languages), allowed(False, None)
    rejected = make_pool(scores(), samples(), anything, rule)
    assert rejected.filter("may_reject")["k"].to_list() == may
    chosen = make_pool(scores(), samples(), rule, anything)
    assert chosen.filter("may_choose")["k"].to_list() == [k for k in may if k != 4], "4 is empty"
    assert len(chosen) == len(SAMPLES), "who may not be chosen still counts in the pool"


def test_a_score_belongs_to_the_text_that_was_scored_and_to_no_later_one():
    rewritten = [{**row, "response": f"{row['response']}!"} if row["k"] == 2 else row
                 for row in SAMPLES]  # fmt: skip
    anything = allowed(False, None)
    assert make_pool(scores(), samples(rewritten), anything, anything)["k"].to_list() == [
        0,
        1,
        3,
        4,
    ]


def test_without_answers_there_is_an_empty_pool():
    anything = allowed(False, None)
    empty = make_pool(scores([]), samples([]), anything, anything)
    assert len(empty) == 0
    assert pair(empty, -2.0).dropped == {}


def test_only_the_texts_of_the_pair_are_gathered():
    pairs = pl.DataFrame({"prompt_id": ["p"], "chosen_k": [3], "rejected_k": [0]})
    assert texts(samples(), pairs) == {("p", 3): "Ja", ("p", 0): "Ja, det er det."}

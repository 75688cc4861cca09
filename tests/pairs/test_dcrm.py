"""The pair with the highest DCRM, against a second statement of it in plain Python."""

from __future__ import annotations

import math
import random
import re
from itertools import permutations
from typing import Any

import pytest
from pydantic import ValidationError

from factory.artifacts.manifest import Rows
from factory.pairs.compare import strategies
from factory.pairs.dcrm import distances
from factory.pairs.pair import Pair
from factory.stage.inputs import SliceSpec
from tests.support.pools import Pools, job_of, read, write

WORDS = ["bread", "rises", "because", "yeast", "eats", "sugar", "and", "breathes", "gas", "."]


def edits(one: list[str], other: list[str]) -> int:
    """Levenshtein's distance, row by row."""
    row = list(range(len(other) + 1))
    for number, word in enumerate(one, 1):
        last, row[0] = row[0], number
        for at, another in enumerate(other, 1):
            last, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, last + (word != another))
    return row[-1]


def drawn(seed: int, likely: bool) -> Pools:
    dice = random.Random(seed)

    def answer() -> tuple[Any, ...]:
        text = " ".join(dice.choice(WORDS) for _ in range(dice.randint(1, 12)))
        odd: dict[str, Any] = {"finish_reason": dice.choice(["stop"] * 4 + ["length"])}
        if likely:
            odd["log_prob"] = None if dice.random() < 0.1 else -dice.random() * 30
        return (None if dice.random() < 0.1 else dice.randint(-6, 6) / 2, text, odd)

    return {f"p{number:02}": [answer() for _ in range(7)] for number in range(25)}


def highest(pool: Any) -> tuple[int, int, float] | None:
    """The k of the chosen, that of the rejected, and the DCRM of the best pair of a pool."""
    best: tuple[float, int, int] | None = None
    unknown = sum(None in (reward, odd.get("log_prob", 0.0)) for reward, _, odd in pool)
    if unknown > len(pool) / 2:
        return None  # pool_incomplete
    for (k, one), (other_k, other) in permutations(enumerate(pool), 2):
        (reward, text, odd), (lower, worse, more) = one, other
        sums = [odd.get("log_prob", 0.0), more.get("log_prob", 0.0)]
        if None in (reward, lower, *sums) or reward <= lower or text == worse:
            continue
        if odd["finish_reason"] != "stop":
            continue
        gap = 1 / (1 + math.exp(lower - reward)) - 0.5
        far = edits(re.findall(r"\w+|\S", text), re.findall(r"\w+|\S", worse))
        value = gap / (far + abs(sums[0] - sums[1]) + 1)
        if best is None or (-value, k, other_k) < (-best[0] + 1e-15, *best[1:]):
            best = (value, k, other_k)
    return best and (best[1], best[2], best[0])


@pytest.mark.parametrize("likely", [False, True])
def test_dcrm_is_the_highest_over_all_ordered_pairs_of_a_pool(tmp_path, likely):
    pools = drawn(3, likely)
    write(tmp_path, {"en": pools})
    stage = Pair(rule="dcrm")
    outcome = stage.run(job_of(tmp_path, stage, ("en",)))
    made = {row["prompt_id"]: row for row in read(tmp_path, stage, "en")}
    expected = {name: best for name, pool in pools.items() if (best := highest(pool))}
    assert {n: (r["chosen_k"], r["rejected_k"]) for n, r in made.items()} == {
        name: best[:2] for name, best in expected.items()
    }
    assert len(made) > 15 and outcome.rows["en"].balanced()
    figures = outcome.stats["by_slice"]["en"]
    mean = sum(best[2] for best in expected.values()) / len(expected)
    assert figures["mean_dcrm"] == pytest.approx(mean)
    assert figures["likelihood_gap"] is likely
    usual = Pair(rejected="min")
    usual.run(job_of(tmp_path, usual, ("en",)))
    other = {r["prompt_id"]: (r["chosen_k"], r["rejected_k"]) for r in read(tmp_path, usual, "en")}
    assert any(other[name] != best[:2] for name, best in expected.items())


def test_dcrm_drops_say_why_and_limits_hold(tmp_path):
    pools: dict[str, Pools] = {"da": {
        "alike": [(1.0, "x"), (1.0, "y")],
        "same": [(2.0, "x"), (1.0, "x")],
        "near": [(9.0, "a b c d"), (8.0, "a b c e"), (0.0, "f g h i j k l m")],
    }}  # fmt: skip
    write(tmp_path, pools)
    stage = Pair(rule="dcrm", drop={"margin_above": 5})
    outcome = stage.run(job_of(tmp_path, stage, ("da",)))
    assert outcome.rows["da"] == Rows(
        into=3, out=1, dropped={"no_lower_answer": 1, "same_text": 1}
    )  # fmt: skip
    [row] = read(tmp_path, stage, "da")
    assert (row["chosen_k"], row["rejected_k"]) == (0, 1)


def test_distance_counts_words_of_any_script():
    assert distances(["the cat sat", "the dog sat down", ""]).tolist() == [
        [0, 2, 3], [2, 0, 4], [3, 4, 0],
    ]  # fmt: skip
    assert distances(["我喜欢面包。", "我喜欢米饭。"])[0, 1] == 1


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"rejected": "min"}, "leave rejected out"),
        ({"chosen": {"sigma": 1}}, "leave chosen out"),
        ({"length_control": True}, "leave length_control out"),
        ({"vote": "x"}, "leave vote out"),
    ],
)
def test_knobs_that_dcrm_has_no_use_for_are_refused(knobs, match):
    with pytest.raises(ValidationError, match=match):
        Pair(rule="dcrm", **knobs)


def test_dcrm_is_a_strategy_and_a_recipe_of_it_is_compared_with_others():
    own = Pair(rule="dcrm", drop={"margin_below": 1})
    recipe, dcrm, points = strategies(own, ["dcrm", "max:min"])
    assert recipe.stage == dcrm.stage == own
    assert points.stage.rule == "points" and points.stage.drop == own.drop
    spec = SliceSpec("pair", "en", "en", ())
    assert Pair().identity_fields(spec) == {} and own.identity_fields(spec)["rule"] == "dcrm"

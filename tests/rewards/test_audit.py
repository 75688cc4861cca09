"""The audit of a reward model, on rewards whose figures are known in closed form."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.cli.tables import audit_table
from factory.planning.plan import ArtifactRef, Inventory, plan
from factory.reports.cards import card
from factory.rewards.audit import FEWEST, AuditLimits, audit, blind, readings
from tests.support.builders import by_name, demo, lock_of, manifest_of

Reward = Callable[[int, int, int], float | None]  # of prompt, k and length
COLUMNS = {"language": pl.String, "prompt_id": pl.String, "k": pl.Int64, "reward": pl.Float64,
           "n_chars": pl.Int64, "n_tokens": pl.Int64}  # fmt: skip


def answers(language: str, reward: Reward, prompts: int = 12, n: int = 6, seed: int = 0) -> Any:
    """Answers with drawn lengths and the reward of each."""
    draw = random.Random(f"{seed} {language}")
    rows = []
    for prompt in range(prompts):
        for k in range(n):
            length = draw.randrange(20, 400)
            value = reward(prompt, k, length)
            rows.append((language, f"p{prompt}", k, value, length, max(1, length // 4)))
    return pl.DataFrame(
        rows,
        schema=COLUMNS,
        orient="row",
    )


def noise(seed: int) -> Reward:
    draw = random.Random(seed)
    return lambda prompt, k, length: prompt + draw.gauss(0, 1)


def of(table: pl.DataFrame, language: str, **more: Any) -> dict[str, Any]:
    limits = more.pop("limits", AuditLimits())
    return audit(table, more, limits)["by_language"][language]


# Figures in closed form.


def test_spread_is_the_mean_deviation_within_a_prompt() -> None:
    # 0 and 2 around prompt, so each prompt's deviation is 1; prompts lie at 0, 10, 20, …
    figures = of(answers("es", lambda p, k, length: 10 * p + 2 * (k % 2)), "es")
    assert figures["spread"] == pytest.approx(1)
    assert figures["mean"] == pytest.approx(56)
    assert figures["std"] == pytest.approx(math.sqrt(1 + 100 * (12**2 - 1) / 12))
    assert (figures["prompts"], figures["alike"]) == (12, 0)


def test_correlation_with_length_is_one_when_it_is_all() -> None:
    up = of(answers("es", lambda p, k, length: math.log(length)), "es")
    down = of(answers("es", lambda p, k, length: -(length**3.0)), "es")
    assert up["length_chars"] == pytest.approx(1)
    assert down["length_chars"] == pytest.approx(-1)
    assert up["length_prompts"] == 12


def test_correlation_with_length_takes_ties_at_their_mean_rank() -> None:
    table = pl.DataFrame(
        {
            "language": "es",
            "prompt_id": "p",
            "k": [0, 1, 2],
            "reward": [1.0, 1.0, 2.0],  # ranks 1.5 1.5 3
            "n_chars": [10, 20, 30],  # ranks 1 2 3
            "n_tokens": [3, 2, 1],
        }
    )
    figures = of(table, "es")
    assert figures["length_chars"] == pytest.approx(1.5 / math.sqrt(1.5 * 2))
    assert figures["length_tokens"] == pytest.approx(-1.5 / math.sqrt(1.5 * 2))


def test_correlation_with_length_is_within_prompts() -> None:
    # longer prompts' answers get more, but among answers to one prompt the shorter one does
    table = pl.DataFrame(
        [
            ("es", f"p{p}", k, 100.0 * p - k, 1000 * p + k, 1000 * p + k)
            for p in range(9)
            for k in (0, 1)
        ],
        schema=COLUMNS,
        orient="row",
    )
    assert of(table, "es")["length_chars"] == pytest.approx(-1)


def test_offset_and_scale_are_against_english() -> None:
    english = answers("en", noise(1))
    spanish = english.with_columns(language=pl.lit("es"), reward=pl.col("reward") * 3 - 2)
    figures = of(pl.concat([english, spanish]), "es")
    mean = english["reward"].mean()
    assert figures["offset"] == pytest.approx(2 * mean - 2)
    assert figures["scale"] == pytest.approx(3)
    assert "offset" not in of(pl.concat([english, spanish]), "en")
    assert "offset" not in of(spanish, "es")  # no English in this recipe


def test_agreement_is_of_the_mean_rewards_of_the_same_prompts() -> None:
    english = answers("en", lambda p, k, length: p + k)
    same = answers("es", lambda p, k, length: p**2 + 5 * k)
    turned = answers("fr", lambda p, k, length: -p + k)
    table = pl.concat([english, same, turned])
    assert of(table, "es")["agreement"] == pytest.approx({"en": 1, "fr": -1})
    assert of(table, "fr")["agreement"] == pytest.approx({"en": -1, "es": -1})


def test_agreement_looks_at_common_prompts_only() -> None:
    english = answers("en", lambda p, k, length: p + k)
    few = answers("es", lambda p, k, length: p + k, prompts=FEWEST - 1)
    assert of(pl.concat([english, few]), "es")["agreement"] == {}


def test_means_that_repeat_say_so() -> None:
    steady = of(answers("es", lambda p, k, length: p + k / 100), "es")
    assert steady["repeatable"] == pytest.approx(1)
    # in halves the means rank at -1: nothing repeats
    contrary = of(answers("es", lambda p, k, length: p if k % 2 else -p), "es")
    assert contrary["repeatable"] is None
    # 2r / (1 + r), with r the rank correlation of the halves
    order = [0, 1, 2, 3, 5, 4]  # one exchange of neighbours: r = 1 - 6*2/(6*35)
    half = 1 - 6 * 2 / (6 * 35)
    swapped = of(answers("es", lambda p, k, length: p if k % 2 else order[p], prompts=6), "es")
    assert swapped["repeatable"] == pytest.approx(2 * half / (1 + half))


def test_accuracy_counts_a_tie_as_wrong_and_leaves_out_what_has_no_reward() -> None:
    pairs = [(2.0, 1.0), (1.0, 2.0), (1.0, 1.0), (None, 1.0), (3.0, 0.0)]
    figures = of(answers("es", noise(1)), "es", es=pairs)
    assert (figures["pairs"], figures["pairs_right"], figures["pairs_unscored"]) == (4, 2, 1)
    assert figures["accuracy"] == 0.5
    assert of(answers("es", noise(1)), "es")["accuracy"] is None


def test_what_has_no_reward_is_left_out() -> None:
    table = answers("es", lambda p, k, length: None if k == 0 else float(k % 2))
    figures = of(table, "es")
    assert (figures["answers"], figures["scored"]) == (72, 60)
    assert figures["mean"] == pytest.approx(0.6)


# What is flagged, and what is not.


def test_a_constant_reward_is_blind() -> None:
    table = pl.concat([answers("en", noise(1)), answers("mt", lambda p, k, length: 3.0)])
    found = audit(table, {}, AuditLimits())
    assert list(blind(found)) == ["mt"]
    assert "hardly tells answers" in blind(found)["mt"][0]
    assert found["by_language"]["mt"]["alike"] == 12


@pytest.mark.parametrize("constant", [0.1, -1 / 3, 1e9 + 0.1])
def test_rounding_gives_equal_rewards_no_deviation(constant: float) -> None:
    figures = of(answers("mt", lambda p, k, length: constant, n=7), "mt")
    assert figures["std"] == figures["spread"] == 0 and figures["blind"]


def test_lengths_that_are_equal_in_tokens_alone_are_no_error() -> None:
    table = answers("mt", lambda p, k, length: length).with_columns(n_tokens=pl.lit(7))
    figures = of(table, "mt")
    assert figures["length_tokens"] is None and "length" in figures["blind"][0]
    assert "in tokens" not in " ".join(figures["readings"])


def test_a_correlation_that_rests_on_two_prompts_accuses_nobody() -> None:
    # nearly all answers are cut at 16 tokens; in two prompts the longer one got more
    table = answers("en", noise(1)).with_columns(
        n_tokens=pl.when(pl.col("prompt_id").is_in(["p0", "p1"]))
        .then(pl.col("reward").rank().over("prompt_id").cast(pl.Int64))
        .otherwise(16)
    )
    figures = of(table, "en")
    assert (figures["length_tokens"], figures["token_prompts"]) == (pytest.approx(1), 2)
    assert figures["blind"] == [] and "in tokens" not in figures["readings"][1]


def test_a_reward_for_prompts_alone_is_blind() -> None:
    found = audit(answers("mt", lambda p, k, length: p + 0.001 * k), {}, AuditLimits())
    assert "flat" in blind(found)["mt"][0]


def test_a_reward_far_flatter_than_in_english_is_blind() -> None:
    draw = random.Random(3)
    table = pl.concat(
        [answers("en", noise(1)), answers("mt", lambda p, k, length: 0.01 * draw.gauss(0, 1))]
    )
    assert "less than in English" in blind(audit(table, {}, AuditLimits()))["mt"][0]


@pytest.mark.parametrize(("sign", "word"), [(1, "length"), (-1, "shortness")])
def test_a_reward_that_is_length_alone_is_blind(sign: int, word: str) -> None:
    found = audit(answers("ga", lambda p, k, length: sign * length), {}, AuditLimits())
    assert blind(found) == {"ga": [f"length: it follows {word} alone"]}


@pytest.mark.parametrize(
    ("right", "wrong", "reasons"),
    [
        (5, 6, []),  # 45 %, and as well 72: no more than a coin may do
        (450, 550, ["accuracy: it does not find the better answer"]),
        (47, 60, ["accuracy: it does not find the better answer"]),
        (13, 87, ["accuracy: it prefers the worse answer; the sides look exchanged"]),
        (0, 8, ["accuracy: it prefers the worse answer; the sides look exchanged"]),
        (56, 44, []),
    ],
)
def test_accuracy_is_suspect_where_its_whole_interval_is(
    right: int, wrong: int, reasons: list[str]
) -> None:
    pairs = [(1.0, 0.0)] * right + [(0.0, 1.0)] * wrong
    found = audit(answers("cy", noise(1)), {"cy": pairs}, AuditLimits())
    figures = found["by_language"]["cy"]
    assert figures["blind"] == reasons
    assert figures["accuracy_low"] < right / (right + wrong) + 1e-9 < figures["accuracy_high"]
    told = figures["readings"][-1]
    assert ("too few to tell" in told) is ((right, wrong) in ((5, 6), (47, 60), (56, 44)))


def test_a_reward_that_sees_is_not_flagged() -> None:
    draw = random.Random(5)

    def real(prompt: int, k: int, length: int) -> float:
        return draw.gauss(0, 1) + 0.003 * length + 0.2 * prompt

    table = pl.concat([answers(code, real) for code in ("en", "es", "mt")])
    pairs = [(1.0, 0.0)] * 8 + [(0.0, 1.0)] * 2
    found = audit(table, {"mt": pairs}, AuditLimits())
    assert blind(found) == {}
    assert 0 < found["by_language"]["mt"]["length_chars"] < 0.8


def test_too_few_prompts_or_pairs_prove_nothing() -> None:
    table = answers("mt", lambda p, k, length: 3.0, prompts=FEWEST - 1)
    found = audit(table, {"mt": [(0.0, 1.0)] * (FEWEST - 1)}, AuditLimits())
    assert blind(found) == {}
    said = " ".join(found["by_language"]["mt"]["readings"])
    assert "too few to judge by" in said


def test_one_answer_a_prompt_proves_nothing() -> None:
    found = audit(answers("mt", lambda p, k, length: 3.0, n=1), {}, AuditLimits())
    assert blind(found) == {} and found["by_language"]["mt"]["spread"] is None


def test_no_rewards_at_all_are_told_as_such() -> None:
    found = audit(answers("mt", lambda p, k, length: None), {}, AuditLimits())
    assert found["by_language"]["mt"]["scored"] == 0 and blind(found) == {}


def test_limits_move_the_verdict() -> None:
    table = answers("ga", lambda p, k, length: length)
    assert blind(audit(table, {}, AuditLimits(length=1.0))) == {}
    assert blind(audit(answers("es", noise(1)), {}, AuditLimits(spread=1.0)))


# Readings.


def test_there_is_a_sentence_for_every_figure() -> None:
    table = pl.concat([answers("en", noise(1)), answers("es", noise(2))])
    said = of(table, "es", es=[(1.0, 0.0)] * 7)["readings"]
    assert len(said) == 5
    for start, sentence in zip(
        ("Answers to one prompt", "Among answers", "Rewards lie", "The mean rewards", "It puts"),
        said,
        strict=True,
    ):
        assert sentence.startswith(start) and sentence.endswith(".")
        assert len(sentence) <= 240  # what a card shows of one value
    assert "7 of 7 pairs (100%" in said[4]


def test_a_slight_correlation_is_not_made_much_of() -> None:
    def said(reward: Reward) -> str:
        return of(answers("es", reward), "es")["readings"][1]

    assert "favours the longer" in said(lambda p, k, length: length)
    assert "favours the shorter" in said(lambda p, k, length: -length)
    # up with length in one prompt, down in the next
    assert "hardly minds it" in said(lambda p, k, length: length if p % 2 else -length)


def test_readings_come_from_the_figures_alone() -> None:
    figures = of(answers("es", noise(2)), "es")
    assert readings(figures) == figures["readings"]


rewards = st.one_of(st.none(), st.floats(-1e6, 1e6))


@settings(deadline=None)  # the first call imports libraries
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["en", "es"]),
            st.integers(0, 6),
            rewards,
            st.integers(0, 50),
        ),
        max_size=60,
    )
)
def test_whatever_the_rewards_there_is_an_answer(rows: list[tuple[str, int, Any, int]]) -> None:
    table = pl.DataFrame(
        [(code, f"p{p}", k, r, n, n // 3) for k, (code, p, r, n) in enumerate(rows)],
        schema=COLUMNS,
        orient="row",
    )
    for figures in audit(table, {}, AuditLimits())["by_language"].values():
        for name in ("length_chars", "length_tokens"):
            assert figures[name] is None or abs(figures[name]) <= 1 + 1e-9
        for value in figures.values():
            assert not isinstance(value, float) or math.isfinite(value)
        assert all("nan" not in sentence.lower() for sentence in figures["readings"])


# On the card, and on the screen.


def manifest_with(found: dict[str, Any], **more: str) -> Any:
    recipe = demo()
    lock = lock_of(recipe)
    plans = by_name(plan(recipe, lock, Inventory()))
    there: dict[str, Any] = {}
    for name in ("prompts", "preferences", "reward", "generate"):
        there[name] = ArtifactRef(manifest_of(recipe, lock, plans[name], there))
    told = {
        code: {"scored": 10, "without_reward": 2, "tokens": 9, "reasons": {"too_long": 2}}
        for code in ("en", "es", "fr")
    }
    stats = {"by_language": told, "audit": found, **more}
    return manifest_of(recipe, lock, plans["score"], there, stats=stats)


def test_a_card_has_a_row_and_readings_for_every_language() -> None:
    table = pl.concat([answers("en", noise(1)), answers("es", lambda p, k, length: 2.0)])
    found = audit(table, {"es": [(1.0, 0.0)] * 7}, AuditLimits())
    text = card.render(manifest_with(found, kind="classifier"))
    assert "### Reward model audit" in text
    assert text.count("- Answers to one prompt lie") == 2
    [row] = [line for line in text.splitlines() if line.startswith("| Spanish | 0 |")]
    assert "7 of 7" in row and "flat: it hardly tells answers" in row
    assert re.search(r"\| English \| 10 \| 2: `?too_long`? 2 \|", text)
    assert "\n\n\n" not in text and "{{" not in text


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"kind": "classifier"}, "the raw output of the reward model"),
        ({"kind": "implicit", "prompt": "english"}, "both models read the English prompt"),
        ({"kind": "implicit", "prompt": "own"}, "in nats, not divided by length. Compare"),
        ({"kind": "generative"}, "probability of Yes against No"),
    ],
)
def test_a_card_says_what_the_reward_is(more: dict[str, str], says: str) -> None:
    found = audit(answers("en", noise(1)), {}, AuditLimits())
    assert says in card.render(manifest_with(found, **more))


def test_the_table_on_the_screen_holds_the_same(capsys: Any) -> None:
    from rich.console import Console

    table = pl.concat([answers("en", noise(1)), answers("es", lambda p, k, length: 2.0)])
    found = audit(table, {"es": [(1.0, 0.0)] * 7}, AuditLimits())
    console = Console(width=200)
    console.print(audit_table(manifest_with(found)))
    said = capsys.readouterr().out
    [row] = [line for line in said.splitlines() if " es " in line]
    assert "7 of 7" in row and "flat: it hardly tells answers" in row

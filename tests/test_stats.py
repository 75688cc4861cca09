"""Win rates against what can be said of them without a computer."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.stats import FEWEST, WinRate, win_rate

MANY = [f"q{number}" for number in range(40)]


@pytest.mark.parametrize(("points", "rate"), [(1.0, 100), (0.5, 50), (0.0, 0)])
def test_when_all_end_alike_there_is_nothing_to_be_unsure_of(points, rate):
    found = win_rate([points] * 40, MANY, seed=0)
    assert (found.low, found.rate, found.high) == (rate, rate, rate)
    assert (found.comparisons, found.questions) == (40, 40)


def test_a_tie_is_worth_half():
    assert win_rate([1, 0.5, 0.5, 0], list("abcd"), seed=0).rate == 50
    assert win_rate([1, 1, 0.5, 0], list("abcd"), seed=0).rate == 62.5


def test_a_question_asked_in_more_languages_weighs_more():
    found = win_rate([1, 1, 1, 0], ["a", "a", "a", "b"], seed=0)
    assert found.rate == 75
    assert (found.comparisons, found.questions) == (4, 2)


def test_asking_the_same_in_three_languages_with_the_same_end_teaches_nothing_new():
    points = [1.0, 0.0, 0.5, 1.0] * 10
    once = win_rate(points, MANY, seed=3)
    thrice = win_rate(points * 3, MANY * 3, seed=3)
    assert (thrice.low, thrice.rate, thrice.high) == pytest.approx((once.low, once.rate, once.high))
    apart = win_rate(points * 3, [f"q{number}" for number in range(120)], seed=3)
    assert apart.high - apart.low < 0.75 * (once.high - once.low)


RESULTS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from("abcdefgh")),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(RESULTS, st.integers(0, 2**32))
def test_the_interval_holds_the_rate_and_stays_within_0_and_100(results, seed):
    points, questions = zip(*results, strict=True)
    found = win_rate(points, questions, seed)
    assert 0 <= found.low <= found.rate + 1e-9
    assert found.rate <= found.high + 1e-9
    assert found.high <= 100


@settings(max_examples=30, deadline=None)
@given(RESULTS)
def test_the_same_seed_gives_the_same_interval_whatever_the_order_of_rows(results):
    points, questions = zip(*results, strict=True)
    again = list(reversed(results))
    other = win_rate([p for p, _ in again], [q for _, q in again], seed=5)
    assert win_rate(points, questions, seed=5) == win_rate(points, questions, seed=5)
    assert win_rate(points, questions, seed=5).dump() == pytest.approx(other.dump())


def test_other_seeds_are_other_resamplings_around_the_same_rate():
    dice = random.Random(0)
    points = [dice.choice([0.0, 0.5, 1.0]) for _ in MANY]
    found = [win_rate(points, MANY, seed=seed) for seed in range(5)]
    assert len({one.rate for one in found}) == 1
    assert len({(one.low, one.high) for one in found}) > 1


def test_no_comparisons_is_an_error():
    with pytest.raises(ValueError, match="no comparisons"):
        win_rate([], [], seed=0)


def test_too_few_questions_are_said_to_be_too_few():
    few = win_rate([1.0] * 8, list("aabbccdd"), seed=0)
    assert few.questions == FEWEST - 1
    assert few.shown() == "100.0 % of 8, too few questions for an interval"
    enough = win_rate([1.0] * FEWEST, MANY[:FEWEST], seed=0)
    assert enough.shown() == "100.0 % [100.0, 100.0]"


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (41.25, 62.0, "51.6 % [41.2, 62.0] no difference shown"),
        (50.0, 62.0, "51.6 % [50.0, 62.0] no difference shown"),
        (50.1, 62.0, "51.6 % [50.1, 62.0]"),
        (20.0, 49.9, "51.6 % [20.0, 49.9]"),
    ],
)
def test_an_interval_that_covers_50_is_said_to_show_no_difference(low, high, sentence):
    assert WinRate(51.6, low, high, comparisons=60, questions=60).shown() == sentence


def test_what_goes_into_the_manifest_is_plain():
    found = win_rate([1, 0, 0.5, 1, 1], list("abcde"), seed=0).dump()
    assert set(found) == {"rate", "low", "high", "comparisons", "questions"}
    assert {type(value) for value in found.values()} == {int, float}


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """60 questions in one language, 400 times: a 95 % interval should hold 95 % of the time."""
    dice = random.Random(0)
    truth = 100 * (0.5 + 0.1 / 2)  # won half the time, tied a tenth
    covered = 0
    for trial in range(400):
        points = dice.choices([1.0, 0.5, 0.0], weights=[0.5, 0.1, 0.4], k=60)
        found = win_rate(points, [f"q{number}" for number in range(60)], seed=trial)
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / 400 <= 0.98

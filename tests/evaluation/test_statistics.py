"""Win rates, intervals and length control against closed forms, plain loops and simulation."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.evaluation.statistics.agreement import agreement
from factory.evaluation.statistics.finished import finish_rates
from factory.evaluation.statistics.intervals import bootstrap, residuals, score
from factory.evaluation.statistics.length_control import (
    Fit,
    fit,
    influence,
    lc_minimal,
    style_controlled,
)
from factory.evaluation.statistics.rates import (
    FEWEST,
    WinRate,
    bounds,
    consistency,
    merged,
    win_rate,
)
from factory.evaluation.statistics.table import (
    JudgedAnswer,
    JudgedQuestion,
    by_category,
    by_language,
    figures,
)

MANY = [f"q{number}" for number in range(40)]
NAN = float("nan")


# win rates


@pytest.mark.parametrize(("points", "rate"), [(1.0, 100), (0.5, 50), (0.0, 0)])
def test_when_all_end_alike_the_interval_still_says_how_few_questions_there_were(points, rate):
    few, many = (win_rate([points] * n, MANY[:n]) for n in (5, 40))
    assert few.rate == many.rate == rate
    assert few.low <= rate <= few.high
    assert 0 < many.high - many.low < few.high - few.low, "no point, and narrower with more"


def test_identical_models_give_50_and_no_difference():
    found = win_rate([0.5] * 40, MANY)
    assert found.rate == 50
    assert found.shown().endswith("no difference shown")


def test_a_tie_is_worth_half():
    assert win_rate([1, 0.5, 0.5, 0], list("abcd")).rate == 50
    assert win_rate([1, 1, 0.5, 0], list("abcd")).rate == 62.5


def test_one_verdict_a_question_is_wilsons_interval_at_students_t():
    """The closed form, written out: without ties the spread is that of a share, n (n - 1) apart."""
    won, n = 27, 40
    found = win_rate([1.0] * won + [0.0] * (n - won), MANY)
    p, t = won / n, 2.0226909  # Student's t, 39 degrees of freedom, 0.975
    worth = n - 1  # p (1 - p) over the sample variance (ddof 1) of the mean
    middle = (p + t**2 / (2 * worth)) / (1 + t**2 / worth)
    half = t / (1 + t**2 / worth) * math.sqrt(p * (1 - p) / worth + t**2 / (4 * worth**2))
    assert (found.low, found.high) == pytest.approx((100 * (middle - half), 100 * (middle + half)))


def test_a_question_asked_in_more_languages_weighs_more():
    found = win_rate([1, 1, 1, 0], ["a", "a", "a", "b"])
    assert found.rate == 75
    assert (found.comparisons, found.questions) == (4, 2)


def test_asking_the_same_in_three_languages_with_the_same_end_teaches_nothing_new():
    points = [1.0, 0.0, 0.5, 1.0] * 10
    once = win_rate(points, MANY)
    thrice = win_rate(points * 3, MANY * 3)
    assert (thrice.low, thrice.rate, thrice.high) == pytest.approx((once.low, once.rate, once.high))
    apart = win_rate(points * 3, [f"q{number}" for number in range(120)])
    assert apart.high - apart.low < 0.75 * (once.high - once.low)


def test_the_macro_average_is_the_mean_of_the_languages_whatever_their_sizes():
    points = [1.0] * 30 + [0.0] * 10
    languages = ["en"] * 30 + ["ga"] * 10
    questions = [*MANY[:30], *MANY[:10]]
    assert win_rate(points, questions).rate == 75
    found = win_rate(points, questions, languages)
    assert found.rate == 50
    assert win_rate(points, questions, ["en"] * 40) == win_rate(points, questions)


def test_the_residuals_are_what_leaving_a_question_out_changes():
    """The jackknife, as a loop, agrees to first order; and they sum to nothing."""
    dice = random.Random(0)
    points = np.array([dice.choice([0.0, 0.5, 1.0]) for _ in range(180)])
    question = np.repeat(np.arange(60), 3)
    language = np.tile(np.arange(3), 60)
    found = residuals(points, question, language)
    rate = np.mean([points[language == code].mean() for code in range(3)])
    assert found.sum() == pytest.approx(0, abs=1e-12)
    for left in range(60):
        kept = question != left
        without = np.mean([points[kept & (language == code)].mean() for code in range(3)])
        assert (rate - without) * 59 / 60 == pytest.approx(found[left], abs=1e-9)


RESULTS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from("abcdefgh")),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(RESULTS)
def test_the_interval_holds_the_rate_and_stays_within_0_and_100(results):
    points, questions = zip(*results, strict=True)
    found = win_rate(points, questions)
    assert -1e-9 <= found.low <= found.rate + 1e-9
    assert found.rate - 1e-9 <= found.high <= 100 + 1e-9


@settings(max_examples=40, deadline=None)
@given(RESULTS)
def test_the_order_of_rows_says_nothing_and_swapping_the_models_mirrors(results):
    points, questions = zip(*results, strict=True)
    found = win_rate(points, questions)
    again = win_rate(points[::-1], questions[::-1])
    other = win_rate([1 - p for p in points], questions)
    assert again.dump() == pytest.approx(found.dump())
    assert (other.rate, other.low, other.high) == pytest.approx(
        (100 - found.rate, 100 - found.high, 100 - found.low)
    )


def test_no_comparisons_is_an_error():
    with pytest.raises(ValueError, match="no comparisons"):
        win_rate([], [])
    with pytest.raises(ValueError, match="no comparisons"):
        lc_minimal(np.array([]), np.array([]), np.array([], int))


def test_too_few_questions_are_said_to_be_too_few():
    few = win_rate([1.0] * 8, list("aabbccdd"))
    assert few.questions == FEWEST - 1
    assert few.shown() == "100.0 % of 8, too few questions for an interval"
    assert win_rate([1.0] * FEWEST, MANY[:FEWEST]).shown().startswith("100.0 % [")


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
    found = win_rate([1, 0, 0.5, 1, 1], list("abcde")).dump()
    assert set(found) == {"rate", "low", "high", "comparisons", "questions"}
    assert {type(value) for value in found.values()} == {int, float}


# coverage


def outcomes(rng, questions: int, languages: int, won: float, tied: float, alike: float):
    """Points, question by language; `alike`: the share of variance that a question's languages
    have in common. Their mean is won + tied / 2 in truth."""
    from statistics import NormalDist

    normal = NormalDist()
    shared = rng.normal(size=(questions, 1)) * math.sqrt(alike)
    own = rng.normal(size=(questions, languages)) * math.sqrt(1 - alike)
    at = shared + own
    high, low = normal.inv_cdf(1 - won), normal.inv_cdf(1 - won - tied)
    return np.where(at > high, 1.0, np.where(at > low, 0.5, 0.0))


@pytest.mark.parametrize(
    ("questions", "languages", "alike"), [(60, 1, 0.0), (60, 11, 0.5), (500, 11, 0.5)]
)
def test_a_95_percent_interval_holds_the_truth_93_to_97_times_in_100(questions, languages, alike):
    rng, hit, times = np.random.default_rng(7), 0, 1500
    cluster = np.repeat(np.arange(questions), languages)
    for _ in range(times):
        points = outcomes(rng, questions, languages, 0.5, 0.1, alike).ravel()
        rate = float(points.mean())
        low, high = score(rate, residuals(points, cluster))
        hit += low <= 0.55 <= high
    assert 0.93 <= hit / times <= 0.97


@pytest.mark.parametrize("questions", [10, 20])
@pytest.mark.parametrize("won", [0.5, 0.85])
def test_with_ten_questions_it_is_rather_too_wide_than_too_narrow(questions, won):
    """Bootstrap quantiles hold the truth as seldom as 73 times in 100: see docs/evaluation.md."""
    rng, hit, times = np.random.default_rng(3), 0, 1500
    for _ in range(times):
        points = outcomes(rng, questions, 1, won, 0.05, 0.0).ravel()
        low, high = score(float(points.mean()), residuals(points, np.arange(questions)))
        hit += low <= won + 0.025 <= high
    assert 0.93 <= hit / times <= 0.995


def test_a_bootstrap_of_a_mean_is_as_wide_as_theory_says():
    dice = np.random.default_rng(0)
    points = dice.choice([0.0, 1.0], size=200)

    def mean(weights):
        return weights @ points / weights.sum(axis=1)

    low, high = bootstrap(mean, np.arange(200), seed=0, resamples=4000)
    spread = 2 * 1.972 * math.sqrt(points.var() / 199)  # Student's t, 199 degrees of freedom
    assert high - low == pytest.approx(spread, rel=0.05)
    assert bootstrap(mean, np.arange(200), 0, 500) == bootstrap(mean, np.arange(200), 0, 500)
    assert math.isnan(bootstrap(mean, np.zeros(200, int), 0)[0]), "one question resamples to itself"


# unreadable verdicts, and places changed


def test_both_orders_count_as_their_mean_and_one_unread_as_the_other():
    points = np.array([[1, 1], [1, 0], [0.5, 1], [NAN, 0], [NAN, NAN]])
    assert merged(points)[:4].tolist() == [1, 0.5, 0.75, 0]
    assert math.isnan(merged(points)[4])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, NAN])] * 2), min_size=1, max_size=20))
def test_whatever_was_meant_by_unread_verdicts_lies_within_the_bounds(rows):
    points = np.array(rows)
    worst, best = bounds(points)
    assert worst <= best
    for meant in (0.0, 0.5, 1.0):
        whole = 100 * np.where(np.isnan(points), meant, points).mean()
        assert worst - 1e-9 <= whole <= best + 1e-9
    if not np.isnan(points).any():
        assert worst == best == pytest.approx(100 * merged(points).mean())


def test_consistency_counts_those_read_twice_and_how_often_the_first_was_preferred():
    always_first = np.array([[1.0, 0.0]] * 4)  # the model first: it wins; second: it loses
    found = consistency(always_first).dump()
    assert (found["same_share"], found["first_share"]) == (0, 100)
    found = consistency(np.array([[1, 1], [0, 0], [0.5, 0.5], [1, NAN]])).dump()
    assert (found["both"], found["same"]) == (3, 3)
    assert (found["decided"], found["first"]) == (5, 3)
    assert consistency(np.full((2, 2), NAN)).dump()["same_share"] is None


# length control


def plainly(points, differences):
    """The published formula by a plain search: no Newton, no weights."""
    spread = float(np.std(differences))
    x = [math.tanh(d / spread) for d in differences]

    def loss(theta, phi):
        total = phi**2
        for one, y in zip(x, points, strict=True):
            chance = 1 / (1 + math.exp(-(theta + phi * one)))
            total -= y * math.log(chance) + (1 - y) * math.log(1 - chance)
        return total

    theta = phi = 0.0
    step = 1.0
    while step > 1e-7:
        around = [(theta + a * step, phi + b * step) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        best = min(around, key=lambda at: loss(*at))
        if best == (theta, phi):
            step /= 2
        theta, phi = best
    return theta, phi


@pytest.mark.parametrize("seed", range(3))
def test_length_control_is_the_published_formula(seed):
    dice = np.random.default_rng(seed)
    points = dice.choice([0.0, 0.5, 1.0], size=60)
    differences = dice.normal(100, 200, size=60)
    theta, phi = plainly(points, differences)
    found = lc_minimal(points, differences, np.arange(60))
    assert found.rate == pytest.approx(100 / (1 + math.exp(-theta)), abs=1e-3)
    assert found.phi == pytest.approx(phi, abs=1e-4)
    assert found.low < found.rate < found.high


def test_a_model_that_only_writes_longer_gets_about_50():
    """The judge tosses a coin, loaded by length alone; the model nearly always writes longer."""
    dice = np.random.default_rng(0)
    differences = dice.normal(150, 200, size=2000)
    x = np.tanh(differences / differences.std())
    points = (dice.random(2000) < 1 / (1 + np.exp(-1.5 * x))).astype(float)
    found = lc_minimal(points, differences, np.arange(2000))
    assert 100 * points.mean() > 62
    assert found.rate == pytest.approx(50, abs=4)
    assert found.low < 50 < found.high
    assert found.phi == pytest.approx(1.5, abs=0.3)
    assert found.flag and "points from the raw win rate" in found.flag


def test_a_better_model_of_equal_length_keeps_what_it_won():
    dice = np.random.default_rng(1)
    points = (dice.random(1000) < 0.7).astype(float)
    found = lc_minimal(points, dice.normal(0, 200, 1000), np.arange(1000))
    assert found.rate == pytest.approx(70, abs=4)
    assert found.flag is None


ALIKE, LONGER = "every comparison ended alike", "every answer is longer by the same"


@pytest.mark.parametrize(
    ("points", "differences", "why"),
    [
        ([1, 1, 1, 1], [5, -5, 3, 9], ALIKE),
        ([0, 0, 0, 0], [5, -5, 3, 9], ALIKE),
        ([1, 0, 1, 0], [7, 7, 7, 7], LONGER),
        ([1, 1, 0, 0], [9, 8, -3, 1], "length alone tells who won"),
        ([0, 0, 1, 1], [9, 8, -3, 1], "length alone tells who won"),
    ],
)
def test_what_the_data_do_not_say_is_no_number(points, differences, why):
    found = lc_minimal(np.array(points, float), np.array(differences, float), np.arange(4))
    assert found.rate is None and found.low is None and found.high is None
    assert found.flag == why


def test_answers_of_one_length_have_the_raw_rate():
    points = np.array([1.0, 0.0, 0.5, 1.0])
    found = lc_minimal(points, np.zeros(4), np.arange(4))
    assert (found.rate, found.flag) == (62.5, None)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(6, 40))
def test_length_control_mirrors_when_the_models_are_swapped(seed, size):
    dice = np.random.default_rng(seed)
    points, apart = dice.choice([0.0, 0.5, 1.0], size=size), dice.normal(50, 100, size=size)
    one = lc_minimal(points, apart, np.arange(size))
    other = lc_minimal(1 - points, -apart, np.arange(size))
    assert (one.rate is None) == (other.rate is None)
    if one.rate is not None:
        assert other.rate == pytest.approx(100 - one.rate, abs=1e-3)
        assert other.phi == pytest.approx(one.phi, abs=1e-4)


def test_what_a_question_moves_is_what_leaving_it_out_moves():
    """The one step of Newton's beside whole fits without a question, x being what it was."""
    dice = np.random.default_rng(2)
    points, apart = dice.choice([0.0, 0.5, 1.0], size=240), dice.normal(100, 200, size=240)
    questions = np.repeat(np.arange(80), 3)
    found = fit(points, apart[:, None])
    moved = influence(found, points, questions)
    assert moved.sum() == pytest.approx(0, abs=1e-3) and moved.std() > 1e-3
    for question in range(0, 80, 7):
        left = questions != question
        theta = plainly_on(points[left], found.x[left, 0], 79 / 80)
        rates = [1 / (1 + math.exp(-one)) for one in (found.theta, theta)]
        assert moved[question] == pytest.approx((rates[0] - rates[1]) * 79 / 80, abs=2e-4)


def plainly_on(points, x, penalty):
    """theta of the published formula on squashed lengths, by a library's minimizer."""
    from scipy.optimize import minimize

    def loss(at):
        logits = at[0] + at[1] * x
        return penalty * at[1] ** 2 + np.sum(np.logaddexp(0, logits) - points * logits)

    return float(minimize(loss, [0.0, 0.0], tol=1e-10).x[0])


def test_without_a_length_what_a_question_moves_is_its_residual():
    dice = np.random.default_rng(3)
    points, questions = dice.choice([0.0, 0.5, 1.0], size=60), np.repeat(np.arange(20), 3)
    theta = math.log(points.mean() / (1 - points.mean()))
    moved = influence(Fit(theta, np.zeros(1), np.zeros((60, 1))), points, questions)
    assert moved == pytest.approx(residuals(points, questions))
    same = lc_minimal(points, np.zeros(60), questions)
    rate = win_rate(points.tolist(), questions)
    assert (same.rate, same.low, same.high) == pytest.approx((rate.rate, rate.low, rate.high))


def test_an_interval_of_the_controlled_rate_mirrors_and_widens_where_answers_hang_together():
    dice = np.random.default_rng(4)
    points, apart = dice.choice([0.0, 1.0], size=40), dice.normal(100, 200, size=40)
    alone = lc_minimal(points, apart, np.arange(40))
    other = lc_minimal(1 - points, -apart, np.arange(40))
    assert (other.low, other.high) == pytest.approx((100 - alone.high, 100 - alone.low), abs=1e-3)
    thrice = lc_minimal(np.tile(points, 3), np.tile(apart, 3), np.tile(np.arange(40), 3))
    assert thrice.high - thrice.low == pytest.approx(alone.high - alone.low, rel=0.1)
    free = lc_minimal(np.tile(points, 3), np.tile(apart, 3), np.arange(120))
    assert free.high - free.low < 0.65 * (alone.high - alone.low)


@pytest.mark.parametrize(("questions", "languages"), [(20, 3), (60, 1)])
def test_the_interval_of_the_controlled_rate_holds_the_truth_as_often_as_it_says(
    questions, languages
):
    dice, held, times = np.random.default_rng(5), 0, 300
    cluster = np.repeat(np.arange(questions), languages)
    for _ in range(times):
        apart = dice.normal(150, 200, size=len(cluster))
        chance = 1 / (1 + np.exp(-(0.5 + np.tanh(apart / 200))))
        points = (dice.random(len(cluster)) < chance).astype(float)
        found = lc_minimal(points, apart, cluster)
        held += found.low <= 100 / (1 + math.exp(-0.5)) <= found.high
    assert 0.925 <= held / times <= 0.985


def test_style_control_is_a_logistic_regression_on_length_and_markdown():
    """By a library's minimizer; a judge that only likes bullets gives about 50."""
    from scipy.optimize import minimize

    dice = np.random.default_rng(8)
    chars, marks = dice.normal(50, 100, size=400), dice.poisson(3, size=400).astype(float)
    x = np.column_stack([np.tanh(chars / chars.std()), np.tanh(marks / marks.std())])
    points = (dice.random(400) < 1 / (1 + np.exp(-(2.5 * x[:, 1])))).astype(float)

    def loss(at):
        logits = at[0] + x @ at[1:]
        return np.sum(at[1:] ** 2) + np.sum(np.logaddexp(0, logits) - points * logits)

    theta, phi, _ = minimize(loss, [0.0, 0.0, 0.0], tol=1e-10).x
    found = style_controlled(points, np.column_stack([chars, marks]), np.arange(400))
    assert found.rate == pytest.approx(100 / (1 + math.exp(-theta)), abs=1e-3)
    assert found.phi == pytest.approx(phi, abs=1e-4)
    assert found.low < 50 < found.high and 100 * points.mean() > 80
    assert lc_minimal(points, chars, np.arange(400)).rate > 80


# the table


ORDERS = ("model_first", "reference_first")


def item(question: str, language: str, *verdicts: str, **more) -> JudgedQuestion:
    side = JudgedAnswer(chars=100, tokens=20, wrong_language=False, lines=3, wrong_lines=0)
    orders = ORDERS[: len(verdicts)] if len(verdicts) > 1 else ("apart",)
    given = {"category": None, "subcategory": None, "model": side, "reference": side, **more}
    return JudgedQuestion(
        question=question, language=language, orders=orders, verdicts=verdicts, **given
    )


def wrong(chars: int = 100) -> JudgedAnswer:
    return JudgedAnswer(chars=chars, tokens=20, wrong_language=True, lines=2, wrong_lines=2)


def test_a_table_has_a_row_over_all_languages_and_one_for_each():
    items = [item(f"q{n}", code, "model", "tie") for n in range(6) for code in ("en", "ga")]
    rows = by_language("dpo", "policy", items)
    assert [row["language"] for row in rows] == ["all", "en", "ga"]
    assert [row["won"] for row in rows] == [12, 6, 6]
    assert rows[0]["win_rate"]["rate"] == rows[0]["macro"]["rate"] == 75
    assert "macro" not in rows[1]
    assert [r["language"] for r in by_language("dpo", "policy", items[::2])] == ["en"]


def test_a_language_that_nobody_could_read_has_no_win_rate_instead_of_zero():
    items = [
        *(item(f"q{n}", "en", "model", "model") for n in range(6)),
        *(item(f"q{n}", "ga", "unparseable", "unparseable") for n in range(6)),
    ]
    every, english, irish = by_language("dpo", "policy", items)
    assert "win_rate" not in irish and "shown" not in irish
    assert (irish["unparseable"], irish["bounds"]) == (6, {"worst": 0, "best": 100})
    assert english["win_rate"]["rate"] == every["win_rate"]["rate"] == 100
    assert every["bounds"] == {"worst": 50, "best": 100}, "and it does not vanish from the sum"
    assert "macro" not in every, "an average over one language would hide the other"


def test_answers_in_another_language_are_lost_in_the_second_column():
    items = [
        item("a", "ga", "model", "model", model=wrong()),  # an English answer that the judge likes
        item("b", "ga", "reference", "reference", reference=wrong()),
        item("c", "ga", "model", "model", model=wrong(), reference=wrong()),
        item("d", "ga", "model", "model"),
        item("e", "ga", "unparseable", "unparseable", model=wrong()),
    ]
    found = figures(items)
    assert found["win_rate"]["rate"] == 75
    assert found["in_language"]["rate"] == pytest.approx(100 * (0 + 1 + 0.5 + 1 + 0) / 5)
    assert (found["wrong_language_model"], found["wrong_language_reference"]) == (3, 2)
    assert found["line_pass_rate_model"] == pytest.approx(40)


def test_a_finish_rate_is_paired_by_question():
    """Ten answers end on both sides, twenty of the model's alone, one of the reference's alone."""
    ours = [True] * 30 + [False] * 10
    theirs = [True] * 10 + [False] * 20 + [True] + [False] * 9
    found = finish_rates(ours, theirs, MANY)
    assert (found["model"], found["reference"]) == pytest.approx((75, 27.5))
    assert found["difference"] == pytest.approx(47.5)
    half = 2.0227 * 100 * math.sqrt((21 / 40 - 0.475**2) / 39)  # Student's t, to first order
    assert found["low"] == pytest.approx(47.5 - half, abs=4)
    assert found["high"] == pytest.approx(47.5 + half, abs=4)
    back = finish_rates(theirs, ours, MANY)
    assert back["difference"] == pytest.approx(-47.5)
    assert back["high"] == pytest.approx(-found["low"])
    assert "no difference" not in found["shown"]


def test_equal_finish_rates_show_no_difference_and_few_questions_a_wide_interval():
    alike = finish_rates([True] * 6, [True] * 6, MANY[:6])
    assert alike["difference"] == 0 and alike["low"] < -20 and alike["high"] > 20
    assert alike["shown"].endswith("no difference shown")
    many = finish_rates([True] * 150, [True] * 150, [str(n) for n in range(150)])
    assert 1 < many["high"] < 3 and many["low"] == -many["high"]
    assert finish_rates([True], [False], ["q"])["shown"].endswith(
        "too few questions for an interval"
    )
    every = finish_rates([True] * 6, [False] * 6, MANY[:6])
    assert every["difference"] == 100 and every["low"] < 60


def test_a_finish_rate_stands_beside_the_win_rate_where_it_is_known():
    ended, cut = (replace(item("a", "en", "tie").model, finished=one) for one in (True, False))
    items = [item(f"q{n}", "en", "tie", model=ended, reference=cut) for n in range(6)]
    assert figures(items)["finish_rates"]["difference"] == 100
    assert "finish_rates" not in figures([item("a", "en", "tie", model=ended)])


def test_kappa_is_what_is_worked_out_by_hand():
    pairs = [("model", "model")] * 20 + [("model", "tie")] * 5
    pairs += [("tie", "model")] * 10 + [("tie", "tie")] * 15
    one, other = zip(*pairs, strict=True)
    found = agreement(one, other, [str(n) for n in range(50)])
    assert found.share == pytest.approx(70)
    assert found.kappa == pytest.approx(0.4)  # chance agrees on half of them
    assert found.kappa_low < 0.4 < found.kappa_high < 1
    # the variance of Fleiss, Cohen and Everitt (1969) for large samples: se 0.127
    assert found.kappa_high - found.kappa_low == pytest.approx(2 * 1.96 * 0.127, rel=0.15)


def test_two_judges_at_odds_and_of_one_mind():
    said = ["model", "tie", "reference", None] * 10
    names = [str(n) for n in range(40)]
    alike = agreement(said, said, names)
    assert (alike.compared, alike.unread, alike.share, alike.kappa) == (30, 10, 100, 1)
    assert (alike.kappa_low, alike.kappa_high) == (1, 1)
    turned = [{"model": "reference", "reference": "model"}.get(v, v) for v in said]
    assert agreement(said, turned, names).kappa == pytest.approx(0)
    always = agreement(["model"] * 8, ["model"] * 8, names[:8])
    assert (always.share, always.kappa, always.kappa_low) == (100, None, None), "chance is 1"
    assert agreement([None], ["tie"], ["a"]).share is None


def test_agreement_is_no_surer_for_the_same_questions_in_more_languages():
    rng = np.random.default_rng(1)
    one = [("model", "tie", "reference")[n] for n in rng.integers(3, size=40)]
    other = [a if rng.random() < 0.7 else "tie" for a in one]
    names = [str(n) for n in range(40)]
    single = agreement(one, other, names)
    many = agreement(one * 11, other * 11, names * 11)
    assert many.compared == 440 and many.questions == 40
    assert many.kappa == pytest.approx(single.kappa)
    width = many.kappa_high - many.kappa_low
    assert width == pytest.approx(single.kappa_high - single.kappa_low)


def test_the_word_pass_rate_is_of_answers_without_a_wrong_line_and_null_where_undefined():
    def side(words, wrong_lines=0, lines=2):
        return JudgedAnswer(100, 20, False, lines, wrong_lines, english_words=words)

    items = [
        item("a", "ru", "model", model=side(0), reference=side(None)),
        item("b", "ru", "model", model=side(3), reference=side(None)),
        item("c", "ru", "model", model=side(5, wrong_lines=1), reference=side(None)),
        item("d", "ru", "model", model=side(0, lines=0), reference=side(None)),
        item("e", "de", "model", model=side(None), reference=side(None)),
    ]
    found = figures(items)
    assert found["word_pass_rate_model"] == 50
    assert found["word_pass_rate_reference"] is None


def test_won_tied_lost_and_unread_are_all_the_questions():
    items = [
        item("a", "en", "model", "reference"),
        item("b", "en", "model", "tie"),
        item("c", "en", "unparseable", "reference"),
        item("d", "en", "unparseable", "unparseable"),
        item("e", "en", "tie", "tie", identical=True, in_training=True),
    ]
    found = figures(items)
    counts = [found[name] for name in ("won", "tied", "lost", "unparseable")]
    assert counts == [1, 2, 1, 1]
    assert found["verdicts"] == {"asked": 10, "unparseable": 3, "identical": 1, "cut": 0}
    assert found["consistency"]["both"] == 2, "what no judge was asked says nothing about it"
    assert found["seen_in_training"] == 1


def test_the_order_of_an_items_verdicts_is_by_their_names():
    first_preferred = replace(item("a", "en", "reference", "model"), orders=ORDERS[::-1])
    found = figures([first_preferred])
    assert found["consistency"]["first_share"] == 100


def test_categories_and_their_parts_have_rows():
    items = [
        item("a", "en", "model", category="hard_prompt", subcategory="coding"),
        item("b", "en", "reference", category="hard_prompt", subcategory="math"),
        item("c", "en", "tie", category="creative_writing", subcategory="creative_writing"),
    ]
    rows = by_category("dpo", "policy", items)
    assert {row["category"]: row["win_rate"]["rate"] for row in rows} == {
        "hard_prompt": 50, "hard_prompt/coding": 100, "hard_prompt/math": 0, "creative_writing": 50,
    }  # fmt: skip
    assert by_category("dpo", "policy", [item("a", "en", "model")]) == []


def test_everything_in_a_row_is_plain():
    import json

    items = [item(f"q{n}", "en", "model", "reference") for n in range(6)]
    row = figures(items)
    assert json.loads(json.dumps(row, allow_nan=False)) == row

"""Answers that vote on what they say in the end, over all languages."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from factory.artifacts.manifest import Rows
from factory.errors import InputError, RecipeError
from factory.pairs.pair import Best, Pair
from factory.pairs.votes import final_answers
from tests.support.pools import Pools, job_of, read, scope, write

LETTER = r"(?:Answer|Svar|Respuesta): *([A-E])"
CODES = ("da", "en", "es")


def said(code: str, letters: str) -> list[tuple[None, str]]:
    word = {"da": "Svar", "en": "Answer", "es": "Respuesta"}[code]
    return [(None, f"{code} {k}: since so. {word}: {letter}") for k, letter in enumerate(letters)]


POOLS: dict[str, Pools] = {
    # da alone would say A; all languages say B
    "da": {"q": said("da", "AAB"), "even": said("da", "AA"), "own": said("da", "CC")},
    "en": {"q": said("en", "BBA"), "even": said("en", "BB"), "own": said("en", "DDD")},
    "es": {"q": said("es", "BBC"), "even": said("es", "C?"), "own": said("es", "D?")},
}


def test_159_the_answer_on_which_the_languages_agree_is_chosen(tmp_path):
    write(tmp_path, POOLS)
    stage = Pair(vote=LETTER, rejected="min")
    job = job_of(tmp_path, stage, CODES)
    assert [need.role for need in job.slices[0].needs] == ["samples", "prompts", "votes", "votes"]
    outcome = stage.run(job)
    rows = {code: read(tmp_path, stage, code) for code in CODES}
    pairs = {
        code: [
            (r["prompt_id"], r["chosen"][0]["content"][-1], r["rejected"][0]["content"][-1])
            for r in some
        ]
        for code, some in rows.items()
    }
    # of "own", da says nothing but the minority's, and en and es nothing but the majority's
    assert pairs == {"da": [("q", "B", "A")], "en": [("q", "B", "A")], "es": [("q", "B", "C")]}
    [row] = rows["da"]
    assert row["score_chosen"] == pytest.approx(5 / 9) and row["score_rejected"] == 3 / 9
    assert row["reward_chosen"] is None
    assert outcome.rows["da"] == Rows(into=3, out=1, dropped={"none_to_choose": 2})
    assert outcome.rows["en"].dropped == {"none_to_choose": 1, "no_lower_answer": 1}
    assert outcome.stats["by_slice"]["es"]["unread"] == 2


def test_159_pairs_of_all_languages_and_best_answers_by_vote(tmp_path):
    write(tmp_path, POOLS)
    cross = Pair(vote=LETTER, rejected="min", pool="all_lang")
    cross.run(job_of(tmp_path, cross, CODES))
    [q, own] = sorted(read(tmp_path, cross, "all_lang"), key=lambda r: r["prompt_id"] != "q")
    assert (q["chosen"][0]["content"][-1], q["rejected"][0]["content"][-1]) == ("B", "C")
    assert (own["chosen_language"], own["rejected_language"]) == ("en", "da")
    best = Best(vote=LETTER)
    best.run(job_of(tmp_path, best, CODES))
    made = {row["prompt_id"]: row for row in read(tmp_path, best, "es")}
    assert made.keys() == {"q", "own"} and made["q"]["score"] == pytest.approx(5 / 9)


def test_a_vote_needs_no_rewards_but_prompts_that_are_the_same(tmp_path):
    write(tmp_path, {code: {f"{code}-1": said(code, "AAB")} for code in CODES})
    stage = Pair(vote=LETTER)
    with pytest.raises(InputError, match="no prompt has one id in two languages"):
        stage.run(job_of(tmp_path, stage, CODES))
    alone = Pair(vote=LETTER, rejected="min")  # one language votes by itself
    assert alone.run(job_of(tmp_path, alone, ("da",))).rows["da"].out == 1
    context = scope(CODES, stage)
    del context.stages["score"]  # type: ignore[attr-defined]
    assert [spec.name for spec in stage.plan_slices(context)] == list(CODES)
    with pytest.raises(RecipeError, match="reads scores"):
        Pair().plan_slices(context)


def test_what_an_answer_says_is_its_last_match():
    texts = ["Answer: A. No: Answer:  b", "Answer: ", "nothing", "<b>12  Eggs</b>"]
    assert final_answers(r"Answer: *(\w)", texts).to_list() == ["b", None, None, None]
    assert final_answers(r"(?<=<b>).*(?=</b>)", texts).to_list() == [None, None, None, "12 eggs"]


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"vote": "("}, "no regular expression"),
        ({"normalize": "zscore", "pool": "all_lang"}, "normalize is for rewards"),
        ({"length_control": True}, "length_control is for rewards"),
        ({"budget": {"tokens": 9}}, "vote does not read"),
        ({"keep": {"chosen": {"reward_above": 0}}}, "vote does not read"),
        ({"drop": {"disagreement_above": 1}}, "vote does not read"),
    ],
)
def test_knobs_of_rewards_are_refused_with_a_vote(knobs, match):
    with pytest.raises(ValidationError, match=match):
        Pair(**{"vote": "x", **knobs})

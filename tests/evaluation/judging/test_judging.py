"""What a judge is asked, what is cut, and how its words are read: each a defect of published
judges turned round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.engines import chat_template
from factory.errors import InputError
from factory.evaluation.judging import prompts
from factory.evaluation.judging.config import Ask
from factory.evaluation.judging.match import match, normal, trained_on
from factory.evaluation.judging.truncate import MARK, Tokens, fit, shares
from factory.evaluation.judging.verdicts import MODEL_FIRST, REFERENCE_FIRST
from factory.execution.builtin_models import POCKET

TIES, NO_TIES = prompts.wording("ties"), prompts.wording("no-ties")
ASKED = [{"role": "user", "content": "Cad is ainm duit?"}]


@pytest.mark.parametrize(
    ("output", "verdict"),
    [
        ("[[A]]", "A"),
        ("A is better.\n[[B]]", "B"),
        ("They are alike. [[TIE]]", "TIE"),
        ("The form is [[A]] or [[B]]. My verdict:\n[[B]]", "B"),
        ("", None),
        ("A", None),
        ("Verdict: A", None),
        ("[A]", None),
        ("[[m]]", None),  # left over from another judge: a tie elsewhere
        ("[[M]]", None),
        ("[[T]]", None),
        ("[[a]]", None),
        ("[[ A ]]", None),
        ("[[C]]", None),
        ("[[A]] and then [[neither]]", None),  # its last word is none of the verdicts
        ("[[A\n]]", None),
    ],
)
def test_only_the_verdicts_of_the_template_count_letter_by_letter(output, verdict):
    assert TIES.read(output) == verdict


def test_a_tie_where_ties_are_forbidden_is_no_verdict():
    assert NO_TIES.read("[[TIE]]") is None
    assert NO_TIES.read("[[A]]") == "A"
    assert NO_TIES.allowed < TIES.allowed


def test_the_judge_is_told_in_which_language_the_answer_should_be():
    [message] = TIES.fill(ASKED, "Seán", "John", "ga")
    assert "should be in Irish" in message["content"]
    assert message["content"].index("Seán") < message["content"].index("John")
    assert "[[" not in message["content"].split("Then end with")[0]


def test_text_that_looks_like_a_place_stays_text():
    [message] = TIES.fill(ASKED, "say {answer_b} and {prompt}", "{language}", "ga")
    assert "say {answer_b} and {prompt}" in message["content"]
    assert message["content"].count("Cad is ainm duit?") == 1


def test_every_turn_of_a_conversation_is_shown():
    turns = [*ASKED, {"role": "assistant", "content": "Bot."}, {"role": "user", "content": "Eh?"}]
    [message] = TIES.fill(turns, "x", "y", "ga")
    assert "User: Cad is ainm duit?\n\nAssistant: Bot.\n\nUser: Eh?" in message["content"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{prompt} {answer_a} {answer_b} [[A]] [[B]]", "does not say where {language} goes"),
        ("{prompt} {answer_a} {answer_b} {language} [[A]]", "it must name"),
        ("{prompt} {answer_a} {answer_b} {language} [[A]] [[B]] [[C]]", "asks for A, B, C"),
        ("{prompt} {answer_a} {answer_b} {language}", "asks for no verdict"),
    ],
)
def test_a_wording_of_ones_own_is_checked(text, why):
    with pytest.raises(ValueError) as error:
        prompts.parse("own", text)
    assert why in str(error.value)


def test_another_wording_has_another_hash():
    assert TIES.hash != NO_TIES.hash


# fitting


@given(st.integers(0, 500), st.integers(0, 500), st.integers(-5, 1200))
def test_the_longer_answer_gives_way_first_and_then_both_alike(first, second, room):
    kept = shares(first, second, room)
    assert sum(kept) == min(first + second, max(room, 0))
    assert 0 <= kept[0] <= first and 0 <= kept[1] <= second
    if kept != (first, second):
        shorter = 0 if first <= second else 1
        if kept[shorter] < (first, second)[shorter]:
            assert abs(kept[0] - kept[1]) <= 1, "the shorter is cut only when both are as long"
        else:
            assert kept[1 - shorter] >= kept[shorter] - 1, "but for one token of an odd room"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("tiny")
    POCKET["local/tiny-random-llama"].build(out)
    return chat_template.load_tokenizer(str(out))


def _asking(first: str, second: str) -> list[Any]:
    return TIES.fill(ASKED, first, second, "ga")


@pytest.mark.parametrize("text", ["bread and water ", "żmien twil ħafna ", "ἄρτος καὶ ὕδωρ "])
def test_an_over_long_pair_is_cut_to_fit_and_what_was_left_out_is_counted(tokenizer, text):
    first, second = text * 200, "short"
    whole = len(chat_template.prompt_ids(tokenizer, _asking(first, second)))
    limit = whole // 2 + 200
    ids, cut = fit(Tokens(tokenizer), _asking, first, second, limit)
    assert ids is not None and limit - 60 < len(ids) <= limit
    assert 0 < cut < whole
    shown = tokenizer.decode(ids)
    assert MARK.strip() in shown and "short" in shown
    assert "Explain yourself" in shown, "the instructions are never what is cut"


def test_what_fits_is_left_alone(tokenizer):
    ids, cut = fit(Tokens(tokenizer), _asking, "one", "two", 10_000)
    assert (ids, cut) == (chat_template.prompt_ids(tokenizer, _asking("one", "two")), 0)


def test_a_request_that_is_too_long_by_itself_is_not_asked(tokenizer):
    assert fit(Tokens(tokenizer), _asking, "one", "two", 20)[0] is None


# orders


def test_9_the_order_is_independent_of_the_language_list_both_orders_and_seeded():
    questions = [
        {"question_id": f"q{n}", "language": code} for code in ("ga", "fr") for n in range(200)
    ]
    both = Ask()
    assert {both.in_orders(q, 0) for q in questions} == {(MODEL_FIRST, REFERENCE_FIRST)}
    once = Ask(orders="random")
    drawn = [once.in_orders(question, 0) for question in questions]
    assert drawn[200:] == [once.in_orders(question, 0) for question in questions[200:]]
    assert drawn != [once.in_orders(question, 1) for question in questions]
    assert 60 < drawn[:200].count((MODEL_FIRST,)) < 140
    assert drawn[:200] != drawn[200:], "no question stands the same way in all languages by rule"


def test_as_published_is_one_random_order_at_temperature_07_and_4096_tokens():
    ask = Ask.model_validate("as-published")
    assert (ask.orders, ask.temperature, ask.max_tokens) == ("random", 0.7, 4096)
    assert (ask.template, ask.seed) == ("as-published", 1337)


PUBLISHED = prompts.wording("as-published")


@pytest.mark.parametrize(
    ("output", "verdict"),
    [
        ("Both work.\n[[1]]", "A"),
        ("[[2]]", "B"),
        ("[[T]]", "TIE"),
        ("[[t]]", "TIE"),
        ("[[1]], no: [[ 2 ]]", "B"),
        (r"\[\[1\]\]", "A"),
        ("[[2]] (see [[note]])", "B"),
        ("[[m]]", None),  # a tie by the script: left over from another judge
        ("[[A]]", None),
        ("1", None),
    ],
)
def test_the_published_marks_are_read_as_the_script_reads_them(output, verdict):
    assert PUBLISHED.read(output) == verdict


def test_the_published_prompt_has_its_criteria_and_says_nothing_of_language_or_length():
    [message] = PUBLISHED.fill(ASKED, "Seán", "John", "ga")
    text = message["content"]
    for word in ("helpful", "relevant", "accurate", "deep", "creative", "detailed", "500 tokens"):
        assert word in text
    assert text.index(ASKED[0]["content"]) < text.index("Seán") < text.index("John")
    assert not any(word in text for word in ("Irish", "language", "longer", "length"))
    assert PUBLISHED.allowed == TIES.allowed and "[[T]]" in text


def test_a_text_of_ones_own_may_have_the_published_marks_with_ties_or_without():
    places = "{prompt} {answer_a} {answer_b} "
    assert Ask(text=places + "[[1]] [[2]] [[T]]").wording().read("[[T]]") == "TIE"
    assert Ask(text=places + "{language} [[1]] [[2]]").wording().read("[[T]]") is None
    for marks in ("[[1]] [[2]] [[TIE]]", "[[A]] [[2]]", "[[1]] [[T]]"):
        with pytest.raises(ValueError, match="it must name"):
            Ask(text=places + "{language} " + marks)


def test_a_seed_of_the_judge_is_for_what_is_drawn():
    question = {"question_id": "q", "language": "ga"}
    drawn = [Ask(orders="random", seed=n).in_orders(question, n) for n in range(20)]
    assert len(set(drawn)) == 2
    with pytest.raises(ValueError, match="nothing is drawn"):
        Ask(seed=3)


# matching


def answer(name: str, text: str, prompt: str = "Why?", **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": prompt}]
    return {"question_id": name, "answer": text, "prompt": said, "prompt_hash": prompt, **more}


def test_answers_are_joined_by_id_whatever_their_order():
    pairs, left = match(
        [answer("a", "x"), answer("b", "y")], [answer("b", "Y"), answer("a", "X")], "en"
    )
    assert [(p.model["answer"], p.reference["answer"]) for p in pairs] == [("x", "X"), ("y", "Y")]
    assert left == []


def test_a_question_that_one_side_did_not_answer_is_counted_whichever_side_it_is():
    pairs, left = match(
        [answer("a", "x"), answer("b", "y")], [answer("a", "X"), answer("c", "Z")], "en"
    )
    assert len(pairs) == 1
    assert sorted(left) == ["unanswered_by_model", "unanswered_by_reference"]


@pytest.mark.parametrize(
    ("ours", "theirs", "what"),
    [
        ([answer("a", "x", "Why?")], [answer("a", "x", "How?")], "asked different things"),
        ([answer("a", "x")], [answer("b", "x")], "no question both"),
        ([answer("a", "x"), answer("a", "y")], [answer("a", "x")], "answered twice"),
    ],
)
def test_answers_that_do_not_belong_together_are_an_error(ours, theirs, what):
    with pytest.raises(InputError, match=what):
        match(ours, theirs, "en/dpo")


def test_a_question_seen_in_training_is_found_whatever_its_case_spacing_and_way_to_write_it():
    training = [{"messages": [{"role": "user", "content": " WHAT  is\nthe café? "}]}]
    questions = [answer("a", "", "What is the cafe\u0301?"), answer("b", "", "What is a café?")]
    assert trained_on(questions, training) == {"a"}
    assert trained_on(questions, []) == set()
    assert normal([{"role": "system", "content": "x"}, {"role": "user", "content": "Y"}]) == "y"


def test_the_templates_ship_beside_their_module():
    files = {path.name for path in Path(prompts.TEMPLATES).iterdir()}
    assert files == {
        "ties.txt", "no-ties.txt", "as-published.txt", "fluency.txt", "naturalness.txt", "harm.txt",
    }  # fmt: skip

"""What is sent to a translator, and what of what comes back is believed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.errors import RecipeError
from factory.language.prose import prose
from factory.sampling.translation import Piece, copied, flaw, length_ratio, pieces, wording

CODE = "```python\nprint('One. Two. Three.')  # a comment. Another.\n```\n"
TALK = "First sentence here. Second one follows! Is there a third? Yes, e.g. this one. "


def cut(text: str, most: int = 10, paragraphs: bool = False) -> list[Piece]:
    return pieces(text, most, lambda part: len(part.split()), paragraphs)


def said(text: str, most: int = 10) -> list[str]:
    return [piece.text for piece in cut(text, most) if piece.translatable]


parts = st.sampled_from(
    ["word ", "Dr. ", "End. ", "Really?! ", "\n", "\n\n", "  ", "`a. b` ", "``x ` y. ``", "`",
     "```", "```\ncode. more.\n```\n", "~~~\n", "3.14 ", "。", "漢字。", "<<<text>>>", "é",
     "\r\n", "\x0b"]
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(parts, max_size=30).map("".join), st.integers(1, 12), st.booleans())
def test_the_pieces_joined_are_the_text(text, most, paragraphs):
    assert "".join(piece.text for piece in cut(text, most, paragraphs)) == text


@given(st.text(max_size=80), st.integers(1, 12))
def test_whatever_the_text(text, most):
    found = cut(text, most)
    assert "".join(piece.text for piece in found) == text
    assert all(piece.around(piece.text) == piece.text for piece in found if piece.translatable)


@given(st.lists(parts, max_size=30).map("".join))
def test_a_translator_that_says_nothing_new_changes_nothing(text):
    back = [p.around(p.text.strip()) if p.translatable else p.text for p in cut(text, 5)]
    assert "".join(back) == text


def test_a_short_text_is_one_piece():
    assert said(TALK, 100) == [TALK]


def test_a_long_text_is_cut_at_the_ends_of_sentences():
    assert said(TALK, 7) == [
        "First sentence here. Second one follows! ",
        "Is there a third? ",
        "Yes, e.g. this one. ",
    ]


def test_a_sentence_that_is_too_long_is_cut_between_words():
    found = said("one two three four five six seven", 3)
    assert found == ["one two three ", "four five six ", "seven"]


def test_fenced_code_is_not_sent():
    text = f"Explain this code. {TALK}\n{CODE}What does it print?"
    assert [p.text for p in cut(text, 50) if not p.translatable] == [CODE]
    assert not any("print(" in part for part in said(text))


@pytest.mark.parametrize("mark", ["```", "~~~~", "   ```"])
def test_a_fence_that_is_never_closed_runs_to_the_end(mark):
    text = f"Look:\n{mark}\ncode. more code.\n\nstill code"
    assert said(text) == ["Look:\n"]


def test_a_longer_fence_holds_a_shorter_one():
    text = "A\n````\n```\nx\n```\n````\nB\n"
    assert said(text) == ["A\n", "B\n"]


@pytest.mark.parametrize("code", ["`One. Two. Three. Four.`", "``a ` b. C. D. e``"])
def test_no_cut_is_inside_code_in_a_line(code):
    for most in range(1, 12):
        assert any(code in part for part in said(f"Run it. {code} Then stop. Go on.", most))


def test_what_holds_no_letter_is_not_sent():
    assert said("12 * 7 = ?") == []
    assert said("---\n\n") == []


def test_a_completion_model_gets_one_paragraph_at_a_time():
    text = "One.\nStill one.\n\nTwo.\n \nThree."
    assert [p.text for p in cut(text, 99, paragraphs=True)] == [
        "One.\nStill one.\n\n", "Two.\n \n", "Three.",
    ]  # fmt: skip


# the wording


def test_translategemma_is_asked_in_its_format():
    ask = wording("translategemma", "en", "pt", {}).ask("Hi {x}")
    assert ask == "<<<source>>>en<<<target>>>pt-PT<<<text>>>Hi {x}"
    assert "<<<target>>>pt_BR<<<" in wording("translategemma", "en", "pt", {"pt": "pt_BR"}).ask("")


def test_a_chat_translator_is_asked_by_name():
    ask = wording("chat", "en", "ga", {}).ask("Hello")
    assert "from English into Irish" in ask
    assert ask.endswith("\n\nHello")


@pytest.mark.parametrize("code", ["nor", "xx", "Danish"])
def test_no_language_is_taken_for_english(code):
    with pytest.raises(RecipeError, match="unknown language"):
        wording("translategemma", "en", code, {})


@pytest.mark.parametrize("text", ["a <<<target>>>fr b", "<<<TEXT>>>", "x << <<<source >>> y"])
def test_text_that_holds_the_formats_markers_is_seen(text):
    assert wording("translategemma", "en", "fr", {}).markers(text, [])
    assert not wording("chat", "en", "fr", {}).markers(text, [])


def test_so_is_text_that_holds_a_special_token():
    assert wording("chat", "en", "fr", {}).markers("a<|im_end|>b", ["<|im_end|>", "<s>"])
    assert not wording("translategemma", "en", "fr", {}).markers("x <<< y >>> z", ["<|im_end|>"])


def test_a_completion_ends_where_the_next_text_begins():
    words = wording("completion", "en", "fr", {})
    assert words.ask("Hi") == "English: Hi\nFrench:"
    assert words.answer(" Salut\nEnglish: Bye\nFrench: A") == ("Salut", True)
    assert words.answer(" Salut\n\nEt puis") == ("Salut", True)
    assert words.answer(" Salut\nencore") == ("Salut\nencore", False)


# what is believed

EN = "Yesterday I took my bicycle to the workshop because the chain had broken again."
DE = "Gestern habe ich mein Fahrrad in die Werkstatt gebracht, weil die Kette gerissen war."
FR = "Hier, j'ai apporté mon vélo à l'atelier parce que la chaîne était encore cassée."


@pytest.mark.parametrize(
    ("source", "translation", "why"),
    [
        (EN, DE, None),
        (EN, " \n", "empty"),
        (EN, EN.upper() + " !", "copied"),
        (EN, DE * 4, "length_ratio"),
        (EN * 4, "Gestern.", "length_ratio"),
        (EN, FR, "wrong_language"),
        (EN, EN.replace("bicycle", "Fahrrad"), "wrong_language"),
        ("12 * 7 = ?", "12 * 7 = ?", None),
        ("Yes", "Ja", None),
        ("", "", None),
        (f"{EN}\n{CODE}", f"{DE}\n{CODE}", None),
        (f"{EN}\n{CODE}", f"{EN}\n{CODE}", "copied"),
    ],
)
def test_a_translation_is_believed_or_not(source, translation, why):
    assert flaw(source, translation, ("en", "de"), 3.0) == why


def test_any_length_is_believed_without_a_ratio():
    assert flaw(EN, DE * 4, ("en", "de"), None) is None


def test_a_prompt_about_a_third_language_may_hold_more_of_that():
    hindi = "यह एक साधारण वाक्य है जो हिंदी में लिखा गया है और अनुवाद के लिए दिया गया है। " * 2
    source = f"Translate this into English: {hindi}"
    assert flaw(source, f"Übersetze das ins Englische: {hindi}", ("en", "de"), 3.0) is None
    assert flaw(EN, hindi[: len(EN)], ("en", "de"), 3.0) == "wrong_language"


def test_chinese_is_short():
    chinese = "昨天我把自行车送到修理店,因为链条又断了。"
    assert length_ratio(EN, chinese, "zh") == pytest.approx(1, abs=0.1)
    assert length_ratio(EN, chinese, "de") < 0.5


def test_a_copy_is_one_but_for_case_space_and_marks():
    assert copied("Hello, world!", " hello world")
    assert not copied("Hello", "Hallo")
    assert not copied("42", "42")


def test_prose_is_without_code_and_links():
    text = f"See https://example.org/a.b and `x.y`.\n{CODE}End."
    assert prose(text).split() == ["See", "and", ".", "End."]

"""LPR and WPR against values worked out by hand, and chrF against those of sacrebleu."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.language.confusion import (
    count_english,
    count_lines,
    no_word_rate,
    normalize,
    pass_rates,
)
from factory.language.detect import detect
from factory.language.english import english, load_plain
from factory.language.words import segments, words
from factory.sampling.chrf import chrf

GERMAN = "Das hier ist eine ganz normale Zeile."
ENGLISH = "This line here is a plain English one."


def by_words(line: str) -> str | None:
    """A detector that can be followed by hand."""
    words = set(line.lower().split())
    if words & {"das", "ist", "eine"}:
        return "de"
    if words & {"this", "here", "plain"}:
        return "en"
    return "ru" if words & {"это", "строка"} else None


def rates(answers, code, identify=by_words, words=dict):
    """LPR and WPR of answers, counted one by one."""
    counts = []
    for answer in answers:
        lines = count_lines(answer, code, identify) or (None, None)
        counts.append((*lines, count_english(answer, code, words)))
    return pass_rates(counts)


def test_111_an_answer_passes_when_all_its_lines_are_right():
    answers = [GERMAN, f"{GERMAN}\n{ENGLISH}", f"{GERMAN}\n{GERMAN}", ENGLISH]
    assert [count_lines(answer, "de", by_words) for answer in answers] == [
        (1, 0), (2, 1), (2, 0), (1, 1),
    ]  # fmt: skip
    assert rates(answers, "de") == (0.5, None)


def test_a_line_under_five_words_is_not_looked_at():
    assert count_lines(f"{GERMAN}\nThis is plain English", "de", by_words) == (1, 0)
    assert count_lines("This is plain English", "de", by_words) == (0, 0)


def test_without_an_answer_to_judge_there_is_no_rate():
    assert rates(["Ja."], "de") == (None, None)


def test_a_line_without_a_label_is_wrong():
    assert count_lines("eins zwei drei vier fünf", "de", by_words) == (1, 1)


def test_marks_are_no_words_and_a_next_question_is_not_the_answer():
    assert normalize("  A - b, c!\nQ: And then?") == "A  b c"
    assert normalize("one—two") == "one two"
    assert count_lines(f"- ! ? ... {'das ' * 4}", "de", by_words) == (0, 0)
    assert count_lines(f"{GERMAN}\nQ: {ENGLISH}", "de", by_words) == (1, 0)


def test_danish_that_is_called_norwegian_is_right():
    assert count_lines("en to tre fire fem", "da", lambda line: "nb") == (1, 0)


RUSSIAN = "это совсем обычная строка текста"


def test_in_another_script_an_english_word_fails_an_answer_without_a_wrong_line():
    answers = [RUSSIAN, f"{RUSSIAN} perfectly", f"{RUSSIAN} the Moscow", ENGLISH, "да"]
    # the is too short to count and Moscow is a name; the English answer fails by its line
    lpr, wpr = rates(answers, "ru", words=english)
    assert lpr == 3 / 4
    assert wpr == pytest.approx(2 / 3)


def test_the_list_of_english_words_is_that_of_the_rule():
    words = english()
    assert {"weather", "perfectly", "football"} <= words
    assert not {"the", "dog", "London", "london", "Weather"} & words, "short, or a name"
    assert all(word == word.lower() and len(word) > 3 for word in words)
    assert len(words) > 200_000


@pytest.mark.parametrize("value", [Path("x"), print, {"a": complex(1, 2)}])
def test_a_pickle_that_asks_for_anything_but_plain_values_is_refused(value):
    with pytest.raises(pickle.UnpicklingError, match="no plain value"):
        load_plain(pickle.dumps(value))
    assert load_plain(pickle.dumps({"a", "b"})) == {"a", "b"}


def test_english_words_are_counted_where_they_are_a_sure_mistake():
    sentence = "Сегодня хорошая погода и я иду"
    assert count_english(sentence, "ru", english) == 0
    assert count_english(f"{sentence} in the weather, perfectly", "ru", english) == 2
    assert count_english(f"weather perfectly\n{sentence}", "ru", english) == 0, "a short line"
    never = dict  # is not asked where there is no word rate
    assert count_english("Das Weather ist perfectly normal", "de", never) is None
    whys = {
        code: no_word_rate(code)
        for code in ("ru", "bn", "zh", "th", "sr", "sr-Latn", "uk", "ka", "da", "en")
    }
    latin = dict.fromkeys(("sr-Latn", "da", "en"), "latin_script")
    assert whys == dict.fromkeys(whys) | latin


# One sentence of each: yesterday I took my bicycle to the workshop, as the chain had broken again.
UNSPACED = {
    "zh": "我昨天把自行车送到修理店，因为链条又断了。",
    "ja": "昨日、チェーンがまた切れたので、自転車を修理店に持って行きました。",
    "th": "เมื่อวานนี้ฉันเอาจักรยานไปซ่อมที่ร้านเพราะโซ่ขาดอีกแล้ว",
    "km": "ម្សិលមិញខ្ញុំបានយកកង់ទៅជួសជុលនៅហាងព្រោះច្រវាក់ដាច់ម្តងទៀត",
    "lo": "ມື້ວານນີ້ຂ້ອຍເອົາລົດຖີບໄປສ້ອມທີ່ຮ້ານເພາະວ່າໂສ້ຂາດອີກແລ້ວ",
    "my": "မနေ့က ကျွန်တော်စက်ဘီးကိုပြင်ဆိုင်သို့ယူသွားခဲ့သည်။",
    "bo": "ཁ་སང་ངས་རྐང་འཁོར་བཟོ་བཅོས་ཁང་དུ་འཁྱེར་པ་ཡིན།",
}


def of_script(code):
    """A detector that tells Latin script from others."""
    return lambda line: "en" if line[0] <= "z" else code


@pytest.mark.parametrize("code", UNSPACED)
def test_a_language_without_spaces_is_cut_into_words(code):
    sentence = UNSPACED[code]
    found = words(sentence, code)
    assert len(found) >= 5 and all(word in sentence for word in found)
    assert "".join(segments(sentence)) == sentence
    right = rates([sentence, f"{sentence}\n{ENGLISH}"], code, of_script(code), english)
    assert right == (0.5, 1.0)
    assert count_english(sentence + "weather", code, english) == 1
    assert count_lines(found[0], code, by_words) == (0, 0), "too short to judge"


def test_with_the_real_detector():
    danish = "Jeg kunne ikke sove i nat, fordi naboens hund gøede hele tiden."
    answers = [danish, f"{danish}\n\n{ENGLISH}", f"{danish}\nOk, tak."]
    assert rates(answers, "da", detect)[0] == pytest.approx(2 / 3)


@given(st.lists(st.sampled_from([GERMAN, ENGLISH, "kurz", ""]), max_size=6))
def test_no_more_lines_are_wrong_than_there_are(lines):
    judged, wrong = count_lines("\n".join(lines), "de", by_words)
    assert (judged, wrong) == (
        len(lines) - lines.count("kurz") - lines.count(""),
        lines.count(ENGLISH),
    )


# sacrebleu 2.6.0, corpus_chrf with its defaults
PAIRS = [
    ("Guten Morgen, wie geht es dir?", "Guten Morgen! Wie geht es Ihnen?"),
    ("Das ist ein Haus.", "Dies ist das alte Haus am See."),
    ("", "Nichts"),
    ("völlig anders", "Katze"),
]


@pytest.mark.parametrize(
    ("pairs", "score"),
    [
        (PAIRS[:1], 57.99929528146944),
        (PAIRS[:2], 41.63197623713909),
        (PAIRS, 36.3617338838316),
        (PAIRS[2:3], 0.0),
        (PAIRS[3:], 6.25),
        ([("a", "a")], 100.0),
        ([("ab", "abc")], 63.636363636363626),
    ],
)
def test_chrf_is_that_of_sacrebleu(pairs, score):
    assert chrf(pairs) == pytest.approx(score)


def test_without_a_pair_there_is_no_chrf():
    assert chrf([]) is None

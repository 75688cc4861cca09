"""Language confusion: how often answers keep to the language they are asked for, line and word.

The two rates of the language confusion benchmark (Marchisio et al., 2024), computed as its authors
do. Pure: the detector and the list of English words are arguments. Where a language is written
without spaces ICU cuts its words, where the authors use jieba (Chinese).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Iterable

from factory.language.languages import language
from factory.language.words import words as words_of

FEWEST = 5  # tokens; the authors do not judge a shorter line
SHORTEST = 4  # letters; the authors do not look for shorter English words

_PUNCTUATION = str.maketrans({**dict.fromkeys(string.punctuation, ""), "—": " ", "،": ""})


def count_lines(answer: str, code: str, identify: Callable[[str], str | None]) -> tuple[int, int]:
    """Count the lines of one answer that can be judged, and those of them in another language than
    `code`. A line that `identify` has no label for counts as wrong. Raises RecipeError for an
    unknown language."""
    accepted = language(code).accepted
    lines = _long_lines(answer, code)
    return len(lines), sum(identify(line) not in accepted for line, _ in lines)


def no_word_rate(code: str) -> str | None:
    """Return why a language has no word rate: `latin_script`, as an English word is no sure mistake
    there; None where it has one."""
    return "latin_script" if language(code).script == "Latn" else None


def count_english(answer: str, code: str, words: Callable[[], Collection[str]]) -> int | None:
    """Count the English words in the lines of one answer that can be judged; None for a language
    without a word rate. `words` returns the `counted_words`; it is called only for
    a language with a word rate."""
    if no_word_rate(code):
        return None
    return _english(_long_lines(answer, code), words())


def pass_rates(
    counts: Iterable[tuple[int | None, int | None, int | None]],
) -> tuple[float | None, float | None]:
    """Return LPR and WPR of answers: the share of judged answers without a wrong line, and of these
    the share without an English word; None where there is no answer to count. Each answer is given
    as its lines that can be judged, those of them in another language, and its English words (None
    where these are not counted)."""
    judged = [(wrong, words) for lines, wrong, words in counts if lines]
    right = [words for wrong, words in judged if not wrong]
    counted = [words for words in right if words is not None]
    return (
        len(right) / len(judged) if judged else None,
        counted.count(0) / len(counted) if counted else None,
    )


def _english(lines: Iterable[tuple[str, list[str]]], words: Collection[str]) -> int:
    return sum(word.strip() in words for _, line_words in lines for word in line_words)


def _long_lines(answer: str, code: str) -> list[tuple[str, list[str]]]:
    """Return the lines of an answer that are long enough to be judged, each with its words."""
    lines = [(line, words_of(line, code)) for line in normalize(answer).split("\n")]
    return [(line, words) for line, words in lines if len(words) >= FEWEST]


def normalize(answer: str) -> str:
    """Normalize an answer as the authors do: up to where a base model asks itself the next
    question, and without ASCII punctuation."""
    return answer.split("\nQ:")[0].strip().translate(_PUNCTUATION)


def counted_words(english: Iterable[str]) -> frozenset[str]:
    """Return the words that count: in lower case and of at least four letters, so no name is
    one."""
    return frozenset(
        word for line in english if (word := line.strip()).islower() and len(word) >= SHORTEST
    )

"""Language confusion: how often answers keep to the language they are asked for, line and word.

The two rates of the language confusion benchmark (Marchisio et al., 2024), computed as its authors
do; pure, with the detector and the list of English words as arguments.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from factory.errors import InputError
from factory.language.languages import language

FEWEST = 5  # tokens; the authors do not judge a shorter line
SHORTEST = 4  # letters; the authors do not look for shorter English words

# The word rate is for languages in another script than English: in Latin script an English word
# is no sure mistake. The authors have Arabic, Hindi, Japanese, Korean, Russian and Chinese; Bengali
# and Thai are here by the same reason.
OTHER_SCRIPT = frozenset({"ru", "zh", "bn", "th"})
# Written without spaces: the authors cut Chinese with jieba.
UNSPACED = frozenset({"zh", "th"})

_PUNCTUATION = str.maketrans({**dict.fromkeys(string.punctuation, ""), "—": " ", "،": ""})


@dataclass(frozen=True)
class Confusion:
    """Counts over answers: how many there are, how many have a line that can be judged, how many
    of these have a line in another language, and how many of the rest hold an English word
    (None where words are not looked at). `accuracy` is the mean share of right lines."""

    answers: int
    judged: int
    wrong_line: int
    wrong_word: int | None
    accuracy: float | None

    @property
    def line_pass_rate(self) -> float | None:
        """LPR: the share of judged answers without a wrong line; None when none was judged."""
        return 1 - self.wrong_line / self.judged if self.judged else None

    @property
    def word_pass_rate(self) -> float | None:
        """WPR: of the answers without a wrong line, the share without an English word; None for
        languages in Latin script, and when there is no such answer."""
        right = self.judged - self.wrong_line
        return 1 - self.wrong_word / right if self.wrong_word is not None and right else None


def confusion(
    answers: Iterable[str],
    wanted: str,
    identify: Callable[[str], str | None],
    english: Collection[str] | None = None,
    tokens: Callable[[str], list[str]] | None = None,
) -> Confusion:
    """Count confusion in answers that should be in the language `wanted`.

    identify: the label of a line, None when it cannot be told, which counts as wrong.
    english: English words, for the word rate of a language in another script.
    tokens: cuts a line into words; by default at white space.
    Raises InputError for Chinese or Thai without `tokens`, RecipeError for an unknown language.
    """
    accepted = language(wanted).accepted
    if tokens is None and wanted in UNSPACED:
        raise InputError(
            f"lines in {language(wanted).name} have no spaces to count words by",
            "pass tokens: a function that cuts a line into words, such as jieba's",
        )
    cut = tokens or str.split
    words = listed(english) if english is not None and wanted in OTHER_SCRIPT else None
    total = judged = wrong_line = wrong_word = 0
    shares = []
    for answer in answers:
        total += 1
        lines = _long_lines(answer, cut)
        if not lines:
            continue
        judged += 1
        wrong = sum(identify(line) not in accepted for line, _ in lines)
        shares.append(1 - wrong / len(lines))
        if wrong:
            wrong_line += 1
        elif words is not None:
            wrong_word += _english(lines, words) > 0
    return Confusion(
        answers=total,
        judged=judged,
        wrong_line=wrong_line,
        wrong_word=None if words is None else wrong_word,
        accuracy=sum(shares) / len(shares) if shares else None,
    )


def count_lines(
    answer: str, wanted: str, identify: Callable[[str], str | None]
) -> tuple[int, int] | None:
    """Of one answer, the lines that can be judged and how many of them are in another language
    than `wanted`; None for a language whose words cannot be counted without a cutter."""
    if wanted in UNSPACED:
        return None
    accepted = language(wanted).accepted
    lines = _long_lines(answer, str.split)
    return len(lines), sum(identify(line) not in accepted for line, _ in lines)


def no_word_rate(wanted: str) -> str | None:
    """Why there is no word rate in a language: `latin_script`, or `no_word_cutter` where words
    cannot be told apart; None where there is one."""
    if wanted not in OTHER_SCRIPT:
        return "latin_script"
    return "no_word_cutter" if wanted in UNSPACED else None


def count_english(answer: str, wanted: str, words: Callable[[], Collection[str]]) -> int | None:
    """Of one answer, the English words in lines that can be judged; None for a language without a
    word rate. `words` gives the words that count (see `listed`), and is asked only for one that
    has it."""
    if no_word_rate(wanted):
        return None
    return _english(_long_lines(answer, str.split), words())


def pass_rates(
    counts: Iterable[tuple[int | None, int | None, int | None]],
) -> tuple[float | None, float | None]:
    """LPR and WPR of answers, each told as its lines that can be judged, those of them in another
    language, and the English words in it (None where these are not looked at): the share of judged
    answers without a wrong line, and of these the share without an English word. None where there
    is nothing to share."""
    judged = [(wrong, words) for lines, wrong, words in counts if lines]
    right = [words for wrong, words in judged if not wrong]
    told = [words for words in right if words is not None]
    return (
        len(right) / len(judged) if judged else None,
        told.count(0) / len(told) if told else None,
    )


def _english(lines: Iterable[tuple[str, list[str]]], words: Collection[str]) -> int:
    return sum(word.strip() in words for _, found in lines for word in found)


def _long_lines(answer: str, cut: Callable[[str], list[str]]) -> list[tuple[str, list[str]]]:
    """The lines of an answer that are long enough to be judged, each with its words."""
    lines = [(line, cut(line)) for line in normalized(answer).split("\n")]
    return [(line, found) for line, found in lines if len(found) >= FEWEST]


def normalized(answer: str) -> str:
    """An answer as the authors read it: up to where a base model asks itself the next question,
    and without ASCII punctuation."""
    return answer.split("\nQ:")[0].strip().translate(_PUNCTUATION)


def average(found: Mapping[tuple[str, str], float | None]) -> float | None:
    """The overall rate: of rates by (source, language), the mean of each language's mean. Rates
    that are None do not count."""
    by_language: dict[str, list[float]] = {}
    for (_, code), rate in found.items():
        if rate is not None:
            by_language.setdefault(code, []).append(rate)
    means = [sum(rates) / len(rates) for rates in by_language.values()]
    return sum(means) / len(means) if means else None


def listed(english: Iterable[str]) -> frozenset[str]:
    """The words that count: in lower case and of at least four letters, so no name is one."""
    return frozenset(
        word for line in english if (word := line.strip()).islower() and len(word) >= SHORTEST
    )

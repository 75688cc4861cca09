"""Words of languages that are written without spaces, by the dictionaries of ICU."""

from __future__ import annotations

import re

from factory.language.languages import language
from factory.language.prose import LETTER

_UNSPACED = frozenset(("Hani", "Hans", "Hant", "Jpan", "Khmr", "Laoo", "Mymr", "Thai", "Tibt"))

_LATIN = re.compile(r"[A-Za-z]+|[^A-Za-z]+")  # ICU leaves Latin and Thai letters together


def spaced(code: str) -> bool:
    """Return whether a language is written with spaces between its words."""
    return language(code).script not in _UNSPACED


def segments(text: str) -> list[str]:
    """Cut a text into words and what stands between them; joined, they are the text. Chinese,
    Japanese, Thai, Khmer, Lao and Burmese by a dictionary, Tibetan by syllables."""
    from icu4py.breakers import WordBreaker

    return list(WordBreaker(text, "root"))


def words(text: str, code: str) -> list[str]:
    """Return the words of a text in a language: what stands between spaces, or what ICU says."""
    if spaced(code):
        return text.split()
    parts = (part for piece in segments(text) for part in _LATIN.findall(piece))
    return [part for part in parts if LETTER.search(part)]

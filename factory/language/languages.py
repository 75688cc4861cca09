"""The languages that the factory knows: one row each."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from factory.errors import RecipeError


@dataclass(frozen=True)
class Language:
    """One language: ISO 639-1 `code`, English `name`, and the labels that a language
    identifier may give to text that is right in it (`accepted`)."""

    code: str
    name: str
    accepted: frozenset[str]


def _row(code: str, name: str, *also: str) -> Language:
    return Language(code, name, frozenset({code, *also}))


# Danish and the two written Norwegians are taken for one another by every detector on short
# text, so they accept each other, as EuroEval does.
_NORTH = ("da", "no", "nb", "nn")

LANGUAGES: dict[str, Language] = {
    row.code: row
    for row in (
        # CroCo's languages: trained on, evaluated on, or both
        _row("da", "Danish", *_NORTH),
        _row("nl", "Dutch"),
        _row("en", "English"),
        _row("fr", "French"),
        _row("de", "German"),
        _row("it", "Italian"),
        _row("es", "Spanish"),
        _row("no", "Norwegian", *_NORTH),
        _row("sv", "Swedish"),
        _row("pt", "Portuguese"),
        _row("fi", "Finnish"),
        _row("gl", "Galician"),
        _row("ga", "Irish"),
        _row("mt", "Maltese"),
        _row("cy", "Welsh"),
        # Implicit Cross-Lingual Rewarding adds these
        _row("ru", "Russian"),
        _row("zh", "Chinese"),
        _row("bn", "Bengali"),
        _row("sw", "Swahili"),
        _row("th", "Thai"),
    )
}


def language(code: str) -> Language:
    """Return the row for `code`. Raises RecipeError, with the nearest known code, for any other."""
    try:
        return LANGUAGES[code]
    except (KeyError, TypeError):
        names = {row.name.lower(): row.code for row in LANGUAGES.values()}
        word = str(code).lower()
        near = difflib.get_close_matches(word, [*LANGUAGES, *names], n=1, cutoff=0.5)
        hint = f" (did you mean {names.get(near[0], near[0])!r}?)" if near else ""
        raise RecipeError(
            f"unknown language {code!r}{hint}",
            f"use one of {' '.join(LANGUAGES)}, or add a row to factory/language/languages.py",
        ) from None

"""The languages that the factory knows: one row each."""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

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


@lru_cache(maxsize=4096)
def code_of(label: str) -> str | None:
    """Return the code of the language that a label of a dataset names, one of ours where it is;
    None for what names no language. Labels are BCP 47 (`en-US`), ISO 639-1, 639-2 and 639-3,
    FLORES codes (`eng_Latn`) and English names, in any case. By CLDR."""
    from babel.core import get_global

    if tag := _TAG.fullmatch(label.strip()):
        code = str(get_global("language_aliases").get(tag[1].lower(), tag[1].lower()))
        known = code in LANGUAGES or code in _names().values()
    else:
        code = _names().get(_plain(label)) or ""
        known = bool(code)
    code = _WRITTEN_AS.get(code, code)
    return code if known and code not in _NO_LANGUAGE else None


# language, script, region, and variants or extensions that are no words
_TAG = re.compile(
    r"([a-z]{2,3})([-_][a-z]{4})?([-_]([a-z]{2}|[0-9]{3}))?([-_]([0-9][a-z0-9]{3}|[ux][-_].+))*",
    re.IGNORECASE,
)
_WRITTEN_AS = {"nb": "no", "nn": "no"}  # written Norwegians, which the table holds as one
_NO_LANGUAGE = frozenset({"und", "mul", "mis", "zxx"})


def _plain(name: str) -> str:
    """Return the English name of a language in lower case, without accents, marks and what is in
    brackets, as in `Chinese (Simplified)`; `Chinese, Simplified` has its parts in turn."""
    letters = unicodedata.normalize("NFKD", re.sub(r"\(.*?\)|;.*", " ", name))
    text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    first, _, rest = text.lower().partition(",")
    return " ".join(re.findall(r"\w+", f"{rest} {first}".replace("_", " ")))


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    """Return the code of each language by its English name as `_plain` gives it."""
    from babel import Locale

    ours = ((row.code, row.name) for row in LANGUAGES.values())
    others = (("zh", "Mandarin"), ("zh", "Mandarin Chinese"), ("es", "Castilian"))
    rows = (*Locale("en").languages.items(), *others, *ours)
    return {_plain(name): code.partition("_")[0] for code, name in rows}


# the second codes of ISO 639-2, which ISO 639-3 does not have
_BIBLIOGRAPHIC = "alb arm baq bur chi cze dut fre geo ger gre ice mac mao may per rum slo tib wel"


@lru_cache(maxsize=4096)
def iso3(code: str) -> str:
    """Return the code of ISO 639-3 of a language, itself where it has no longer one. By CLDR."""
    from babel.core import get_global

    aliases = get_global("language_aliases").items()
    longer = [alias for alias, of in aliases if of == code and len(alias) == 3]
    longer = [alias for alias in longer if alias not in _BIBLIOGRAPHIC.split()]
    # of several the one of the whole language, which begins like the code and comes last
    return ([alias for alias in longer if alias.startswith(code)] or longer or [code])[-1]

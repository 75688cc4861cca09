"""Language identification, as far as a small detector can tell.

docs/languages.md has what was measured, and why it is this detector with these settings.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from factory.language.languages import (
    SCRIPTS,
    alike,
    find,
    hub_code,
    language,
    name_of,
    script_name,
    scripts,
)
from factory.language.prose import LETTER, prose

# Below this share of belief there is no label: a wrong label drops a right text. The detector
# evens its belief out over lengths, so that one number does for short and long text.
SUREST = 0.25
# A text of fewer characters must be so many times likelier than in the next language: of short
# messages in Galician and Spanish, one in six was taken for the other or for Portuguese.
SHORT, CLEAR = 40, 2.0
LONGEST = 4000  # characters that are read: half from the beginning, half from the end

# Languages that any text may turn out to be in: those of states with millions of writers. With
# fewer, Catalan is Spanish and Afrikaans Dutch; with every label the detector has, short English
# is Nigerian Pidgin and short Spanish Extremaduran. Another one that the detector knows is looked
# for where text is to be in it.
_COMMON = frozenset((
    "af", "am", "ar", "az", "be", "bg", "bn", "bs", "ca", "cs", "cy", "da", "de", "el",
    "en", "es", "et", "eu", "fa", "fi", "fr", "ga", "gd", "gl", "gu", "he", "hi", "hr",
    "hu", "hy", "id", "is", "it", "ja", "ka", "kk", "km", "kn", "ko", "lo", "lt", "lv",
    "mk", "ml", "mn", "mr", "ms", "mt", "my", "ne", "nl", "nn", "no", "pa", "pl", "ps",
    "pt", "ro", "ru", "si", "sk", "sl", "sq", "sr", "sv", "sw", "ta", "te", "th", "tl",
    "tr", "uk", "ur", "uz", "vi", "zh",
))  # fmt: skip
_NONE = "zxx"  # the detector's label for what is no language, such as code
_CYRILLIC, _LATIN = re.compile("[\u0400-\u052f]"), re.compile("[A-Za-z\u00c0-\u024f]")


@lru_cache(maxsize=1)
def _model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=256)
def _identifier(more: frozenset[str]) -> Any:
    """Return an identifier of the common languages and `more`; the model is in memory once."""
    identifier = copy.copy(_model())
    identifier.set_languages(sorted(_COMMON | more | {_NONE}))
    return identifier


@lru_cache(maxsize=1024)
def _labels(accepted: frozenset[str]) -> frozenset[str]:
    return accepted & _COMMON or accepted & set(_model().labels) - {_NONE}


def detectable(code: str) -> bool:
    """Return whether the detector knows a language, in the script that it is to be in."""
    return find(code) is not None and why_not(code) is None


def why_not(code: str) -> str | None:
    """Return why nothing can be said of whether a text is in a language; None where it can."""
    row = language(code)
    if not _labels(row.accepted):
        return f"the detector does not know {row.name}"
    if not scripts(code):
        script = script_name(row.script)
        return f"the detector does not know {name_of(hub_code(code))} in {script} script"
    return None


def right_labels(code: str) -> frozenset[str]:
    """Return the labels that are right for a language. Empty where the detector does not know it:
    then nothing can be said of the language of a text."""
    if not detectable(code):
        return frozenset()
    plain = language(code).accepted
    return plain | {f"{la}-{script}" for la in plain & SCRIPTS.keys() for script in scripts(code)}


def unfiltered(codes: Iterable[str]) -> list[str]:
    """Return a line for each language that answers are not filtered by, with the reason."""
    supported = [code for code in dict.fromkeys(codes) if find(code)]
    return [
        f"No language filter for {code}: {why}." for code in supported if (why := why_not(code))
    ]


def detect(text: str, code: str | None = None) -> str | None:
    """Return the ISO 639-1 code of the language of a text that is to be in the language `code`,
    that one or another; with the script (`zh-Hans`) where it is right but for that. None when it
    cannot be told: no letters outside code and links, too little confidence, a short text that is
    nearly as likely in another language, or a language that the detector does not know."""
    label, belief, rival = _believed(text, code)
    short = len(prose(text).strip()) < SHORT
    return None if short and belief < CLEAR * rival else _in_script(label, text, code)


def detect_line(text: str, code: str | None = None) -> str | None:
    """Return the language of a line of an answer, as `detect` does, if it is likely enough; however
    short it is. Lines without a label count as wrong, so fewer may have none."""
    return _in_script(_believed(text, code)[0], text, code)


def _in_script(label: str | None, text: str, code: str | None) -> str | None:
    """Return a label that is right for a language with the script of a text, if it is another one
    than the language is to be in."""
    if label is None or code is None or label not in language(code).accepted:
        return label
    written = _written(label, _read(text))
    return f"{label}-{written}" if written and written not in scripts(code) else label


def _written(label: str, text: str) -> str | None:
    """Return the script of a text, where its language may be in several and the text tells."""
    if label not in SCRIPTS:
        return None
    if label == "zh":  # characters that a conversion into the other script would change
        to_simple, to_traditional = _converters()
        hant, hans = (
            sum(map(str.__ne__, text, converted))
            for converted in (to_simple.convert(text), to_traditional.convert(text))
        )
        return None if hant == hans else "Hant" if hant > hans else "Hans"
    cyrillic, latin = len(_CYRILLIC.findall(text)), len(_LATIN.findall(text))
    return None if cyrillic == latin else "Cyrl" if cyrillic > latin else "Latn"


@lru_cache(maxsize=1)
def _converters() -> tuple[Any, Any]:
    from opencc import OpenCC

    return OpenCC("t2s"), OpenCC("s2t")


def _read(text: str) -> str:
    """Return what is read of a text."""
    words = prose(text)
    if len(words) > LONGEST:
        words = f"{words[: LONGEST // 2]}\n{words[-LONGEST // 2 :]}"
    return words


def _believed(text: str, code: str | None) -> tuple[str | None, float, float]:
    """Return the likeliest label (None below SUREST), the belief in it and in those that are right
    for the same language, and the belief in the next other language."""
    words = _read(text)
    labels = _labels(language(code).accepted) if code else frozenset()
    if not LETTER.search(words) or (code and not detectable(code)):
        return None, 0.0, 0.0
    identifier = _identifier(labels - _COMMON)
    label, belief = identifier.classify(words)
    rival = 0.0
    if belief < SUREST or len(words) < 2 * SHORT:  # Danish and Norwegian share it between them
        near = alike(label)
        ranked = identifier.rank(words)
        belief = sum(part for code, part in ranked if code in near)
        rival = next((part for code, part in ranked if code not in near), 0.0)
    sure = label != _NONE and belief >= SUREST
    return str(label) if sure else None, float(belief), float(rival)


def matches(detected: str | None, code: str) -> bool:
    """Return whether a detected label is right for the language `code`; no label is no match."""
    return detected is not None and detected in right_labels(code)


def differs(detected: str | None, code: str) -> bool:
    """Return whether a label contradicts the language `code`; no label does not, and no label
    contradicts a language that the detector does not know."""
    right = right_labels(code)
    return detected is not None and bool(right) and detected not in right

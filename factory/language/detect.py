"""Language identification, as far as a small detector can tell.

docs/languages.md has what was measured, and why it is this detector with these settings.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from factory.language.languages import LANGUAGES, language
from factory.language.prose import LETTER, prose

# Below this share of belief there is no label: a wrong label drops a right text. The detector
# evens its belief out over lengths, so that one number does for short and long text.
SUREST = 0.25
# A text of fewer characters must be so many times likelier than in the next language: of short
# messages in Galician and Spanish, one in six was taken for the other or for Portuguese.
SHORT, CLEAR = 40, 2.0
LONGEST = 4000  # characters that are read: half from the beginning, half from the end

# Languages beside our own that a text may turn out to be in: those of states with millions of
# writers. Without them Catalan is Spanish and Afrikaans Dutch; with every label the detector has,
# short English is Nigerian Pidgin and short Spanish Extremaduran.
_OTHERS = (
    "af", "am", "ar", "az", "be", "bg", "bs", "ca", "cs", "el", "et", "eu", "fa", "gd", "gu", "he",
    "hi", "hr", "hu", "hy", "id", "is", "ja", "ka", "kk", "km", "kn", "ko", "lo", "lt", "lv", "mk",
    "ml", "mn", "mr", "ms", "my", "ne", "pa", "pl", "ps", "ro", "si", "sk", "sl", "sq", "sr", "ta",
    "te", "tl", "tr", "uk", "ur", "uz", "vi",
)  # fmt: skip
_NONE = "zxx"  # the detector's label for what is no language, such as code


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    ours = {label for row in LANGUAGES.values() for label in row.accepted}
    identifier.set_languages(sorted((ours | {*_OTHERS, _NONE}) & set(identifier.labels)))
    return identifier


def detect(text: str) -> str | None:
    """Return the ISO 639-1 code of the language of a text, ours or another. None when it cannot be
    told: no letters outside code and links, too little confidence, or a short text that is nearly
    as likely in another language."""
    label, belief, rival = _believed(text)
    short = len(prose(text).strip()) < SHORT
    return None if short and belief < CLEAR * rival else label


def detect_line(text: str) -> str | None:
    """Return the language of a line of an answer, as `detect` does, if it is likely enough; however
    short it is. Lines without a label count as wrong, so fewer may have none."""
    return _believed(text)[0]


def _believed(text: str) -> tuple[str | None, float, float]:
    """Return the likeliest label (None below SUREST), the belief in it and in those that are right
    for the same language, and the belief in the next other language."""
    words = prose(text)
    if len(words) > LONGEST:
        words = f"{words[: LONGEST // 2]}\n{words[-LONGEST // 2 :]}"
    if not LETTER.search(words):
        return None, 0.0, 0.0
    label, belief = _identifier().classify(words)
    rival = 0.0
    if belief < SUREST or len(words) < 2 * SHORT:  # Danish and Norwegian share it between them
        near = next((row.accepted for row in LANGUAGES.values() if label in row.accepted), (label,))
        ranked = _identifier().rank(words)
        belief = sum(part for code, part in ranked if code in near)
        rival = next((part for code, part in ranked if code not in near), 0.0)
    sure = label != _NONE and belief >= SUREST
    return str(label) if sure else None, float(belief), float(rival)


def matches(detected: str | None, code: str) -> bool:
    """Return whether a detected label is right for the language `code`; no label is no match."""
    return detected is not None and detected in language(code).accepted


def differs(detected: str | None, code: str) -> bool:
    """Return whether a label contradicts the language `code`; no label does not."""
    return detected is not None and not matches(detected, code)

"""Which language a text is in, as far as a small detector can tell."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from factory.languages import LANGUAGES, language

SHORTEST = 12  # characters; below this a label would be a guess, so there is none


@lru_cache(maxsize=1)
def _identifier() -> Any:
    # py3langid knows Maltese, Galician, Welsh and Irish, which fastText's small model and
    # lingua do not; kept to our own table it is also less easily led astray by short text.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    ours = {label for row in LANGUAGES.values() for label in row.accepted}
    identifier.set_languages(sorted(ours & set(identifier.labels)))
    return identifier


def detect(text: str) -> str | None:
    """The detected language code, or None for text under `SHORTEST` characters."""
    if len(text.strip()) < SHORTEST:
        return None
    label, _ = _identifier().classify(text)
    return str(label)


def matches(detected: str | None, wanted: str) -> bool:
    """Whether a detected label is right for the language `wanted`; no label is no match."""
    return detected is not None and detected in language(wanted).accepted

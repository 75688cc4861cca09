"""Language of answers in an arena, beside those of the base model, from manifests. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from factory.artifacts.manifest import Manifest
from factory.reports import values


@dataclass(frozen=True)
class Spoken:
    """Language of the answers of one model to questions in one language: counts of answers, of
    those in that language (None where no detector knows it) and of those cut off; the share without
    a line in another language, and of these without an English word (None where not counted)."""

    answers: int
    in_language: float | None
    cut_off: int
    line_pass_rate: float | None
    word_pass_rate: float | None = None


@dataclass(frozen=True)
class Speech:
    """Language of a model's answers beside those of the model it was tuned from, by language."""

    step: str
    model: str
    reference: str
    by_language: dict[str, tuple[Spoken | None, Spoken]]


def speech(manifests: Iterable[Manifest]) -> list[Speech]:
    """Read the language of answers in each arena, of each model beside the first without an
    adapter."""
    models = []
    for manifest in manifests:
        if manifest.kind != "answers":
            continue
        spoken: dict[str, dict[str, Spoken]] = {}
        bare: dict[str, None] = {}
        for name, raw in values.mapping(manifest.stats.get("by_slice")).items():
            language, _, model = name.partition("/")
            spoken.setdefault(model, {})[language] = _spoken(values.mapping(raw))
            record = manifest.slices.get(name)
            if record is not None and not any(r.role == "adapter" for r in record.inputs):
                bare[model] = None
        reference = next(iter(bare), "")
        before = spoken.get(reference, {})
        for model, by_language in spoken.items():
            if model != reference:
                both = {code: (before.get(code), answers) for code, answers in by_language.items()}
                models.append(Speech(manifest.step, model, reference, both))
    return models


def _spoken(raw: Any) -> Spoken:
    return Spoken(
        answers=values.integer(raw.get("answers")),
        in_language=values.number(raw.get("in_language")),
        cut_off=values.integer(raw.get("cut_off")),
        line_pass_rate=values.number(raw.get("line_pass_rate")),
        word_pass_rate=values.number(raw.get("word_pass_rate")),
    )

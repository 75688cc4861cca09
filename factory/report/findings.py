"""What came out: win rates, benchmark scores and the language of answers, from manifests. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from factory.artifact import Manifest
from factory.cards.evaluation import Comparison
from factory.report import words


@dataclass(frozen=True)
class Duel:
    """One model against its reference under one judge; `rows` are languages, the sum over all of
    them first where there is one."""

    step: str
    model: str
    reference: str
    judge: str
    notes: tuple[str, ...]
    rows: tuple[Comparison, ...]


@dataclass(frozen=True)
class Spoken:
    """Answers of one model in one language: how many, and how many are in that language, cut off
    at the limit, and without a line in another language (a share; None where not counted)."""

    answers: int
    in_language: int
    cut_off: int
    line_pass_rate: float | None


@dataclass(frozen=True)
class Speech:
    """Answers of a model beside those of the model it was tuned from, by language."""

    step: str
    model: str
    reference: str
    by_language: dict[str, tuple[Spoken | None, Spoken]]


@dataclass(frozen=True)
class Delta:
    """A benchmark in one language: the scores of both models, and how far the tuned one is from
    its base. `shown` is whether the intervals let the difference stand; None if not known."""

    language: str
    benchmark: str
    metric: str
    base: float
    tuned: float
    shown: bool | None

    @property
    def change(self) -> float:
        return self.tuned - self.base


@dataclass(frozen=True)
class Benchmarks:
    """Benchmark scores of one model against another."""

    step: str
    model: str
    reference: str
    deltas: tuple[Delta, ...]


def duels(manifests: Iterable[Manifest]) -> list[Duel]:
    """Every model that was compared by a judge, in the order of the manifests."""
    found: dict[tuple[str, str, str], list[Comparison]] = {}
    about: dict[tuple[str, str, str], tuple[str, tuple[str, ...]]] = {}
    for manifest in manifests:
        if manifest.kind != "verdicts":
            continue
        judge = str(manifest.stats.get("judge", manifest.repo))
        notes = tuple(str(note) for note in manifest.stats.get("notes", ()))
        for row in _rows(manifest.stats.get("comparisons")):
            key = (manifest.step, str(row.get("model")), str(row.get("reference")))
            about[key] = (judge, notes)
            found.setdefault(key, []).append(_comparison(manifest, judge, notes, row))
    return [
        Duel(*key, *about[key], tuple(sorted(rows, key=lambda row: row.language != "all")))
        for key, rows in found.items()
    ]


def speech(manifests: Iterable[Manifest]) -> list[Speech]:
    """The language of answers in each arena, of each model beside the one without an adapter."""
    found = []
    for manifest in manifests:
        if manifest.kind != "answers":
            continue
        spoken: dict[str, dict[str, Spoken]] = {}
        bare: dict[str, None] = {}
        for name, raw in words.table(manifest.stats.get("by_slice")).items():
            language, _, model = name.partition("/")
            spoken.setdefault(model, {})[language] = _spoken(words.table(raw))
            record = manifest.slices.get(name)
            if record is not None and not any(r.role == "adapter" for r in record.inputs):
                bare[model] = None
        reference = next(iter(bare), "")
        for model, by_language in spoken.items():
            if model not in bare or len(spoken) == 1:
                beside = {
                    language: (spoken.get(reference, {}).get(language) if model else None, mine)
                    for language, mine in by_language.items()
                }
                found.append(Speech(manifest.step, model, reference, beside))
    return found


def benchmarks(manifests: Iterable[Manifest]) -> list[Benchmarks]:
    """Benchmark scores, as far as a manifest says base and tuned of the same benchmark."""
    return []


def _spoken(raw: Any) -> Spoken:
    return Spoken(
        answers=words.whole(raw.get("answers")),
        in_language=words.whole(raw.get("in_language")),
        cut_off=words.whole(raw.get("cut_off")),
        line_pass_rate=words.real(raw.get("line_pass_rate")),
    )


def _comparison(manifest: Manifest, judge: str, notes: tuple[str, ...], row: Any) -> Comparison:
    rate = words.table(row.get("win_rate"))
    here = (manifest.repo, manifest.tag)
    return Comparison(
        reference=str(row.get("reference")),
        judge=judge,
        notes=notes,
        language=str(row.get("language")),
        won=words.whole(row.get("won")),
        tied=words.whole(row.get("tied")),
        lost=words.whole(row.get("lost")),
        unparseable=words.whole(row.get("unparseable")),
        rate=words.real(rate.get("rate")),
        low=words.real(rate.get("low")),
        high=words.real(rate.get("high")),
        shown=str(row.get("shown", "no verdict could be read")),
        judged=here,
        asked=here,
    )


def _rows(value: Any) -> Sequence[Any]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []

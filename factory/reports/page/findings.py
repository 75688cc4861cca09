"""What came of answers: win rates, and the language that they are in, from manifests. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from factory.artifacts.manifest import Manifest
from factory.reports.page import formatting


@dataclass(frozen=True)
class Win:
    """A model against its reference in one language (`all`: over all of them). `rate` with `low`
    and `high`, `strict` (answers in another language lost), `level` (of equal length), `worst` and
    `best` (what unread verdicts could make of it) and `alike` (the same verdict in both orders)
    are percent; None where there is none. `level_said` is what there is to be wary of."""

    reference: str
    language: str
    won: int
    tied: int
    lost: int
    unread: int
    rate: float | None
    low: float | None
    high: float | None
    shown: str
    strict: float | None = None
    level: float | None = None
    level_said: str = ""
    worst: float | None = None
    best: float | None = None
    alike: float | None = None

    @property
    def asked(self) -> int:
        """How many questions there were, with those that have no verdict."""
        return self.won + self.tied + self.lost + self.unread

    @property
    def checked(self) -> bool:
        """Whether anything is known beside the win rate."""
        return any(x is not None for x in (self.strict, self.level, self.worst, self.alike))


@dataclass(frozen=True)
class Duel:
    """One model against its reference under one judge; `rows` are languages, the sum over all of
    them first where there is one. `seen` of the questions are among the prompts of training; None
    where nobody looked."""

    step: str
    model: str
    reference: str
    judge: str
    notes: tuple[str, ...]
    seen: int | None
    rows: tuple[Win, ...]


@dataclass(frozen=True)
class Spoken:
    """Answers of one model in one language: how many, and how many are in that language, cut off
    at the limit; the shares without a line in another language, and of these without an English
    word (None where not counted)."""

    answers: int
    in_language: int
    cut_off: int
    line_pass_rate: float | None
    word_pass_rate: float | None = None


@dataclass(frozen=True)
class Speech:
    """Answers of a model beside those of the model it was tuned from, by language."""

    step: str
    model: str
    reference: str
    by_language: dict[str, tuple[Spoken | None, Spoken]]


def duels(manifests: Iterable[Manifest]) -> list[Duel]:
    """Every model that was compared by a judge, in the order of the manifests."""
    found = []
    for manifest in manifests:
        if manifest.kind != "verdicts":
            continue
        by_model: dict[tuple[str, str], list[Win]] = {}
        for row in formatting.tables(manifest.stats.get("comparisons")):
            key = (str(row.get("model")), str(row.get("reference")))
            by_model.setdefault(key, []).append(_win(row))
        for (model, reference), rows in by_model.items():
            found.append(
                Duel(
                    step=manifest.step,
                    model=model,
                    reference=reference,
                    judge=str(manifest.stats.get("judge", manifest.repo)),
                    notes=formatting.texts(manifest.stats.get("notes")),
                    seen=_seen(manifest, model),
                    rows=tuple(sorted(rows, key=lambda row: row.language != "all")),
                )
            )
    return found


def speech(manifests: Iterable[Manifest]) -> list[Speech]:
    """The language of answers in each arena, of each model beside the first that has no adapter."""
    found = []
    for manifest in manifests:
        if manifest.kind != "answers":
            continue
        spoken: dict[str, dict[str, Spoken]] = {}
        bare: dict[str, None] = {}
        for name, raw in formatting.table(manifest.stats.get("by_slice")).items():
            language, _, model = name.partition("/")
            spoken.setdefault(model, {})[language] = _spoken(formatting.table(raw))
            record = manifest.slices.get(name)
            if record is not None and not any(r.role == "adapter" for r in record.inputs):
                bare[model] = None
        reference = next(iter(bare), "")
        before = spoken.get(reference, {})
        for model, by_language in spoken.items():
            if model != reference:
                beside = {code: (before.get(code), mine) for code, mine in by_language.items()}
                found.append(Speech(manifest.step, model, reference, beside))
    return found


def _spoken(raw: Any) -> Spoken:
    return Spoken(
        answers=formatting.whole(raw.get("answers")),
        in_language=formatting.whole(raw.get("in_language")),
        cut_off=formatting.whole(raw.get("cut_off")),
        line_pass_rate=formatting.real(raw.get("line_pass_rate")),
        word_pass_rate=formatting.real(raw.get("word_pass_rate")),
    )


def _win(row: Mapping[str, Any]) -> Win:
    rate, bounds = formatting.table(row.get("win_rate")), formatting.table(row.get("bounds"))
    level = formatting.table(row.get("lc_minimal_chars"))
    return Win(
        reference=str(row.get("reference")),
        language=str(row.get("language")),
        won=formatting.whole(row.get("won")),
        tied=formatting.whole(row.get("tied")),
        lost=formatting.whole(row.get("lost")),
        unread=formatting.whole(row.get("unparseable")),
        rate=formatting.real(rate.get("rate")),
        low=formatting.real(rate.get("low")),
        high=formatting.real(rate.get("high")),
        shown=str(row.get("shown", "no verdict could be read")),
        strict=formatting.real(formatting.table(row.get("in_language")).get("rate")),
        level=formatting.real(level.get("rate")),
        level_said=str(level.get("flag") or ""),
        worst=formatting.real(bounds.get("worst")),
        best=formatting.real(bounds.get("best")),
        alike=formatting.real(formatting.table(row.get("consistency")).get("same_share")),
    )


def _seen(manifest: Manifest, model: str) -> int | None:
    """How many of a model's questions are among the prompts of training."""
    found = formatting.table(manifest.stats.get("seen_in_training"))
    mine = [formatting.table(raw) for name, raw in found.items() if name.endswith(f"/{model}")]
    looked = [one for one in mine if formatting.whole(one.get("prompts"))]
    return sum(formatting.whole(one.get("seen")) for one in looked) if looked else None

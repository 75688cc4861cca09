"""What models learned from, and how: rewards, pairs and training curves, from manifests. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factory.artifacts.manifest import Manifest
from factory.reports.page import formatting

# What curves show: the first of each that was logged, with what it is called.
_PANELS = (
    ("loss", ("loss",)),
    ("reward accuracy", ("rewards/accuracies", "accuracy")),
    ("reward margin", ("rewards/margins", "margin")),
    ("log p of chosen", ("logps/chosen",)),
    ("token accuracy", ("mean_token_accuracy",)),
)
_MOST_PANELS = 4


@dataclass(frozen=True)
class Histogram:
    """Counts by series over bins that all series share."""

    name: str
    edges: tuple[float, ...]
    series: dict[str, tuple[int, ...]]
    marks: dict[str, float]  # values to be pointed at, by what they are
    total: int


@dataclass(frozen=True)
class PairingFigures:
    """One slice of pairs (or of best answers, which have no other side)."""

    step: str
    name: str
    pairs: int
    scores: Histogram | None
    margins: Histogram | None
    mean_margin: float | None
    tokens: dict[str, float]  # mean tokens of an answer, by side


@dataclass(frozen=True)
class Blind:
    """What the audit found of a reward model in one language; None where it could not tell."""

    language: str
    spread: float | None
    by_length: float | None
    offset: float | None
    scale: float | None
    as_english: float | None
    right: int
    pairs: int
    suspect: tuple[str, ...]
    readings: tuple[str, ...]


@dataclass(frozen=True)
class AuditFigures:
    """Whether the reward model is blind in a language, as the score step found."""

    step: str
    reward: str
    rows: tuple[Blind, ...]


@dataclass(frozen=True)
class Curve:
    """One logged number over optimizer steps; `held` are looks at held-out rows."""

    name: str
    points: tuple[tuple[float, float], ...]
    held: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Training:
    """One training: its curves, and what a person should know before trusting it."""

    step: str
    stage: str
    facts: str
    curves: tuple[Curve, ...]
    alarms: tuple[str, ...]
    applied: bool | None


def rewards(manifests: Iterable[Manifest]) -> list[Histogram]:
    """Rewards of all samples, by language."""
    found = []
    for manifest in manifests:
        if manifest.kind != "scores":
            continue
        for language, raw in formatting.table(manifest.stats.get("by_language")).items():
            figures = formatting.table(raw)
            marks = (
                {"mean": mean} if (mean := formatting.real(figures.get("mean"))) is not None else {}
            )
            drawn = _histogram(language, figures.get("rewards"), marks)
            if drawn is not None:
                found.append(drawn)
    return found


def pairings(manifests: Iterable[Manifest]) -> list[PairingFigures]:
    """Scores and margins of what was chosen from each pool."""
    found = []
    for manifest in manifests:
        if manifest.kind != "pairs":
            continue
        for name, raw in formatting.table(manifest.stats.get("by_slice")).items():
            figures = formatting.table(raw)
            mean = formatting.real(figures.get("mean_margin"))
            tokens = {
                side: number
                for side, value in formatting.table(figures.get("mean_tokens")).items()
                if (number := formatting.real(value)) is not None
            }
            found.append(
                PairingFigures(
                    step=manifest.step,
                    name=name,
                    pairs=manifest.slices[name].rows.out if name in manifest.slices else 0,
                    scores=_histogram(name, figures.get("scores"), {}),
                    margins=_histogram(
                        name, figures.get("margins"), {} if mean is None else {"mean": mean}
                    ),
                    mean_margin=mean,
                    tokens=tokens,
                )
            )
    return found


def audit(manifests: Iterable[Manifest]) -> AuditFigures | None:
    """What the last score step found about its reward model."""
    found = None
    for manifest in manifests:
        by_language = formatting.table(
            formatting.table(manifest.stats.get("audit")).get("by_language")
        )
        if by_language:
            reward = next(
                (r.repo or str(r.source) for r in manifest.models if r.role == "reward"),
                str(manifest.fields.get("reward", "")),
            )
            rows = tuple(_blind(name, formatting.table(raw)) for name, raw in by_language.items())
            found = AuditFigures(manifest.step, reward.partition("@")[0], rows)
    return found


def trainings(manifests: Iterable[Manifest]) -> list[Training]:
    """Every training that logged anything."""
    found = []
    for manifest in manifests:
        stats = manifest.stats
        curve = [entry for entry in formatting.tables(stats.get("curve")) if "loss" in entry]
        if not curve:
            continue
        held = formatting.tables(stats.get("held_out_curve"))
        curves = [_curve(name, keys, curve, held) for name, keys in _PANELS]
        probe = formatting.table(stats.get("probe")).get("applied")
        found.append(
            Training(
                step=manifest.step,
                stage=manifest.stage,
                facts=_facts(stats),
                curves=tuple(one for one in curves if one.points)[:_MOST_PANELS],
                alarms=formatting.texts(stats.get("alarms")),
                applied=probe if isinstance(probe, bool) else None,
            )
        )
    return found


def _facts(stats: Mapping[str, Any]) -> str:
    said = [
        f"{formatting.count(number)} {what}"
        for key, what in (
            ("trained_on", "rows"), ("steps", "optimizer steps"), ("held_out", "rows held out"),
        )
        if (number := formatting.real(stats.get(key))) is not None
    ]  # fmt: skip
    seconds = formatting.real(stats.get("seconds"))
    return ", ".join(said + ([formatting.span(seconds)] if seconds is not None else []))


def _curve(
    name: str,
    keys: tuple[str, ...],
    entries: Sequence[Mapping[str, Any]],
    held: Sequence[Mapping[str, Any]],
) -> Curve:
    key = next((key for key in keys if any(key in entry for entry in entries)), "")
    points = [
        (formatting.real(entry.get("step", number)), formatting.real(entry.get(key)))
        for number, entry in enumerate(entries, 1)
    ]
    looks = [
        (formatting.real(entry.get("step")), formatting.real(entry.get(f"eval_{key}")))
        for entry in held
    ]
    return Curve(name, _whole(points), _whole(looks))


def _whole(
    points: list[tuple[float | None, float | None]],
) -> tuple[tuple[float, float], ...]:
    return tuple((x, y) for x, y in points if x is not None and y is not None)


def _histogram(name: str, raw: Any, marks: dict[str, float]) -> Histogram | None:
    """A manifest's histogram; None for one without a value, or that is none."""
    bins = formatting.table(raw)
    found = bins.get("edges")
    edges = [formatting.real(edge) for edge in found] if isinstance(found, list) else []
    known = tuple(edge for edge in edges if edge is not None)
    series = {
        key: tuple(formatting.whole(number) for number in counts)
        for key, counts in bins.items()
        if key != "edges" and isinstance(counts, list) and len(counts) == len(edges) - 1
    }
    total = max((sum(counts) for counts in series.values()), default=0)
    if len(known) < max(len(edges), 2) or not total:
        return None
    return Histogram(name, known, series, marks, total)


def _blind(language: str, raw: Mapping[str, Any]) -> Blind:
    return Blind(
        language=language,
        spread=formatting.real(raw.get("spread")),
        by_length=formatting.real(raw.get("length_chars")),
        offset=formatting.real(raw.get("offset")),
        scale=formatting.real(raw.get("scale")),
        as_english=formatting.real(formatting.table(raw.get("agreement")).get("en")),
        right=formatting.whole(raw.get("pairs_right")),
        pairs=formatting.whole(raw.get("pairs")),
        suspect=formatting.texts(raw.get("blind")),
        readings=formatting.texts(raw.get("readings")),
    )

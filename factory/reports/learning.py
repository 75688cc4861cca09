"""Training data and trainings, read from manifests: rewards, pairs, audits and curves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factory.artifacts.manifest import Manifest
from factory.reports import values

# Panels of a training: log keys with their labels. The first key that was logged is drawn.
_PANELS: tuple[Mapping[str, str], ...] = (
    {"loss": "loss"},
    {"rewards/accuracies": "reward accuracy", "accuracy": "reward accuracy"},
    {"rewards/margins": "reward margin", "margin": "reward margin", "reward": "mean reward"},
    {"logps/chosen": "log p of chosen", "mean_token_accuracy": "token accuracy"},
    {"grad_norm": "gradient norm"},
    {"learning_rate": "learning rate"},
)


@dataclass(frozen=True)
class Histogram:
    """Counts by series over bins that all series share; `marks` are labelled values."""

    name: str
    edges: tuple[float, ...]
    series: dict[str, tuple[int, ...]]
    marks: dict[str, float]
    total: int


@dataclass(frozen=True)
class PairingFigures:
    """Figures of one slice of pairs, or of best answers, which have no rejected side. `tokens` is
    the mean number of tokens of an answer, by side."""

    step: str
    name: str
    pairs: int
    scores: Histogram | None
    margins: Histogram | None
    mean_margin: float | None
    tokens: dict[str, float]


@dataclass(frozen=True)
class LanguageAudit:
    """Audit of a reward model in one language; None where it could not be measured."""

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
    """Audit of the reward model of one score step, by language."""

    step: str
    reward: str
    rows: tuple[LanguageAudit, ...]


@dataclass(frozen=True)
class Curve:
    """One logged number over optimizer steps, on training rows and on held-out rows."""

    name: str
    points: tuple[tuple[float, float], ...]
    held_out: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Behaviour:
    """What a tuned model drew beside its base, in words: how it was drawn, and a row for each
    measure with the values of the base and of the tuned model."""

    about: str
    rows: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Training:
    """One training: its size, wall time, curves and alarms. `applied` is whether its probe found
    that the adapter changes the base model; None where it was not probed."""

    step: str
    n_rows: float | None
    n_steps: float | None
    n_held_out: float | None
    seconds: float | None
    curves: tuple[Curve, ...]
    alarms: tuple[str, ...]
    applied: bool | None
    behaviour: Behaviour | None = None


def rewards(manifests: Iterable[Manifest]) -> list[Histogram]:
    """Read the histogram of rewards of each language that has any reward."""
    histograms = []
    for manifest in manifests:
        if manifest.kind != "scores":
            continue
        for language, raw in values.mapping(manifest.stats.get("by_language")).items():
            figures = values.mapping(raw)
            drawn = histogram(language, figures.get("rewards"), _mean(figures.get("mean")))
            if drawn is not None:
                histograms.append(drawn)
    return histograms


def pairings(manifests: Iterable[Manifest]) -> list[PairingFigures]:
    """Read the scores, margins and lengths of each slice of pairs."""
    slices = []
    for manifest in manifests:
        if manifest.kind != "pairs":
            continue
        for name, raw in values.mapping(manifest.stats.get("by_slice")).items():
            figures = values.mapping(raw)
            mean = figures.get("mean_margin")
            tokens = {
                side: length
                for side, value in values.mapping(figures.get("mean_tokens")).items()
                if (length := values.number(value)) is not None
            }
            slices.append(
                PairingFigures(
                    step=manifest.step,
                    name=name,
                    pairs=manifest.slices[name].rows.out if name in manifest.slices else 0,
                    scores=histogram(name, figures.get("scores")),
                    margins=histogram(name, figures.get("margins"), _mean(mean)),
                    mean_margin=values.number(mean),
                    tokens=tokens,
                )
            )
    return slices


def audit(manifests: Iterable[Manifest]) -> AuditFigures | None:
    """Read the audit of the last score step that has one."""
    last = None
    for manifest in manifests:
        by_language = values.mapping(values.mapping(manifest.stats.get("audit")).get("by_language"))
        if by_language:
            reward = next(
                (r.repo or str(r.source) for r in manifest.models if r.role == "reward"),
                str(manifest.fields.get("reward", "")),
            )
            rows = tuple(_audit(name, values.mapping(raw)) for name, raw in by_language.items())
            last = AuditFigures(manifest.step, reward.partition("@")[0], rows)
    return last


def trainings(manifests: Iterable[Manifest]) -> list[Training]:
    """Read every training that logged a loss."""
    logged = []
    for manifest in manifests:
        stats = manifest.stats
        curve = [entry for entry in values.mappings(stats.get("curve")) if "loss" in entry]
        if not curve:
            continue
        applied = values.mapping(stats.get("probe")).get("applied")
        logged.append(
            Training(
                step=manifest.step,
                n_rows=values.number(stats.get("trained_on")),
                n_steps=values.number(stats.get("steps")),
                n_held_out=values.number(stats.get("held_out")),
                seconds=values.number(stats.get("seconds")),
                curves=curves(curve, values.mappings(stats.get("held_out_curve"))),
                alarms=values.texts(stats.get("alarms")),
                applied=applied if isinstance(applied, bool) else None,
                behaviour=behaviour(stats),
            )
        )
    return logged


def behaviour(stats: Mapping[str, Any]) -> Behaviour | None:
    """Read the behaviour probe of a training; None where there was none."""
    drawn = values.mapping(stats.get("behaviour"))
    sides = [values.mapping(drawn.get(name)) for name in ("base", "tuned")]
    if not all(sides):
        return None

    def of(key: str, total: str | None = None) -> list[str]:
        totals = (
            values.integer(side.get(total or key))
            + (0 if total else values.integer(side.get("other_language")))
            for side in sides
        )
        counts = (values.integer(side.get(key)) for side in sides)
        return [f"{n} of {m}" for n, m in zip(counts, totals, strict=True)]

    def number(cells: Iterable[Any], form: str) -> list[str]:
        return ["" if (n := values.number(cell)) is None else format(n, form) for cell in cells]

    likelihoods = {
        name: values.mapping(drawn.get(f"log_prob_of_{name}")) for name in ("base", "tuned")
    }
    rows = {
        "ended by themselves": of("finished", "answers"),
        "in their prompt's language, of those that can be told": of("in_language"),
        "different answers": of("distinct", "answers"),
        "mean tokens": number((side.get("mean_tokens") for side in sides), ".1f"),
        "repetition (runs of four tokens)": number(
            (side.get("repetition") for side in sides), ".1%"
        ),
        "mean reward": number((side.get("reward") for side in sides), ".3g"),
        "log-probability of the base's answers, nats a token": number(
            (likelihoods["base"].get(name) for name in ("base", "tuned")), ".3f"
        ),
        "log-probability of the tuned model's answers": number(
            (likelihoods["tuned"].get(name) for name in ("base", "tuned")), ".3f"
        ),
    }
    n, prompts = values.integer(drawn.get("n")), values.integer(drawn.get("prompts"))
    about = (
        f"{n} answers to each of {prompts} prompts ({values.integer(drawn.get('held_out'))} held "
        f"out), at temperature {values.number(drawn.get('temperature')) or 0:g}, up to "
        f"{values.integer(drawn.get('max_tokens'))} tokens"
    )
    return Behaviour(
        about, tuple((name, both[0], both[1]) for name, both in rows.items() if any(both))
    )


def curves(
    entries: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]] = ()
) -> tuple[Curve, ...]:
    """Read the curves in a training's log. Each point is at its own step: an entry may lack some
    numbers. Held-out numbers have the prefix `eval_`."""
    drawn = []
    for panel in _PANELS:
        key = next((key for key in panel if any(key in entry for entry in entries)), None)
        if key is not None:
            points = _points(entries, key)
            if points:
                drawn.append(Curve(panel[key], points, _points(held_out, f"eval_{key}")))
    return tuple(drawn)


def histogram(name: str, raw: Any, marks: dict[str, float] | None = None) -> Histogram | None:
    """Read a histogram; None for one without a value, or that is malformed."""
    bins = values.mapping(raw)
    listed = bins.get("edges")
    numbers = [values.number(edge) for edge in listed] if isinstance(listed, list) else []
    edges = tuple(edge for edge in numbers if edge is not None)
    series = {
        key: tuple(values.integer(count) for count in counts)
        for key, counts in bins.items()
        if key != "edges" and isinstance(counts, list) and len(counts) == len(numbers) - 1
    }
    total = max((sum(counts) for counts in series.values()), default=0)
    if len(edges) < max(len(numbers), 2) or not total:
        return None
    return Histogram(name, edges, series, marks or {}, total)


def _mean(value: Any) -> dict[str, float]:
    mean = values.number(value)
    return {} if mean is None else {"mean": mean}


def _points(entries: Sequence[Mapping[str, Any]], key: str) -> tuple[tuple[float, float], ...]:
    points = [
        (values.number(entry.get("step", position)), values.number(entry.get(key)))
        for position, entry in enumerate(entries, 1)
    ]
    return tuple((step, value) for step, value in points if step is not None and value is not None)


def _audit(language: str, raw: Mapping[str, Any]) -> LanguageAudit:
    return LanguageAudit(
        language=language,
        spread=values.number(raw.get("spread")),
        by_length=values.number(raw.get("length_chars")),
        offset=values.number(raw.get("offset")),
        scale=values.number(raw.get("scale")),
        as_english=values.number(values.mapping(raw.get("agreement")).get("en")),
        right=values.integer(raw.get("pairs_right")),
        pairs=values.integer(raw.get("pairs")),
        suspect=values.texts(raw.get("blind")),
        readings=values.texts(raw.get("readings")),
    )

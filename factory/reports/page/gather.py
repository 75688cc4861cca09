"""What the page says, as plain data: manifests in, nothing else read. Pure.

What a manifest may lack under `stats` is passed over: a page of old or foreign artifacts shows
less, and never a number that was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factory.artifacts import checkpoints
from factory.artifacts.manifest import License, Manifest, Rows
from factory.reports.checkpoint_curves import CheckpointFigure, Course, courses
from factory.reports.page import benchmarks, examples, findings, formatting, training
from factory.reports.page.benchmarks import Benchmarks
from factory.reports.page.examples import ExamplePair
from factory.reports.page.findings import Duel, Speech, Win
from factory.reports.page.lineage import Chain, LeftOut, origin, reads
from factory.reports.page.training import AuditFigures, Histogram, Training

# What a row of each kind is called.
NOUNS: Mapping[str, str] = {
    "prompts": "prompt", "samples": "answer", "scores": "score", "preferences": "pair",
    "pairs": "pair", "sft": "row", "answers": "answer", "verdicts": "verdict", "results": "result",
}  # fmt: skip
MODELS = ("adapter", "model")
JUDGED = ("answers", "verdicts", "results")


@dataclass(frozen=True)
class PublishedStep:
    """An artifact of the collection. `number` is its place in the line, from 1 on."""

    number: int
    manifest: Manifest

    @property
    def anchor(self) -> str:
        """Where the page tells of it."""
        return f"made-{self.number}"

    @property
    def is_model(self) -> bool:
        """Whether its repo is a model's."""
        return self.manifest.kind in MODELS

    @property
    def family(self) -> str:
        """data, model or judged: what the page's colours tell apart."""
        kind = self.manifest.kind
        return "model" if kind in MODELS else "judged" if kind in JUDGED else "data"

    @property
    def filled(self) -> str | None:
        """The first of its configs that has rows."""
        found = (name for name, one in self.manifest.slices.items() if one.rows.out)
        return next(found, "").partition("/")[0] or None

    @property
    def size(self) -> str:
        """What it holds, in a word or two."""
        if self.is_model:
            return self.manifest.kind
        rows = self.manifest.rows().out
        return formatting.plural(rows, NOUNS.get(self.manifest.kind, "row"))


@dataclass(frozen=True)
class RowLine:
    """Rows of one step, or of one model in one step, by language; `all` is across languages."""

    step: str
    model: str
    by_language: dict[str, Rows]
    total: Rows


@dataclass(frozen=True)
class DroppedRows:
    """Rows that one step dropped for one reason: how many of how many, by language."""

    step: str
    reason: str
    by_language: dict[str, tuple[int, int]]

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.by_language.values())


@dataclass(frozen=True)
class StepTime:
    """What a step cost."""

    step: str
    seconds: float
    gpu_hours: float
    tokens: int
    device: str


@dataclass(frozen=True)
class ExternalSource:
    """A model or source from outside the collection."""

    name: str
    revision: str | None
    roles: str
    steps: tuple[str, ...]
    license: str
    is_model: bool
    served: bool


@dataclass(frozen=True)
class Report:
    """Everything that the page shows of one collection. `slug` and `hub` say where it lies, as
    far as that is known."""

    name: str
    slug: str | None
    hub: str | None
    made: tuple[PublishedStep, ...]
    left_out: tuple[LeftOut, ...]
    languages: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[RowLine, ...]
    drops: tuple[DroppedRows, ...]
    duels: tuple[Duel, ...]
    benchmarks: tuple[Benchmarks, ...]
    courses: tuple[Course, ...]
    speech: tuple[Speech, ...]
    rewards: tuple[Histogram, ...]
    audit: AuditFigures | None
    pairs: tuple[training.PairingFigures, ...]
    trainings: tuple[Training, ...]
    samples: tuple[ExamplePair, ...]
    spent: tuple[StepTime, ...]
    outside: tuple[ExternalSource, ...]
    licenses: tuple[str, ...]
    references: tuple[str, ...]

    @property
    def verdicts(self) -> list[tuple[Duel, Win]]:
        """Of each comparison the one row that is over all languages, at the end of training."""
        return [
            (duel, duel.rows[0])
            for duel in self.duels
            if duel.rows and checkpoints.split_label(duel.model)[1] == 1
        ]


def gather(chain: Chain, name: str, slug: str | None = None, hub: str | None = None) -> Report:
    """The page's data of a line of artifacts."""
    every = chain.manifests
    duels, measured = findings.duels(every), benchmarks.benchmarks(every)
    lines = tuple(line for manifest in every for line in _lines(manifest))
    found = list(dict.fromkeys(code for m in every for code in m.languages))
    extra = [code for line in lines for code in line.by_language if code not in found]
    return Report(
        name=name,
        slug=slug,
        hub=hub,
        made=tuple(PublishedStep(number, one) for number, one in enumerate(every, 1)),
        left_out=chain.left_out,
        languages=tuple(found),
        columns=tuple(dict.fromkeys([*found, *extra])),
        rows=lines,
        drops=tuple(drop for manifest in every for drop in _drops(manifest)),
        duels=tuple(duels),
        benchmarks=tuple(measured),
        courses=tuple(courses([*_rates(duels), *_deltas(measured)])),
        speech=tuple(findings.speech(every)),
        rewards=tuple(training.rewards(every)),
        audit=training.audit(every),
        pairs=tuple(training.pairings(every)),
        trainings=tuple(training.trainings(every)),
        samples=tuple(examples.pairs(every)),
        spent=tuple(_spent(manifest) for manifest in every),
        outside=tuple(_outside(every)),
        licenses=tuple(dict.fromkeys(_license(m.license) for m in every if m.license)),
        references=tuple(dict.fromkeys(key for m in every for key in m.references)),
    )


def _rates(duels: Sequence[Duel]) -> list[CheckpointFigure]:
    return [
        CheckpointFigure(
            duel.model,
            row.language,
            "win rate",
            row.rate,
            row.low,
            row.high,
            row.reference,
            duel.judge,
            50.0,
        )
        for duel in duels
        for row in duel.rows
        if row.rate is not None
    ]


def _deltas(found: Sequence[Benchmarks]) -> list[CheckpointFigure]:
    return [
        CheckpointFigure(
            one.model,
            delta.language,
            delta.benchmark,
            delta.change,
            delta.low,
            delta.high,
            one.reference,
            one.made,
            0.0,
        )
        for one in found
        for delta in one.deltas
        if delta.change is not None
    ]


def _lines(manifest: Manifest) -> list[RowLine]:
    found: dict[str, dict[str, Rows]] = {}
    for name, record in manifest.slices.items():
        language, _, model = name.partition("/")
        column = "all" if language in ("all", "all_lang") else language
        found.setdefault(model, {})[column] = record.rows
    return [
        RowLine(manifest.step, model, by_language, _sum(list(by_language.values())))
        for model, by_language in found.items()
        if any(rows.into for rows in by_language.values())  # a merge has none
    ]


def _sum(rows: Sequence[Rows]) -> Rows:
    dropped: dict[str, int] = {}
    for one in rows:
        for reason, number in one.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + number
    return Rows(into=sum(r.into for r in rows), out=sum(r.out for r in rows), dropped=dropped)


def _drops(manifest: Manifest) -> list[DroppedRows]:
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for line in _lines(manifest):
        for language, rows in line.by_language.items():
            for reason, number in rows.dropped.items():
                before = found.setdefault(reason, {}).get(language, (0, 0))
                found[reason][language] = (before[0] + number, before[1] + rows.into)
    return [
        DroppedRows(manifest.step, reason, by_language)
        for reason, by_language in found.items()
        if any(rows for rows, _ in by_language.values())
    ]


def _spent(manifest: Manifest) -> StepTime:
    cost = manifest.cost
    device = manifest.environment.get("device", "")
    return StepTime(manifest.step, cost.wall_seconds, cost.gpu_hours, cost.tokens, device)


def _outside(manifests: Sequence[Manifest]) -> list[ExternalSource]:
    shown = {manifest.repo for manifest in manifests}
    models = {record.digest for manifest in manifests for record in manifest.models}
    found: dict[tuple[str, str | None], ExternalSource] = {}
    for manifest in manifests:
        for read in reads(manifest):
            if read.repo in shown:
                continue
            name = origin(read).partition("@")[0]
            revision = read.tag or read.revision
            before = found.get((name, revision))
            roles = [*before.roles.split(", ")] if before else []
            steps = before.steps if before else ()
            found[name, revision] = ExternalSource(
                name=name,
                revision=revision,
                roles=", ".join(dict.fromkeys([*roles, read.role])),
                steps=tuple(dict.fromkeys([*steps, manifest.step])),
                license=_license(read.license) if read.license else "not stated",
                is_model=read.digest in models,
                served=read.served,
            )
    return sorted(found.values(), key=lambda one: not one.is_model)


def _license(license: License) -> str:
    return license.name or license.id

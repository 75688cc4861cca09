"""Data of the results page, from manifests, and rows of questions to read. Pure.

Figures that a manifest lacks are left out: a page of old or foreign artifacts shows less, and
never a number that was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factory.artifacts import checkpoints
from factory.artifacts.manifest import License, Manifest, Rows
from factory.reports import formatting, learning
from factory.reports.benchmarks import BenchmarkedModel, benchmarked_models
from factory.reports.checkpoint_curves import Course, courses
from factory.reports.learning import AuditFigures, Histogram, PairingFigures, Training
from factory.reports.page import answers, examples
from factory.reports.page.answers import Speech
from factory.reports.page.examples import ExamplePair
from factory.reports.page.lineage import Chain, LeftOut, origin, reads
from factory.reports.page.opening import sentences
from factory.reports.questions import ReadQuestion
from factory.reports.results import ACCURACY, Result, tidy
from factory.reports.win_rates import JudgedModel, WinRateRow, judged_models

# What a row of each kind is called.
NOUNS: Mapping[str, str] = {
    "prompts": "prompt", "samples": "answer", "scores": "score", "preferences": "pair",
    "pairs": "pair", "sft": "row", "answers": "answer", "verdicts": "verdict", "results": "result",
}  # fmt: skip
MODELS = ("adapter", "model")
JUDGED = ("answers", "verdicts", "results")


@dataclass(frozen=True)
class PublishedStep:
    """An artifact of the collection. `number` is its position in the plan, from 1."""

    number: int
    manifest: Manifest

    @property
    def anchor(self) -> str:
        """Id of its row on the page."""
        return f"made-{self.number}"

    @property
    def is_model(self) -> bool:
        """Whether its repo is a model's."""
        return self.manifest.kind in MODELS

    @property
    def family(self) -> str:
        """data, model or judged: the colour on the page."""
        kind = self.manifest.kind
        return "model" if kind in MODELS else "judged" if kind in JUDGED else "data"

    @property
    def filled(self) -> str | None:
        """The first of its configs that has rows."""
        names = (name for name, record in self.manifest.slices.items() if record.rows.out)
        return next(names, "").partition("/")[0] or None

    @property
    def size(self) -> str:
        """Number of its rows with their noun, or the kind of model."""
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
    """Rows that one step dropped for one reason: (dropped, rows in), by language."""

    step: str
    reason: str
    by_language: dict[str, tuple[int, int]]

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.by_language.values())


@dataclass(frozen=True)
class StepTime:
    """Cost of a step."""

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
class Translations:
    """The translations of a step into one language: percentiles of their column `quality`, and
    chrF2 of the kept ones against human translations, where either was computed."""

    step: str
    language: str
    quality: Mapping[str, float]  # p5, p25, p50, p75, p95
    compared: int
    chrf: float | None


@dataclass(frozen=True)
class Report:
    """All data of the page of one collection. `slug` and `hub` say where it is, if known."""

    name: str
    slug: str | None
    hub: str | None
    steps: tuple[PublishedStep, ...]
    left_out: tuple[LeftOut, ...]
    languages: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[RowLine, ...]
    drops: tuple[DroppedRows, ...]
    translations: tuple[Translations, ...]
    judged: tuple[JudgedModel, ...]
    benchmarks: tuple[BenchmarkedModel, ...]
    courses: tuple[Course, ...]
    accuracies: tuple[Result, ...]
    speech: tuple[Speech, ...]
    rewards: tuple[Histogram, ...]
    audit: AuditFigures | None
    pairs: tuple[PairingFigures, ...]
    trainings: tuple[Training, ...]
    samples: tuple[ExamplePair, ...]
    spent: tuple[StepTime, ...]
    outside: tuple[ExternalSource, ...]
    licenses: tuple[str, ...]
    references: tuple[str, ...]
    opening: str
    questions: tuple[ReadQuestion, ...]

    @property
    def matrix(self) -> list[JudgedModel]:
        """The models of the matrix of win rates: as they were at the end of training."""
        return [judged for judged, _ in self.verdicts]

    @property
    def matrix_languages(self) -> list[str]:
        """Its columns: all languages together, then each in which a model was compared."""
        codes = {row.language: None for judged in self.matrix for row in judged.rows}
        return sorted(codes, key=lambda code: code != "all")

    @property
    def judges(self) -> int:
        """Number of judges in the matrix."""
        return len({judged.step for judged in self.matrix})

    @property
    def dropped_in(self) -> set[str]:
        """The languages in which any row was dropped."""
        return {code for drop in self.drops for code, (n, _) in drop.by_language.items() if n}

    @property
    def verdicts(self) -> list[tuple[JudgedModel, WinRateRow]]:
        """The win rate over all languages of each comparison, at the end of training."""
        return [
            (judged, judged.rows[0])
            for judged in self.judged
            if checkpoints.split_label(judged.model)[1] == 1
        ]


def gather(
    chain: Chain,
    name: str,
    slug: str | None = None,
    hub: str | None = None,
    questions: Sequence[ReadQuestion] = (),
) -> Report:
    """Return the page's data for a chain of artifacts."""
    manifests = chain.manifests
    lines = tuple(line for manifest in manifests for line in _lines(manifest))
    languages = list(dict.fromkeys(code for m in manifests for code in m.languages))
    extra = [code for line in lines for code in line.by_language if code not in languages]
    return Report(
        name=name,
        slug=slug,
        hub=hub,
        steps=tuple(
            PublishedStep(number, manifest) for number, manifest in enumerate(manifests, 1)
        ),
        left_out=chain.left_out,
        languages=tuple(languages),
        columns=tuple(dict.fromkeys([*languages, *extra])),
        rows=lines,
        drops=tuple(drop for manifest in manifests for drop in _drops(manifest)),
        translations=tuple(one for manifest in manifests for one in _translations(manifest)),
        judged=tuple(judged := judged_models(manifests)),
        benchmarks=tuple(benchmarked_models(manifests)),
        courses=tuple(courses(tidy(manifests))),
        accuracies=tuple(row for row in tidy(manifests) if row.metric == ACCURACY),
        speech=tuple(answers.speech(manifests)),
        rewards=tuple(learning.rewards(manifests)),
        audit=learning.audit(manifests),
        pairs=tuple(learning.pairings(manifests)),
        trainings=tuple(learning.trainings(manifests)),
        samples=tuple(examples.pairs(manifests)),
        spent=tuple(_spent(manifest) for manifest in manifests),
        outside=tuple(_outside(manifests)),
        licenses=tuple(dict.fromkeys(_license(m.license) for m in manifests if m.license)),
        references=tuple(dict.fromkeys(key for m in manifests for key in m.references)),
        opening=sentences(manifests, judged),
        questions=tuple(questions),
    )


def _lines(manifest: Manifest) -> list[RowLine]:
    models: dict[str, dict[str, Rows]] = {}
    for name, record in manifest.slices.items():
        language, _, model = name.partition("/")
        column = "all" if language in ("all", "all_lang") else language
        models.setdefault(model, {})[column] = record.rows
    return [
        RowLine(manifest.step, model, by_language, Rows.total(by_language.values()))
        for model, by_language in models.items()
        if any(rows.into for rows in by_language.values())  # a merge has none
    ]


def _drops(manifest: Manifest) -> list[DroppedRows]:
    reasons: dict[str, dict[str, tuple[int, int]]] = {}
    for line in _lines(manifest):
        for language, rows in line.by_language.items():
            for reason, number in rows.dropped.items():
                before = reasons.setdefault(reason, {}).get(language, (0, 0))
                reasons[reason][language] = (before[0] + number, before[1] + rows.into)
    return [
        DroppedRows(manifest.step, reason, by_language)
        for reason, by_language in reasons.items()
        if any(rows for rows, _ in by_language.values())
    ]


def _translations(manifest: Manifest) -> list[Translations]:
    if manifest.stage not in ("translate", "translate_pairs"):
        return []
    return [
        Translations(
            manifest.step,
            language,
            {key: value for key, value in (stats.get("quality") or {}).items() if key != "n"},
            stats.get("compared") or 0,
            stats.get("chrf_kept"),
        )
        for language, stats in manifest.stats.get("by_language", {}).items()
        if (stats.get("quality") or {}).get("n") or stats.get("compared")
    ]


def _spent(manifest: Manifest) -> StepTime:
    cost = manifest.cost
    device = manifest.environment.get("device", "")
    return StepTime(manifest.step, cost.wall_seconds, cost.gpu_hours, cost.tokens, device)


def _outside(manifests: Sequence[Manifest]) -> list[ExternalSource]:
    repos = {manifest.repo for manifest in manifests}
    models = {record.digest for manifest in manifests for record in manifest.models}
    sources: dict[tuple[str, str | None], ExternalSource] = {}
    for manifest in manifests:
        for read in reads(manifest):
            if read.repo in repos:
                continue
            name = origin(read).partition("@")[0]
            revision = read.tag or read.revision
            before = sources.get((name, revision))
            roles = [*before.roles.split(", ")] if before else []
            steps = before.steps if before else ()
            sources[name, revision] = ExternalSource(
                name=name,
                revision=revision,
                roles=", ".join(dict.fromkeys([*roles, read.role])),
                steps=tuple(dict.fromkeys([*steps, manifest.step])),
                license=_license(read.license) if read.license else "not stated",
                is_model=read.digest in models,
                served=read.served,
            )
    return sorted(sources.values(), key=lambda source: not source.is_model)


def _license(license: License) -> str:
    return license.name or license.id

"""euroeval: the models to be compared on EuroEval's benchmarks, each language by its own suite."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from factory.artifacts import schemas, shards
from factory.artifacts.manifest import Rows
from factory.artifacts.shards import Shard, ShardTotals
from factory.artifacts.tables import read_slice
from factory.config import EXTENT, REFERENCE
from factory.errors import FactoryError, RecipeError
from factory.evaluation.euroeval import deltas, directory, evaluation, readiness, records, suites
from factory.evaluation.euroeval.evaluation import Evaluation, Model, Settings
from factory.evaluation.euroeval.own import OwnBenchmark, ready
from factory.evaluation.euroeval.runs import EuroevalRuns, RunKnobs
from factory.evaluation.models import Choice, check_languages, contestants
from factory.stage.inputs import ExternalInput, SliceSpec, model_of
from factory.stage.job import Job, policy
from factory.stage.outcome import Outcome, spent
from factory.stage.stage import How, Stage, StageContext

_NOT_A_BENCHMARK = frozenset({"model", "adapter"})  # roles of the models
_SHARD = 100_000  # rows: all of a slice, which is one run of EuroEval
_ADDRESS = ("dataset", "metric", "source_digest", "status")


class EuroevalHow(How, RunKnobs):
    """See runs.RunKnobs."""


class Euroeval(Stage):
    """Scores of every model in `of` (a name under models:, or a stage that trains adapters, whose
    checkpoints are named as for arena) on `benchmarks`: the paper's list, EuroEval's official
    suites, or names by language; or benchmarks of your own by language, as a map (name, task,
    source, and how its rows are read: OwnBenchmark). multi-wiki-qa- and belebele- with the
    language's code are ready ones where EuroEval has none. `languages`: those that a model was
    trained in (`own`), all of the recipe, or a list; or one of these for each name of `of`.
    `sources`: a Hub dataset to read in the place of a benchmark's own, in the same form.
    `reference`: the model that the others are compared with. `incomplete: keep` keeps a benchmark
    that left no record, as a row without a value; else the stage fails, and goes on where it was
    when run again."""

    name: ClassVar[str] = "euroeval"
    kind: ClassVar[str] = "results"
    repo: ClassVar[str] = "results"
    row_wise: ClassVar[bool] = True

    of: Annotated[tuple[str, ...], REFERENCE, Field(min_length=1)] = ("policy", "dpo")
    reference: Annotated[str, REFERENCE] = "policy"
    languages: Annotated[Choice | dict[str, Choice], REFERENCE] = "own"
    benchmarks: Annotated[
        Literal["paper", "official"] | dict[str, tuple[str | OwnBenchmark, ...]], REFERENCE
    ] = "paper"
    # that of EuroEval; scores of two versions are never compared
    tool: Annotated[suites.Version, REFERENCE] = Field(suites.DEFAULT, alias="version")
    sources: Annotated[dict[str, str], REFERENCE] = Field(default_factory=dict)
    split: Literal["test", "val"] = "test"
    iterations: int = Field(10, ge=1)
    few_shot: bool = True
    backend: Literal["vllm", "openai"] = "vllm"
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float16|float32)$")
    max_context: int | None = Field(None, ge=1)
    incomplete: Annotated[Literal["refuse", "keep"], EXTENT] = "refuse"
    how: EuroevalHow = EuroevalHow()

    @field_validator("languages")
    @classmethod
    def _known_languages(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return check_languages(value)
        return {name: check_languages(choice) for name, choice in value.items()}

    @model_validator(mode="after")
    def _languages_of_those_that_are_there(self) -> Euroeval:
        for name in self.languages if isinstance(self.languages, dict) else ():
            if name not in self.of:
                raise ValueError(f"languages names {name!r}, which of does not")
        return self

    @field_validator("sources")
    @classmethod
    def _source_names(cls, value: dict[str, str]) -> dict[str, str]:
        for source in value.values():
            if source.partition("@")[0].count("/") != 1:
                raise ValueError(f"{source!r} is not of the form org/name[@revision]")
        return value

    @model_validator(mode="after")
    def _known_benchmarks(self) -> Euroeval:
        for language, entries in self._by_language().items():
            own = self.own(language)
            for name in (entry for entry in entries if isinstance(entry, str)):
                if name not in own and (why := suites.complaint(name, language, self.tool)):
                    raise ValueError(f"benchmarks.{language}: {why}")
            for benchmark in own.values():
                if why := benchmark.complaint(language, self.tool):
                    raise ValueError(f"benchmarks.{language}: {why}")
                if self.few_shot and benchmark.splits and "train" not in benchmark.splits:
                    raise ValueError(f"{benchmark.name}: few_shot draws examples from splits.train")
            names = self._named(language)
            if len(set(names)) < len(entries):
                raise ValueError(f"benchmarks.{language} names one of them twice")
            if absent := directory.unshipped(self.registered(language)[name] for name in names):
                raise ValueError(f"{language}: there is no metric script {absent[0]} here")
        for name in self.sources:
            if name not in suites.registry(self.tool):
                raise ValueError(f"sources: {suites.complaint(name, '', self.tool)}")
        return self

    def _by_language(self) -> Mapping[str, tuple[str | OwnBenchmark, ...]]:
        """Return the benchmarks that are named by language."""
        return {} if isinstance(self.benchmarks, str) else self.benchmarks

    def own(self, language: str) -> dict[str, OwnBenchmark]:
        """Return the benchmarks of a language that are not EuroEval's, by name."""
        entries = self._by_language().get(language, ())
        benchmarks = suites.registry(self.tool)
        own = {}
        for entry in entries:
            if isinstance(entry, OwnBenchmark):
                own[entry.name] = entry
            elif entry not in benchmarks and (prepared := ready(entry, language)):
                own[entry] = prepared
        return own

    def registered(self, language: str | None) -> dict[str, suites.Benchmark]:
        """Return all benchmarks that there are in a language, by name."""
        own = self.own(language or "").values()
        entries = {b.name: b.benchmark(language or "", self.tool) for b in own}
        return suites.registry(self.tool) | entries

    def suite(self, language: str) -> tuple[str, ...]:
        """Return the benchmarks of a language; none where there is no suite for it."""
        left_out = self.left_out(language)
        return tuple(name for name in self._named(language) if name not in left_out)

    def left_out(self, language: str) -> dict[str, list[str]]:
        """Return the benchmarks of its suite that need metrics without a script here, each with
        those."""
        benchmarks = self.registered(language)
        lacking = {name: directory.unshipped((benchmarks[name],)) for name in self._named(language)}
        return {name: scripts for name, scripts in lacking.items() if scripts}

    def _named(self, language: str) -> tuple[str, ...]:
        if isinstance(self.benchmarks, str):
            return suites.suite(language, self.benchmarks, self.tool)
        entries = self.benchmarks.get(language, ())
        names = (e.name if isinstance(e, OwnBenchmark) else e for e in entries)
        return tuple(dict.fromkeys(names))

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        specs, without = [], []
        evaluated = {
            contestant.label: (contestant, contestant.languages(self._choice(name), context))
            for name in self.of
            for contestant in contestants(context, [name], self.name)
        }
        for contestant, languages in evaluated.values():
            for language in languages:
                names = self.suite(language)
                if not names:
                    without.append(language)
                    continue
                data = tuple(self._source(name, language) for name in names)
                specs.append(
                    SliceSpec(
                        self.name,
                        f"{language}/{contestant.label}",
                        language,
                        (*contestant.needs, *data),
                    )
                )
        absent = tuple(dict.fromkeys(without))
        if not specs:
            raise RecipeError(
                f"stages.euroeval: there are no benchmarks for {', '.join(absent)}",
                "EuroEval has no suite there: name other languages, or benchmarks of your own as "
                "benchmarks: {CODE: [multi-wiki-qa-CODE]}",
            )
        first = specs[0]
        return [SliceSpec(first.step, first.name, first.language, first.needs, absent), *specs[1:]]

    def _choice(self, name: str) -> Choice:
        """Return the languages that a name of `of` is evaluated in."""
        return (
            self.languages.get(name, "own") if isinstance(self.languages, dict) else self.languages
        )

    def _source(self, name: str, language: str) -> ExternalInput:
        source = self.sources.get(name, self.registered(language)[name].source)
        pinned = source if "@" in source else f"{source}@main"
        return ExternalInput(name, pinned, "dataset", extent=True)

    def identity_fields(self, spec: SliceSpec) -> dict[str, Any]:
        return super().identity_fields(spec) | {"tool_version": self.tool}

    def extent(self) -> dict[str, Any]:
        own = {}
        for language in self._by_language():
            if meanings := [b.meaning() for b in self.own(language).values()]:
                own[language] = meanings
        return super().extent() | ({"own": own} if own else {})

    def missing_requirements(self, specs: Sequence[SliceSpec]) -> list[FactoryError]:
        names = list(dict.fromkeys(name for spec in specs for name in _benchmarks(spec)))
        return readiness.lacking(self.backend, self.how.environment, names, self.tool)

    def fixed_rows(self, spec: SliceSpec) -> int:
        benchmarks = self.registered(spec.language)
        return sum(len(benchmarks[name].metrics) for name in _benchmarks(spec))

    def n_shards(self, rows: int, spec: SliceSpec) -> int:
        return 1 if rows else 0

    def run(self, job: Job) -> Outcome:
        requested = _RequestedRows(self, job)
        sizes = {name: len(rows) for name, rows in requested.missing.items()}
        numbers = [n for n, name in enumerate(sizes) if sizes[name]]
        if job.part:
            numbers = [n for n in numbers if n % job.part[1] == job.part[0]]
        evaluations = {job.slices[n].name: requested.evaluation(job.slices[n]) for n in numbers}
        runs = EuroevalRuns(
            requested.root, self.settings(), self.how, job.progress, job.part is not None
        )
        began = time.monotonic()
        runs.finish(list(evaluations.values()))
        lost = {(name, d): why for name, e in evaluations.items() for d, why in e.lost().items()}
        if lost and self.incomplete == "refuse":
            log = requested.root / next(iter(lost))[0] / evaluation.LOG
            raise evaluation.no_record_error(
                {f"{name}: {d}": why for (name, d), why in lost.items()}, log
            )

        def make(shard: Shard) -> tuple[pa.Table, int]:
            return requested.table(shard.slice), 0

        totals = job.make_shards(self.kind, sizes, _SHARD, make, began=began)
        for name, run in evaluations.items():
            run.publish(job.out / "records" / name)
        return self._outcome(job, requested, totals, lost)

    def settings(self) -> Settings:
        """Return the settings that change a score."""
        return Settings(
            self.split, self.iterations, self.few_shot, self.backend, self.dtype, self.max_context,
            self.tool,
        )  # fmt: skip

    def _outcome(
        self,
        job: Job,
        requested: _RequestedRows,
        totals: Mapping[str, ShardTotals],
        lost: Mapping[tuple[str, str], str],
    ) -> Outcome:
        tables = {name: read_slice(job.out, name, self.kind) for name in totals}
        rows = [row for table in tables.values() for row in table.to_pylist()]
        counts = {
            spec.name: Rows(into=len(requested.rows[spec.name]), out=len(tables[spec.name]))
            for spec in job.slices
        }
        shown = ("values", "source_digest", "primary")
        stats = {
            "reference": self.reference,
            "tool_version": self.tool,
            "backend": self.backend,
            "split": self.split,
            "iterations": self.iterations,
            "few_shot": self.few_shot,
            "without_suite": list(dict.fromkeys(n for s in job.slices for n in s.notes)),
            "left_out": self._left_out(job),
            **({"own": own} if (own := self._own_stats(job, requested)) else {}),
            "corrected": [] if self.benchmarks != "paper" else _corrected(job),
            "scores": [{k: v for k, v in row.items() if k not in shown} for row in rows],
            "deltas": deltas.deltas(rows, self.reference, self._all_registered(job)),
            "missing": [
                {"slice": name, "dataset": dataset, "why": why}
                for (name, dataset), why in lost.items()
            ],
        }
        return Outcome(counts, determinism="distribution", stats=stats, spent=spent(totals))

    def _all_registered(self, job: Job) -> dict[str, suites.Benchmark]:
        benchmarks: dict[str, suites.Benchmark] = {}
        for spec in job.slices:
            benchmarks |= self.registered(spec.language)
        return benchmarks

    def _own_stats(self, job: Job, requested: _RequestedRows) -> list[dict[str, Any]]:
        """Return what each benchmark of the recipe's own was made of."""
        described = {
            (made_of["language"], made_of["name"]): made_of
            for spec in job.slices
            for made_of in requested.evaluation(spec).described()
        }
        return [
            made_of | {"source": self.own(language)[name].source}
            for (language, name), made_of in described.items()
        ]

    def _left_out(self, job: Job) -> list[dict[str, Any]]:
        languages = dict.fromkeys(spec.language for spec in job.slices if spec.language)
        return [
            {"language": language, "dataset": name, "metrics": scripts}
            for language in languages
            for name, scripts in self.left_out(language).items()
        ]


def _benchmarks(spec: SliceSpec) -> list[str]:
    """Return the benchmarks that a slice reads the data of."""
    outside = (need for need in spec.needs if isinstance(need, ExternalInput))
    return [need.role for need in outside if need.role not in _NOT_A_BENCHMARK]


def _corrected(job: Job) -> list[str]:
    """Return the corrections of the paper's own list, in the languages of this job."""
    corrections = {
        "pt": "Portuguese: multi-wiki-qa-pt, where the paper's script has the Swedish one",
        "fi": "Finnish: tydiqa-fi, which the paper's script misspells",
    }
    languages = {spec.language for spec in job.slices}
    return [text for code, text in corrections.items() if code in languages]


class _RequestedRows:
    """The rows that a job is asked for, by slice, and which of them no earlier artifact has."""

    def __init__(self, stage: Euroeval, job: Job) -> None:
        self._stage, self._job = stage, job
        self._digests: dict[Path, str] = {}
        self.root = job.work / "checkpoints" / "euroeval"
        self.rows = {spec.name: self._rows_of(spec) for spec in job.slices}
        self.missing = {name: self._not_there(name) for name in self.rows}

    def evaluation(self, spec: SliceSpec) -> Evaluation:
        """Return the run that makes the missing rows of a slice."""
        assert spec.language is not None
        place, adapter = policy(self._job, spec)
        return Evaluation(
            model=Model(model_of(spec.name), place.path, place.name or place.path.name, adapter),
            language=spec.language,
            work=self.root / spec.name,
            datasets={
                name: self._job.place(spec, name).path
                for name in dict.fromkeys(row["dataset"] for row in self.missing[spec.name])
            },
            settings=self._stage.settings(),
            paths=(str(self._job.work), str(Path.home())),
            own=self._stage.own(spec.language),
        )

    def table(self, name: str) -> pa.Table:
        """Return the rows of a slice that were missing, once it has run."""
        spec = next(other for other in self._job.slices if other.name == name)
        run, rows = self.evaluation(spec), []
        stored, benchmarks = run.stored_records(), self._stage.registered(spec.language)
        missing = {(row["dataset"], row["metric"]) for row in self.missing[name]}
        for dataset in run.datasets:
            results = records.rows(
                stored.get(dataset), benchmarks[dataset], self._common(spec, dataset)
            )
            rows += [row for row in results if (dataset, row["metric"]) in missing]
        table = schemas.from_rows(rows, self._stage.kind)
        return shards.with_metadata(
            table, engine=f"euroeval {self._stage.tool}, {self._stage.backend}"
        )

    def _rows_of(self, spec: SliceSpec) -> list[dict[str, str]]:
        """Return the addresses of the rows that a slice is to have."""
        benchmarks = self._stage.registered(spec.language)
        return [
            {"dataset": name, "metric": metric, "status": "ok",
             "source_digest": self._digest(spec, name)}
            for name in _benchmarks(spec)
            for metric in benchmarks[name].metrics
        ]  # fmt: skip

    def _not_there(self, name: str) -> list[dict[str, str]]:
        import polars as pl

        requested = pl.DataFrame(self.rows[name], schema=dict.fromkeys(_ADDRESS, pl.String))
        numbers = self._job.missing(name, self._stage.kind, requested)
        return [self.rows[name][number] for number in numbers]

    def _digest(self, spec: SliceSpec, name: str) -> str:
        """Return the digest of a benchmark's rows."""
        path = self._job.place(spec, name).path
        if path not in self._digests:
            self._digests[path] = directory.digest(path)
        own = self._stage.own(spec.language or "").get(name)
        return own.digest(self._digests[path]) if own else self._digests[path]

    def _common(self, spec: SliceSpec, dataset: str) -> dict[str, Any]:
        """Return the columns that all rows of one benchmark of a slice share."""
        place, adapter = self._job.place(spec, dataset), spec.need("adapter")
        put_on = self._job.places[adapter] if adapter else None
        stage = self._stage
        return {
            "model": model_of(spec.name),
            "adapter": put_on.label if put_on and put_on.name else None,
            "language": spec.language,
            "split": stage.split,
            "few_shot": stage.few_shot,
            "backend": stage.backend,
            "tool_version": stage.tool,
            "source": place.name or place.path.name,
            "source_digest": self._digest(spec, dataset),
        }

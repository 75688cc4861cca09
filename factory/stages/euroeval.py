"""euroeval: the models to be compared on EuroEval's benchmarks, each language by its own suite."""

from __future__ import annotations

import json
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from factory import schemas, shards
from factory.artifact import Rows
from factory.errors import InputError, RecipeError, StageError
from factory.euroeval import deltas, directory, environment, evaluation, process, records, suites
from factory.euroeval.evaluation import Evaluation, Settings, Subject
from factory.knobs import EXTENT, REFERENCE
from factory.language.languages import language as known_language
from factory.shards import Shard
from factory.stages.arena import contestants
from factory.stages.contract import How, Outside, Scope, SliceSpec, Stage
from factory.stages.job import Job, Outcome, policy

_NOT_A_BENCHMARK = frozenset({"model", "adapter"})  # roles of the models
_SHARD = 100_000  # rows: all of a slice, which is one run of EuroEval
_ADDRESS = ("dataset", "metric", "source_digest", "status")
_PUNKT = "instruction-following"  # the task whose metric reads sentences with NLTK's punkt_tab


class EuroevalHow(How):
    """`environment`: a directory with a Python environment of EuroEval (what `factory doctor
    --install euroeval` makes, where nothing is said). `limit`: seconds that one model may take in
    one language. `parallel`: runs at once, each on its share of the GPUs; for backend openai they
    share one server. `gpu_memory_utilization` as vLLM has it. `served_model`: its name on the
    server at OPENAI_BASE_URL, where there is one; else the stage starts one with vLLM."""

    environment: str | None = None
    limit: int = Field(21600, ge=1)
    parallel: int = Field(1, ge=1)
    gpu_memory_utilization: float = Field(0.8, gt=0, le=1)
    served_model: str | None = None


class Euroeval(Stage):
    """Scores of every model in `of` (a name under models:, or a stage that trains adapters) on
    `benchmarks`: the paper's list, EuroEval's official suites, or names by language. `languages`:
    those that a model was trained in (`own`), all of the recipe, or a list. `sources`: a Hub
    dataset to read in the place of a benchmark's own, in the same form. `reference`: the model
    that the others are compared with. `incomplete: keep` keeps a benchmark that left no record,
    as a row without a value; else the stage fails, and goes on where it was when run again."""

    name: ClassVar[str] = "euroeval"
    kind: ClassVar[str] = "results"
    repo: ClassVar[str] = "results"
    row_wise: ClassVar[bool] = True

    of: Annotated[tuple[str, ...], REFERENCE, Field(min_length=1)] = ("policy", "dpo")
    reference: Annotated[str, REFERENCE] = "policy"
    languages: Annotated[Literal["own", "all"] | tuple[str, ...], REFERENCE] = "own"
    benchmarks: Annotated[Literal["paper", "official"] | dict[str, tuple[str, ...]], REFERENCE] = (
        "paper"
    )
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
        for code in () if isinstance(value, str) else value:
            try:
                known_language(code)
            except RecipeError as error:
                raise ValueError(f"{error.what}; {error.fix}") from None
        return value

    @field_validator("benchmarks")
    @classmethod
    def _known_benchmarks(cls, value: Any) -> Any:
        for language, names in {} if isinstance(value, str) else value.items():
            for name in names:
                if said := suites.complaint(name, language):
                    raise ValueError(said)
            if absent := directory.unshipped(names):
                raise ValueError(f"{language}: there is no metric script {absent[0]} here")
        return value

    @field_validator("sources")
    @classmethod
    def _known_sources(cls, value: dict[str, str]) -> dict[str, str]:
        for name, source in value.items():
            if name not in suites.registry():
                raise ValueError(suites.complaint(name, ""))
            if source.partition("@")[0].count("/") != 1:
                raise ValueError(f"{source!r} is not of the form org/name[@revision]")
        return value

    def suite(self, language: str) -> tuple[str, ...]:
        """The benchmarks of a language; none where there is no suite for it."""
        if isinstance(self.benchmarks, str):
            names = suites.suite(language, self.benchmarks)
            return tuple(name for name in names if not directory.unshipped((name,)))
        return tuple(dict.fromkeys(self.benchmarks.get(language, ())))

    def slices(self, scope: Scope) -> list[SliceSpec]:
        found, without = [], []
        for name in dict.fromkeys(self.of):
            for label, needs, own in contestants(scope, name, self.name):
                for language in self._asked(scope, own):
                    names = self.suite(language)
                    if not names:
                        without.append(language)
                        continue
                    data = tuple(self._source(name) for name in names)
                    found.append(
                        SliceSpec(self.name, f"{language}/{label}", language, (*needs, *data))
                    )
        absent = tuple(dict.fromkeys(without))
        if not found:
            raise RecipeError(
                f"stages.euroeval: there are no benchmarks for {', '.join(absent)}",
                "EuroEval has no suite in gl, ga, cy and mt: name other languages, or leave it out",
            )
        first = found[0]
        return [SliceSpec(first.step, first.name, first.language, first.needs, absent), *found[1:]]

    def _asked(self, scope: Scope, own: tuple[str, ...]) -> tuple[str, ...]:
        if self.languages == "all":
            return scope.languages
        return own if self.languages == "own" else tuple(dict.fromkeys(self.languages))

    def _source(self, name: str) -> Outside:
        source = self.sources.get(name, suites.registry()[name].source)
        whole = source if "@" in source else f"{source}@main"
        return Outside(name, whole, "dataset", extent=True)

    def semantic(self, spec: SliceSpec) -> dict[str, Any]:
        return super().semantic(spec) | {"tool_version": suites.version()}

    def shards(self, rows: int) -> int:
        return 1 if rows else 0

    def run(self, job: Job) -> Outcome:
        with _Runs(self, job) as runs:
            sizes = {name: len(rows) for name, rows in runs.missing.items()}
            mine = [n for n, spec in enumerate(job.slices) if sizes[spec.name]]
            if job.part:
                mine = [n for n in mine if n % job.part[1] == job.part[0]]
            runs.finish([job.slices[n] for n in mine])

            def make(shard: Shard) -> tuple[pa.Table, int]:
                return runs.table(shard.slice), 0

            tables = job.make_rows(self.kind, sizes, _SHARD, make)
            runs.keep_records(job.out)
        return self._outcome(job, runs, tables)

    def settings(self) -> Settings:
        """What every score of this stage hangs on."""
        return Settings(
            self.split, self.iterations, self.few_shot, self.backend, self.dtype, self.max_context
        )

    def _outcome(self, job: Job, runs: _Runs, tables: Mapping[str, pa.Table]) -> Outcome:
        rows = [row for table in tables.values() for row in table.to_pylist()]
        counts = {
            spec.name: Rows(into=len(runs.asked[spec.name]), out=len(tables[spec.name]))
            for spec in job.slices
        }
        shown = ("values", "source_digest", "primary")
        stats = {
            "reference": self.reference,
            "tool_version": suites.version(),
            "backend": self.backend,
            "split": self.split,
            "iterations": self.iterations,
            "few_shot": self.few_shot,
            "without_suite": list(dict.fromkeys(n for s in job.slices for n in s.notes)),
            "corrected": [] if self.benchmarks != "paper" else _corrected(job),
            "scores": [{k: v for k, v in row.items() if k not in shown} for row in rows],
            "deltas": deltas.deltas(rows, self.reference, suites.registry()),
            "missing": [
                {"slice": name, "dataset": dataset, "why": why}
                for (name, dataset), why in runs.lost.items()
            ],
        }
        return Outcome(counts, determinism="distribution", stats=stats)


def _corrected(job: Job) -> list[str]:
    """What of the paper's own list was put right, in the languages of this job."""
    said = {
        "pt": "Portuguese: multi-wiki-qa-pt, where the paper's script has the Swedish one",
        "fi": "Finnish: tydiqa-fi, which the paper's script misspells",
    }
    there = {spec.language for spec in job.slices}
    return [text for code, text in said.items() if code in there]


class _Runs:
    """All runs of one job: which rows they are asked for, and what came of them."""

    def __init__(self, stage: Euroeval, job: Job) -> None:
        self._stage, self._job = stage, job
        self._root = job.work / "checkpoints" / "euroeval"
        self._merging = threading.Lock()
        self._digests: dict[Path, str] = {}
        self.asked = {spec.name: self._rows_of(spec) for spec in job.slices}
        self.missing = {name: self._not_there(name) for name in self.asked}
        self.lost: dict[tuple[str, str], str] = {}

    def __enter__(self) -> _Runs:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:  # merged weights are large; records are kept till the artifact is sealed
            shutil.rmtree(self._root / "merged", ignore_errors=True)

    def finish(self, specs: Sequence[SliceSpec]) -> None:
        """Run what has no record yet. Raises StageError for what is left without one, once all
        others are done."""
        self._refuse_idle_adapters(specs)
        pending = [spec for spec in specs if self._todo(spec)]
        if pending:
            self._refuse_without_punkt(pending)
            given = self._stage.how.environment
            python = environment.python(Path(given).expanduser() if given else None)
            self._run(pending, python)
        missing = {
            f"{spec.name}: {name}": why
            for spec in specs
            for name, why in self._why_lost(spec).items()
        }
        if missing and self._stage.incomplete == "refuse":
            raise evaluation.told(missing)

    def table(self, name: str) -> pa.Table:
        """The rows of one slice that were not taken over."""
        spec = next(one for one in self._job.slices if one.name == name)
        kept, found = self._evaluation(spec).kept(), []
        for dataset in dict.fromkeys(row["dataset"] for row in self.missing[name]):
            common = self._common(spec, dataset)
            found += records.rows(kept.get(dataset), suites.registry()[dataset], common)
        table = schemas.from_rows(found, self._stage.kind)
        return shards.noted(table, engine=f"euroeval {suites.version()}, {self._stage.backend}")

    def keep_records(self, out: Path) -> None:
        """Put the raw records beside the rows."""
        for spec in self._job.slices:
            for dataset, record in self._evaluation(spec).kept().items():
                path = out / "records" / spec.name / f"{dataset}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n")

    def _run(self, specs: Sequence[SliceSpec], python: Path) -> None:
        done, total = 0, sum(len(self._todo(spec)) for spec in specs)
        self._job.progress(0, total, "benchmarks")
        stage = self._stage
        by_model: dict[str, list[SliceSpec]] = {}
        for spec in specs:
            by_model.setdefault(_label(spec) if stage.backend == "openai" else "", []).append(spec)
        for alike in by_model.values():
            with self._subjects(alike) as subject:
                for spec, before in self._at_once(alike, subject, python):
                    done += before
                    self._job.progress(done, total, "benchmarks")
                    self.lost.update(
                        {(spec.name, n): why for n, why in self._why_lost(spec).items()}
                    )

    def _at_once(
        self, specs: Sequence[SliceSpec], subject: Callable[[SliceSpec], Subject], python: Path
    ) -> Iterator[tuple[SliceSpec, int]]:
        """Run these, some at once; each with how many benchmarks it was asked for."""
        stage = self._stage
        devices: queue.Queue[str | None] = queue.Queue()
        count = min(stage.how.parallel, len(specs))
        for group in _device_groups(count) if stage.backend == "vllm" else [None] * count:
            devices.put(group)

        stop = threading.Event()

        def one(spec: SliceSpec) -> tuple[SliceSpec, int]:
            mine = devices.get()
            try:
                run = self._evaluation(spec, mine)
                asked = len(self._todo(spec))
                ended = run.run(subject(spec), python, stage.how.limit, stop)
                (run.work / "ended").write_text(ended)
                return spec, asked
            finally:
                devices.put(mine)

        pool = ThreadPoolExecutor(count, thread_name_prefix="euroeval")
        try:
            yield from pool.map(one, specs)
        finally:  # of what is under way, only what EuroEval has written down is kept
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def _subjects(self, specs: Sequence[SliceSpec]) -> Iterator[Callable[[SliceSpec], Subject]]:
        """How to come by the model of a slice, while the block runs."""
        if self._stage.backend == "vllm":
            yield lambda spec: Subject(self._model(spec))
            return
        place, adapter = policy(self._job, specs[0])
        if address := os.environ.get("OPENAI_BASE_URL"):
            name = self._stage.how.served_model or (None if adapter else place.name)
            if name is None or name not in (there := process.models(address)):
                listed = f"; it has {', '.join(there)}" if name and there else ""
                raise StageError(
                    f"the server at OPENAI_BASE_URL has no "
                    f"model {name or _label(specs[0])}{listed}",
                    "say its name there with how.served_model, or unset OPENAI_BASE_URL",
                )
            yield lambda spec: Subject(place.path, address, name)
            return
        model = self._model(specs[0])
        from factory.engines.transformers import has_gpu

        log = self._root / "servers" / f"{_label(specs[0])}.txt"
        stage = self._stage
        with process.served(
            model,
            directory.MODEL,
            stage.dtype,
            stage.max_context,
            not has_gpu(),
            log,
            stage.how.limit,
        ) as address:
            yield lambda spec: Subject(model, address)

    def _model(self, spec: SliceSpec) -> Path:
        """The directory of a model as a whole, its adapter merged into it: once for all of its
        languages, one model at a time."""
        place, adapter = policy(self._job, spec)
        if adapter is None:
            return place.path
        merged = self._root / "merged" / _label(spec)
        with self._merging:
            if not merged.exists():
                from factory.training import adapters

                adapters.merge(place.path, adapter, merged, self._stage.dtype)
        return merged

    def _evaluation(self, spec: SliceSpec, devices: str | None = None) -> Evaluation:
        assert spec.language is not None
        return Evaluation(
            name=spec.name,
            language=spec.language,
            work=self._root / spec.name,
            datasets={
                name: self._job.place(spec, name).path
                for name in dict.fromkeys(row["dataset"] for row in self.missing[spec.name])
            },
            settings=self._stage.settings(),
            devices=devices,
            memory=self._stage.how.gpu_memory_utilization,
            paths=(str(self._job.work), str(Path.home())),
        )

    def _todo(self, spec: SliceSpec) -> list[str]:
        run = self._evaluation(spec)
        kept = run.kept()
        return [name for name in run.datasets if name not in kept]

    def _why_lost(self, spec: SliceSpec) -> dict[str, str]:
        """The benchmarks of a slice that have no record, and why."""
        if not (lost := self._todo(spec)):
            return {}
        run = self._evaluation(spec)
        ended = run.work / "ended"
        how = ended.read_text() if ended.exists() else "not run"
        return dict.fromkeys(lost, f"{how}; {run.tail()}")

    def _rows_of(self, spec: SliceSpec) -> list[dict[str, str]]:
        """The addresses of the rows that a slice is to have."""
        return [
            {"dataset": need.role, "metric": metric, "status": "ok",
             "source_digest": self._digest(self._job.places[need].path)}
            for need in spec.needs
            if isinstance(need, Outside) and need.role not in _NOT_A_BENCHMARK
            for metric in suites.registry()[need.role].metrics
        ]  # fmt: skip

    def _not_there(self, name: str) -> list[dict[str, str]]:
        """Those of a slice that no earlier artifact has."""
        import polars as pl

        asked = pl.DataFrame(self.asked[name], schema=dict.fromkeys(_ADDRESS, pl.String))
        left = self._job.missing(name, self._stage.kind, asked)
        return [self.asked[name][number] for number in left]

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = directory.digest(path)
        return self._digests[path]

    def _common(self, spec: SliceSpec, dataset: str) -> dict[str, Any]:
        place, adapter = self._job.place(spec, dataset), spec.need("adapter")
        put_on = self._job.places[adapter] if adapter else None
        stage = self._stage
        return {
            "model": _label(spec),
            "adapter": f"{put_on.name}@{put_on.revision}" if put_on and put_on.name else None,
            "language": spec.language,
            "split": stage.split,
            "few_shot": stage.few_shot,
            "backend": stage.backend,
            "tool_version": suites.version(),
            "source": place.name or place.path.name,
            "source_digest": self._digest(place.path),
        }

    def _refuse_idle_adapters(self, specs: Sequence[SliceSpec]) -> None:
        from factory.training import probe

        for spec in {_label(spec): spec for spec in specs}.values():
            if (adapter := policy(self._job, spec)[1]) is not None:
                probe.refuse_unapplied(adapter, _label(spec))

    def _refuse_without_punkt(self, specs: Sequence[SliceSpec]) -> None:
        asked = [name for spec in specs for name in self._todo(spec)]
        needing = [name for name in asked if suites.registry()[name].task == _PUNKT]
        if needing and not _punkt_is_there():
            raise InputError(
                f"{needing[0]} counts sentences with NLTK's punkt_tab, which is not here",
                "where there is a network: python -m nltk.downloader -d DIR punkt_tab; then set "
                "NLTK_DATA=DIR, or leave that benchmark out",
            )


def _label(spec: SliceSpec) -> str:
    """The model of a slice called `language/model`."""
    return spec.name.partition("/")[2]


def _punkt_is_there() -> bool:
    places = [*filter(None, os.environ.get("NLTK_DATA", "").split(os.pathsep))]
    places += [str(Path.home() / "nltk_data"), "/usr/share/nltk_data", "/usr/lib/nltk_data"]
    return any((Path(place) / "tokenizers" / "punkt_tab").is_dir() for place in places)


def _device_groups(count: int) -> list[str | None]:
    """The GPUs of this machine in so many groups, as CUDA_VISIBLE_DEVICES has them; None where one
    run has all, or there are none."""
    if count == 1:
        return [None]
    from factory.engines.transformers import gpu_count

    said = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("HIP_VISIBLE_DEVICES")
    devices = said.split(",") if said else [str(number) for number in range(gpu_count())]
    if not devices:
        return [None] * count
    if len(devices) < count:
        raise StageError(
            f"how.parallel is {count}, and there are {len(devices)} GPUs",
            "a run needs a GPU of its own: take a smaller how.parallel",
        )
    return [",".join(devices[number::count]) for number in range(count)]

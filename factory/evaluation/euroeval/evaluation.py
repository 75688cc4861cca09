"""One run of EuroEval: one model in one language, in a directory of its own, and what it left."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from factory.artifacts.files import write_atomically
from factory.errors import StageError
from factory.evaluation.euroeval import checkpoint, directory, environment, process, records
from factory.evaluation.euroeval.directory import CUSTOM, MODEL, RESULTS
from factory.evaluation.euroeval.own import FILE as OWN_FILE
from factory.evaluation.euroeval.own import OwnBenchmark
from factory.evaluation.euroeval.suites import DEFAULT, Version

_KEPT = "records"
_KEEPING = threading.Lock()  # records are looked for from several threads
_ENDED = "ended"  # how the last run did
LOG = "log.txt"


@dataclass(frozen=True)
class Settings:
    """Settings that change a score, beside model and data. `max_context`: tokens, if set."""

    split: Literal["test", "val"]
    iterations: int
    few_shot: bool
    backend: Literal["vllm", "openai"]
    dtype: str
    max_context: int | None
    version: Version = DEFAULT


@dataclass(frozen=True)
class EvaluatedModel:
    """A model as it is named to EuroEval: its directory, for the backend openai the address of the
    server and its name there."""

    path: Path
    address: str | None = None
    served: str = MODEL


@dataclass(frozen=True)
class Model:
    """The model that is evaluated: its label, the directory of the base and its name on hubs, and
    the adapter on it, if there is one."""

    label: str
    base: Path
    name: str
    adapter: Path | None


@dataclass(frozen=True)
class Evaluation:
    """One run: a model in a language, where it may write, the data of each benchmark, and those
    among them that are the recipe's own."""

    model: Model
    language: str
    work: Path
    datasets: Mapping[str, Path]
    settings: Settings
    paths: Sequence[str] = field(default=())  # of this machine, to be taken out of records
    own: Mapping[str, OwnBenchmark] = field(default_factory=dict)

    def todo(self) -> list[str]:
        """Return the benchmarks that have no record yet."""
        stored = self.stored_records()
        return [name for name in self.datasets if name not in stored]

    def lost(self) -> dict[str, str]:
        """Return the benchmarks without a record after a run, each with the reason."""
        ended = self.work / _ENDED
        how = ended.read_text() if ended.exists() else "not run"
        return dict.fromkeys(self.todo(), f"{how}; {process.tail(self.work / LOG)}")

    def stored_records(self) -> dict[str, records.Record]:
        """Return the stored records by benchmark, also those of a run that was killed."""
        self._keep()
        by_benchmark = {}
        for name in self.datasets:
            path = self.work / _KEPT / f"{name}.json"
            if path.exists():
                by_benchmark[name] = json.loads(path.read_text(encoding="utf-8"))
        return by_benchmark

    def run(
        self,
        subject: EvaluatedModel,
        python: Path,
        limit: float,
        stop: threading.Event,
        devices: str | None,
        memory: float,
    ) -> None:
        """Run EuroEval on the benchmarks that have no record yet, for at most `limit` seconds or
        until `stop` is set. It sees `devices` (as CUDA_VISIBLE_DEVICES has them; None: all) and may
        take the share `memory` of each. See `stored_records` for what came of it. Raises
        InputError.

        A benchmark that kills EuroEval (vLLM's engine dies, memory runs out) would take all after
        it along, in every run: those are run without it in front of them, as long as something
        comes of it."""
        end = time.monotonic() + limit
        killers: list[str] = []
        idle = False  # whether nothing came of the last run
        while True:
            before = self.todo()
            order = [name for name in before if name not in killers] + killers
            seconds = max(0.0, end - time.monotonic())
            ended = self._once(subject, python, order, seconds, stop, devices, memory)
            stored = self.stored_records()
            lacking = [name for name in order if name not in stored]
            gained = len(lacking) < len(before)
            if not _died(ended) or (idle and not gained) or set(lacking) <= set(killers):
                return
            killers.append(lacking[0])
            if len(killers) == len(lacking):
                return
            idle = not gained

    def _once(
        self,
        subject: EvaluatedModel,
        python: Path,
        benchmarks: Sequence[str],
        limit: float,
        stop: threading.Event,
        devices: str | None,
        memory: float,
    ) -> str:
        """Run EuroEval on these, and return how it ended."""
        todo = {name: self.datasets[name] for name in benchmarks}
        where = self.work / "run"
        directory.prepare(where, todo, self.own, self.language, self.settings.version)
        self._keep_own(where)
        self._place_model(subject, where)
        with process.running(
            self.command(subject, python, tuple(todo), memory),
            where,
            self.work / LOG,
            self._environment(subject, where, devices),
        ) as started:
            ended = process.finish(started, limit, stop)
        write_atomically(self.work / _ENDED, ended.encode())
        return ended

    def _keep_own(self, where: Path) -> None:
        """Store what benchmarks of one's own were made of, for each."""
        described = where / OWN_FILE
        for entry in json.loads(described.read_text("utf-8")) if described.exists() else ():
            write_atomically(self.work / f"{entry['name']}.own.json", json.dumps(entry).encode())

    def described(self) -> list[dict[str, Any]]:
        """Return prompts and rows, by split and by reason left out, of its own benchmarks."""
        files = (self.work / f"{name}.own.json" for name in self.own)
        return [json.loads(file.read_text("utf-8")) for file in files if file.exists()]

    def publish(self, out: Path) -> None:
        """Copy its records into `out`, one file a benchmark."""
        for name in self.stored_records():
            out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.work / _KEPT / f"{name}.json", out / f"{name}.json")

    def command(
        self, subject: EvaluatedModel, python: Path, benchmarks: Sequence[str], memory: float
    ) -> list[str]:
        """Return EuroEval's command line. Without --raise-errors: one benchmark that fails must not
        take those after it with it, and its exit code says nothing either way."""
        settings = self.settings
        context = (
            ["--max-context-length", str(settings.max_context)] if settings.max_context else []
        )
        return [
            str(python.with_name("euroeval")),
            "--model", subject.served,
            *(part for name in benchmarks for part in ("--dataset", name)),
            "--language", self.language,
            "--num-iterations", str(settings.iterations),
            f"--evaluate-{settings.split}-split",
            "--few-shot" if settings.few_shot else "--zero-shot",
            *(["--api-base", subject.address] if subject.address else
              ["--gpu-memory-utilization", str(memory)]),
            *context,
            "--no-progress-bar",
        ]  # fmt: skip

    def _environment(
        self, subject: EvaluatedModel, where: Path, devices: str | None
    ) -> dict[str, str]:
        more = {
            "PYTHONPATH": str(environment.INSIDE),
            "HF_HOME": str(where / "hf"),
            "VLLM_HOST_IP": "127.0.0.1",  # else vLLM asks the network for the machine's address
        }
        if subject.address:
            more["FACTORY_REACHES"] = urlsplit(subject.address).hostname or "localhost"
        if (where / CUSTOM).exists():
            more["FACTORY_OWN_BENCHMARKS"] = "1"
        if devices is not None:
            more |= {"CUDA_VISIBLE_DEVICES": devices, "HIP_VISIBLE_DEVICES": devices}
        return environment.clean_environment(more)

    def _place_model(self, subject: EvaluatedModel, where: Path) -> None:
        to = where / subject.served
        if (to / "config.json").exists():
            return  # with the answers of a run that was cut off, which EuroEval goes on with
        shutil.rmtree(to, ignore_errors=True)
        if subject.address is None:
            checkpoint.write(
                subject.path, to, self.settings.dtype, self.settings.version == DEFAULT
            )
            return
        # a server's model needs a config here all the same: without one EuroEval finds nothing
        # to do and says that all is done
        to.mkdir(parents=True)
        shutil.copyfile(subject.path / "config.json", to / "config.json")

    def _keep(self) -> None:
        """Store finished records of the results file, one file each, written atomically."""
        results = self.work / "run" / RESULTS
        if not results.exists():
            return
        where = str((self.work / "run").resolve())
        with _KEEPING:
            for name, record in records.read(results.read_text(encoding="utf-8")).items():
                path = self.work / _KEPT / f"{name}.json"
                if name not in self.datasets or path.exists():
                    continue
                clean = records.cleaned(record, self.model.label, [where, *self.paths])
                text = json.dumps(clean, ensure_ascii=False, indent=1) + "\n"
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, text.encode())


def _died(ended: str) -> bool:
    """Return whether EuroEval ended by itself, with an error."""
    return ended.startswith("exit code") and ended != "exit code 0"


def no_record_error(missing: Mapping[str, str], log: Path) -> StageError:
    """Return the error for benchmarks without a record, by run and reason; `log`: of the first."""
    first = next(iter(missing.items()))
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    return StageError(
        f"EuroEval left no record of {first[0]}: {first[1]}{more}",
        f"see {log}; those that are there are kept: mend that and run again, leave it out, or keep "
        "what there is with incomplete: keep",
    )

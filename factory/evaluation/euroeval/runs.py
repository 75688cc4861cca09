"""All runs of a job, some at once: which models they need and in which order they are opened."""

from __future__ import annotations

import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from factory.artifacts import files
from factory.config import Knobs
from factory.errors import StageError
from factory.evaluation.euroeval import process, readiness
from factory.evaluation.euroeval.directory import MODEL
from factory.evaluation.euroeval.evaluation import EvaluatedModel, Evaluation, Model, Settings
from factory.stage.job import Progress

_TELL_EVERY = 5.0  # seconds


class RunKnobs(Knobs):
    """`environment`: a directory with a Python environment of EuroEval (what `factory doctor
    --install euroeval` makes, where nothing is said). `limit`: seconds that one model may take in
    one language. `parallel`: runs at once, each on its share of the GPUs; for backend openai they
    share one server. `gpu_memory_utilization` as vLLM has it. `served_models`: the names on the
    server at OPENAI_BASE_URL, where there is one, by the names in `of`; a model without an adapter
    is else looked for by its repo's. Without that address the stage starts servers with vLLM."""

    environment: str | None = None
    limit: int = Field(21600, ge=1)
    parallel: int = Field(1, ge=1)
    gpu_memory_utilization: float = Field(0.8, gt=0, le=1)
    served_models: dict[str, str] = Field(default_factory=dict)


class EuroevalRuns:
    """Runs that share models: an adapter is merged once for all languages, also where several
    processes each make a `part`."""

    def __init__(
        self, root: Path, settings: Settings, how: RunKnobs, progress: Progress, part: bool
    ) -> None:
        self._root, self._settings, self._how, self._progress = root, settings, how, progress
        self._part = part
        self._merging = threading.Lock()

    def finish(self, evaluations: Sequence[Evaluation]) -> None:
        """Run every evaluation that lacks a record. One that fails does not stop the others; see
        Evaluation.lost. Raises StageError or InputError for what makes all of them impossible."""
        pending = [run for run in evaluations if run.todo()]
        if not pending:
            return
        _refuse_idle_adapters(pending)
        backend, place = self._settings.backend, self._how.environment
        names = (name for run in pending for name in run.todo())
        version = self._settings.version
        python = readiness.python(backend, place, version)
        readiness.refuse_without_punkt(python, backend, place, names, version)
        if backend == "vllm":
            readiness.refuse_without_gpus(python)
        self._tell(evaluations)
        together: dict[str, list[Evaluation]] = {}
        for run in pending:  # a server has one model; without one, all may run at once
            key = run.model.label if self._settings.backend == "openai" else ""
            together.setdefault(key, []).append(run)
        for alike in together.values():
            with self._subjects(alike[0]) as subject:
                for _ in self._at_once(alike, subject, python):
                    self._tell(evaluations)
        if not self._part:  # others may read them; all goes when the artifact is sealed
            shutil.rmtree(self._root / "merged", ignore_errors=True)

    def _at_once(
        self,
        evaluations: Sequence[Evaluation],
        subject: Callable[[Evaluation], EvaluatedModel],
        python: Path,
    ) -> Iterator[None]:
        """Run these, some at once. Yields every few seconds, and when one is done."""
        count = min(self._how.parallel, len(evaluations))
        served = self._settings.backend == "openai"
        devices: queue.Queue[str | None] = queue.Queue()
        for group in [None] * count if served else device_groups(count):
            devices.put(group)
        stop = threading.Event()

        def run(evaluation: Evaluation) -> None:
            group = devices.get()
            try:
                evaluation.run(
                    subject(evaluation), python, self._how.limit, stop, group,
                    self._how.gpu_memory_utilization,
                )  # fmt: skip
            finally:
                devices.put(group)

        pool = ThreadPoolExecutor(count, thread_name_prefix="euroeval")
        try:
            running = {pool.submit(run, evaluation) for evaluation in evaluations}
            while running:
                done, running = wait(running, _TELL_EVERY, FIRST_COMPLETED)
                for finished in done:
                    finished.result()
                yield
        finally:  # of what is under way, only what EuroEval has written down is kept
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _served_name(self, model: Model) -> str:
        """Return the name of a model on a server that runs already. Raises StageError where two
        models would be one there."""
        names = self._how.served_models
        name = names.get(model.label) or ("" if model.adapter else model.name)
        if twin := [
            label for label, other in names.items() if other == name and label != model.label
        ]:
            raise StageError(
                f"{model.label} and {twin[0]} are both {name!r} on the server",
                "two names for one model are not a comparison: mend how.served_models",
            )
        return name

    def _tell(self, evaluations: Sequence[Evaluation]) -> None:
        total = sum(len(run.datasets) for run in evaluations)
        missing = sum(len(run.todo()) for run in evaluations)
        self._progress(total - missing, total, "benchmarks")

    @contextmanager
    def _subjects(self, first: Evaluation) -> Iterator[Callable[[Evaluation], EvaluatedModel]]:
        """Yield a function from an evaluation to its model, valid while the block runs."""
        model = first.model
        if self._settings.backend == "vllm":
            yield lambda run: EvaluatedModel(self._merged(run))
            return
        if address := os.environ.get("OPENAI_BASE_URL"):
            name = self._served_name(model)
            served = process.models(address)
            if name not in served:
                listed = f"; it has {', '.join(served)}" if served else ""
                raise StageError(
                    f"the server at OPENAI_BASE_URL has no model {name or model.label}{listed}",
                    "say its name there with how.served_models, or unset OPENAI_BASE_URL",
                )
            yield lambda _: EvaluatedModel(model.base, address, name)
            return
        from factory.engines.choose import resolve_engine
        from factory.engines.transformers import has_gpu

        resolve_engine("vllm")
        directory = self._merged(first)
        log = self._root / "servers" / f"{model.label}.txt"
        settings = self._settings
        with process.served(
            directory,
            MODEL,
            settings.dtype,
            settings.max_context,
            not has_gpu(),
            log,
            self._how.limit,
        ) as address:
            yield lambda _: EvaluatedModel(directory, address)

    def _merged(self, evaluation: Evaluation) -> Path:
        """Return the directory of a model, its adapter merged into it."""
        model = evaluation.model
        if model.adapter is None:
            return model.base
        merged = self._root / "merged" / model.label
        self._root.mkdir(parents=True, exist_ok=True)
        with self._merging, files.file_lock(self._root):
            if not merged.exists():
                from factory.training import adapters

                adapters.merge(model.base, model.adapter, merged, self._settings.dtype)
        return merged


def device_groups(count: int) -> list[str | None]:
    """Split the GPUs of this machine into so many groups, as CUDA_VISIBLE_DEVICES has them; None
    where one run has all, or there are none. Raises StageError for fewer GPUs than groups."""
    if count == 1:
        return [None]
    from factory.engines.transformers import gpu_count

    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("HIP_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(number) for number in range(gpu_count())]
    if not devices:
        return [None] * count
    if len(devices) < count:
        raise StageError(
            f"how.parallel is {count}, and there are {len(devices)} GPUs",
            "a run needs a GPU of its own: take a smaller how.parallel",
        )
    return [",".join(devices[number::count]) for number in range(count)]


def _refuse_idle_adapters(evaluations: Sequence[Evaluation]) -> None:
    from factory.training import probe

    for model in {run.model.label: run.model for run in evaluations}.values():
        if model.adapter is not None:
            probe.refuse_unapplied(model.adapter, model.label)

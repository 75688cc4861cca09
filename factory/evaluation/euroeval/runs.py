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
        """Run what has no record yet, whatever becomes of the others: who wants to know asks each
        what it has lost. Raises StageError or InputError for what makes all of them impossible."""
        pending = [one for one in evaluations if one.todo()]
        if not pending:
            return
        _refuse_idle_adapters(pending)
        backend, given = self._settings.backend, self._how.environment
        asked = (name for one in pending for name in one.todo())
        python = readiness.python(backend, given)
        readiness.refuse_without_punkt(python, backend, given, asked)
        self._tell(evaluations)
        together: dict[str, list[Evaluation]] = {}
        for one in pending:  # a server has one model; without one, all may run at once
            key = one.model.label if self._settings.backend == "openai" else ""
            together.setdefault(key, []).append(one)
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

        def one(evaluation: Evaluation) -> None:
            mine = devices.get()
            try:
                evaluation.run(
                    subject(evaluation), python, self._how.limit, stop, mine,
                    self._how.gpu_memory_utilization,
                )  # fmt: skip
            finally:
                devices.put(mine)

        pool = ThreadPoolExecutor(count, thread_name_prefix="euroeval")
        try:
            left = {pool.submit(one, evaluation) for evaluation in evaluations}
            while left:
                done, left = wait(left, _TELL_EVERY, FIRST_COMPLETED)
                for made in done:
                    made.result()
                yield
        finally:  # of what is under way, only what EuroEval has written down is kept
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _served_name(self, model: Model) -> str:
        """What a server that is there already calls a model. Raises StageError where two models
        would be one there."""
        names = self._how.served_models
        mine = names.get(model.label) or ("" if model.adapter else model.name)
        if twin := [label for label, one in names.items() if one == mine and label != model.label]:
            raise StageError(
                f"{model.label} and {twin[0]} are both {mine!r} on the server",
                "two names for one model are not a comparison: mend how.served_models",
            )
        return mine

    def _tell(self, evaluations: Sequence[Evaluation]) -> None:
        total = sum(len(one.datasets) for one in evaluations)
        left = sum(len(one.todo()) for one in evaluations)
        self._progress(total - left, total, "benchmarks")

    @contextmanager
    def _subjects(self, first: Evaluation) -> Iterator[Callable[[Evaluation], EvaluatedModel]]:
        """How to come by the model of an evaluation, while the block runs."""
        model = first.model
        if self._settings.backend == "vllm":
            yield lambda one: EvaluatedModel(self._whole(one))
            return
        if address := os.environ.get("OPENAI_BASE_URL"):
            name = self._served_name(model)
            there = process.models(address)
            if name not in there:
                listed = f"; it has {', '.join(there)}" if there else ""
                raise StageError(
                    f"the server at OPENAI_BASE_URL has no model {name or model.label}{listed}",
                    "say its name there with how.served_models, or unset OPENAI_BASE_URL",
                )
            yield lambda _: EvaluatedModel(model.base, address, name)
            return
        from factory.engines.transformers import has_gpu

        whole = self._whole(first)
        log = self._root / "servers" / f"{model.label}.txt"
        said = self._settings
        with process.served(
            whole, MODEL, said.dtype, said.max_context, not has_gpu(), log, self._how.limit
        ) as address:
            yield lambda _: EvaluatedModel(whole, address)

    def _whole(self, evaluation: Evaluation) -> Path:
        """The directory of a model, its adapter merged into it."""
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
    """The GPUs of this machine in so many groups, as CUDA_VISIBLE_DEVICES has them; None where one
    run has all, or there are none. Raises StageError for fewer GPUs than groups."""
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


def _refuse_idle_adapters(evaluations: Sequence[Evaluation]) -> None:
    from factory.training import probe

    for model in {one.model.label: one.model for one in evaluations}.values():
        if model.adapter is not None:
            probe.refuse_unapplied(model.adapter, model.label)

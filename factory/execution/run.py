"""Run a recipe: for each step that the plan says must run, fetch, work, seal, publish."""

from __future__ import annotations

import errno
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from factory import config
from factory.artifacts import checkpoints, reuse
from factory.artifacts.hashing import content_digest, file_sha256, weights_digest
from factory.artifacts.manifest import License, Manifest
from factory.artifacts.workdir import Clock, Home, ProgressNotes, Work
from factory.engines.choose import EngineKnobs, processes
from factory.engines.transformers import has_gpu
from factory.errors import (
    FactoryError,
    HubError,
    Interrupted,
    RecipeError,
    StageError,
    WorkError,
    nearest,
)
from factory.execution import checks, collection, external, inputs, record, resolve
from factory.execution.bundle import Provisions
from factory.execution.log import LogReporter
from factory.execution.offline_hub import Offline
from factory.hub.client import Hub
from factory.language.detect import unfiltered
from factory.pairs.selection import Selection
from factory.planning.lock import Lock
from factory.planning.plan import ArtifactRef, Plan, State, Step
from factory.planning.recipe import LoadedRecipe
from factory.reports.cards import card, figures
from factory.reports.win_rates import judge_blind
from factory.stage.inputs import ExternalInput, Need, StepInput
from factory.stage.job import Job, PartDone, Place, Progress
from factory.stage.outcome import Outcome

# Makes all shards of a step in so many processes of so many GPUs each, and waits for them.
Workers = Callable[[str, int, int], None]


def run(
    loaded: LoadedRecipe,
    hub: Hub,
    home: Home,
    reporter: LogReporter,
    only: Sequence[str] = (),
    until: str | None = None,
    frozen: bool = False,
    part: tuple[int, int] | None = None,
    workers: Workers | None = None,
) -> list[Step]:
    """Run a recipe's steps that are due and publish them. Return every step as it then stands.

    `only` names the steps to run, `until` the last one. `frozen` refuses any input that the lock
    does not pin as it is. `part` (number, of) makes this part of the shards of one step and nothing
    else. `workers` makes the shards of a step in several processes where the machine has the GPUs.
    A hub that fails does not stop the run: the next run publishes what is sealed. Raises
    FactoryError.
    """
    step_names = list(dict.fromkeys(spec.step for _, spec in loaded.recipe.slices()))
    names = select(step_names, only, until)  # before anything is fetched for a misspelt one
    if unread := loaded.recipe.unread():
        reporter.note(f"not made: {', '.join(unread)}. Only what is taken in (from:) would read it")
    with _stoppable(), _disk_full_explained(home):
        pins, absent = resolve.resolve(loaded, hub, home, reporter.note, frozen)
        this = Run(loaded, pins, hub, home, reporter, part)
        due = [step for step in this.plan.steps if step.name in names]
        resolve.require(resolve.unmet(loaded, resolve.missing(loaded, absent, due), hub))
        this.execute(names, workers)
    return this.plan.steps


def run_offline(
    bundle: Provisions,
    reporter: LogReporter,
    name: str,
    part: tuple[int, int] | None = None,
    seal: bool = False,
) -> None:
    """Run one step without a hub: all of it, a part of its shards, or (`seal`) what is left to do
    when all shards are there. Publishes nothing. Raises FactoryError, a StageError for a seal that
    lacks shards."""
    loaded, home = bundle.loaded(), Home(bundle.home)
    with _stoppable(), _disk_full_explained(home):
        _check_files(loaded, bundle.lock)
        this = Run(loaded, bundle.lock, Offline(bundle), home, reporter, part)
        if seal:
            this.check_shards(this.plan.step(name))
        this.execute([name])


def work_directory(bundle: Provisions, name: str) -> Work:
    """Return the work directory of a step, without a hub. Raises FactoryError."""
    loaded, home = bundle.loaded(), Home(bundle.home)
    plan = resolve.plan(loaded, bundle.lock, Offline(bundle), home)
    return home.work(loaded.recipe.org, plan.step(name).fingerprint)


def publish(loaded: LoadedRecipe, hub: Hub, home: Home, reporter: LogReporter) -> list[Step]:
    """Publish what is sealed and not on the hub; run nothing. Return every step as it then stands.
    Raises FactoryError."""
    with _stoppable(), _disk_full_explained(home):
        pins, _ = resolve.resolve(loaded, hub, home, None)
        this = Run(loaded, pins, hub, home, reporter)
        this.execute([step.name for step in this.plan.steps if step.state is State.PUBLISH])
    return this.plan.steps


def _check_files(loaded: LoadedRecipe, pins: Lock) -> None:
    for source, path in loaded.files.items():
        digest = content_digest([("rows", file_sha256(path))])
        if pins.pins[source].digest != digest:
            raise RecipeError(f"{path} is not what was submitted", "submit again")


def select(names: list[str], only: Sequence[str], until: str | None) -> list[str]:
    """Return the selected steps among `names`, in their order; the name of a stage stands for all
    its steps. Raises RecipeError."""

    def steps(word: str) -> list[str]:
        matching = [name for name in names if word in (name, name.partition("[")[0])]
        if not matching:
            raise RecipeError(
                f"no step {word!r}{nearest(word, names)}", f"steps: {', '.join(names)}"
            )
        return matching

    last = steps(until)[-1] if until else None
    if only:
        selected = {name for word in only for name in steps(word)}
        return [name for name in names if name in selected]
    return names[: names.index(last) + 1] if last else names


def blocked(steps: Sequence[Step], wanted: Collection[str]) -> StageError | None:
    """Return the error for steps that were asked for and cannot be made: why, and what to change
    in the recipe. None if there are none."""
    stopped = [step for step in steps if step.name in wanted and step.state is State.BLOCKED]
    causes = [step for step in steps if step.state is State.BLOCKED and step.knobs]
    if not stopped:
        return None
    whys = "; ".join(f"{step.name} is blocked: {step.reason}" for step in causes or stopped)
    dependents = [step.name for step in stopped if step not in causes]
    also = f"; so {', '.join(dependents)} cannot be made" if dependents and causes else ""
    fix = "; ".join(dict.fromkeys(step.knobs for step in causes)) or "factory plan says why"
    return StageError(whys + also, fix)


@dataclass(frozen=True)
class StepInputs:
    """Inputs of one step, each fetched and with its licence."""

    needs: list[Need]
    places: dict[Need, Place]
    licenses: dict[Need, License | None]
    digest: str  # of their content


@dataclass
class Run:
    """One run of a recipe, with its plan, which follows every step that is made or published.
    Raises HubError."""

    loaded: LoadedRecipe
    pins: Lock
    hub: Hub
    home: Home
    reporter: LogReporter
    part: tuple[int, int] | None = None  # (number, of): this part of the shards of one step
    plan: Plan = field(init=False)  # for what exists
    _progress: Progress | None = field(init=False, default=None)  # of the step that is running

    def __post_init__(self) -> None:
        self.plan = resolve.plan(self.loaded, self.pins, self.hub, self.home)

    def execute(self, names: Sequence[str], workers: Workers | None = None) -> None:
        """Run and publish these steps, in their order. Raises FactoryError, a HubError at the end
        for artifacts that could not be published."""
        unpublished: list[HubError] = []
        collected = False
        due = {name for name in names if self.plan.step(name).state is State.RUN}
        gate = checks.gate(
            self.loaded, self.pins, self.hub, self.home, self.reporter.note, list(names), due
        )
        for name in names:
            step, seconds = self.plan.step(name), None
            if self.part is not None:
                _check_part(step, names)
            if step.state is State.RUN:
                gate(step)
                if self.part is None and workers is not None:
                    self._start_workers(step, workers)
                seconds = self._work(step)
            if self.part is not None:
                return
            if self.plan.step(name).state is State.PUBLISH and self.hub.reachable:
                if self._progress is not None:
                    self._progress(0, 0, "publishing")
                try:
                    self._publish(self.plan.step(name))
                except HubError as error:
                    self.reporter.note(f"{name} is not published: {error.what}")
                    unpublished.append(error)
                else:
                    collected = self._collect()
                    # the cards of adapters name results by the collection they are in
                    if collected and step.stage.kind in ("verdicts", "results"):
                        collection.refresh_cards(self.loaded.recipe, self.hub, self.reporter.note)
            self._progress = None
            self.reporter.end(self.plan.step(name), seconds)
        if self.hub.reachable and not collected:
            self._collect()  # an earlier run may have been killed between tag and collection
        if unpublished:
            raise HubError(
                f"{len(unpublished)} finished artifacts are not published: {unpublished[0].what}",
                "run the same command again to publish them; they are in the work directory",
            )

    def work(self, step: Step) -> Work:
        """Return the work directory of a step."""
        return self.home.work(self.loaded.recipe.org, step.fingerprint)

    def check_shards(self, step: Step) -> None:
        """Raise StageError for a step that is due and lacks shards."""
        if step.state is not State.RUN:
            return
        progress = self.work(step).progress()
        if progress is None or progress[0] < progress[1]:
            missing = f"{progress[1] - progress[0]} of {progress[1]}" if progress else "all"
            raise StageError(
                f"{step.name} cannot be sealed: {missing} shards are missing",
                "their tasks failed, see factory status; submit again, which makes what is missing",
            )

    def _start_workers(self, step: Step, workers: Workers) -> None:
        how, progress = step.stage.how, self.work(step).progress()
        if not isinstance(how, EngineKnobs) or step.stage.from_:
            return
        if progress and progress[0] == progress[1]:
            return
        if step.served:
            return  # other processes would make its server no faster
        if (count := processes(how)) > 1:
            workers(step.name, count, how.tensor_parallel if has_gpu() else 0)

    def _work(self, step: Step) -> float:
        """Run one step and seal its artifact, or make a part of its shards. Return the seconds it
        took, all attempts together."""
        ready = self._inputs(step)
        work = self.work(step)
        with work.exclusive() if self.part is None else work.shared(ready.digest):
            # another process may have sealed it since the plan was made
            if manifest := work.sealed_from(ready.digest):
                self.plan.add(ArtifactRef(manifest, directory=work.artifact))
                return 0.0
            out = work.path / "out" if self.part is not None else work.begin(ready.digest)
            clock = Clock.of(work, self.part)
            try:
                outcome = self._outcome(step, ready.places, work, out, clock)
            except PartDone as shards:
                self.reporter.note(f"{step.name}: {shards.done} of {shards.total} shards are done")
                return clock.seconds()
            manifest = self._seal(step, ready, work, out, outcome, clock.seconds())
        self.plan.add(ArtifactRef(manifest, directory=work.artifact))
        return clock.seconds()

    def _inputs(self, step: Step) -> StepInputs:
        """Fetch what a step reads. Raises RecipeError for an input that is not made yet, or for
        licences that do not go together."""
        needs = step.needs
        places = inputs.find(self.loaded, self.pins, self.plan, self.hub, needs, step.name)
        licenses = record.stated(self.loaded.recipe, needs, places, self.plan.done)
        record.license_of(self.loaded.recipe, step, licenses)  # before hours are spent, not after
        digest = content_digest(
            (f"{need.role}/{number}", record.inputs(need, self.pins, self.plan.done).digest)
            for number, need in enumerate(needs)
        )
        return StepInputs(needs, places, licenses, digest)

    def _outcome(
        self, step: Step, places: Mapping[Need, Place], work: Work, out: Path, clock: Clock
    ) -> Outcome:
        if step.stage.kind in ("samples", "pairs", "sft", "answers"):
            codes = [part.spec.language for part in step.slices]
            spoken = [code for code in codes if code] or self.loaded.recipe.languages
            for line in unfiltered(spoken):
                self.reporter.note(f"{step.name}: {line}")
        report = self._progress = self.reporter.begin(step)
        notes = ProgressNotes(work, {"step": step.name, "recipe": self.loaded.recipe.name})
        notes(0, 0, "loading")

        def progress(done: int, total: int, unit: str, tokens: int = 0) -> None:
            if total:  # work, and no phase before or after it
                clock.tick()
            notes(done, total, unit, tokens)
            report(done, total, unit, tokens)

        run_stage = external.take_in if step.stage.from_ else type(step.stage).run
        job = Job(
            step=step.name,
            seed=self.loaded.recipe.seed,
            slices=tuple(part.spec for part in step.slices),
            places=places,
            work=work.path,
            out=out,
            progress=progress,
            earlier={
                part.spec.name: inputs.earlier(part, step.repo_type, self.hub)
                for part in step.slices
            },
            part=self.part,
            digests=self._digests(step),
        )
        try:
            outcome = run_stage(step.stage, job)
        except Exception as error:
            lines = traceback.format_exception_only(error)  # the last lines of a defect's log
            notes.failed(error.what if isinstance(error, FactoryError) else "".join(lines).strip())
            raise
        if step.stage.kind == "verdicts" and outcome.stats.get("judge_kind") not in ("llm", "jury"):
            reads = step.slices[0].spec.needs
            judge = [record.inputs(need, self.pins, self.plan.done) for need in reads]
            audited = [artifact.manifest for artifact in self.plan.done.values()]
            outcome.stats["judge_blind"] = judge_blind(judge, audited)
        return outcome

    def _digests(self, step: Step) -> dict[Need, str]:
        """Return the weights of the models that a judge is compared with, and of its own, as far as
        they are known."""
        needs = {
            need
            for part in step.slices
            for _, models in part.spec.rivals
            for need in (*part.spec.needs, *models)
        }
        digests = {need: self._weights(need) for need in needs}
        return {need: digest for need, digest in digests.items() if digest}

    def _weights(self, need: Need) -> str | None:
        if isinstance(need, StepInput) and need.step in self.plan.done:
            files = self.plan.done[need.step].manifest.files
            below = f"{checkpoints.folder(need.checkpoint)}/" if need.checkpoint else ""
            return weights_digest(
                (file.path.removeprefix(below), file.sha256)
                for file in files
                if file.path.startswith(below)
            )
        if isinstance(need, ExternalInput) and need.kind == "model" and self.hub.reachable:
            pin = self.pins.pins[need.source]
            with suppress(HubError):  # the base of a model that was trained elsewhere
                return self.hub.weights(need.source.partition("@")[0], str(pin.revision))
        return None

    def _seal(
        self,
        step: Step,
        ready: StepInputs,
        work: Work,
        out: Path,
        outcome: Outcome,
        seconds: float,
    ) -> Manifest:
        """Write what lies beside the data in every artifact, and seal it with its manifest."""
        recipe = self.loaded.recipe
        if isinstance(step.stage, Selection) and not step.stage.from_:
            # the one drawing that is in the manifest's list of files
            by_slice = outcome.stats["by_slice"]
            slices = {name: (by_slice[name], rows) for name, rows in outcome.rows.items()}
            figures.draw_anatomy(out / figures.ANATOMY, slices)
        reused = {
            part.spec.name: reuse.read_reused(work.path, part.spec.name).rows
            for part in step.slices
        }
        manifest = record.manifest(
            recipe, self.pins, step, outcome, self.plan.done, out, seconds, reused, ready.licenses
        )
        dumped = recipe.model_dump(mode="json", exclude_none=True, by_alias=True)
        figures.draw(manifest, out)
        (out / "README.md").write_text(card.render(manifest), encoding="utf-8")
        (out / "recipe.yaml").write_text(config.dump(dumped), encoding="utf-8")
        (out / "recipe.lock.yaml").write_text(self.pins.dump(), encoding="utf-8")
        work.seal(out, manifest)
        return manifest

    def _publish(self, step: Step) -> None:
        """Publish a sealed artifact. Raises HubError."""
        assert step.found is not None and step.found.directory is not None
        manifest = step.found.manifest
        tag = self.hub.publish(
            step.found.directory, manifest, step.repo, step.repo_type, self.loaded.recipe.private
        ).tag
        self.plan.add(ArtifactRef(manifest, tag=tag))

    def _collect(self) -> bool:
        """Put what is published into the collection. Return whether the hub took it."""
        try:
            collection.put(self.loaded.recipe, self.plan.steps, self.hub)
        except HubError as error:
            self.reporter.note(f"the collection is not updated: {error.what}")
            return False
        return True


def _check_part(step: Step, names: Sequence[str]) -> None:
    if len(names) != 1 or not step.stage.row_wise or step.stage.from_:
        raise RecipeError(
            "--shard makes a part of one step that works row by row",
            "name it with --only: generate, score, translate, arena or judge",
        )


@contextmanager
def _stoppable() -> Iterator[None]:
    """End the run cleanly on SIGTERM and SIGUSR1 (SLURM's warning), without the shard in flight.
    Python handles signals in its main thread only: in another one they change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        raise Interrupted(
            f"interrupted by {signal.Signals(number).name}",
            "run the same command again to resume",
        )

    before: dict[signal.Signals, Callable[..., object] | int | None] = {}
    for number in (signal.SIGTERM, signal.SIGUSR1):
        before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _disk_full_explained(home: Home) -> Iterator[None]:
    """Raise one WorkError for a full disk, which libraries report in many ways."""
    try:
        yield
    except FactoryError:
        raise
    except Exception as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if full or shutil.disk_usage(home.root).free < 2**20:
            raise WorkError(
                f"no space left for {home.root}",
                "free some, or set FACTORY_HOME elsewhere; run again to go on",
            ) from error
        raise

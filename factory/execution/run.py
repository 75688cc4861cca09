"""Run a recipe: for each step that the plan says must run, fetch, work, seal, publish."""

from __future__ import annotations

import errno
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from factory import config
from factory.artifacts import reuse
from factory.artifacts.hashing import content_digest, file_sha256
from factory.artifacts.workdir import Clock, Home, Work
from factory.engines.choose import EngineKnobs, processes
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
from factory.execution.offline_hub import Offline
from factory.hub.client import Hub
from factory.pairs.selection import Selection
from factory.planning.lock import Lock
from factory.planning.plan import ArtifactRef, Inventory, State, Step, plan
from factory.planning.recipe import LoadedRecipe
from factory.reports.cards import card, figures
from factory.stage.job import Job, PartDone, Progress
from factory.stage.outcome import Outcome


class Workers(Protocol):
    """Who starts several processes that each make a part of a step's shards, each on so many
    GPUs of its own, and waits for them."""

    def __call__(self, step: str, count: int, gpus: int) -> None: ...


class Reporter(Protocol):
    """Who is told what happens; the command line is one."""

    def note(self, text: str) -> None:
        """One line about something outside the steps."""

    def begin(self, step: Step) -> Progress:
        """A step starts; what is returned is told how far it is."""

    def end(self, step: Step, seconds: float | None) -> None:
        """A step is done (after so many seconds), reused or blocked (None)."""


def run(
    loaded: LoadedRecipe,
    hub: Hub,
    home: Home,
    report: Reporter,
    only: Sequence[str] = (),
    until: str | None = None,
    frozen: bool = False,
    part: tuple[int, int] | None = None,
    fan: Workers | None = None,
) -> list[Step]:
    """Run what must run, publish what is done, and return every step as it then stands.

    `only` names the steps to run, `until` the last one; `frozen` refuses to run on anything that
    the lock does not pin as it is. `part` (number, of) makes this part of the shards of one step
    and nothing else; `fan` is told to make all shards of a step in so many processes where the
    machine has GPUs for them. A hub that fails does not stop the line:
    sealed work is published by the next run. Raises FactoryError.
    """
    names = list(dict.fromkeys(spec.step for _, spec in loaded.recipe.slices()))
    wanted = select(names, only, until)  # before anything is fetched for a misspelt one
    with _stoppable(), _explained(home):
        pins, _ = resolve.resolve(loaded, hub, home, report.note, frozen)
        held = resolve.holdings(loaded, pins, hub, home)
        execute(loaded, pins, held, wanted, hub, home, report, part, fan)
    return plan(loaded.recipe, pins, held)


def apart(
    given: Provisions,
    report: Reporter,
    name: str,
    part: tuple[int, int] | None = None,
    seal: bool = False,
) -> None:
    """Run one step where there is no hub: all of it, a part of its shards, or (`seal`) what is
    left to do when all shards are there. Nothing is published. Raises FactoryError, a StageError
    for a seal that lacks shards."""
    loaded, home, hub = given.loaded(), Home(given.home), Offline(given)
    with _stoppable(), _explained(home):
        _unchanged(loaded, given.lock)
        held = resolve.holdings(loaded, given.lock, hub, home)
        if seal:
            _all_there(_find(plan(loaded.recipe, given.lock, held), name), loaded, home)
        execute(loaded, given.lock, held, [name], hub, home, report, part)


def work_of(given: Provisions, name: str) -> Work:
    """The work directory of a step, where there is no hub. Raises FactoryError."""
    loaded, home = given.loaded(), Home(given.home)
    held = resolve.holdings(loaded, given.lock, Offline(given), home)
    step = _find(plan(loaded.recipe, given.lock, held), name)
    return home.work(loaded.recipe.org, step.fingerprint)


def _unchanged(loaded: LoadedRecipe, pins: Lock) -> None:
    for source, path in loaded.files.items():
        digest = content_digest([("rows", file_sha256(path))])
        if pins.pins[source].digest != digest:
            raise RecipeError(f"{path} is not what was submitted", "submit again")


def _all_there(step: Step, loaded: LoadedRecipe, home: Home) -> None:
    if step.state is not State.RUN:
        return
    there = home.work(loaded.recipe.org, step.fingerprint).progress()
    if there is None or there[0] < there[1]:
        missing = f"{there[1] - there[0]} of {there[1]}" if there else "all"
        raise StageError(
            f"{step.name} cannot be sealed: {missing} shards are missing",
            "their tasks failed, see factory status; submit again, which makes what is missing",
        )


def publish(loaded: LoadedRecipe, hub: Hub, home: Home, report: Reporter) -> list[Step]:
    """Publish what is sealed and not on the hub, run nothing, and return every step as it then
    stands. Raises FactoryError."""
    with _stoppable(), _explained(home):
        pins, _ = resolve.resolve(loaded, hub, home, None)
        held = resolve.holdings(loaded, pins, hub, home)
        steps = plan(loaded.recipe, pins, held)
        ready = [step.name for step in steps if step.state is State.PUBLISH]
        execute(loaded, pins, held, ready, hub, home, report)
    return plan(loaded.recipe, pins, held)


def execute(
    loaded: LoadedRecipe,
    pins: Lock,
    held: Inventory,
    wanted: Sequence[str],
    hub: Hub,
    home: Home,
    report: Reporter,
    part: tuple[int, int] | None = None,
    fan: Workers | None = None,
) -> None:
    """Run and publish these steps, in their order; `held` takes in what comes of them. Raises
    FactoryError, a HubError at the end for what is made and could not be published."""
    unpublished: list[HubError] = []
    shelved = False
    planned = plan(loaded.recipe, pins, held)
    going = {s.name for s in planned if s.name in wanted and s.state is State.RUN}
    check_first = checks.gate(loaded, pins, hub, home, report.note, list(wanted), going)
    for name in wanted:
        step = _find(plan(loaded.recipe, pins, held), name)
        seconds, published = None, False
        if part is not None:
            _in_parts(step, wanted)
        if step.state is State.RUN:
            check_first(step)
            if part is None and fan is not None:
                _fan_out(step, home.work(loaded.recipe.org, step.fingerprint), fan)
            seconds = _work(loaded, pins, step, held, hub, home, report, part)
            step = _find(plan(loaded.recipe, pins, held), name)
        if part is not None:
            return
        if step.state is State.PUBLISH and hub.reachable:
            try:
                tag = _publish(loaded, step, hub)
            except HubError as error:
                report.note(f"{name} is not published: {error.what}")
                unpublished.append(error)
            else:
                assert step.found is not None
                held.add(ArtifactRef(step.found.manifest, tag=tag))
                step = _find(plan(loaded.recipe, pins, held), name)
                published = True
        if published:
            shelved = _shelve(loaded, pins, held, hub, report)
            # found through the collection
            if shelved and step.stage.kind in ("verdicts", "results"):
                collection.tell_models(loaded.recipe, hub, report.note)
        report.end(step, seconds)
    if (
        hub.reachable and not shelved
    ):  # where a run was killed between a tag and its place in the collection
        _shelve(loaded, pins, held, hub, report)
    if unpublished:
        raise HubError(
            f"{len(unpublished)} artifacts are made but not published: {unpublished[0].what}",
            "run the same command again; they rest in the work directory",
        )


def _shelve(loaded: LoadedRecipe, pins: Lock, held: Inventory, hub: Hub, report: Reporter) -> bool:
    """Put what is published into the collection. Returns whether that could be done."""
    try:
        collection.put(loaded.recipe, plan(loaded.recipe, pins, held), hub)
    except HubError as error:
        report.note(f"the collection is as it was: {error.what}")
        return False
    return True


def _in_parts(step: Step, wanted: Sequence[str]) -> None:
    if len(wanted) != 1 or not step.stage.row_wise or step.stage.from_:
        raise RecipeError(
            "--shard makes a part of one step that works row by row",
            "name it with --only: generate, score, translate, arena or judge",
        )


def _fan_out(step: Step, work: Work, fan: Workers) -> None:
    how, there = step.stage.how, work.progress()
    if not isinstance(how, EngineKnobs) or step.stage.from_ or (there and there[0] == there[1]):
        return
    if step.served:
        return  # other processes would make its server no faster
    if (count := processes(how)) > 1:
        fan(step.name, count, how.tensor_parallel)


def select(names: list[str], only: Sequence[str], until: str | None) -> list[str]:
    """The steps of these names that are asked for, in their order. Raises RecipeError."""
    for name in (*only, *((until,) if until else ())):
        if name not in names:
            raise RecipeError(
                f"no step {name!r}{nearest(name, names)}", f"steps: {', '.join(names)}"
            )
    if only:
        return [name for name in names if name in only]
    return names[: names.index(until) + 1] if until else names


def _find(steps: list[Step], name: str) -> Step:
    return next(step for step in steps if step.name == name)


def _work(
    loaded: LoadedRecipe,
    pins: Lock,
    step: Step,
    held: Inventory,
    hub: Hub,
    home: Home,
    report: Reporter,
    part: tuple[int, int] | None,
) -> float:
    """Run one step and seal its artifact, or make a part of its shards. Returns the seconds it
    took, all attempts together."""
    needs = list(dict.fromkeys(need for made in step.slices for need in made.spec.needs))
    found = inputs.find(loaded, pins, held, hub, needs, step.name)
    others = plan(loaded.recipe, pins, held)
    done = {other.name: other.found for other in others if other.found}
    under = record.stated(loaded.recipe, needs, found, done)
    record.license_of(loaded.recipe, step, under)  # before hours are spent, not after
    read = content_digest(
        (f"{n.role}/{number}", record.inputs(n, pins, done).digest)
        for number, n in enumerate(needs)
    )
    work = home.work(loaded.recipe.org, step.fingerprint)
    with work.exclusive() if part is None else work.shared(read):
        if made := work.sealed_from(read):  # by another process, since the plan was made
            held.add(ArtifactRef(made, directory=work.artifact))
            return 0.0
        out = work.path / "out" if part is not None else work.begin(read)
        clock = Clock.of(work, part)
        told = report.begin(step)

        def progress(done: int, total: int, unit: str, tokens: int = 0) -> None:
            clock.tick()
            told(done, total, unit, tokens)

        work_of = external.take_in if step.stage.from_ else type(step.stage).run
        try:
            outcome = work_of(
                step.stage,
                Job(
                    step=step.name,
                    seed=loaded.recipe.seed,
                    slices=tuple(made.spec for made in step.slices),
                    places=found,
                    work=work.path,
                    out=out,
                    progress=progress,
                    earlier={
                        made.spec.name: inputs.earlier(made, step.repo_type, hub)
                        for made in step.slices
                    },
                    part=part,
                ),
            )
        except PartDone as made_part:
            report.note(f"{step.name}: {made_part.done} of {made_part.total} shards are there")
            return clock.seconds()
        if isinstance(step.stage, Selection) and not step.stage.from_:
            _draw_anatomy(outcome, out)
        taken = {m.spec.name: reuse.read_reused(work.path, m.spec.name).rows for m in step.slices}
        manifest = record.manifest(
            loaded.recipe, pins, step, outcome, done, out, clock.seconds(), taken, under
        )
        dumped = loaded.recipe.model_dump(mode="json", exclude_none=True, by_alias=True)
        # what lies beside the data in every artifact; the manifest follows when it is sealed
        figures.draw(manifest, out)
        (out / "README.md").write_text(card.render(manifest), encoding="utf-8")
        (out / "recipe.yaml").write_text(config.dump(dumped), encoding="utf-8")
        (out / "recipe.lock.yaml").write_text(pins.dump(), encoding="utf-8")
        work.seal(out, manifest)
        held.partial.pop(step.fingerprint, None)
        held.add(ArtifactRef(manifest, directory=work.artifact))
        return clock.seconds()


def _draw_anatomy(outcome: Outcome, out: Path) -> None:
    """Draw what pairs are made of: the one drawing that is in the manifest's list of files."""
    by_slice = outcome.stats["by_slice"]
    slices = {name: (by_slice[name], rows) for name, rows in outcome.rows.items()}
    figures.draw_anatomy(out / figures.ANATOMY, slices)


def _publish(loaded: LoadedRecipe, step: Step, hub: Hub) -> str:
    """Publish a sealed artifact. Returns its tag."""
    assert step.found is not None and step.found.directory is not None
    return hub.publish(
        step.found.directory,
        step.found.manifest,
        step.repo,
        step.repo_type,
        loaded.recipe.private,
    ).tag


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGUSR1 (SLURM's warning) end the run cleanly, without the shard in flight.
    Python hears signals in its main thread alone: elsewhere a run lasts until it is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        raise Interrupted(
            f"told to stop by {signal.Signals(number).name}",
            "run the same command again: it goes on where it was",
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
def _explained(home: Home) -> Iterator[None]:
    """A full disk comes in many shapes, from many libraries: give it one."""
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

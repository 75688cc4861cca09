"""A recipe and a cluster together: what is submitted, and how that stands."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from factory.artifacts.workdir import Home
from factory.engines.openai import ADDRESS
from factory.errors import InputError, WorkError
from factory.evaluation.euroeval.readiness import SAID_BY
from factory.execution import bundle, checks, inputs, resolve
from factory.execution.bundle import Provisions
from factory.execution.offline_hub import Offline
from factory.hub.client import Hub
from factory.planning.estimate import estimate
from factory.planning.lock import Lock
from factory.planning.plan import Inventory, State, Step
from factory.planning.recipe import LoadedRecipe
from factory.slurm import status, submission
from factory.slurm.queue import Queue, clean_environment
from factory.slurm.site import Site, family_of
from factory.slurm.status import Row
from factory.slurm.submission import Alive, Part, Submission, on_all_gpus

__all__ = ["SubmitRequest", "SubmittedRecipe", "dry", "look", "on_all_gpus", "standing", "submit"]


@dataclass(frozen=True)
class SubmitRequest:
    """What is to be submitted where: a recipe, all that is known of it, and the steps wanted."""

    loaded: LoadedRecipe
    pins: Lock
    held: Inventory
    steps: Sequence[Step]
    wanted: Sequence[str]
    site: Site
    home: Home


def submit(
    asked: SubmitRequest, hub: Hub, tell: Callable[[str], None], queue: Queue | None = None
) -> Submission | None:
    """Hand in what must run and is not in the queue; None where there is nothing. Raises
    FactoryError."""
    queue = queue or Queue()
    clean_environment()
    recipe, home, site = asked.loaded.recipe, asked.home, asked.site
    with submission.alone(home.root, recipe):
        alive, queued = _alive(asked, queue, tell)
        going = _going(asked, alive)
        if not going:
            return None
        look_around(asked, going, tell)
        _checked(asked, going, hub, tell)
        made = submission.begin(home.root, recipe, site)
        given = bundle.gather(
            asked.loaded,
            asked.pins,
            asked.held,
            home,
            asked.steps,
            {step.name for step in going},
            made.directory,
        )
        if site.network == "login":
            given = bundle.bring(given, hub, made.directory)
        else:
            given.write(made.directory)
        parts = _cut(asked, alive, queued, given)
        made.write()
        fetch = bool(given.wanting())
        return submission.submit(made, parts, alive, site, home.root, queue, fetch)


def dry(
    asked: SubmitRequest, hub: Hub, tell: Callable[[str], None], queue: Queue | None = None
) -> Iterator[tuple[str, str]]:
    """Every script that `submit` would hand in, by its name; nothing is written."""
    try:
        alive, queued = _alive(asked, queue or Queue(), tell)
    except WorkError as error:  # scripts can be looked at where no SLURM is
        tell(f"{error.what}: scripts are printed all the same, as if nothing were in the queue")
        alive, queued = Alive(), 0
    before = submission.earlier(asked.home.root, asked.loaded.recipe)
    number = max((one.number for one in before), default=0) + 1
    made = Submission(
        number=number,
        recipe=asked.loaded.recipe.name,
        org=asked.loaded.recipe.org,
        site=asked.site.name,
        created="",
        directory=submission.room(asked.home.root, asked.loaded.recipe) / str(number),
    )
    look_around(asked, _going(asked, alive), tell, binding=False)
    _checked(asked, _going(asked, alive), hub, tell)
    parts = _cut(asked, alive, queued, None)
    fetch = asked.site.network == "job"
    yield from submission.scripts(made, parts, asked.site, asked.home.root, fetch and bool(parts))


def _alive(asked: SubmitRequest, queue: Queue, tell: Callable[[str], None]) -> tuple[Alive, int]:
    queued = queue.jobs()
    before = submission.earlier(asked.home.root, asked.loaded.recipe)
    alive = Alive.of(asked.home.root, asked.steps, before, queued)
    for name in asked.wanted:
        if name in alive.jobs:
            tell(f"{name} is in the queue already: job {', '.join(alive.last(name))}")
    return alive, len(queued)


def _going(asked: SubmitRequest, alive: Alive) -> list[Step]:
    return [
        step
        for step in asked.steps
        if step.name in asked.wanted and step.state is State.RUN and step.name not in alive.jobs
    ]


def _checked(
    asked: SubmitRequest, going: Sequence[Step], hub: Hub, tell: Callable[[str], None]
) -> None:
    """Templates and lengths, before anything is queued for; where tokenizers can be read."""
    if importlib.util.find_spec("transformers") is None:
        tell("templates are not checked here, without transformers: the first task does it")
        return
    before = checks.gate(
        asked.loaded, asked.pins, hub, asked.home, tell, [step.name for step in going]
    )
    for step in going:
        before(step)


def look_around(
    asked: SubmitRequest, going: Sequence[Step], tell: Callable[[str], None], binding: bool = True
) -> None:
    """Refuse what the steps need and is not here, where a node would see the same: it shares this
    disk. A container has a disk of its own, and a site may say that things are elsewhere, which
    cannot be looked at from here: then it is told, as it is where scripts are only looked at,
    which may be anywhere (not `binding`); the step's own task finds out."""
    for step in going:
        for finding in checks.unsettled_licenses(asked.loaded.recipe, {step.name}):
            raise InputError(f"{finding.about}: {finding.what}", finding.fix)
        if step.served:
            _reached(step, asked, tell, binding)
            continue
        elsewhere = not binding or asked.site.differs(family_of(step.stage), SAID_BY)
        for finding in checks.missing_requirements(asked.loaded.recipe, {step.name}):
            if not elsewhere:
                raise InputError(f"{finding.about}: {finding.what}", finding.fix)
            tell(f"warning: {finding.about}, as seen from here: {finding.what} ({finding.fix})")


def _reached(step: Step, asked: SubmitRequest, tell: Callable[[str], None], binding: bool) -> None:
    """Refuse a step that asks a served model from nodes that are not told where it is: no variable
    of this shell reaches them, and most have no network."""
    model, site = ", ".join(step.served), asked.site.name
    if asked.site.says(family_of(step.stage, served=True), ADDRESS):
        tell(f"{step.name} asks {model} at the {ADDRESS} of {site}: its nodes must reach that")
        return
    error = InputError(
        f"{step.name} asks the served model {model}, and {site} does not tell its nodes where",
        f"if nodes can reach it, put {ADDRESS} under environment: of the site; if not, submit with "
        f"--until the step before, then factory run {asked.loaded.recipe.name} --only {step.name} "
        "where it can be reached",
    )
    if binding:
        raise error
    tell(f"warning: {error.what} ({error.fix})")


def _cut(asked: SubmitRequest, alive: Alive, queued: int, given: Provisions | None) -> list[Part]:
    repos = given.repos if given is not None else ()
    here = {one.name: one.path for one in repos if one.path is not None}
    counted = inputs.counted(asked.loaded, _going(asked, alive), here)
    left = estimate(asked.steps, asked.held, counted)
    org = asked.loaded.recipe.org
    return submission.cut(
        asked.steps, asked.wanted, alive, left, asked.site, asked.home, org, queued
    )


@dataclass(frozen=True)
class SubmittedRecipe:
    """A recipe that was submitted, as disk and queue say."""

    loaded: LoadedRecipe
    home: Home
    steps: Sequence[Step]
    before: Sequence[Submission]
    alive: Alive


def standing(loaded: LoadedRecipe, home: Path, queue: Queue) -> SubmittedRecipe:
    """The plan by what the newest submission took with it: no hub is asked, so that it can be
    looked at as often as one likes. Raises WorkError where nothing was submitted."""
    before = submission.earlier(home, loaded.recipe)
    if not before:
        raise WorkError(
            f"nothing of {loaded.recipe.name} was submitted from {home}",
            f"factory submit {loaded.recipe.name} --site NAME, or factory plan",
        )
    given = bundle.read(before[-1].directory)
    pins = given.lock
    loaded = given.loaded()
    steps = resolve.plan(loaded, pins, Offline(given), Home(home)).steps
    return SubmittedRecipe(
        loaded, Home(home), steps, before, Alive.of(home, steps, before, queue.jobs())
    )


def look(found: SubmittedRecipe, queue: Queue) -> tuple[list[Row], float | None]:
    """Every step as it stands, and the GPU-hours of all jobs where SLURM keeps account."""
    ids = [id_ for one in found.before for id_ in one.ids()]
    ended = queue.ended(ids)
    rows = status.rows(
        found.steps, found.before, found.alive, ended, found.home, found.loaded.recipe.org
    )
    counted = [one.seconds * one.gpus / 3600 for one in ended if one.seconds is not None]
    return rows, sum(counted) if counted else None

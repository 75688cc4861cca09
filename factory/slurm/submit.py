"""Submit a recipe to a cluster, and read its status."""

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
from factory.planning.plan import Inventory, Step
from factory.planning.recipe import LoadedRecipe
from factory.slurm import status, submission
from factory.slurm.queue import Queue, clean_environment
from factory.slurm.site import Site, family_of
from factory.slurm.status import Row
from factory.slurm.submission import Alive, Part, Submission, on_all_gpus

__all__ = ["SubmitRequest", "SubmittedRecipe", "dry", "look", "on_all_gpus", "standing", "submit"]


@dataclass(frozen=True)
class SubmitRequest:
    """A recipe, its lock and plan, the selected steps, and the site to submit to."""

    loaded: LoadedRecipe
    pins: Lock
    inventory: Inventory
    steps: Sequence[Step]
    selected: Sequence[str]
    site: Site
    home: Home


def submit(
    request: SubmitRequest, hub: Hub, tell: Callable[[str], None], queue: Queue | None = None
) -> Submission | None:
    """Submit the steps that must run and are not in the queue; None where there are none. Raises
    FactoryError."""
    queue = queue or Queue()
    clean_environment()
    recipe, home, site = request.loaded.recipe, request.home, request.site
    with submission.submit_lock(home.root, recipe):
        alive, queued = _queued_jobs(request, queue, tell)
        to_submit = submission.steps_to_submit(request.steps, request.selected, alive)
        if not to_submit:
            return None
        check_requirements(request, to_submit, tell)
        _check_recipe(request, to_submit, hub, tell)
        record = submission.begin(home.root, recipe, site)
        provisions = bundle.gather(
            request.loaded,
            request.pins,
            request.inventory,
            home,
            request.steps,
            {step.name for step in to_submit},
            record.directory,
        )
        if site.network == "login":
            provisions = bundle.bring(provisions, hub, record.directory)
        else:
            provisions.write(record.directory)
        parts = _size_parts(request, alive, queued, provisions)
        record.write()
        fetch = bool(provisions.wanting())
        return submission.submit(record, parts, alive, site, home.root, queue, fetch)


def dry(
    request: SubmitRequest, hub: Hub, tell: Callable[[str], None], queue: Queue | None = None
) -> Iterator[tuple[str, str]]:
    """Yield every script that `submit` would submit, by its name; nothing is written."""
    try:
        alive, queued = _queued_jobs(request, queue or Queue(), tell)
    except WorkError as error:  # scripts can be looked at where no SLURM is
        tell(f"{error.what}: scripts are printed as if the queue were empty")
        alive, queued = Alive(), 0
    record = submission.new(request.home.root, request.loaded.recipe, request.site)
    to_submit = submission.steps_to_submit(request.steps, request.selected, alive)
    check_requirements(request, to_submit, tell, binding=False)
    _check_recipe(request, to_submit, hub, tell)
    parts = _size_parts(request, alive, queued, None)
    fetch = request.site.network == "job"
    yield from submission.scripts(
        record, parts, request.site, request.home.root, fetch and bool(parts)
    )


def _queued_jobs(
    request: SubmitRequest, queue: Queue, tell: Callable[[str], None]
) -> tuple[Alive, int]:
    queued = queue.jobs()
    before = submission.read_submissions(request.home.root, request.loaded.recipe)
    alive = Alive.of(request.home.root, request.steps, before, queued)
    for name in request.selected:
        if name in alive.jobs:
            tell(f"{name} is in the queue already: job {', '.join(alive.last(name))}")
    return alive, len(queued)


def _check_recipe(
    request: SubmitRequest, to_submit: Sequence[Step], hub: Hub, tell: Callable[[str], None]
) -> None:
    """Check templates and prompt lengths before anything is queued, where tokenizers can be
    read."""
    if importlib.util.find_spec("transformers") is None:
        tell("templates are not checked here without transformers; the first task checks them")
        return
    before = checks.gate(
        request.loaded, request.pins, hub, request.home, tell, [step.name for step in to_submit]
    )
    for step in to_submit:
        before(step)


def check_requirements(
    request: SubmitRequest,
    to_submit: Sequence[Step],
    tell: Callable[[str], None],
    binding: bool = True,
) -> None:
    """Check on this node what steps need beside models, and raise InputError for what is
    missing.

    A container has a disk of its own, and a site may set other paths: then this only warns, as
    it does when scripts are only printed (not `binding`). The step's task checks again."""
    for step in to_submit:
        for finding in checks.unsettled_licenses(request.loaded.recipe, {step.name}):
            raise InputError(f"{finding.name}: {finding.seen}", finding.fix)
        if step.served:
            _check_served(step, request, tell, binding)
            continue
        elsewhere = not binding or request.site.differs(family_of(step.stage), SAID_BY)
        for finding in checks.missing_requirements(request.loaded.recipe, {step.name}):
            if not elsewhere:
                raise InputError(f"{finding.name}: {finding.seen}", finding.fix)
            tell(f"warning: {finding.name}, as seen from here: {finding.seen} ({finding.fix})")


def _check_served(
    step: Step, request: SubmitRequest, tell: Callable[[str], None], binding: bool
) -> None:
    """Refuse a step with a served model when its nodes have no address for it: no variable of
    this shell reaches them, and most have no network."""
    model, site = ", ".join(step.served), request.site.name
    if request.site.says(family_of(step.stage, served=True), ADDRESS):
        tell(f"{step.name} asks {model} at the {ADDRESS} of {site}: its nodes must reach that")
        return
    error = InputError(
        f"{step.name} needs the served model {model}, and nodes of {site} have no address for it",
        f"if nodes can reach it, set {ADDRESS} under environment: of the site; if not, submit with "
        f"--until the step before, then factory run {request.loaded.recipe.name} --only "
        f"{step.name} where it can be reached",
    )
    if binding:
        raise error
    tell(f"warning: {error.what} ({error.fix})")


def _size_parts(
    request: SubmitRequest, alive: Alive, queued: int, provisions: Provisions | None
) -> list[Part]:
    repos = provisions.repos if provisions is not None else ()
    paths = {repo.name: repo.path for repo in repos if repo.path is not None}
    to_submit = submission.steps_to_submit(request.steps, request.selected, alive)
    counted, _ = inputs.counted(request.loaded, to_submit, paths)
    estimates = estimate(request.steps, request.inventory, counted)
    org = request.loaded.recipe.org
    return submission.cut(
        request.steps, request.selected, alive, estimates, request.site, request.home, org, queued,
        _pilots(request),
    )  # fmt: skip


def _pilots(request: SubmitRequest) -> Inventory:
    """Return the artifacts of this recipe that jobs of this site made."""
    submissions = submission.read_submissions(request.home.root, request.loaded.recipe)
    fingerprints = {
        step.fingerprint
        for record in submissions
        if record.site == request.site.name
        for step in record.steps
    }
    artifacts = request.inventory.found
    return Inventory([a for a in artifacts if a.manifest.fingerprint in fingerprints])


@dataclass(frozen=True)
class SubmittedRecipe:
    """A submitted recipe with its plan and jobs."""

    loaded: LoadedRecipe
    home: Home
    steps: Sequence[Step]
    before: Sequence[Submission]
    alive: Alive


def standing(loaded: LoadedRecipe, home: Path, queue: Queue) -> SubmittedRecipe:
    """Read a submitted recipe and plan it by what its newest submission holds. No hub is asked,
    so this may be called often. Raises WorkError where nothing was submitted."""
    before = submission.read_submissions(home, loaded.recipe)
    if not before:
        raise WorkError(
            f"nothing of {loaded.recipe.name} was submitted from {home}",
            f"factory submit {loaded.recipe.name} --site NAME, or factory plan",
        )
    provisions = bundle.read(before[-1].directory)
    pins = provisions.lock
    loaded = provisions.loaded()
    steps = resolve.plan(loaded, pins, Offline(provisions), Home(home)).steps
    return SubmittedRecipe(
        loaded, Home(home), steps, before, Alive.of(home, steps, before, queue.jobs())
    )


def look(submitted: SubmittedRecipe, queue: Queue) -> tuple[list[Row], float | None]:
    """Return the status of every step, and the GPU-hours of all jobs where SLURM keeps account."""
    ids = [id_ for job in submitted.before for id_ in job.ids()]
    ended = queue.ended(ids)
    rows = status.rows(
        submitted.steps,
        submitted.before,
        submitted.alive,
        ended,
        submitted.home,
        submitted.loaded.recipe.org,
    )
    counted = [job.seconds * job.gpus / 3600 for job in ended if job.seconds is not None]
    return rows, sum(counted) if counted else None

"""A submission: what was handed to SLURM for a recipe, in `<home>/slurm/<org>-<recipe>/<number>/`.

There lie what the steps take with them, every script, every log, how each task ended, and the
record: written anew after each job that is handed in, so that it says what is in the queue
whatever happens to this process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from factory.artifacts.files import file_lock, write_atomically
from factory.artifacts.manifest import Record
from factory.artifacts.shards import read_grid
from factory.artifacts.workdir import Home
from factory.errors import RecipeError, WorkError
from factory.planning.estimate import Estimate
from factory.planning.plan import State, Step
from factory.planning.recipe import LoadedRecipe, Recipe
from factory.slurm import sizes
from factory.slurm.queue import Queue, Queued
from factory.slurm.script import Kind, ScriptJob, render
from factory.slurm.site import Site, family_of
from factory.slurm.sizes import Size
from factory.stage.inputs import StepInput
from factory.stage.stage import Stage
from factory.training.settings import Running

RECORD = "submission.json"
FETCH = "fetch"  # the step, in the record, that brings what the others read


class SubmittedJob(Record):
    """One thing handed to sbatch: its id, what it does, how many tasks it has of the step's, and
    what is added to the numbers of its array."""

    id: str
    kind: Kind
    script: str
    tasks: int = 1
    offset: int = 0
    after: tuple[str, ...] = ()


class Submitted(Record):
    """One step of a submission."""

    step: str
    fingerprint: str
    file: str  # what its logs and ends are called
    tasks: int = 1  # that the step is cut into, whether or not all were to do
    jobs: tuple[SubmittedJob, ...] = ()


class Submission(Record):
    """What was handed in at one time."""

    submission_version: int = 1
    number: int
    recipe: str
    org: str
    site: str
    created: str
    directory: Path
    steps: tuple[Submitted, ...] = ()

    def write(self) -> None:
        """Into its directory, whole or not at all."""
        write_atomically(self.directory / RECORD, self.model_dump_json(indent=1).encode())

    def ids(self) -> list[str]:
        """Of all its jobs."""
        return [job.id for step in self.steps for job in step.jobs]


def room(home: Path, recipe: Recipe) -> Path:
    """Where the submissions of a recipe lie."""
    return home / "slurm" / f"{recipe.org}-{recipe.name}"


def earlier(home: Path, recipe: Recipe) -> list[Submission]:
    """All submissions of a recipe, oldest first. Raises WorkError for a damaged one."""
    found = []
    for path in room(home, recipe).glob(f"*/{RECORD}"):
        try:
            found.append(Submission.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            raise WorkError(
                f"{path} is damaged: {str(error).splitlines()[0]}", "remove it"
            ) from None
    return sorted(found, key=lambda one: one.number)


def begin(home: Path, recipe: Recipe, site: Site) -> Submission:
    """A new directory for a submission, and its record, not written yet."""
    above = room(home, recipe)
    numbers = [int(path.name) for path in above.glob("*") if path.name.isdecimal()]
    number = max(numbers, default=0) + 1
    directory = above / str(number)
    for name in ("logs", "ends"):
        (directory / name).mkdir(parents=True)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Submission(
        number=number,
        recipe=recipe.name,
        org=recipe.org,
        site=site.name,
        created=created,
        directory=directory,
    )


def submit_lock(home: Path, recipe: Recipe) -> AbstractContextManager[None]:
    """Keep every other submitting process of this recipe out. Raises WorkError."""
    error = WorkError(f"{recipe.name} is being submitted by another process", "wait for it")
    return file_lock(room(home, recipe), "submitting", error)


def mark(home: Path, step: str, fingerprint: str) -> str:
    """How the names of all jobs of a step begin: two homes, or two recipes, never share one; two
    recipes that share a work directory do."""
    where = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:6]
    return f"{step}.{fingerprint}.{where}."


@dataclass(frozen=True)
class Alive:
    """What is in the queue of the steps of a recipe."""

    jobs: Mapping[str, list[Queued]] = field(default_factory=dict)  # by step

    @classmethod
    def of(
        cls, home: Path, steps: Sequence[Step], before: Sequence[Submission], queued: list[Queued]
    ) -> Alive:
        """Jobs are known by their names, which say what they make, and by their ids in records: so
        one that was handed in by a process that was then killed is known too."""
        found: dict[str, list[Queued]] = {}
        recorded: dict[str, set[str]] = {}
        for submission in before:
            for made in submission.steps:
                recorded.setdefault(made.step, set()).update(job.id for job in made.jobs)
        for step in steps:
            start = mark(home, step.name, step.fingerprint)
            ids = recorded.get(step.name, set())
            found[step.name] = [
                one for one in queued if one.name.startswith(start) or one.array in ids
            ]
        return cls({name: jobs for name, jobs in found.items() if jobs})

    def last(self, step: str) -> list[str]:
        """The jobs that a step is done with: its seal, or all there is where it has none."""
        jobs = self.jobs.get(step, [])
        seals = [one.array for one in jobs if one.name.endswith(".seal")]
        return list(dict.fromkeys(seals or [one.array for one in jobs]))


@dataclass(frozen=True)
class Part:
    """A step that is to be submitted, and how it is cut."""

    step: Step
    size: Size


def cut(
    steps: Sequence[Step],
    wanted: Sequence[str],
    alive: Alive,
    estimates: Mapping[str, Estimate],
    site: Site,
    home: Home,
    org: str,
    queued: int,
) -> list[Part]:
    """The steps that must be submitted: those that are wanted, must run, and are not in the queue.
    Raises RecipeError for one whose input nobody makes, or for more jobs than the site allows."""
    going = [
        step
        for step in steps
        if step.name in wanted and step.state is State.RUN and step.name not in alive.jobs
    ]
    coming = {step.name for step in going} | alive.jobs.keys()
    there = {step.name for step in steps if step.found is not None}
    for step in going:
        for made in step.slices:
            for need in made.spec.needs:
                if isinstance(need, StepInput) and need.step not in coming | there:
                    raise RecipeError(
                        f"{step.name} needs {need.step}, which is neither made nor submitted",
                        f"leave --only out, or name {need.step} too",
                    )

    def sized(most: int | None) -> list[Part]:
        found = []
        for step in going:
            family = site.family(family_of(step.stage, bool(step.served)))
            whole = sizes.size(step, family, estimates[step.name].shards, most)
            found.append(Part(step, _missing(step, whole, home, org)))
        return found

    parts = sized(None)
    many = [len(part.size.todo) for part in parts if not part.size.whole]
    most = sizes.share(many, len(parts), queued, site.limits)
    return parts if most is None else sized(most)


def _missing(step: Step, whole: Size, home: Home, org: str) -> Size:
    work = home.work(org, step.fingerprint)
    try:
        grid = read_grid(work.path)
    except (OSError, ValueError):
        return whole
    missing = [n for n, shard in enumerate(grid.shards) if not shard.file(work.path).exists()]
    return sizes.left(whole, missing)


def works(part: Part, submission: Submission, home: Path) -> list[ScriptJob]:
    """The jobs of a step, in order; the array is missing where all its shards are there."""
    step, size = part.step, part.size
    base = ScriptJob(
        kind="whole",
        step=step.name,
        name="",
        family=family_of(step.stage, bool(step.served)),
        served=bool(step.served),
        record=submission.directory,
        home=home,
        tasks=size.tasks,
        engines=size.engines,
        gpus=size.gpus,
    )
    kinds: tuple[Kind, ...] = ("array", "seal") if size.todo else ("seal",)
    start = mark(home, step.name, step.fingerprint)
    return [
        replace(base, kind=kind, name=f"{start}{kind}")
        for kind in (("whole",) if size.whole and size.todo else kinds)
    ]


def submit(
    submission: Submission,
    parts: Sequence[Part],
    alive: Alive,
    site: Site,
    home: Path,
    queue: Queue,
    fetch: bool,
) -> Submission:
    """Write every script and hand it in, with what it waits for. Raises FactoryError; what was
    handed in before that is in the record, and stays in the queue."""
    ends: dict[str, list[str]] = {}  # the jobs that a step is done with
    first: list[str] = []
    if fetch:
        work = fetching(submission, home)
        submission, first = _hand_in(submission, FETCH, "", work, [("", 0)], {}, site, queue)
    for part in parts:
        reads = {
            need.step
            for made in part.step.slices
            for need in made.spec.needs
            if isinstance(need, StepInput)
        }
        before = [job for step in sorted(reads) for job in ends.get(step) or alive.last(step)]
        after: dict[str, list[str]] = {"afterok": [*first, *before]}
        for work in works(part, submission, home):
            arrays = [("", 0)]
            if work.kind == "array":
                arrays = sizes.arrays(part.size.todo, site.limits)
            submission, ids = _hand_in(
                submission,
                part.step.name,
                part.step.fingerprint,
                work,
                arrays,
                after,
                site,
                queue,
            )
            after = {"afterany": ids}
            ends[part.step.name] = ids
    return submission


def fetching(submission: Submission, home: Path) -> ScriptJob:
    """The job that lays what steps read on the shared disk, where a login node should not."""
    return ScriptJob(
        kind="fetch",
        step=FETCH,
        name=mark(home, FETCH, str(submission.number)) + "fetch",
        family="cpu",
        record=submission.directory,
        home=home,
    )


def scripts(
    submission: Submission, parts: Sequence[Part], site: Site, home: Path, fetch: bool
) -> Iterator[tuple[str, str]]:
    """Every script that would be handed in, by the name of its file."""
    if fetch:
        work = fetching(submission, home)
        yield f"{work.file}.sh", render(work, site)
    for part in parts:
        for work in works(part, submission, home):
            yield f"{work.file}.sh", render(work, site)


def _hand_in(
    submission: Submission,
    step: str,
    fingerprint: str,
    work: ScriptJob,
    arrays: Sequence[tuple[str, int]],
    after: Mapping[str, Sequence[str]],
    site: Site,
    queue: Queue,
) -> tuple[Submission, list[str]]:
    script = submission.directory / f"{work.file}.sh"
    write_atomically(script, render(work, site).encode())
    ids = []
    for given, offset in arrays:
        id_ = queue.submit(script, after, given or None, offset)
        job = SubmittedJob(
            id=id_,
            kind=work.kind,
            script=script.name,
            tasks=count(given),
            offset=offset,
            after=tuple(one for jobs in after.values() for one in jobs),
        )
        ids.append(id_)
        submission = _with(submission, step, fingerprint, work, job)
        submission.write()
    return submission, ids


def count(array: str) -> int:
    """How many tasks `--array` asks for; 1 where there is none."""
    runs = [run.split("-") for run in array.partition("%")[0].split(",")] if array else []
    return sum(int(run[-1]) - int(run[0]) + 1 for run in runs) or 1


def _with(
    submission: Submission, step: str, fingerprint: str, work: ScriptJob, job: SubmittedJob
) -> Submission:
    steps = list(submission.steps)
    place = next((n for n, made in enumerate(steps) if made.step == step), None)
    if place is None:
        file = work.file.rpartition("-")[0]
        made = Submitted(step=step, fingerprint=fingerprint, file=file, tasks=work.tasks)
        steps.append(made)
        place = len(steps) - 1
    steps[place] = steps[place].model_copy(update={"jobs": (*steps[place].jobs, job)})
    return submission.model_copy(update={"steps": tuple(steps)})


def on_all_gpus(loaded: LoadedRecipe, site: Site, tell: Callable[[str], None]) -> LoadedRecipe:
    """The recipe with one process for each GPU that a training is given, where it does not say how
    many: what is made stays the same (`how`), and no GPU is paid for that does nothing."""
    stages: dict[str, Stage] = {}
    for name, stage in loaded.recipe.steps().items():
        how = stage.how
        if not isinstance(how, Running) or "processes" in how.model_fields_set:
            continue
        family = site.family(family_of(stage))
        most = family.gpus * family.nodes
        micro = getattr(stage, "batch", 1) // how.micro_batch
        fits = [n for n in range(1, most + 1) if micro % n == 0 and n % family.nodes == 0]
        if not fits or max(fits) == 1:
            continue
        if max(fits) < most:
            tell(f"{name}: {max(fits)} of {most} GPUs: its batch does not go into more")
        changed = how.model_copy(update={"processes": max(fits)})
        stages[name] = stage.model_copy(update={"how": changed})
    if not stages:
        return loaded
    recipe = loaded.recipe
    recipe = recipe.model_copy(update={"stages": recipe.stages.model_copy(update=stages)})
    return replace(loaded, recipe=recipe)

"""A submission: the jobs of a recipe, in `<home>/slurm/<org>-<recipe>/<number>/`.

The directory holds the inputs of the steps, every script, every log, the exit of each task, and
the record. The record is written after each submitted job: it names what is in the queue even if
this process is killed.
"""

from __future__ import annotations

import hashlib
import math
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
from factory.planning.plan import Inventory, State, Step
from factory.planning.recipe import LoadedRecipe, Recipe
from factory.slurm import sizes
from factory.slurm.costs import task_seconds
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
    """One job of sbatch: its id, its kind, its number of tasks, and the offset of its array's
    numbers."""

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
    """Jobs submitted together."""

    submission_version: int = 1
    number: int
    recipe: str
    org: str
    site: str
    created: str
    directory: Path
    steps: tuple[Submitted, ...] = ()

    def write(self) -> None:
        """Write the record into its directory, atomically."""
        write_atomically(self.directory / RECORD, self.model_dump_json(indent=1).encode())

    def ids(self) -> list[str]:
        """Return the ids of all its jobs."""
        return [job.id for step in self.steps for job in step.jobs]


def submissions_dir(home: Path, recipe: Recipe) -> Path:
    """Return the directory of a recipe's submissions."""
    return home / "slurm" / f"{recipe.org}-{recipe.name}"


def read_submissions(home: Path, recipe: Recipe) -> list[Submission]:
    """Read all submissions of a recipe, oldest first. Raises WorkError for a damaged one."""
    submissions = []
    for path in submissions_dir(home, recipe).glob(f"*/{RECORD}"):
        try:
            submissions.append(Submission.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            raise WorkError(
                f"{path} is damaged: {str(error).splitlines()[0]}", "remove it"
            ) from None
    return sorted(submissions, key=lambda submission: submission.number)


def new(home: Path, recipe: Recipe, site: Site) -> Submission:
    """Return the record of a new submission; nothing is written."""
    parent = submissions_dir(home, recipe)
    numbers = [int(path.name) for path in parent.glob("*") if path.name.isdecimal()]
    number = max(numbers, default=0) + 1
    return Submission(
        number=number,
        recipe=recipe.name,
        org=recipe.org,
        site=site.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        directory=parent / str(number),
    )


def begin(home: Path, recipe: Recipe, site: Site) -> Submission:
    """Create the directory of a new submission. Returns its record, not written yet."""
    submission = new(home, recipe, site)
    for name in ("logs", "ends"):
        (submission.directory / name).mkdir(parents=True)
    return submission


def submit_lock(home: Path, recipe: Recipe) -> AbstractContextManager[None]:
    """Exclude other processes that submit this recipe. Raises WorkError."""
    error = WorkError(f"{recipe.name} is being submitted by another process", "wait for it")
    return file_lock(submissions_dir(home, recipe), "submitting", error)


def job_prefix(home: Path, step: str, fingerprint: str) -> str:
    """Return the prefix of the names of a step's jobs. Two homes, or two recipes, never share
    one; two recipes that share a work directory do."""
    where = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:6]
    return f"{step}.{fingerprint}.{where}."


@dataclass(frozen=True)
class Alive:
    """Queued and running jobs of a recipe, by step."""

    jobs: Mapping[str, list[Queued]] = field(default_factory=dict)  # by step

    @classmethod
    def of(
        cls, home: Path, steps: Sequence[Step], before: Sequence[Submission], queued: list[Queued]
    ) -> Alive:
        """Match jobs in the queue to steps, by their names and by the ids in records. A job of a
        process that was killed before it wrote the record matches too."""
        jobs: dict[str, list[Queued]] = {}
        recorded: dict[str, set[str]] = {}
        for submission in before:
            for submitted in submission.steps:
                recorded.setdefault(submitted.step, set()).update(job.id for job in submitted.jobs)
        for step in steps:
            start = job_prefix(home, step.name, step.fingerprint)
            ids = recorded.get(step.name, set())
            jobs[step.name] = [
                job for job in queued if job.name.startswith(start) or job.array in ids
            ]
        return cls({name: queued_jobs for name, queued_jobs in jobs.items() if queued_jobs})

    def last(self, step: str) -> list[str]:
        """Return the jobs that end a step: its seal, or all its jobs where it has none."""
        jobs = self.jobs.get(step, [])
        seals = [job.array for job in jobs if job.name.endswith(".seal")]
        return list(dict.fromkeys(seals or [job.array for job in jobs]))


@dataclass(frozen=True)
class Part:
    """A step to submit, its split into tasks, and the minutes to ask for, where a pilot says that
    its family's time is more than enough."""

    step: Step
    size: Size
    minutes: int | None = None


def steps_to_submit(steps: Sequence[Step], selected: Sequence[str], alive: Alive) -> list[Step]:
    """Return the steps that are selected, must run, and are not in the queue."""
    chosen = [step for step in steps if step.name in selected and step.state is State.RUN]
    return [step for step in chosen if step.name not in alive.jobs]


def cut(
    steps: Sequence[Step],
    selected: Sequence[str],
    alive: Alive,
    estimates: Mapping[str, Estimate],
    site: Site,
    home: Home,
    org: str,
    queued: int,
    pilots: Inventory | None = None,
) -> list[Part]:
    """Return the steps to submit: selected, to run, and not in the queue. `pilots`, made on this
    site, tell how long a task takes. Raises RecipeError for a step whose input is not made, or for
    more jobs than the site allows."""
    to_submit = steps_to_submit(steps, selected, alive)
    pending = {step.name for step in to_submit} | alive.jobs.keys()
    made_steps = {step.name for step in steps if step.found is not None}
    for step in to_submit:
        for planned in step.slices:
            for need in planned.spec.needs:
                if isinstance(need, StepInput) and need.step not in pending | made_steps:
                    raise RecipeError(
                        f"{step.name} needs {need.step}, which is neither made nor submitted",
                        f"leave --only out, or name {need.step} too",
                    )

    def sized(max_tasks: int | None) -> list[Part]:
        parts = []
        for step in to_submit:
            family = site.family(family_of(step.stage, bool(step.served)))
            size = sizes.size(step, family, estimates[step.name].shards, max_tasks)
            minutes = _minutes(step, pilots or Inventory(), estimates[step.name], size, site)
            parts.append(Part(step, _missing(step, size, home, org), minutes))
        return parts

    parts = sized(None)
    many = [len(part.size.todo) for part in parts if not part.size.single]
    most = sizes.share(many, len(parts), queued, site.limits)
    return parts if most is None else sized(most)


def _minutes(
    step: Step, pilots: Inventory, estimate: Estimate, size: Size, site: Site
) -> int | None:
    """Return the minutes to ask for: one and a half times what a task takes, the time of the
    warning, and a quarter of an hour to start, in quarters of an hour. None where that is unknown
    or no less than the family's time. A short job starts early; if it needs more it is requeued."""
    seconds, _ = task_seconds(step, pilots, estimate, size)
    if seconds is None or not site.limits.requeue:
        return None
    quarters = math.ceil((1.5 * seconds + site.limits.warn) / 900) + 1
    family = site.family(family_of(step.stage, bool(step.served)))
    return 15 * quarters if 15 * quarters < family.minutes else None


def _missing(step: Step, size: Size, home: Home, org: str) -> Size:
    work = home.work(org, step.fingerprint)
    try:
        grid = read_grid(work.path)
    except (OSError, ValueError):
        return size
    missing = [n for n, shard in enumerate(grid.shards) if not shard.file(work.path).exists()]
    return sizes.remaining(size, missing)


def works(part: Part, submission: Submission, home: Path) -> list[ScriptJob]:
    """Return the jobs of a step, in order; without an array where all its shards exist."""
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
    start = job_prefix(home, step.name, step.fingerprint)
    return [
        replace(
            base,
            kind=kind,
            name=f"{start}{kind}",
            minutes=None if kind == "seal" else part.minutes,
        )
        for kind in (("whole",) if size.single and size.todo else kinds)
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
    """Write every script and submit it with its dependencies. Raises FactoryError; jobs
    submitted before that are in the record and stay in the queue."""
    ends: dict[str, list[str]] = {}  # the jobs that a step is done with
    first: list[str] = []
    if fetch:
        work = fetching(submission, home)
        submission, first = _hand_in(submission, FETCH, "", work, [("", 0)], {}, site, queue)
    for part in parts:
        reads = {
            need.step
            for planned in part.step.slices
            for need in planned.spec.needs
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
    """Return the job that downloads inputs to the shared disk, where a login node should not."""
    return ScriptJob(
        kind="fetch",
        step=FETCH,
        name=job_prefix(home, FETCH, str(submission.number)) + "fetch",
        family="cpu",
        record=submission.directory,
        home=home,
    )


def scripts(
    submission: Submission, parts: Sequence[Part], site: Site, home: Path, fetch: bool
) -> Iterator[tuple[str, str]]:
    """Yield every script of a submission, by the name of its file."""
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
    for array, offset in arrays:
        id_ = queue.submit(script, after, array or None, offset)
        job = SubmittedJob(
            id=id_,
            kind=work.kind,
            script=script.name,
            tasks=count(array),
            offset=offset,
            after=tuple(id_ for jobs in after.values() for id_ in jobs),
        )
        ids.append(id_)
        submission = _with(submission, step, fingerprint, work, job)
        submission.write()
    return submission, ids


def count(array: str) -> int:
    """Return the number of tasks of an `--array` option; 1 where there is none."""
    runs = [run.split("-") for run in array.partition("%")[0].split(",")] if array else []
    return sum(int(run[-1]) - int(run[0]) + 1 for run in runs) or 1


def _with(
    submission: Submission, step: str, fingerprint: str, work: ScriptJob, job: SubmittedJob
) -> Submission:
    steps = list(submission.steps)
    position = next((n for n, submitted in enumerate(steps) if submitted.step == step), None)
    if position is None:
        file = work.file.rpartition("-")[0]
        submitted = Submitted(step=step, fingerprint=fingerprint, file=file, tasks=work.tasks)
        steps.append(submitted)
        position = len(steps) - 1
    steps[position] = steps[position].model_copy(update={"jobs": (*steps[position].jobs, job)})
    return submission.model_copy(update={"steps": tuple(steps)})


def on_all_gpus(loaded: LoadedRecipe, site: Site, tell: Callable[[str], None]) -> LoadedRecipe:
    """Return the recipe with one process for each GPU of a training, where it does not say how
    many. Results stay the same (`how`), and no GPU is idle."""
    stages: dict[str, Stage] = {}
    for name, stage in loaded.recipe.steps().items():
        how = stage.how
        if not isinstance(how, Running) or how.processes is not None:
            continue
        family = site.family(family_of(stage))
        most = family.gpus * family.nodes
        micro = getattr(stage, "batch", 1) // how.micro_batch
        fits = [n for n in range(1, most + 1) if micro % n == 0 and n % family.nodes == 0]
        if not fits or max(fits) == 1:
            continue
        if max(fits) < most:
            tell(f"{name}: {max(fits)} of {most} GPUs: its batch cannot be split over more")
        changed = how.model_copy(update={"processes": max(fits)})
        stages[name] = stage.model_copy(update={"how": changed})
    if not stages:
        return loaded
    recipe = loaded.recipe
    recipe = recipe.model_copy(update={"stages": recipe.stages.model_copy(update=stages)})
    return replace(loaded, recipe=recipe)

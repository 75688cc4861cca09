"""How a submitted recipe stands: the plan, the shards on disk and the queue, put together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from factory.artifacts import shards
from factory.artifacts.workdir import Home
from factory.planning.plan import State, Step
from factory.slurm.queue import Ended, Queued
from factory.slurm.submission import Alive, Submission, Submitted

Stand = Literal["done", "published", "running", "waiting", "failed", "blocked", "not submitted"]
_LINES = 5  # of a log


@dataclass(frozen=True)
class Failure:
    """A job or task that ended badly: how, where, and the last lines of what it said."""

    job: str
    task: int | None
    how: str
    node: str
    log: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One step as it stands."""

    step: str
    stand: Stand
    said: str
    jobs: tuple[str, ...] = ()
    running: int = 0
    waiting: int = 0
    shards: tuple[int, int] | None = None  # done, of
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    failures: tuple[Failure, ...] = ()
    gpu_hours: float | None = None  # of all its jobs, where SLURM keeps account


def rows(
    steps: Sequence[Step],
    before: Sequence[Submission],
    alive: Alive,
    ended: Sequence[Ended],
    home: Home,
    org: str,
) -> list[Row]:
    """Every step, in the order of the line."""
    found = []
    for step in steps:
        last = _last(step.name, before)
        jobs = alive.jobs.get(step.name, [])
        found.append(_row(step, last, jobs, ended, home, org))
    return found


def _last(step: str, before: Sequence[Submission]) -> tuple[Submission, Submitted] | None:
    """The newest submission of a step."""
    for submission in reversed(before):
        for made in submission.steps:
            if made.step == step:
                return submission, made
    return None


def _row(
    step: Step,
    last: tuple[Submission, Submitted] | None,
    jobs: Sequence[Queued],
    ended: Sequence[Ended],
    home: Home,
    org: str,
) -> Row:
    ids = tuple(job.id for job in last[1].jobs) if last else ()
    spent = [
        one.seconds * one.gpus for one in ended if one.array in ids and one.seconds is not None
    ]
    cost = sum(spent) / 3600 if spent else None
    if step.state is State.REUSE:
        return Row(step.name, "published", step.reason, ids, gpu_hours=cost)
    if step.state is State.PUBLISH:
        return Row(step.name, "done", "sealed; factory publish", ids, gpu_hours=cost)
    if step.state is State.BLOCKED:
        return Row(step.name, "blocked", step.reason, ids)
    work = home.work(org, step.fingerprint)
    there = work.progress()
    running = [one for one in jobs if one.running]
    failures = tuple(_failures(*last, jobs, ended)) if last else ()
    if not jobs:
        if not last:
            return Row(step.name, "not submitted", step.reason, shards=there)
        said = _summary(failures) or "its jobs are gone from the queue, and it is not sealed"
        return Row(step.name, "failed", said, ids, shards=there, failures=failures, gpu_hours=cost)
    waiting = len(jobs) - len(running)
    rate, left = pace(work.path, there, [one.start for one in running])
    if running:
        said = f"on {', '.join(dict.fromkeys(one.node for one in running))}"
        stand: Stand = "running"
    else:
        said = ", ".join(dict.fromkeys(one.reason for one in jobs))
        stand = "waiting"
    if failures:
        said += f"; {_summary(failures)}"
    return Row(
        step.name, stand, said, ids, len(running), waiting, there, rate, left, failures, cost
    )


def pace(
    work: Path, there: tuple[int, int] | None, starts: Iterable[str]
) -> tuple[float | None, float | None]:
    """(tokens a second, seconds left) of a step under way, by the shards that came since the
    first of the tasks that now run began."""
    known = [datetime.fromisoformat(one).timestamp() for one in starts if one[:1].isdigit()]
    if not known or there is None:
        return None, None
    begun = min(known)
    passed = time.time() - begun
    new = [path for path in work.glob("shards/*/*.parquet") if path.stat().st_mtime >= begun]
    if not new or passed <= 0:
        return None, None
    tokens = sum(shards.tokens(path) for path in new)
    left = (there[1] - there[0]) * passed / len(new)
    return (tokens / passed if tokens else None), left


def _failures(
    submission: Submission, made: Submitted, jobs: Sequence[Queued], ended: Sequence[Ended]
) -> Iterable[Failure]:
    """Of a step's jobs those that are over and did not end well, unless they are to run again."""
    again = {(one.array, one.index) for one in jobs} | {(one.id, None) for one in jobs}
    told: set[tuple[str, int | None]] = set()
    own = {job.id: job for job in made.jobs}
    for end in ended:
        if end.array not in own or end.state == "COMPLETED" or (end.array, end.index) in again:
            continue
        told.add((end.array, end.index))
        how = end.state.lower().replace("_", " ")
        if end.code:
            how += f", exit code {end.code}"
        yield _failure(submission, made, own[end.array].kind, end.array, end.index, how, end.node)
    for job in made.jobs:  # what tasks left behind themselves, when SLURM has forgotten them
        for path in sorted(submission.directory.glob(f"ends/{made.file}-{job.kind}.*")):
            words = path.read_text().split()
            index = int(path.name.rpartition(".")[2])
            code, node = int(words[0]), words[1]
            number = index - job.offset if job.kind == "array" else None
            key = (job.id, number)
            if job.kind == "array" and job.id != _array_of(made, index):
                continue  # of another array
            if code and key not in told and key not in again:
                told.add(key)
                how = "told to stop" if code == 75 else f"exit code {code}"
                yield _failure(submission, made, job.kind, job.id, number, how, node)


def _array_of(made: Submitted, index: int) -> str:
    """The array that a task of this number is in: the last that begins at or below it."""
    arrays = sorted((job.offset, job.id) for job in made.jobs if job.kind == "array")
    return [id_ for offset, id_ in arrays if offset <= index][-1]


def _failure(
    submission: Submission,
    made: Submitted,
    kind: str,
    job: str,
    index: int | None,
    how: str,
    node: str,
) -> Failure:
    name = f"{made.file}-{kind}-{job}" + (f"_{index}" if index is not None else "")
    log = submission.directory / "logs" / f"{name}.log"
    return Failure(job, index, how, node, str(log), tuple(tail(log)))


def tail(log: Path) -> list[str]:
    """The last lines of a log that say something."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            said = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in said.splitlines() if line.strip()][-_LINES:]


def _summary(failures: Sequence[Failure]) -> str:
    ways: dict[str, int] = {}
    for one in failures:
        where = f" on {one.node}" if one.node else ""
        ways[one.how + where] = ways.get(one.how + where, 0) + 1
    return "; ".join(f"{count} {way}" if count > 1 else way for way, count in ways.items())

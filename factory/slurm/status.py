"""Status of a submitted recipe, from the plan, the shards on disk and the queue."""

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
    """A job or task that failed: cause, node, and the last lines of its log."""

    job: str
    task: int | None
    how: str
    node: str
    log: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Status of one step."""

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
    """Return the status of every step, in plan order."""
    rows = []
    for step in steps:
        last = _last(step.name, before)
        jobs = alive.jobs.get(step.name, [])
        rows.append(_row(step, last, jobs, ended, home, org))
    return rows


def _last(step: str, before: Sequence[Submission]) -> tuple[Submission, Submitted] | None:
    """Return the newest submission of a step."""
    for submission in reversed(before):
        for submitted in submission.steps:
            if submitted.step == step:
                return submission, submitted
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
        job.seconds * job.gpus for job in ended if job.array in ids and job.seconds is not None
    ]
    cost = sum(spent) / 3600 if spent else None
    if step.state is State.REUSE:
        return Row(step.name, "published", step.reason, ids, gpu_hours=cost)
    if step.state is State.PUBLISH:
        return Row(step.name, "done", "sealed; factory publish", ids, gpu_hours=cost)
    if step.state is State.BLOCKED:
        return Row(step.name, "blocked", step.reason, ids)
    work = home.work(org, step.fingerprint)
    n_shards = work.progress()
    running = [job for job in jobs if job.running]
    failures = tuple(_failures(*last, jobs, ended)) if last else ()
    if not jobs:
        if not last:
            return Row(step.name, "not submitted", step.reason, shards=n_shards)
        message = _summary(failures) or "its jobs left the queue before it was sealed"
        return Row(
            step.name, "failed", message, ids, shards=n_shards, failures=failures, gpu_hours=cost
        )
    waiting = len(jobs) - len(running)
    rate, seconds_left = pace(work.path, n_shards, [job.start for job in running])
    if running:
        message = f"on {', '.join(dict.fromkeys(job.node for job in running))}"
        state: Stand = "running"
    else:
        message = ", ".join(dict.fromkeys(job.reason for job in jobs))
        state = "waiting"
    if failures:
        message += f"; {_summary(failures)}"
    return Row(
        step.name, state, message, ids, len(running), waiting, n_shards, rate, seconds_left,
        failures, cost,
    )  # fmt: skip


def pace(
    work: Path, n_shards: tuple[int, int] | None, starts: Iterable[str]
) -> tuple[float | None, float | None]:
    """Return (tokens a second, seconds left) of a running step, by the shards written since the
    first of its running tasks began."""
    begins = [datetime.fromisoformat(start).timestamp() for start in starts if start[:1].isdigit()]
    if not begins or n_shards is None:
        return None, None
    began = min(begins)
    passed = time.time() - began
    new_shards = [path for path in work.glob("shards/*/*.parquet") if path.stat().st_mtime >= began]
    if not new_shards or passed <= 0:
        return None, None
    tokens = sum(shards.tokens(path) for path in new_shards)
    seconds_left = (n_shards[1] - n_shards[0]) * passed / len(new_shards)
    return (tokens / passed if tokens else None), seconds_left


def _failures(
    submission: Submission, submitted: Submitted, jobs: Sequence[Queued], ended: Sequence[Ended]
) -> Iterable[Failure]:
    """Yield a step's jobs that are over and failed, unless they run again."""
    in_queue = {(job.array, job.index) for job in jobs} | {(job.id, None) for job in jobs}
    reported: set[tuple[str, int | None]] = set()
    own = {job.id: job for job in submitted.jobs}
    for end in ended:
        if end.array not in own or end.state == "COMPLETED" or (end.array, end.index) in in_queue:
            continue
        reported.add((end.array, end.index))
        how = end.state.lower().replace("_", " ")
        if end.code:
            how += f", exit code {end.code}"
        yield _failure(
            submission, submitted, own[end.array].kind, end.array, end.index, how, end.node
        )
    for job in submitted.jobs:  # what tasks left behind themselves, when SLURM has forgotten them
        for path in sorted(submission.directory.glob(f"ends/{submitted.file}-{job.kind}.*")):
            words = path.read_text().split()
            index = int(path.name.rpartition(".")[2])
            code, node = int(words[0]), words[1]
            number = index - job.offset if job.kind == "array" else None
            key = (job.id, number)
            if job.kind == "array" and job.id != _array_of(submitted, index):
                continue  # of another array
            if code and key not in reported and key not in in_queue:
                reported.add(key)
                how = "told to stop" if code == 75 else f"exit code {code}"
                yield _failure(submission, submitted, job.kind, job.id, number, how, node)


def _array_of(submitted: Submitted, index: int) -> str:
    """Return the array of the task with this number: the last that begins at or below it."""
    arrays = sorted((job.offset, job.id) for job in submitted.jobs if job.kind == "array")
    return [id_ for offset, id_ in arrays if offset <= index][-1]


def _failure(
    submission: Submission,
    submitted: Submitted,
    kind: str,
    job: str,
    index: int | None,
    how: str,
    node: str,
) -> Failure:
    name = f"{submitted.file}-{kind}-{job}" + (f"_{index}" if index is not None else "")
    log = submission.directory / "logs" / f"{name}.log"
    return Failure(job, index, how, node, str(log), tuple(tail(log)))


def tail(log: Path) -> list[str]:
    """Return the last nonempty lines of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-_LINES:]


def _summary(failures: Sequence[Failure]) -> str:
    counts: dict[str, int] = {}
    for failure in failures:
        where = f" on {failure.node}" if failure.node else ""
        counts[failure.how + where] = counts.get(failure.how + where, 0) + 1
    return "; ".join(f"{count} {cause}" if count > 1 else cause for cause, count in counts.items())

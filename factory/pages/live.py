"""Runs under way: from the work directories of a home, and from its submissions to a cluster."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.artifacts.workdir import Work
from factory.errors import redact
from factory.localhub.errors import BadRequest
from factory.pages import rows
from factory.reports import values

if TYPE_CHECKING:
    from factory.slurm.submission import Submission

_QUIET = 300.0  # seconds without a sign of life, of a process on another machine
_SAMPLES = 3
_LOGS = ("*.log", "checkpoints/euroeval/servers/*.txt", "checkpoints/euroeval/*/*/log.txt")
_LINES = 10  # of a log
_CURVE = 200  # logged steps of a training that are read
_LOG_BYTES = 256 * 1024
_TEXTS = ("response", "answer", "judge_output", "messages", "chosen")
_HOLDER = re.compile(r"process (\d+) on (\S+)")


@dataclass(frozen=True)
class Underway:
    """A step that is begun and not sealed. `state` is running, failed or stopped; times are in
    seconds; `log` is the name and the last lines of the log of one that ended; `losses` are
    (step, loss), `logged` the last logged values."""

    org: str
    step: str
    recipe: str
    place: str
    state: str
    holder: str
    done: int
    total: int
    unit: str
    tokens_per_second: float | None
    seconds_left: float | None
    age: float
    error: str
    log: tuple[str, tuple[str, ...]]
    losses: tuple[tuple[float, float], ...]
    logged: tuple[tuple[str, float], ...]
    samples: tuple[str, ...]


@dataclass(frozen=True)
class ClusterStep:
    """A step of a submission: shards done and of how many, and, until it is sealed, the logs of its
    tasks that failed: (name, exit code and node, last lines). `started` once a task wrote a log."""

    step: str
    sealed: bool
    started: bool
    shards: tuple[int, int] | None
    failures: tuple[tuple[str, str, tuple[str, ...]], ...]


def underway(home: Path) -> list[Underway]:
    """Return the steps that are begun and not sealed, last touched first."""
    steps = []
    for path in home.glob("work/*/*"):
        work = Work(path)
        if "~" not in path.name and (path / "inputs").exists() and not work.artifact.exists():
            with suppress(OSError, ValueError, BadRequest):
                steps.append(_step(work))
    return sorted(steps, key=lambda step: (step.state != "running", step.age))


def submissions(home: Path) -> Iterator[tuple[Submission, list[ClusterStep]]]:
    """Yield the newest submission of each recipe with its steps."""
    if not (home / "slurm").exists():
        return
    from factory.slurm.submission import RECORD, Submission  # slow: brings in every stage

    for folder in sorted(home.glob("slurm/*")):
        numbers = [path for path in folder.glob(f"*/{RECORD}") if path.parent.name.isdecimal()]
        if not numbers:
            continue
        newest = max(numbers, key=lambda path: int(path.parent.name))
        try:
            submission = Submission.model_validate_json(newest.read_bytes())
        except (OSError, ValueError):
            continue
        steps = []
        for submitted in submission.steps:
            work = Work(home / "work" / submission.org / submitted.fingerprint)
            sealed = work.artifact.exists()
            failed = () if sealed else tuple(_failures(newest.parent, submitted.file))
            started = any(newest.parent.glob(f"logs/{submitted.file}-*.log"))
            step = ClusterStep(submitted.step, sealed, started, work.progress(), failed)
            steps.append(step)
        yield submission, steps


def _step(work: Work) -> Underway:
    notes = work.notes()
    shards = work.progress()
    done, total = int(notes.get("done", 0)), int(notes.get("total", 0))
    unit = str(notes.get("unit", ""))
    if shards is not None:
        done, total, unit = *shards, "shards"
    moment = max((path.stat().st_mtime for path in _signs(work.path)), default=0.0)
    age = max(time.time() - moment, 0.0)
    holder = (work.path / "holder").read_text().strip() if (work.path / "holder").exists() else ""
    alive = _alive(holder, age)
    error = str(notes.get("error", ""))
    losses, logged = _curve(work.path / "checkpoints" / "log.jsonl")
    return Underway(
        org=work.path.parent.name,
        step=str(notes.get("step") or work.fingerprint),
        recipe=str(notes.get("recipe", "")),
        place="/".join(work.path.parts[-3:]),
        state="failed" if error else "running" if alive else "stopped",
        holder=holder,
        done=done,
        total=total,
        unit=unit,
        tokens_per_second=values.number(notes.get("rate")),
        seconds_left=values.number(notes.get("left")) if alive and done < total else None,
        age=age,
        error=redact(error),
        log=("", ()) if alive and not error else _log(work.path, error),
        losses=losses,
        logged=logged,
        samples=tuple(_samples(work.path)),
    )


def _log(work: Path, error: str) -> tuple[str, tuple[str, ...]]:
    """Return the name and the last lines of the newest log of a step that ended: one that it wrote
    since it was begun last, or that of the defect that ended it."""
    begun = (work / "holder").stat().st_mtime if (work / "holder").exists() else 0.0
    own = (path for pattern in _LOGS for path in work.glob(pattern))
    logs = [(path, path.stat().st_mtime) for path in own]
    defects = sorted(work.parents[2].glob("log/*.log"))[-_LINES:] if error else ()
    logs += [
        (path, path.stat().st_mtime) for path in defects if redact(error) in "\n".join(_tail(path))
    ]
    path, moment = max(logs, key=lambda log: log[1], default=(work, -1.0))
    if moment < begun:
        return "", ()
    lines = [line.rstrip() for line in _tail(path) if line.strip()]
    return path.name, tuple(map(redact, lines[-_LINES:]))


def _signs(path: Path) -> Iterator[Path]:
    """Yield the files whose times say that something goes on."""
    yield from path.glob("*")
    yield from path.glob("shards/*")
    yield from path.glob("checkpoints/*")


def _alive(holder: str, age: float) -> bool:
    """Return whether the process that holds a work directory is there; on another machine, whether
    it gave a sign of life."""
    match = _HOLDER.match(holder)
    if match is None or match[2] != os.uname().nodename:
        return age < _QUIET
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _curve(
    log: Path,
) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[str, float], ...]]:
    """Return (step, loss) of the last logged steps, and the last values."""
    by_step: dict[float, dict[str, Any]] = {}
    for line in _tail(log):
        with suppress(ValueError):
            entry = json.loads(line)
            by_step.setdefault(float(entry["step"]), {}).update(entry)
    entries = [by_step[step] for step in sorted(by_step)][-_CURVE:]
    losses = [
        (float(entry["step"]), loss)
        for entry in entries
        if (loss := values.number(entry.get("loss"))) is not None
    ]
    last: dict[str, float] = {}
    for entry in entries:
        last |= {k: n for k, v in entry.items() if (n := values.number(v)) is not None}
    curves = ("loss", "eval_loss", "accuracy", "rewards/accuracies", "eval_rewards/accuracies")
    return tuple(losses), tuple((name, last[name]) for name in curves if name in last)


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def _samples(work: Path) -> Iterator[str]:
    """Yield the last texts that were made, from the newest shard."""
    files = list(work.glob("shards/**/*.parquet"))
    if not files:
        return
    newest = max(files, key=lambda path: path.stat().st_mtime)
    names = [name for name in _TEXTS if name in rows.schema([newest]).names][:1]
    start = max(rows.count([newest]) - _SAMPLES, 0)
    for _, cells in rows.page([newest], names, start, _SAMPLES).rows:
        yield from filter(None, (rows.as_text(value, 600) for value in cells.values()))


def _failures(folder: Path, file: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield the tasks that ended with another exit code than 0."""
    from factory.slurm.status import tail

    for end in sorted(folder.glob(f"ends/{file}-*")):
        code, node, *_ = [*end.read_text().split(), "", ""]
        if code in ("", "0"):
            continue
        kind, _, index = end.name.partition(".")
        logs = sorted(folder.glob(f"logs/{kind}-*_{index}.log")) or sorted(
            folder.glob(f"logs/{kind}-*.log")
        )
        lines = tuple(tail(logs[-1])) if logs else ()
        yield logs[-1].name if logs else end.name, f"exit code {code} on {node}", lines

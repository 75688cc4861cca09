"""SLURM's queue by its own commands: sbatch, squeue, scontrol, scancel; sacct where available."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from factory.errors import WorkError, redact
from factory.slurm.script import dependency

_FORMAT = "%i|%F|%K|%T|%r|%N|%S|%j"  # id, of the array, index, state, why, nodes, start, name
_PATIENCE = 120.0  # seconds that a busy controller is given
_ALIVE = {"PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "REQUEUED", "RESIZING"}

Runner = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Queued:
    """A job, or one task of an array, that is in the queue."""

    id: str
    array: str  # what sbatch answered: the job's own id where it is no array
    index: int | None
    state: str
    reason: str
    node: str
    start: str  # as ISO time; "N/A" before it is known
    name: str

    @property
    def running(self) -> bool:
        """Whether it runs on a node."""
        return self.state in ("RUNNING", "COMPLETING", "SUSPENDED")


@dataclass(frozen=True)
class Ended:
    """A job that is over, as SLURM reports it: state, exit code and node."""

    id: str
    array: str
    index: int | None
    state: str
    code: int
    node: str
    seconds: float | None = None  # where SLURM keeps account
    gpus: int = 0


def call(command: Sequence[str]) -> str:
    """Run one of SLURM's commands. Raises WorkError with its message."""
    if shutil.which(command[0]) is None:
        raise WorkError(
            f"there is no {command[0]} here",
            "run this on a login node of the cluster (submit --dry-run prints scripts anywhere)",
        )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise WorkError(f"{command[0]} did not answer", "try again: SLURM is busy") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        raise WorkError(f"{command[0]}: {redact(lines[-1])}", _fix(command[0], done.stderr))
    return done.stdout


def _fix(command: str, message: str) -> str:
    for pattern, fix in (
        ("configuration source", "this machine is not part of a cluster: run this on a login node"),
        ("account", "set account: in the site's file"),
        ("partition", "correct partition: in the site's file; sinfo lists partitions"),
        ("QOS", "set limits.submitted in the site's file to the limit of the QOS"),
        ("array", "set limits.array in the site's file: scontrol show config | grep MaxArraySize"),
        ("time limit", "correct time: in the site's file"),
        ("Socket timed out", "try again: SLURM is busy"),
    ):
        if pattern.lower() in message.lower():
            return fix
    return "check the site's file against sinfo" if command == "sbatch" else "try again"


class Queue:
    """The queue of this user."""

    def __init__(self, run: Runner = call) -> None:
        self._run = run

    def jobs(self) -> list[Queued]:
        """Return this user's jobs, each task of an array by itself."""
        user = getpass.getuser()
        output = self._run(
            ["squeue", "--noheader", "--array", f"--user={user}", f"--format={_FORMAT}"]
        )
        jobs = []
        for line in output.splitlines():
            id_, array, index, state, reason, node, start, name = line.strip().split("|", 7)
            number = int(index) if index.isdecimal() else None
            jobs.append(Queued(id_, array, number, state, reason, node, start, name))
        return jobs

    def submit(
        self,
        script: Path,
        after: Mapping[str, Sequence[str]],
        array: str | None = None,
        offset: int = 0,
    ) -> str:
        """Submit a script to start after other jobs, by condition (afterok, afterany). Returns
        the job's id."""
        command = ["sbatch", "--parsable", *dependency(after)]
        command += [f"--array={array}"] if array is not None else []
        command += [str(script), str(offset)]
        return self._run(command).strip().splitlines()[-1].partition(";")[0]

    def cancel(self, jobs: Iterable[str]) -> None:
        """Cancel jobs, waiting or running; those that are over are not affected."""
        if ids := list(dict.fromkeys(jobs)):
            self._run(["scancel", *ids])

    def ended(self, jobs: Collection[str]) -> list[Ended]:
        """Return how jobs ended, from sacct, else from scontrol, which forgets after some
        minutes."""
        if not jobs:
            return []
        try:
            output = self._run(
                ["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={','.join(jobs)}",
                 "--format=JobID,State,ExitCode,NodeList,ElapsedRaw,AllocTRES"]
            )  # fmt: skip
        except WorkError:
            return [ended for job in jobs for ended in self._shown(job)]
        return read_sacct(output)

    def _shown(self, job: str) -> list[Ended]:
        try:
            return read_scontrol(self._run(["scontrol", "--oneliner", "show", "job", job]))
        except WorkError:
            return []  # forgotten


def read_scontrol(output: str) -> list[Ended]:
    """Parse jobs that are over from `scontrol --oneliner show job`."""
    ended = []
    for line in output.splitlines():
        fields = dict(re.findall(r"(\S+?)=(\S*)", line))
        state = fields.get("JobState", "")
        if not state or state in _ALIVE:
            continue
        index = fields.get("ArrayTaskId", "")
        ended.append(
            Ended(
                id=fields["JobId"],
                array=str(fields.get("ArrayJobId") or fields["JobId"]),
                index=int(index) if index.isdecimal() else None,
                state=state,
                code=_code(fields.get("ExitCode", "0:0")),
                node=_node(fields.get("NodeList", "")),
            )
        )
    return ended


def read_sacct(output: str) -> list[Ended]:
    """Parse jobs that are over from `sacct --parsable2`."""
    ended = []
    for line in output.splitlines():
        id_, state, code, node, seconds, tres = line.split("|")
        state = state.split()[0]  # CANCELLED by 1000
        if state in _ALIVE:
            continue
        array, _, index = id_.partition("_")
        number = int(index) if index.isdecimal() else None
        gpus = re.search(r"gres/gpu=(\d+)", tres)
        ended.append(
            Ended(
                id_,
                array,
                number,
                state,
                _code(code),
                _node(node),
                float(seconds or 0),
                int(gpus[1]) if gpus else 0,
            )
        )
    return ended


def _code(exit_code: str) -> int:
    """Return SLURM's `code:signal` as a shell's exit code."""
    code, _, signal = exit_code.partition(":")
    return int(code) or (128 + int(signal) if signal.isdecimal() and int(signal) else 0)


def _node(nodes: str) -> str:
    return "" if nodes in ("(null)", "None assigned") else nodes


def clean_environment() -> None:
    """Remove options of sbatch from the environment: they would override the script's."""
    for name in [name for name in os.environ if name.startswith("SBATCH_")]:
        if name not in ("SBATCH_ACCOUNT", "SBATCH_RESERVATION"):
            del os.environ[name]


def ranges(numbers: Iterable[int]) -> str:
    """Format numbers as sbatch takes them: 0-3,7."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)

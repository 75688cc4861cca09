"""SLURM's queue by its own commands: sbatch, squeue, scontrol, scancel; sacct where it works."""

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
        """Whether it is at work on a node."""
        return self.state in ("RUNNING", "COMPLETING", "SUSPENDED")


@dataclass(frozen=True)
class Ended:
    """What SLURM still knows of a job that is over: how it ended, with which code, and where."""

    id: str
    array: str
    index: int | None
    state: str
    code: int
    node: str
    seconds: float | None = None  # where SLURM keeps account
    gpus: int = 0


def call(command: Sequence[str]) -> str:
    """Run one of SLURM's commands. Raises WorkError with what it said."""
    if shutil.which(command[0]) is None:
        raise WorkError(
            f"there is no {command[0]} here",
            "run this where SLURM is: on a login node (submit --dry-run prints scripts anywhere)",
        )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise WorkError(f"{command[0]} gave no answer", "try again: SLURM is busy") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        raise WorkError(f"{command[0]}: {redact(said[-1])}", _fix(command[0], done.stderr))
    return done.stdout


def _fix(command: str, said: str) -> str:
    for sign, fix in (
        ("configuration source", "this machine is of no cluster: run it on a login node of one"),
        ("account", "say which account in the site's file: account:"),
        ("partition", "look at sinfo, and mend partition: in the site's file"),
        ("QOS", "look at the site's limits, and set limits.submitted in its file"),
        ("array", "set limits.array in the site's file: scontrol show config | grep MaxArraySize"),
        ("time limit", "mend time: in the site's file"),
        ("Socket timed out", "try again: SLURM is busy"),
    ):
        if sign.lower() in said.lower():
            return fix
    return "look at the site's file and at sinfo" if command == "sbatch" else "try again"


class Queue:
    """The queue, as this user sees it."""

    def __init__(self, run: Runner = call) -> None:
        self._run = run

    def jobs(self) -> list[Queued]:
        """All of this user's jobs, each task of an array on its own."""
        user = getpass.getuser()
        said = self._run(
            ["squeue", "--noheader", "--array", f"--user={user}", f"--format={_FORMAT}"]
        )
        found = []
        for line in said.splitlines():
            id_, array, index, state, reason, node, start, name = line.strip().split("|", 7)
            number = int(index) if index.isdecimal() else None
            found.append(Queued(id_, array, number, state, reason, node, start, name))
        return found

    def submit(
        self,
        script: Path,
        after: Mapping[str, Sequence[str]],
        array: str | None = None,
        offset: int = 0,
    ) -> str:
        """Hand a script in, to start when `after` (jobs by what is asked of them) allows it.
        Returns the job's id."""
        given = [f"--array={array}"] if array is not None else []
        command = ["sbatch", "--parsable", *dependency(after), *given, str(script), str(offset)]
        return self._run(command).strip().splitlines()[-1].partition(";")[0]

    def cancel(self, jobs: Iterable[str]) -> None:
        """Take jobs out of the queue and end those that run; those that are over stay over."""
        if found := list(dict.fromkeys(jobs)):
            self._run(["scancel", *found])

    def ended(self, jobs: Collection[str]) -> list[Ended]:
        """How jobs ended, as far as anybody knows: by sacct, or by scontrol, which forgets after
        some minutes."""
        if not jobs:
            return []
        try:
            said = self._run(
                ["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={','.join(jobs)}",
                 "--format=JobID,State,ExitCode,NodeList,ElapsedRaw,AllocTRES"]
            )  # fmt: skip
        except WorkError:
            return [one for job in jobs for one in self._shown(job)]
        return read_sacct(said)

    def _shown(self, job: str) -> list[Ended]:
        try:
            return read_scontrol(self._run(["scontrol", "--oneliner", "show", "job", job]))
        except WorkError:
            return []  # forgotten


def read_scontrol(said: str) -> list[Ended]:
    """Jobs that are over, from `scontrol --oneliner show job`."""
    found = []
    for line in said.splitlines():
        facts = dict(re.findall(r"(\S+?)=(\S*)", line))
        state = facts.get("JobState", "")
        if not state or state in _ALIVE:
            continue
        index = facts.get("ArrayTaskId", "")
        found.append(
            Ended(
                id=facts["JobId"],
                array=str(facts.get("ArrayJobId") or facts["JobId"]),
                index=int(index) if index.isdecimal() else None,
                state=state,
                code=_code(facts.get("ExitCode", "0:0")),
                node=_node(facts.get("NodeList", "")),
            )
        )
    return found


def read_sacct(said: str) -> list[Ended]:
    """Jobs that are over, from `sacct --parsable2`."""
    found = []
    for line in said.splitlines():
        id_, state, code, node, seconds, given = line.split("|")
        state = state.split()[0]  # CANCELLED by 1000
        if state in _ALIVE:
            continue
        array, _, index = id_.partition("_")
        number = int(index) if index.isdecimal() else None
        gpus = re.search(r"gres/gpu=(\d+)", given)
        found.append(
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
    return found


def _code(said: str) -> int:
    """`code:signal` as a shell would say it."""
    code, _, signal = said.partition(":")
    return int(code) or (128 + int(signal) if signal.isdecimal() and int(signal) else 0)


def _node(said: str) -> str:
    return "" if said in ("(null)", "None assigned") else said


def clean_environment() -> None:
    """Options of sbatch that lie in the environment would go over what a script says."""
    for name in [name for name in os.environ if name.startswith("SBATCH_")]:
        if name not in ("SBATCH_ACCOUNT", "SBATCH_RESERVATION"):
            del os.environ[name]


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as sbatch takes them: 0-3,7."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)

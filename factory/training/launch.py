"""Several processes for one training: a config for accelerate, and what is told to and by them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from factory.artifacts.files import write_atomically
from factory.errors import Interrupted, StageError
from factory.stage.job import Progress
from factory.training import trainers
from factory.training.loop import RESULT, train
from factory.training.resume import STOP, Request
from factory.training.settings import Task

_POLL = 0.1  # seconds between looks at how far they are
_LOOK = 1.0  # seconds between looks of other machines at whether there is something to join


@dataclass(frozen=True)
class Meeting:
    """Several machines that share a training: how many, which of them this is, and where their
    processes meet. `key` tells one attempt from another."""

    machines: int = 1
    rank: int = 0
    address: str = ""
    port: int = 0
    key: str = ""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Meeting:
        """As the script of a job on several nodes says: FACTORY_MEET, and SLURM's own."""
        if not (said := environment.get("FACTORY_MEET")):
            return cls()
        address, _, port = said.rpartition(":")
        return cls(
            int(environment["SLURM_NNODES"]),
            int(environment["SLURM_NODEID"]),
            address,
            int(port),
            f"{environment['SLURM_JOB_ID']}-{environment.get('SLURM_RESTART_COUNT', '0')}",
        )

    def called(self, work: Path) -> Path:
        """The file that calls the other machines to a training."""
        return work / f"meeting-{self.key}"


def run(task: Task, progress: Progress) -> dict[str, Any]:
    """Train here, or in as many processes as `how.processes` asks for; see loop.train."""
    task.work.mkdir(parents=True, exist_ok=True)
    (task.work / STOP).unlink(missing_ok=True)
    if task.how.processes == 1:
        return train(task, progress)
    return _launched(task, progress)


def config(task: Task, device: str, devices: int, meeting: Meeting | None = None) -> dict[str, Any]:
    """accelerate's config for a task on this machine, which may be one of several. Raises
    StageError when it has fewer GPUs than its share of the processes, or none to spread a model
    over."""
    meeting = meeting or Meeting()
    count, share = task.how.processes, _share(task, meeting)
    if device == "cpu" and task.how.strategy == "fsdp":
        raise StageError(
            f"{task.step}: how.strategy is fsdp, and accelerate spreads a model over GPUs alone",
            "set how.strategy: ddp on this machine; the result is the same",
        )
    if device == "cuda" and devices < share:
        raise StageError(
            f"{task.step}: how.processes is {count}, this machine has {devices} GPUs",
            f"set how.processes to {devices * meeting.machines} or less; the batch stays "
            f"{task.batch}",
        )
    found: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU" if device == "cuda" else "MULTI_CPU",
        "num_machines": meeting.machines,
        "num_processes": count,
        "machine_rank": meeting.rank,
        "main_training_function": "main",
        "main_process_port": meeting.port,  # 0 is any that is free
        "mixed_precision": "no",  # the trainer's arguments say it
        "use_cpu": device == "cpu",
    }
    if meeting.machines > 1:
        found |= {"main_process_ip": meeting.address, "rdzv_backend": "static"}
    if task.how.strategy == "fsdp":
        found["distributed_type"] = "FSDP"
        found["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": True,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
            "fsdp_cpu_ram_efficient_loading": False,  # every process reads the base itself
        }
    return found


def _share(task: Task, meeting: Meeting) -> int:
    """How many of the processes are on each machine. Raises StageError."""
    share, odd = divmod(task.how.processes, meeting.machines)
    if odd or not share:
        raise StageError(
            f"{task.step}: {task.how.processes} processes on {meeting.machines} machines",
            f"set how.processes to a multiple of {meeting.machines}",
        )
    return share


def _launched(task: Task, progress: Progress) -> dict[str, Any]:
    told, far = (task.work / name for name in ("task.json", "far.json"))
    (task.work / RESULT).unlink(missing_ok=True)
    far.unlink(missing_ok=True)
    write_atomically(told, task.model_dump_json().encode())
    meeting = Meeting.of(os.environ)
    _share(task, meeting)
    if meeting.machines > 1:
        write_atomically(meeting.called(task.work), b"")
    signalled, code, log = _processes(task, meeting, progress)
    if signalled is not None and not (task.work / RESULT).exists():
        raise Interrupted(
            f"{task.step}: told to stop by {signalled.name}, and a checkpoint is saved",
            "run the same command again: it goes on from the checkpoint",
        )
    if code or not (task.work / RESULT).exists():
        raise StageError(
            f"{task.step}: one of {task.how.processes} processes failed: {_said(log)}", f"see {log}"
        )
    found: dict[str, Any] = json.loads((task.work / RESULT).read_text())
    return found


def join(work: Path, over: Path) -> bool:
    """On another machine than the first: wait for a training in this directory and take part in
    it; returns False when there is none before the file `over` appears. Raises StageError when a
    process here fails; a request to stop ends it well, since the first machine answers for it."""
    meeting = Meeting.of(os.environ)
    while not meeting.called(work).exists():
        if over.exists():
            return False
        time.sleep(_LOOK)
    task = Task.model_validate_json((work / "task.json").read_bytes())
    signalled, code, log = _processes(task, meeting, lambda *told: None)
    if code and signalled is None and not (work / STOP).exists():
        raise StageError(f"{task.step}: a process failed here: {_said(log)}", f"see {log}")
    return True


def _processes(
    task: Task, meeting: Meeting, progress: Progress
) -> tuple[signal.Signals | None, int, Path]:
    """This machine's processes, from their start to their end: which signal came meanwhile, the
    code they ended with, and their log."""
    import torch

    device = trainers.device_of(task)
    beside = f"-{meeting.rank}" if meeting.rank else ""
    told, settings = task.work / "task.json", task.work / f"accelerate{beside}.yaml"
    text = yaml.safe_dump(config(task, device, torch.cuda.device_count(), meeting))
    write_atomically(settings, text.encode())
    log = task.work / f"processes{beside}.log"
    program = ("-m", "factory.training.worker", str(told), str(os.getpid()))
    start: tuple[str, ...]
    if device == "cuda":
        start = ("accelerate.commands.launch", "--config_file", str(settings))
    else:  # accelerate itself starts CPU processes by MPI alone; they meet over gloo
        start = ("torch.distributed.run", *_meet(meeting))
        start += (f"--nproc-per-node={_share(task, meeting)}",)
    command = [sys.executable, "-m", *start, *program]
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with log.open("wb") as file:
        # a group of their own: a signal to ours must reach them as a request, not as an end
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        request = Request(task.work)
        try:
            with request.listening():
                _follow(process, request, task.work / "far.json", progress)
        finally:  # also when something else ends this one
            if process.poll() is None or meeting.rank == 0:
                (task.work / STOP).touch()
            process.wait()
    return request.signal, process.returncode, log


def _meet(meeting: Meeting) -> tuple[str, ...]:
    """torchrun's words for where processes meet."""
    if meeting.machines == 1:
        return ("--standalone",)
    return (
        f"--nnodes={meeting.machines}",
        f"--node-rank={meeting.rank}",
        f"--master-addr={meeting.address}",
        f"--master-port={meeting.port}",
    )


def _said(log: Path) -> str:
    """What a failed process said of its failure, or the last thing that any said."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return next((x for x in reversed(lines) if x.startswith("error: ")), (lines or ["?"])[-1])


def _follow(
    process: subprocess.Popen[bytes], request: Request, far: Path, progress: Progress
) -> None:
    """Tell how far the processes are until they end, and pass on a request to stop."""
    while process.poll() is None:
        if request.made():
            (far.parent / STOP).touch()
        try:
            process.wait(_POLL)
        except subprocess.TimeoutExpired:
            if far.exists():
                done, total = json.loads(far.read_text())
                progress(done, total, "steps")

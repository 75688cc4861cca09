"""Start the processes of one training: accelerate's config, progress and requests to stop."""

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
from factory.engines.transformers import gpu_count
from factory.errors import Interrupted, StageError
from factory.stage.job import Progress
from factory.training import trainers
from factory.training.loop import ERROR, FIX, RESULT, train
from factory.training.resume import STOP, Request
from factory.training.settings import Running, Task

_POLL = 0.1  # seconds between looks at how far they are
_JOIN_POLL = 1.0  # seconds between looks of other machines at whether there is something to join


@dataclass(frozen=True)
class Meeting:
    """Machines that share one training: their number, the rank of this one, and the address
    where processes meet. `key` is unique to one attempt."""

    machines: int = 1
    rank: int = 0
    address: str = ""
    port: int = 0
    key: str = ""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Meeting:
        """Read the meeting from the environment of a SLURM job: FACTORY_MEET and SLURM's own
        variables."""
        if not (meet := environment.get("FACTORY_MEET")):
            return cls()
        address, _, port = meet.rpartition(":")
        return cls(
            int(environment["SLURM_NNODES"]),
            int(environment["SLURM_NODEID"]),
            address,
            int(port),
            f"{environment['SLURM_JOB_ID']}-{environment.get('SLURM_RESTART_COUNT', '0')}",
        )

    def called(self, work: Path) -> Path:
        """Return the file that tells the other machines to join a training."""
        return work / f"meeting-{self.key}"


def run(task: Task, progress: Progress) -> dict[str, Any]:
    """Train in as many processes as `how.processes` says; see loop.train. Where there is a GPU even
    one is another process, which sees one GPU: trainers take all they see, and only the end of a
    process surely frees the memory that a trainer and its vLLM held. On a CPU one is this one."""
    task.work.mkdir(parents=True, exist_ok=True)
    (task.work / STOP).unlink(missing_ok=True)
    if task.processes == 1 and not gpu_count():
        return train(task, progress)
    return _launched(task, progress)


def spread(how: Running, batch: int) -> Running:
    """Return the settings with a number of processes: that of the recipe, or as many as there are
    visible GPUs and can share the batch."""
    if how.processes is not None:
        return how
    counts = range(1, max(1, gpu_count()) + 1)
    most = max(count for count in counts if batch // how.micro_batch % count == 0)
    return how.model_copy(update={"processes": most})


def config(task: Task, device: str, devices: int, meeting: Meeting | None = None) -> dict[str, Any]:
    """Return accelerate's config for this machine's part of a task. Raises StageError when it
    has too few GPUs, or none for fsdp."""
    meeting = meeting or Meeting()
    count, share = task.processes, _share(task, meeting)
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
    settings: dict[str, Any] = {
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
        settings |= {"main_process_ip": meeting.address, "rdzv_backend": "static"}
    if task.how.strategy == "fsdp":
        settings["distributed_type"] = "FSDP"
        settings["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": True,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
            "fsdp_cpu_ram_efficient_loading": False,  # every process reads the base itself
        }
    return settings


def _share(task: Task, meeting: Meeting) -> int:
    """Return the number of processes on each machine. Raises StageError."""
    share, odd = divmod(task.processes, meeting.machines)
    if odd or not share:
        raise StageError(
            f"{task.step}: {task.processes} processes on {meeting.machines} machines",
            f"set how.processes to a multiple of {meeting.machines}",
        )
    return share


def _launched(task: Task, progress: Progress) -> dict[str, Any]:
    task_file, progress_file = (task.work / name for name in ("task.json", "far.json"))
    (task.work / RESULT).unlink(missing_ok=True)
    progress_file.unlink(missing_ok=True)
    write_atomically(task_file, task.model_dump_json().encode())
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
        what, fix = _last_error(log)
        which = f"{task.step}: one of {task.processes} processes failed: "
        raise StageError(f"{which if task.processes > 1 else ''}{what}", fix)
    result: dict[str, Any] = json.loads((task.work / RESULT).read_text())
    return result


def join(work: Path, end_file: Path) -> bool:
    """Wait on a further machine for a training in this directory and take part in it.

    Returns False if the file `end_file` appears first. Raises StageError when a process here
    fails. After a request to stop it returns: the first machine reports it."""
    meeting = Meeting.of(os.environ)
    while not meeting.called(work).exists():
        if end_file.exists():
            return False
        time.sleep(_JOIN_POLL)
    task = Task.model_validate_json((work / "task.json").read_bytes())
    signalled, code, log = _processes(task, meeting, lambda *progress: None)
    if code and signalled is None and not (work / STOP).exists():
        what, fix = _last_error(log)
        raise StageError(f"{task.step}: a process failed here: {what}", fix)
    return True


def _processes(
    task: Task, meeting: Meeting, progress: Progress
) -> tuple[signal.Signals | None, int, Path]:
    """Run this machine's processes to their end. Returns the signal that came meanwhile, the
    exit code and the log file."""
    import torch

    device = trainers.device_of(task)
    suffix = f"-{meeting.rank}" if meeting.rank else ""
    task_file, settings = task.work / "task.json", task.work / f"accelerate{suffix}.yaml"
    text = yaml.safe_dump(config(task, device, torch.cuda.device_count(), meeting))
    write_atomically(settings, text.encode())
    log = task.work / f"processes{suffix}.log"
    program = ("-m", "factory.training.worker", str(task_file), str(os.getpid()))
    environment = dict(os.environ)
    start: tuple[str, ...]
    if task.processes == 1:
        start = ()
        environment |= _one_gpu(os.environ)
    elif device == "cuda":
        start = ("-m", "accelerate.commands.launch", "--config_file", str(settings))
    else:  # accelerate itself starts CPU processes by MPI alone; they meet over gloo
        start = ("-m", "torch.distributed.run", *_meet(meeting))
        start += (f"--nproc-per-node={_share(task, meeting)}",)
    command = [sys.executable, *start, *program]
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with log.open("wb") as file:
        # a group of their own: a signal to ours must reach them as a request, not as an end
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment | {"PYTHONPATH": paths},
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


def _one_gpu(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables that make the first of the visible GPUs the only one."""
    names = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    visible = next(filter(None, map(environment.get, names)), "0")
    return dict.fromkeys(names, visible.split(",")[0])


def _meet(meeting: Meeting) -> tuple[str, ...]:
    """Return torchrun's arguments for where processes meet."""
    if meeting.machines == 1:
        return ("--standalone",)
    return (
        f"--nnodes={meeting.machines}",
        f"--node-rank={meeting.rank}",
        f"--master-addr={meeting.address}",
        f"--master-port={meeting.port}",
    )


def _last_error(log: Path) -> tuple[str, str]:
    """Return the last error that a process wrote to a log, or its last line; and what to do."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    for line, after in zip(lines[-2::-1], lines[:0:-1], strict=True):
        if line.startswith(ERROR) and after.startswith(FIX):
            return line.removeprefix(ERROR), f"{after.removeprefix(FIX)}; see {log}"
    return (lines or ["a process ended without a word"])[-1], f"see {log}"


def _follow(
    process: subprocess.Popen[bytes], request: Request, far: Path, progress: Progress
) -> None:
    """Report progress until the processes end, and pass on a request to stop."""
    while process.poll() is None:
        if request.requested():
            (far.parent / STOP).touch()
        try:
            process.wait(_POLL)
        except subprocess.TimeoutExpired:
            if far.exists():
                done, total = json.loads(far.read_text())
                progress(done, total, "steps")

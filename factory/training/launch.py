"""Several processes for one training: a config for accelerate, and what is told to and by them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from factory.errors import Interrupted, StageError
from factory.shards import write_atomically
from factory.stages.job import Progress
from factory.training import trainers
from factory.training.checkpoints import STOP, Request
from factory.training.loop import RESULT, train
from factory.training.settings import Task

_POLL = 0.1  # seconds between looks at how far they are


def run(task: Task, progress: Progress) -> dict[str, Any]:
    """Train here, or in as many processes as `how.processes` asks for; see loop.train."""
    task.work.mkdir(parents=True, exist_ok=True)
    (task.work / STOP).unlink(missing_ok=True)
    if task.how.processes == 1:
        return train(task, progress)
    return _launched(task, progress)


def config(task: Task, device: str, devices: int) -> dict[str, Any]:
    """accelerate's config for a task on one machine. Raises StageError when it has fewer GPUs, or
    none to spread a model over."""
    count = task.how.processes
    if device == "cpu" and task.how.strategy == "fsdp":
        raise StageError(
            f"{task.step}: how.strategy is fsdp, and accelerate spreads a model over GPUs alone",
            "set how.strategy: ddp on this machine; the result is the same",
        )
    if device == "cuda" and devices < count:
        raise StageError(
            f"{task.step}: how.processes is {count}, this machine has {devices} GPUs",
            f"set how.processes to {devices} or less; the batch stays {task.batch}",
        )
    found: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU" if device == "cuda" else "MULTI_CPU",
        "num_machines": 1,
        "num_processes": count,
        "machine_rank": 0,
        "main_training_function": "main",
        "main_process_port": 0,  # any that is free
        "mixed_precision": "no",  # the trainer's arguments say it
        "use_cpu": device == "cpu",
    }
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


def _launched(task: Task, progress: Progress) -> dict[str, Any]:
    import torch

    device = trainers.device_of(task)
    found = config(task, device, torch.cuda.device_count())
    told, settings, far = (task.work / n for n in ("task.json", "accelerate.yaml", "far.json"))
    (task.work / RESULT).unlink(missing_ok=True)
    far.unlink(missing_ok=True)
    write_atomically(told, task.model_dump_json().encode())
    write_atomically(settings, yaml.safe_dump(found).encode())
    log = task.work / "processes.log"
    program = ("-m", "factory.training.worker", str(told), str(os.getpid()))
    if device == "cuda":
        start = ("accelerate.commands.launch", "--config_file", str(settings))
    else:  # accelerate itself starts CPU processes by MPI alone; they meet over gloo
        start = ("torch.distributed.run", "--standalone", f"--nproc-per-node={task.how.processes}")
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
                _follow(process, request, far, progress)
        finally:  # also when something else ends this one
            (task.work / STOP).touch()
            process.wait()
    if request.signal is not None and not (task.work / RESULT).exists():
        raise Interrupted(
            f"{task.step}: told to stop by {request.signal.name}, and a checkpoint is saved",
            "run the same command again: it goes on from the checkpoint",
        )
    if process.returncode or not (task.work / RESULT).exists():
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        said = next((x for x in reversed(lines) if x.startswith("error: ")), (lines or ["?"])[-1])
        raise StageError(
            f"{task.step}: one of {task.how.processes} processes failed: {said}", f"see {log}"
        )
    result: dict[str, Any] = json.loads((task.work / RESULT).read_text())
    return result


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

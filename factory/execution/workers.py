"""Worker processes for one step on one machine, each with its own shards and GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

from factory.errors import Interrupted, RecipeError, StageError

_GRACE = 60.0  # seconds for a terminated process to end
_BELOW = ("ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")  # read by ROCm underneath HIP
_COMMAND = ("-m", "factory")


def read_part(text: str) -> tuple[int, int]:
    """Parse `i/n` to (i, n): every n-th shard from the i-th on, from 0. Raises RecipeError."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise RecipeError(
            f"{text!r} is not a part of the shards", "write i/n, with i from 0 to n-1"
        )
    return int(number), int(of)


def assigned_gpus(environment: Mapping[str, str]) -> list[str] | None:
    """Return the GPUs of this process as its libraries number them; None if no variable says.

    ROCR_VISIBLE_DEVICES hides GPUs below HIP, which then numbers from 0 what is left; SLURM sets
    it, and on some clusters CUDA_VISIBLE_DEVICES to the same, which HIP would take for numbers
    among what is left ("invalid device ordinal"). So the two are put together here, once.
    """
    below = _listed(environment, "ROCR_VISIBLE_DEVICES")
    above = _listed(environment, "HIP_VISIBLE_DEVICES")
    if above is None:
        above = _listed(environment, "CUDA_VISIBLE_DEVICES")
    if below is None or above is None or below == above:
        return above if below is None else below
    if all(name.isdecimal() and int(name) < len(below) for name in above):
        return [below[int(name)] for name in above]
    return above


def _listed(environment: Mapping[str, str], name: str) -> list[str] | None:
    value = environment.get(name, "").strip()
    return value.split(",") if value else None


def gpu_environments(count: int, gpus: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """Return an environment for each of `count` processes with `gpus` GPUs of its own.

    They are taken from the GPUs of this process; without GPUs this changes nothing. CUDA and ROCm
    read one variable each, and ROCm's libraries want both to agree. Variables that hide GPUs below
    HIP are removed.
    """
    names = assigned_gpus(environment) or [str(number) for number in range(count * gpus)]
    rest = {key: value for key, value in environment.items() if key not in _BELOW}
    environments = []
    for number in range(count):
        own = ",".join(names[number * gpus : (number + 1) * gpus])
        environments.append({**rest, "CUDA_VISIBLE_DEVICES": own, "HIP_VISIBLE_DEVICES": own})
    return environments


class WorkerPool:
    """Pool that starts `factory ARGUMENTS --only STEP --shard i/n` n times and waits for all."""

    def __init__(self, arguments: Sequence[str], note: Callable[[str], None]) -> None:
        self._arguments, self._note = list(arguments), note

    def __call__(self, step: str, count: int, gpus: int) -> None:
        """Run the workers of a step. Raises StageError if one fails (the others are stopped) and
        Interrupted if one was stopped; finished shards are kept."""
        self._note(f"{step}: {count} workers, {gpus} GPUs each if there are GPUs")
        running: list[subprocess.Popen[str]] = []
        readers: list[threading.Thread] = []
        over = threading.Condition()
        try:
            for number, environment in enumerate(gpu_environments(count, gpus, os.environ)):
                part = ["--only", step, "--shard", f"{number}/{count}"]
                process = subprocess.Popen(
                    [sys.executable, *_COMMAND, *self._arguments, *part],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                running.append(process)
                reader = threading.Thread(
                    target=self._pass_on, args=(number, process, over), daemon=True
                )
                reader.start()
                readers.append(reader)
            with over:
                while any(p.poll() is None for p in running) and not _failed(running):
                    over.wait(timeout=1)
            failed = _failed(running)  # on their own: the others are terminated below
        finally:
            _stop(running)
            for reader in readers:
                reader.join(_GRACE)
        if Interrupted.exit_code in failed:
            raise Interrupted(
                f"a worker of {step} was interrupted", "run the same command again to resume"
            )
        if failed:
            raise StageError(
                f"a worker of {step} failed with exit code {failed[0]}",
                "see its output above; finished shards are kept, so run again",
            )

    def _pass_on(
        self, number: int, process: subprocess.Popen[str], over: threading.Condition
    ) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._note(f"  [{number}] {line.rstrip()}")
        process.wait()
        with over:
            over.notify()


def _failed(running: Sequence[subprocess.Popen[str]]) -> list[int]:
    """Return the exit codes of processes that failed."""
    return [code for process in running if (code := process.poll())]


def _stop(running: Sequence[subprocess.Popen[str]]) -> None:
    """Terminate processes that still run; they keep finished shards."""
    alive = [process for process in running if process.poll() is None]
    for process in alive:
        process.terminate()
    for process in alive:
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

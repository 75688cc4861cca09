"""Several processes for one step on one machine, each with shards and GPUs of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from factory.errors import Interrupted, RecipeError, StageError

_GRACE = 60.0  # seconds that a process told to stop is given
_MAIN = "from factory.cli import main; main()"


def read_part(text: str) -> tuple[int, int]:
    """`i/n` as (i, n): every n-th shard from the i-th on, the first being 0. Raises RecipeError."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise RecipeError(
            f"{text!r} is not a part of the shards", "write i/n, with i from 0 to n-1"
        )
    return int(number), int(of)


def visible(count: int, gpus: int, environment: dict[str, str]) -> list[dict[str, str]]:
    """For each of `count` processes the variables that show it `gpus` GPUs of its own, out of
    those that this process was given. On a machine without GPUs they change nothing. CUDA and
    ROCm read one each; ROCm's libraries want both to agree."""
    given = environment.get("HIP_VISIBLE_DEVICES") or environment.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(number) for number in range(count * gpus)]
    found = []
    for number in range(count):
        mine = ",".join(names[number * gpus : (number + 1) * gpus])
        found.append({"CUDA_VISIBLE_DEVICES": mine, "HIP_VISIBLE_DEVICES": mine})
    return found


class Fan:
    """Starts `factory ARGUMENTS --only STEP --shard i/n` n times and waits for all."""

    def __init__(self, arguments: Sequence[str], say: Callable[[str], None]) -> None:
        self._arguments, self._say = list(arguments), say

    def __call__(self, step: str, count: int, gpus: int) -> None:
        """Raises StageError when one of them fails (then the others are told to stop), and
        Interrupted when one was stopped; finished shards are kept."""
        self._say(f"{step}: {count} processes, {gpus} GPUs each where there are any")
        running: list[subprocess.Popen[str]] = []
        readers: list[threading.Thread] = []
        over = threading.Condition()
        try:
            for number, shown in enumerate(visible(count, gpus, dict(os.environ))):
                part = ["--only", step, "--shard", f"{number}/{count}"]
                process = subprocess.Popen(
                    [sys.executable, "-c", _MAIN, *self._arguments, *part],
                    env={**os.environ, **shown},
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
            failed = _failed(running)  # of themselves: the others are told to stop now
        finally:
            _stop(running)
            for reader in readers:
                reader.join(_GRACE)
        if Interrupted.exit_code in failed:
            raise Interrupted(f"a process of {step} was told to stop", "run the same command again")
        if failed:
            raise StageError(
                f"a process of {step} failed with exit code {failed[0]}",
                "its words are above; finished shards are kept, so run again",
            )

    def _pass_on(
        self, number: int, process: subprocess.Popen[str], over: threading.Condition
    ) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._say(f"  [{number}] {line.rstrip()}")
        process.wait()
        with over:
            over.notify()


def _failed(running: Sequence[subprocess.Popen[str]]) -> list[int]:
    """The exit codes of those that ended otherwise than well."""
    return [code for process in running if (code := process.poll())]


def _stop(running: Sequence[subprocess.Popen[str]]) -> None:
    """Tell whoever still runs to keep what is finished and end."""
    left = [process for process in running if process.poll() is None]
    for process in left:
        process.terminate()
    for process in left:
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

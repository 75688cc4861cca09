"""GPUs that a process was given, by its environment, or that the machine has, by its vendor's tool;
torch must find them, or work goes on on the CPU without a word."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from factory.errors import StageError

_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


class Cards(NamedTuple):
    """The GPUs of a machine by the tool of their vendor: `of`, what a torch must be built for."""

    of: str
    number: int
    described: str


def check(
    count: Callable[[], int],
    reason: Callable[[], str],
    by_tool: bool,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Raise StageError where this process was given GPUs that a torch does not find or, `by_tool`,
    where nothing says so and it finds none of those that the machine has: it would work on the CPU
    until its time is over. `count` and `reason` ask that torch."""
    values = [environment[name] for name in _VISIBLE if name in environment]
    n_given = min((_named(value) for value in values if value.strip()), default=0)
    if n_given and (n_found := count()) < n_given:
        raise StageError(
            f"this process was given {n_given} GPUs, and torch finds {n_found}: {reason()}",
            "leave that node out (--exclude), or use a container whose torch fits its driver; on a "
            f"machine without GPUs unset {', '.join(_VISIBLE)}",
        )
    if values or not by_tool or count() or (cards := listed()) is None:
        return
    raise StageError(
        f"this machine has {cards.described}, and torch finds none: {reason()}",
        f"install a torch that is built for {cards.of}, at most as new as the driver; to work on "
        f"the CPU, say so with how.engine: transformers, or hide the GPUs: export {_VISIBLE[0]}=",
    )


def _named(value: str) -> int:
    """Count the GPUs in the value of a variable that makes GPUs visible."""
    names = [name.strip() for name in value.split(",")]
    hidden = ("", "-1", "NoDevFiles", "none", "void")
    return next((n for n, name in enumerate(names) if name in hidden), len(names))


def listed() -> Cards | None:
    """Return the GPUs that nvidia-smi or rocm-smi lists; None without the tool or its driver."""
    return _nvidia() or _amd()


def _nvidia() -> Cards | None:
    done = output_of(
        ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    )
    if done is None or done.returncode or not done.stdout.strip():
        return None
    lines = [
        [part.strip() for part in line.split(",")]
        for line in done.stdout.split("\n")
        if line.strip()
    ]
    name, memory, driver = lines[0]
    return Cards("CUDA", len(lines), f"{len(lines)} x {name}, {memory} each, driver {driver}")


def _amd() -> Cards | None:
    done = output_of(["rocm-smi", "--showproductname", "--showdriverversion", "--json"])
    try:
        output: dict[str, dict[str, Any]] = json.loads(done.stdout) if done else {}
    except ValueError:
        return None
    cards = [facts for name, facts in output.items() if name.startswith("card")]
    if not cards:
        return None
    name = next((v for k, v in cards[0].items() if k.lower() == "card series"), "AMD GPU")
    driver = output.get("system", {}).get("Driver version", "unknown")
    return Cards("ROCm", len(cards), f"{len(cards)} x {name}, driver {driver}")


def output_of(
    command: Sequence[str], patience: float = 20.0, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str] | None:
    """Run a program with captured output; None if it is absent or takes too long."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=patience, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None

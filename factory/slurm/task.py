"""Set up a task on a node: its shards and GPUs, and offline mode."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from factory.errors import StageError
from factory.execution import workers
from factory.hub.environment import QUIET
from factory.slurm.script import OFFLINE


def part(number: int, of: int, engines: int, environment: Mapping[str, str]) -> tuple[int, int]:
    """Return the shards of this process, one of `engines` on a node, by srun's number."""
    return number * engines + _place(engines, environment), of * engines


def _place(engines: int, environment: Mapping[str, str]) -> int:
    if engines == 1:
        return 0
    rank = environment.get("SLURM_PROCID", "")
    if not rank.isdecimal() or int(rank) >= engines:
        raise StageError(
            f"one of {engines} engines, and SLURM_PROCID is {rank or 'not set'}",
            "start it with srun, as the script does",
        )
    return int(rank)


def show_gpus(engines: int, gpus: int, environment: MutableMapping[str, str]) -> None:
    """Make only this process's GPUs visible. Raises StageError when the job has fewer than the
    script asked for: it would run on the CPU."""
    if not gpus:
        return
    names = workers.assigned_gpus(environment)
    if names is not None and len(names) < engines * gpus:
        raise StageError(
            f"{engines} engines of {gpus} GPUs, but the job has {len(names)}",
            "check gpus: and gpu_request: in the site's file",
        )
    environments = workers.gpu_environments(engines, gpus, environment)
    _become(environment, environments[_place(engines, environment)])


def show_all(environment: MutableMapping[str, str]) -> None:
    """Make all GPUs of the job visible, by one variable."""
    if names := workers.assigned_gpus(environment):
        _become(environment, workers.gpu_environments(1, len(names), environment)[0])


def check_gpus(gpus: int) -> None:
    """Raise StageError, with torch's own reason, when it sees fewer GPUs than this process was
    given: the process would work on the CPU until its time is over. Without torch here, the
    engine's own environment checks."""
    if not gpus or importlib.util.find_spec("torch") is None:
        return
    from factory.engines.transformers import gpu_count, gpu_failure

    if (visible := gpu_count()) < gpus:
        raise StageError(
            f"this task was given {gpus} GPUs, and sees {visible} on {platform.node()}; "
            f"{gpu_failure()}",
            "install a torch for these GPUs and this driver, or correct gpu: and gpu_options: in "
            "the site's file; factory doctor --site NAME --job checks it",
        )


def _become(environment: MutableMapping[str, str], variables: Mapping[str, str]) -> None:
    for name in [name for name in environment if name not in variables]:
        del environment[name]
    environment.update(variables)


def cut_off(environment: MutableMapping[str, str], directory: Path) -> None:
    """Tell every library that there is no network. HF_HOME points to the home's cache, unless
    the site set it."""
    environment.update(OFFLINE)
    for name, value in QUIET.items():
        environment.setdefault(name, value)
    # below <home>/slurm/<org>-<recipe>/<number>
    environment.setdefault("HF_HOME", str(directory.absolute().parents[2] / "cache"))

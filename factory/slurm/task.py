"""What a task does on a node before it works: which shards and GPUs are its own, and that nothing
of it looks for a network."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path

from factory.errors import StageError
from factory.execution import workers
from factory.hub.environment import QUIET
from factory.slurm.script import OFFLINE


def part(number: int, of: int, engines: int, environment: Mapping[str, str]) -> tuple[int, int]:
    """The shards of this process: of `engines` on a node, the one that srun says it is."""
    return number * engines + _place(engines, environment), of * engines


def _place(engines: int, environment: Mapping[str, str]) -> int:
    if engines == 1:
        return 0
    said = environment.get("SLURM_PROCID", "")
    if not said.isdecimal() or int(said) >= engines:
        raise StageError(
            f"one of {engines} engines, and SLURM_PROCID is {said or 'not set'}",
            "start it with srun, as the script does",
        )
    return int(said)


def show_gpus(engines: int, gpus: int, environment: MutableMapping[str, str]) -> None:
    """Let this process see its own GPUs and no others. Raises StageError when the job was given
    fewer than the script asked for: it would go on without them, on the CPU."""
    if not gpus:
        return
    names = workers.assigned_gpus(environment)
    if names is not None and len(names) < engines * gpus:
        raise StageError(
            f"{engines} engines of {gpus} GPUs, and the job was given {len(names)}",
            "look at gpus: and gpu_request: of the site's file",
        )
    environments = workers.gpu_environments(engines, gpus, environment)
    _become(environment, environments[_place(engines, environment)])


def show_all(environment: MutableMapping[str, str]) -> None:
    """Let this process see all GPUs of its job, said in one way."""
    if names := workers.assigned_gpus(environment):
        _become(environment, workers.gpu_environments(1, len(names), environment)[0])


def _become(environment: MutableMapping[str, str], wanted: Mapping[str, str]) -> None:
    for name in [name for name in environment if name not in wanted]:
        del environment[name]
    environment.update(wanted)


def cut_off(environment: MutableMapping[str, str], directory: Path) -> None:
    """Tell every library that there is no network. Where the home's caches are is said too, unless
    the site has said it: what was brought lies there."""
    environment.update(OFFLINE)
    for name, value in QUIET.items():
        environment.setdefault(name, value)
    # below <home>/slurm/<org>-<recipe>/<number>
    environment.setdefault("HF_HOME", str(directory.absolute().parents[2] / "cache"))

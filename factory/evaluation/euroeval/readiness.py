"""Check what a run of EuroEval needs of the machine beside models and data, before anything else is
run: no other step's time is spent on what cannot be evaluated here."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from factory.artifacts.resources import install_command
from factory.engines import devices
from factory.errors import FactoryError, InputError, StageError
from factory.evaluation.euroeval import environment
from factory.evaluation.euroeval.environment import Backend
from factory.evaluation.euroeval.suites import Version, registry

# Variables that say where these things are: where another machine sets one, this one cannot tell.
SAID_BY = ("FACTORY_EUROEVAL", "NLTK_DATA", "OPENAI_BASE_URL")
_COUNTS_SENTENCES = "instruction-following"  # the task whose metric reads NLTK's punkt_tab


def lacking(
    backend: Backend, place: str | None, benchmarks: Iterable[str], version: Version
) -> list[FactoryError]:
    """Return what these benchmarks lack: EuroEval's environment (`place`, where a recipe names
    one), the data of NLTK in it, a server or what starts one. GPUs are not looked at: where
    a line is handed in there may be others than where it runs."""
    looks: list[Callable[[], None]] = [
        lambda: refuse_without_punkt(
            python(backend, place, version), backend, place, benchmarks, version
        )
    ]
    if backend == "openai":
        looks.append(refuse_without_server)
    errors = []
    for look in looks:
        try:
            look()
        except FactoryError as error:
            errors.append(error)
    return errors


def python(backend: Backend, place: str | None, version: Version) -> Path:
    """Return the Python of EuroEval's environment. Raises StageError."""
    return environment.python(backend, Path(place).expanduser() if place else None, version)


def refuse_without_punkt(
    binary: Path,
    backend: Backend,
    place: str | None,
    benchmarks: Iterable[str],
    version: Version,
) -> None:
    """Raise InputError where one of the benchmarks counts sentences and the Python cannot."""
    known = registry(version)
    tasks = {name: known[name].task for name in benchmarks if name in known}
    needing = [name for name, task in tasks.items() if task == _COUNTS_SENTENCES]
    why = environment.without_punkt(binary) if needing else None
    if why is None:
        return
    data = binary.parents[1] / "nltk_data"
    fix = environment.remedy(backend, version)
    if place:
        fix = f"{binary} -m nltk.downloader -d {data} punkt_tab"
    raise InputError(
        f"{needing[0]} counts sentences with NLTK: {why}",
        f"where there is a network: {fix}; or leave that benchmark out",
    )


def refuse_without_gpus(binary: Path) -> None:
    """Raise StageError where the Python's torch does not find the GPUs that should be there."""
    counted = functools.cache(environment.gpus)
    devices.check(lambda: counted(binary)[0], lambda: counted(binary)[1], by_tool=True)


def refuse_without_server() -> None:
    """Raise StageError where there is neither a server nor the vLLM that would be one."""
    if not os.environ.get("OPENAI_BASE_URL") and importlib.util.find_spec("vllm") is None:
        raise StageError(
            "backend openai starts a server of vLLM, which is not installed",
            f"{install_command('vllm')}, or name a server with OPENAI_BASE_URL",
        )

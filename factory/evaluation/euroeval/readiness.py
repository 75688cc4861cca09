"""What a run of EuroEval needs of the machine beside models and data. It can be looked at before
anything else is run, so that no other step's time is spent on what cannot be evaluated here."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from factory.errors import FactoryError, InputError, StageError
from factory.evaluation.euroeval import environment
from factory.evaluation.euroeval.environment import Backend
from factory.evaluation.euroeval.suites import registry

# Variables that say where these things are: where another machine sets one, this one cannot tell.
SAID_BY = ("FACTORY_EUROEVAL", "NLTK_DATA", "OPENAI_BASE_URL")
_COUNTS_SENTENCES = "instruction-following"  # the task whose metric reads NLTK's punkt_tab


def lacking(backend: Backend, given: str | None, benchmarks: Iterable[str]) -> list[FactoryError]:
    """All that is not as these benchmarks need it: EuroEval's environment (`given`, where a recipe
    names one), the data of NLTK in it, a server or what starts one. GPUs are not looked at: where
    a line is handed in there may be others than where it runs."""
    looks: list[Callable[[], None]] = [
        lambda: refuse_without_punkt(python(backend, given), backend, given, benchmarks)
    ]
    if backend == "openai":
        looks.append(refuse_without_server)
    found = []
    for look in looks:
        try:
            look()
        except FactoryError as error:
            found.append(error)
    return found


def python(backend: Backend, given: str | None) -> Path:
    """The Python of EuroEval's environment. Raises StageError."""
    return environment.python(backend, Path(given).expanduser() if given else None)


def refuse_without_punkt(
    binary: Path, backend: Backend, given: str | None, benchmarks: Iterable[str]
) -> None:
    """Raises InputError where one of the benchmarks counts sentences and the Python cannot."""
    needing = [name for name in benchmarks if registry()[name].task == _COUNTS_SENTENCES]
    why = environment.without_punkt(binary) if needing else None
    if why is None:
        return
    data = binary.parents[1] / "nltk_data"
    fix = (
        f"{binary} -m nltk.downloader -d {data} punkt_tab" if given else environment.remedy(backend)
    )
    raise InputError(
        f"{needing[0]} counts sentences with NLTK: {why}",
        f"where there is a network: {fix}; or leave that benchmark out",
    )


def refuse_without_server() -> None:
    """Raises StageError where there is neither a server nor the vLLM that would be one."""
    if not os.environ.get("OPENAI_BASE_URL") and importlib.util.find_spec("vllm") is None:
        raise StageError(
            "backend openai starts a server of vLLM, which is not installed",
            "pip install 'croco-factory[vllm]', or name a server with OPENAI_BASE_URL",
        )

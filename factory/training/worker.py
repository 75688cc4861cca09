"""One process of a training, started by accelerate: python -m factory.training.worker TASK PID."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from factory.artifacts.files import write_atomically
from factory.errors import FactoryError, Interrupted
from factory.training import loop
from factory.training.settings import Task


def main(task_file: str, starter: str) -> int:
    """Do this process's part of the task in `task_file`; the main process writes the result."""
    task = Task.model_validate_json(Path(task_file).read_bytes())
    is_main = os.environ.get("RANK", "0") == "0"

    def progress(done: int, total: int, unit: str, tokens: int = 0) -> None:
        if is_main:
            write_atomically(task.work / "far.json", json.dumps([done, total]).encode())

    try:
        result = loop.train(task, progress, int(starter))
    except Interrupted:
        return 0  # the starter knows, or is gone
    except FactoryError as error:
        lines = f"{loop.ERROR}{error.what}\n{loop.FIX}{error.fix}"
        print(lines, file=sys.stderr, flush=True)  # noqa: T201
        return 1
    if is_main:
        loop.write(task, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))

"""Checkpoints of a training under way: which are whole, and how one is asked for by a signal."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

COMPLETE = "complete"  # written into a checkpoint last: a half-written one is not resumed from
STOP = "stop"  # a file that asks every process of a training to save and end


def last_checkpoint(directory: Path) -> str | None:
    """The newest whole checkpoint, if any; half-written ones are removed."""
    found = []
    for path in directory.glob("checkpoint-*"):
        if (path / COMPLETE).exists():
            found.append(path)
        else:
            shutil.rmtree(path)
    newest = max(found, key=lambda path: int(path.name.split("-")[1]), default=None)
    return str(newest) if newest else None


class Request:
    """Whether this training is to save a checkpoint and end: a signal came to this process, the
    file `stop` lies in its directory, or the process that started it is gone."""

    def __init__(self, directory: Path, starter: int | None = None) -> None:
        self._file, self._starter = directory / STOP, starter
        self.signal: signal.Signals | None = None

    def made(self) -> bool:
        """Asked once a step; costs a system call or two."""
        if self._starter is not None:
            try:
                os.kill(self._starter, 0)
            except ProcessLookupError:
                return True
        return self.signal is not None or self._file.exists()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and SIGUSR1 (SLURM's warning) as a request, instead of ending at once.

        Only a main thread can; anywhere else signals stay whose they were.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _: FrameType | None) -> None:
            self.signal = signal.Signals(number)

        wanted = (signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, ask) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

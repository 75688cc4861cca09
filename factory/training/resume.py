"""Checkpoints of a training in progress: find the complete ones, and stop on request."""

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
    """Return the newest complete checkpoint, if any; incomplete ones are removed."""
    complete = []
    for path in directory.glob("checkpoint-*"):
        if (path / COMPLETE).exists():
            complete.append(path)
        else:
            shutil.rmtree(path)
    newest = max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)
    return str(newest) if newest else None


class Request:
    """Request to save a checkpoint and stop: a signal to this process, the file `stop` in its
    directory, or the end of the process that started it."""

    def __init__(self, directory: Path, starter: int | None = None) -> None:
        self._file, self._starter = directory / STOP, starter
        self.signal: signal.Signals | None = None

    def requested(self) -> bool:
        """Return whether a stop was requested. Called once a step; costs a system call or two."""
        if self._starter is not None:
            try:
                os.kill(self._starter, 0)
            except ProcessLookupError:
                return True
        return self.signal is not None or self._file.exists()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and SIGUSR1 (SLURM's warning) as a request, instead of ending at once.

        Only a main thread can; elsewhere signals keep their handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _: FrameType | None) -> None:
            self.signal = signal.Signals(number)

        signals = (signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, ask) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

"""Progress of a transfer: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from threading import Lock
from typing import Any

_EVERY = 30.0  # seconds between plain lines


class Bar:
    """Progress bar of bytes and rate for one repo after another; `quiet` shows nothing."""

    def __init__(self, quiet: bool = False) -> None:
        from factory.cli.console import console

        self._console, self._quiet = console, quiet
        self._lock = Lock()
        self._what, self._total, self._done = "", 0, 0
        self._began = self._noted_at = time.monotonic()
        self._progress: Any = None
        self._task: Any = None

    def begin(self, what: str, size: int) -> None:
        """Start on a repo of `size` bytes."""
        self.stop()
        self._what, self._total, self._done = what, size, 0
        self._began = self._noted_at = time.monotonic()
        if self._console.is_terminal and size and not self._quiet:
            from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

            self._progress = Progress(
                "{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                console=self._console, transient=True,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task(what, total=size)

    def moved(self, size: int) -> None:
        """Add `size` bytes that have arrived."""
        with self._lock:
            self._done += size
            now = time.monotonic()
            if self._progress is not None:
                self._progress.update(self._task, completed=self._done)
            elif now - self._noted_at > _EVERY and not self._quiet:
                self._noted_at = now
                rate = format_bytes(self._done / (now - self._began))
                so_far = f"{format_bytes(self._done)} of {format_bytes(self._total)}"
                self._console.print(f"{self._what}: {so_far}, {rate}/s")

    def stop(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def format_bytes(size: float) -> str:
    """Format a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"

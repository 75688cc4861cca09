"""The highest resident memory of this process, for benchmarks that measure it."""

from __future__ import annotations

import os
import threading
from pathlib import Path


class Peak(threading.Thread):
    """The highest resident memory of this process while it runs, by looking every 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.base = self.top = resident()
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.005):
            self.top = max(self.top, resident())

    def stop(self) -> float:
        """MB above where it stood at first."""
        self._over.set()
        self.join()
        return (max(self.top, resident()) - self.base) / 1e6


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

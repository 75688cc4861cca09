"""A guard that ends an engine's processes when the process that started them is gone.

vLLM's outlive a kill -9 of the one they work for, and keep the memory of the device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# Reads until the other end of its input is closed, which the system does for the dead as well.
# A process id may have gone to somebody else by then: the time of birth tells them apart.
_WATCH = """
import os, signal, sys
sys.stdin.buffer.read()
for word in sys.argv[1:]:
    pid, born = word.split(":")
    try:
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[19] == born:
                os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""


class Guard:
    """Guard over the processes that began below this one since `before`, what `descendants` gave
    then: the local hub's server may be below it too. Does nothing without /proc (not Linux)."""

    def __init__(self, before: Mapping[int, str]) -> None:
        below = dict(descendants().items() - before.items())
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WATCH, *(f"{pid}:{born}" for pid, born in below.items())],
            stdin=subprocess.PIPE,
            start_new_session=True,  # a signal to our group is not for the guard
        )

    def dismiss(self) -> None:
        """End the remaining processes, and the guard."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def descendants(of: int | None = None) -> dict[int, str]:
    """Return the process ids below this process or `of`, each with its start time."""
    parents, born = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        pid = int(stat.parent.name)
        parents[pid], born[pid] = int(fields[1]), fields[19]
    top = of or os.getpid()
    processes = {top}
    while more := {pid for pid, parent in parents.items() if parent in processes} - processes:
        processes |= more
    return {pid: born[pid] for pid in sorted(processes - {top})}

"""File locks between processes: waited for or refused, and released by death."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from factory.artifacts.files import file_lock
from factory.errors import WorkError

LOCK = """
import sys, time
from pathlib import Path
from factory.artifacts.files import file_lock
with file_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_refused_while_another_process_has_it_and_free_when_it_is_killed(
    tmp_path: Path,
) -> None:
    holder = subprocess.Popen([sys.executable, "-c", LOCK, tmp_path], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
        busy = WorkError("in use", "wait")
        with pytest.raises(WorkError, match="in use"), file_lock(tmp_path, in_use=busy):
            pass
        with file_lock(tmp_path, "another", busy):
            pass
    finally:
        holder.kill()
        holder.wait()
    with file_lock(tmp_path, in_use=busy):
        pass


def test_threads_wait_for_one_another(tmp_path: Path) -> None:
    count = 0

    def add() -> None:
        nonlocal count
        for _ in range(10):
            with file_lock(tmp_path / "made"):
                before = count
                time.sleep(0.001)
                count = before + 1

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 30
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["settling"]

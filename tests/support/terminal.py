"""A command on a real terminal: a pseudo-terminal of 100 columns, as a person sits before."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>])")


def plain(shown: str) -> str:
    """Remove colours and cursor movements from what a terminal was sent."""
    return _ESCAPE.sub("", shown).replace("\r", "")


def clean_environment(**more: str) -> dict[str, str]:
    """Return this environment without anything that would set up a Hub client."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "FACTORY_", "TQDM"))
        and key not in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR")
    }
    return {**kept, **more}


def on_terminal(
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    *,
    keys: Sequence[tuple[str, str]] = (),
    interrupt: str | None = None,
    timeout: float = 60,
) -> tuple[str, int]:
    """Run a command on a terminal until it ends; return all that it was sent, and its exit code.

    keys: (prompt, input) in order: `input` is typed when `prompt` shows up after what was there
    before. interrupt: send Ctrl-C once this shows up. A command that is still running after
    `timeout` seconds is killed.
    """
    ours, theirs = pty.openpty()
    size = {"COLUMNS": "100", "LINES": "40"} if "COLUMNS" not in environment else {}
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={"TERM": "xterm-256color", **size, **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown, seen, waiting = b"", 0, list(keys)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # nobody holds the other end any longer
                break
        if waiting and waiting[0][0].encode() in shown[seen:]:
            seen = len(shown)
            os.write(ours, waiting.pop(0)[1].encode())
        if interrupt is not None and interrupt.encode() in shown:
            process.send_signal(signal.SIGINT)
            interrupt = None
    else:
        process.kill()
    os.close(ours)
    return shown.decode(errors="replace"), process.wait(10)

"""Programs that a run starts: each in a process group of its own, which is ended with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from factory.artifacts.resources import install_command
from factory.errors import StageError, redact

_LOOK = 0.2  # seconds between looks at whether it has ended
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_TAIL = 3  # lines of a log in a message
# EuroEval wants a label as JSON in ten tokens. Where blanks are allowed between its parts, a small
# model spends them on blanks, and what is cut off counts as whatever label is nearest.
_COMPACT = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})
# Ends a group when the process that started it is gone: kill -9 leaves no time to do so.
_WATCH = """
import os, signal, sys
sys.stdin.buffer.read()
try:
    os.killpg(int(sys.argv[1]), signal.SIGKILL)
except OSError:
    pass
"""


@contextmanager
def running(
    command: Sequence[str], directory: Path, log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` while the block runs, with its output in `log`. All of its group is ended with
    the block, and when this process is killed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(
            list(command),
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    watch = subprocess.Popen(
        [sys.executable, "-S", "-c", _WATCH, str(process.pid)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end(process)
        watch.kill()
        assert watch.stdin is not None
        watch.stdin.close()
        watch.wait()


def finish(process: subprocess.Popen[bytes], seconds: float, stop: threading.Event) -> str:
    """Wait for a program, at most so long, or until `stop` is set. Returns how it
    ended, in words."""
    end = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() > end:
            return f"ended after {round(seconds, 1):g} s, the limit"
        if stop.wait(_LOOK):
            return "told to stop"
    return f"exit code {process.returncode}"


def tail(log: Path, lines: int = _TAIL) -> str:
    """Return the last lines of a log that are not blank, as one line."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    parts = [part for line in text.splitlines() if (part := line.rpartition("\r")[2].strip())]
    return redact(" | ".join(parts[-lines:]))[-600:]


@contextmanager
def served(
    model: Path,
    name: str,
    dtype: str,
    max_context: int | None,
    eager: bool,
    log: Path,
    patience: float,
) -> Iterator[str]:
    """Run vLLM's OpenAI server for the model in a directory, on this machine alone, while the block
    runs; `eager`: without the compilation that takes minutes on a CPU. Yields its address. Raises
    StageError when it does not come up."""
    port = _free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(model), "--served-model-name", name, "--host", "127.0.0.1",
        "--port", str(port), "--dtype", dtype,
        *(["--max-model-len", str(max_context)] if max_context else []),
        *(["--enforce-eager"] if eager else []),
        "--structured-outputs-config", _COMPACT,
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, **offline}
    environment.pop("OPENAI_API_KEY", None)
    with running(command, log.parent, log, environment) as process:
        address = f"http://127.0.0.1:{port}/v1"
        end = time.monotonic() + patience
        while name not in models(address):
            if process.poll() is not None or time.monotonic() > end:
                raise StageError(
                    f"vLLM does not serve {model.name}: {tail(log) or 'it says nothing'}",
                    f"see {log}; vLLM is an extra: {install_command('vllm')}",
                )
            time.sleep(_LOOK)
        yield address


def models(address: str) -> list[str]:
    """Return the models that a server has; none while it does not answer."""
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/models", timeout=10) as reply:
            return [str(model["id"]) for model in json.load(reply)["data"]]
    except (OSError, ValueError, KeyError, TypeError, urllib.error.URLError):
        return []


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process group: SIGTERM, then SIGKILL. Its head may be gone already."""
    for number, seconds in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.05)

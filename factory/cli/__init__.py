"""The command line: each command parses, calls one function, prints."""

from __future__ import annotations

import errno
import sys
import traceback
from datetime import datetime

import typer

from factory.artifacts.resources import home_path, install_command
from factory.cli import (
    card,
    chat,
    check,
    doctor,
    export,
    hub,
    new,
    pairs,
    push_pull,
    report,
    reproduce,
    results,
    run,
    serve,
    slurm,
)
from factory.cli.app import app
from factory.errors import FactoryError, redact, visible

# each hangs its commands on app
__all__ = [
    "app", "card", "chat", "check", "doctor", "export", "hub", "main", "new", "pairs", "push_pull",
    "report", "reproduce", "results", "run", "serve", "slurm",
]  # fmt: skip


# What the package alone leaves out: see the extra `train` in pyproject.toml.
_EXTRA = ("torch", "transformers", "datasets", "trl", "peft", "accelerate", "gguf", "safetensors")
_STOPPED = 130  # exit code of shells for Ctrl-C
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 the user can fix it, 2 defect, 75 interrupted."""
    try:
        code = app(prog_name="factory", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = _STOPPED
    except Exception as error:  # noqa: BLE001  (the last stop)
        message, code = error_message(error)
        print(visible(message, keep="\n\t"), file=sys.stderr)
    if code == _STOPPED:  # typer makes an exit code of Ctrl-C by itself
        print("\nstopped; run the same command again to resume", file=sys.stderr)
    sys.exit(code)


def error_message(error: Exception) -> tuple[str, int]:
    """Return the text of an error for people, and the exit code."""
    match error:
        case FactoryError():
            every = (error, *error.also)
            return "\n".join(f"error: {e.what}\n  fix: {e.fix}" for e in every), error.exit_code
        case typer.TyperException():
            format_message = getattr(error, "format_message", None)
            message = redact(str(format_message() if format_message else error))
            if "\n" in message:  # a group without a command: the message is its help
                return message, 1
            context = getattr(error, "ctx", None)
            where = context.command_path if context is not None else "factory"
            options = [] if context is None else [o for p in context.command.params for o in p.opts]
            output = getattr(error, "option_name", "") in ("-o", "--out", "--output")
            meant = "--to names where to write; " if output and "--to" in options else ""
            return f"error: {message}\n  fix: {meant}see {where} --help", 1
        case ModuleNotFoundError() if (error.name or "").partition(".")[0] in _EXTRA:
            fix = f"{install_command('train')}; factory doctor says what else is missing"
            return f"error: {error.name} is not installed\n  fix: {fix}", 1
        case OSError() if error.errno in _DISK:
            where = f"{error.filename}: " if error.filename else ""
            fix = "free some space, check permissions, or set FACTORY_HOME to another disk"
            return f"error: {where}{error.strerror}\n  fix: {fix}", 1
    return _defect(error), 2


def _defect(error: Exception) -> str:
    """Return the text of a defect and write its log."""
    first = redact((str(error).strip() or repr(error)).splitlines()[0])
    summary = f"failed: {type(error).__name__}: {first}"
    log = home_path() / "log" / f"{datetime.now():%Y%m%d-%H%M%S}.log"
    trace = redact("".join(traceback.format_exception(error)))
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(trace)
    except OSError:  # nowhere to put it
        return f"{trace}{summary}\n  fix: report it with the traceback above; finished work is kept"
    return f"{summary}\n  fix: report it with the log at {log}; finished work is kept"

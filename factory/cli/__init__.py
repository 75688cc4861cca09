"""The command line: each command parses, calls one function, prints."""

from __future__ import annotations

import sys
import traceback
from datetime import datetime

import typer

from factory.cli import again, card, check, doctor, hub, line, pairs, slurm, sync, use
from factory.cli.app import app, home_path
from factory.errors import FactoryError
from factory.redaction import redact

# each hangs its commands on app
__all__ = [
    "again", "app", "card", "check", "doctor", "hub", "line", "main", "pairs", "slurm", "sync",
    "use",
]  # fmt: skip


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 the user can fix it, 2 a defect, 75 told to stop."""
    try:
        code = app(standalone_mode=False) or 0
    except FactoryError as error:
        print(f"error: {error.what}\n  fix: {error.fix}", file=sys.stderr)
        code = error.exit_code
    except typer.TyperException as error:
        told = getattr(error, "format_message", None)
        message = redact(str(told() if told else error))
        helped = "\n" in message  # a group without a command: the message is its help
        print(
            message if helped else f"error: {message}\n  fix: see factory --help", file=sys.stderr
        )
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        code = 130
    except Exception as error:  # noqa: BLE001  (the last stop: a defect, told with its log)
        log = home_path() / "log" / f"{datetime.now():%Y%m%d-%H%M%S}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(redact(traceback.format_exc()))
        first = redact((str(error).strip() or repr(error)).splitlines()[0])
        print(
            f"failed: {type(error).__name__}: {first}\n  fix: report it with the log at {log}; "
            "finished work is kept",
            file=sys.stderr,
        )
        code = 2
    sys.exit(code)

"""The command line: each command parses, calls one function, prints."""

from __future__ import annotations

import os
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from factory import __version__
from factory.errors import FactoryError

app = typer.Typer(
    name="factory",
    help="One recipe becomes a collection of datasets and adapters on a Hugging Face Hub.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def home_path() -> Path:
    """Where the factory keeps its state: $FACTORY_HOME, else ./.factory."""
    return Path(os.environ.get("FACTORY_HOME") or ".factory").absolute()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"croco-factory {__version__}\nstate in {home_path()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Version, and where."),
    ] = False,
) -> None:
    """One recipe becomes a collection of datasets and adapters on a Hugging Face Hub."""


from factory.cli import hub, line, sync  # noqa: E402  (they register their commands on app)

__all__ = ["app", "hub", "line", "main", "sync"]


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 the user can fix it, 2 a defect, 75 told to stop."""
    try:
        code = app(standalone_mode=False) or 0
    except FactoryError as error:
        print(f"error: {error.what}\n  fix: {error.fix}", file=sys.stderr)
        code = error.exit_code
    except typer.TyperException as error:
        message = str(getattr(error, "format_message", lambda: error)())
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
        log.write_text(traceback.format_exc())
        first = (str(error).strip() or repr(error)).splitlines()[0]
        print(
            f"failed: {type(error).__name__}: {first}\n  fix: report it with the log at {log}; "
            "finished work is kept",
            file=sys.stderr,
        )
        code = 2
    sys.exit(code)

"""The application that every command hangs on, and where its state is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from factory import __version__

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

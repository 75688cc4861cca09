"""doctor: is this machine ready, and what to do where it is not."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.app import app
from factory.cli.line import Json

if TYPE_CHECKING:
    from factory.doctor import Check


@app.command()
def doctor(
    install: Annotated[
        str | None,
        typer.Option("--install", help="Make what a stage needs beside: euroeval, euroeval-vllm."),
    ] = None,
    json_: Json = False,
) -> None:
    """Is this machine ready? One line for each thing, with its fix."""
    if install is not None:
        _install(install)
        return
    found = _checks()
    if json_:
        typer.echo(json.dumps([asdict(check) for check in found], indent=1))
    else:
        for check in found:
            typer.echo(f"{check.state:8} {check.name}: {check.seen}")
            if check.state != "ok":
                typer.echo(f"         fix: {check.fix}")
    if any(check.state == "failed" for check in found):
        raise typer.Exit(1)


def _install(name: str) -> None:
    from factory.euroeval import environment

    typer.echo(f"EuroEval is at {environment.install(name, typer.echo)}")


def _checks() -> list[Check]:
    import platform

    from factory.doctor import Check
    from factory.euroeval import environment

    return [Check("Python", "ok", platform.python_version()), *environment.check()]

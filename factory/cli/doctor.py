"""doctor: is this machine ready, and what to do where it is not."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.app import app, home_path
from factory.cli.line import Json

if TYPE_CHECKING:
    from factory.doctor import Check


SiteName = Annotated[str | None, typer.Option("--site", help="Look at this cluster instead.")]
JobToo = Annotated[bool, typer.Option("--job", help="With --site: from inside jobs, too.")]


@app.command()
def doctor(json_: Json = False, site: SiteName = None, job: JobToo = False) -> None:
    """Is this machine ready? One line for each thing, with its fix."""
    found = _site(site, job) if site else _checks()
    if json_:
        typer.echo(json.dumps([asdict(check) for check in found], indent=1))
    else:
        for check in found:
            typer.echo(f"{check.state:8} {check.name}: {check.seen}")
            if check.state != "ok":
                typer.echo(f"         fix: {check.fix}")
    if any(check.state == "failed" for check in found):
        raise typer.Exit(1)


def _site(site: str, job: bool) -> list[Check]:
    from factory.slurm import look
    from factory.slurm import site as sites

    return look.check(sites.load(site, home_path()), home_path(), job)


def _checks() -> list[Check]:
    import platform

    from factory.doctor import Check

    return [Check("Python", "ok", platform.python_version())]

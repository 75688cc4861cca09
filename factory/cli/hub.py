"""factory hub: the local hub, by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Annotated

import typer

from factory.cli.app import app, home_path

hub = typer.Typer(help="The local hub: a Hugging Face Hub on your disk.", no_args_is_help=True)
app.add_typer(hub, name="hub")


@hub.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def exec(command: Annotated[list[str], typer.Argument(help="The command, after --.")]) -> None:
    """Run any command with its Hub clients pointed at the local hub."""
    from factory.errors import RecipeError
    from factory.localhub.launcher import connect, environment
    from factory.work import Home

    home = Home(home_path())
    with connect(home.hub) as connection:
        try:
            done = subprocess.run(
                command, env={**os.environ, **environment(connection, home.cache)}, check=False
            )
        except OSError as error:
            raise RecipeError(f"{command[0]} cannot be run: {error.strerror}", "check it") from None
    raise typer.Exit(done.returncode)


@hub.command()
def serve(
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Serve the local hub until told to stop. A token is always asked for."""
    root = home_path() / "hub"
    command = [sys.executable, "-m", "factory.localhub.server", "--root", str(root), "--stay"]
    raise typer.Exit(
        subprocess.run([*command, "--port", str(port), "--host", host], check=False).returncode
    )


@hub.command()
def status(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Whether the local hub is running, where, and where its store lies."""
    from factory.localhub.launcher import running

    root = home_path() / "hub"
    connection = running(root)
    found = {"running": connection is not None, "store": str(root)}
    if connection is not None:
        found["url"] = connection.url
    if json_:
        typer.echo(json.dumps(found))
    else:
        where = f"at {connection.url}" if connection else "not running (it starts when needed)"
        typer.echo(f"local hub: {where}\nstore: {root}\ntoken: {root / 'token'} (yours alone)")

"""merge and serve: use what was released."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from factory.cli.app import app
from factory.cli.run import HubUrl

Model = Annotated[
    str, typer.Argument(help="org/name[@revision][:checkpoints/0.5], or a directory.")
]
Base = Annotated[
    str | None,
    typer.Option("--base", help="Where its base model lies, if not where the adapter says."),
]


@app.command()
def merge(
    adapter: Model,
    to: Annotated[Path, typer.Option("--to", help="A directory that does not exist yet.")],
    base: Base = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32, if not the base's own.")
    ] = None,
    hub: HubUrl = None,
) -> None:
    """Write an adapter's base model with the adapter merged into it: an ordinary checkpoint."""
    from factory.errors import InputError
    from factory.hub.session import session

    if dtype not in (None, "bfloat16", "float16", "float32"):
        raise InputError(f"no dtype {dtype!r}", "use bfloat16, float16 or float32")
    with session(hub) as (_, the_hub):
        from factory.cli.console import console
        from factory.release import adapter as released
        from factory.training import adapters

        found = released.find(adapter, the_hub, base)
        if found.adapter is None:
            raise InputError(f"{adapter} is a whole model already", "use it as it is")
        adapters.merge(found.base, found.adapter, to, dtype, found.speech)
        console.print(f"{adapter} merged into {found.base_name}: {to}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Model,
    base: Base = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    print_: Annotated[
        bool, typer.Option("--print", help="Print the command and start nothing.")
    ] = False,
    hub: HubUrl = None,
) -> None:
    """Serve a model or an adapter with vLLM, as an OpenAI-compatible endpoint.

    The right vLLM command is printed and run: the base at the revision the adapter was made on,
    the rank it needs, its chat template. Whatever follows -- goes to vLLM as it is.
    """
    from factory.hub.session import session

    with session(hub) as (_, the_hub):
        from factory.release import adapter
        from factory.release import serve as serving

        found = adapter.find(model, the_hub, base)
        words = serving.command(found, host, port, context.args)
    typer.echo(shlex.join(words))
    if not print_:
        program = serving.installed(words)
        os.execve(program, words, {**os.environ, **serving.ENVIRONMENT})

"""factory merge and serve: use a released model."""

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
    typer.Option("--base", help="Base model of the adapter, if not where its config says."),
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
    """Merge an adapter into its base model.

    The result is an ordinary checkpoint.
    """
    from factory.errors import InputError
    from factory.hub.session import session

    if dtype not in (None, "bfloat16", "float16", "float32"):
        raise InputError(f"no dtype {dtype!r}", "use bfloat16, float16 or float32")
    with session(hub) as (_, the_hub):
        from factory.cli.console import console
        from factory.release import adapter as released_adapter
        from factory.training import adapters

        released = released_adapter.find(adapter, the_hub, base)
        if released.adapter is None:
            raise InputError(f"{adapter} is a whole model already", "use it as it is")
        adapters.merge(released.base, released.adapter, to, dtype, released.speech)
        console.print(f"{adapter} merged into {released.base_name}: {to}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Model,
    base: Base = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    print_: Annotated[
        bool, typer.Option("--print", help="Print the command; start nothing.")
    ] = False,
    hub: HubUrl = None,
) -> None:
    """Serve a model or an adapter with vLLM.

    The endpoint is OpenAI-compatible.

    Prints and runs the vLLM command: the base at the revision that the adapter was trained on, the
    LoRA rank, the chat template. Arguments after -- go to vLLM.
    """
    from factory.hub.session import session

    with session(hub) as (_, the_hub):
        from factory.release import adapter
        from factory.release import serve as serving

        released = adapter.find(model, the_hub, base)
        words = serving.command(released, host, port, context.args)
    typer.echo(shlex.join(words))
    if not print_:
        program = serving.installed(words)
        os.execve(program, words, {**os.environ, **serving.ENVIRONMENT})

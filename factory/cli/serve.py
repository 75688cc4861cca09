"""factory merge and serve: use a released model."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from factory.artifacts.resources import home_path, prepare_home
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
    model: Model,
    to: Annotated[
        Path | None, typer.Option("--to", help="A directory that does not exist yet.")
    ] = None,
    repo: Annotated[
        str | None,
        typer.Option(
            "--repo", metavar="ORG/NAME", help="Publish it in this repo, beside the adapter."
        ),
    ] = None,
    gguf: Annotated[
        str | None,
        typer.Option(
            "--gguf", metavar="TYPE", help="Write GGUF and a Modelfile: Q4_K_M, Q8_0, BF16, …"
        ),
    ] = None,
    base: Base = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32, if not the base's own.")
    ] = None,
    hub: HubUrl = None,
) -> None:
    """Merge an adapter into its base model.

    The result is an ordinary checkpoint, or with --gguf a file for llama.cpp and Ollama. It has a
    card with licence and lineage. factory push brings a repo to another hub.
    """
    from factory.errors import InputError
    from factory.hub.session import session

    if dtype not in (None, "bfloat16", "float16", "float32"):
        raise InputError(f"no dtype {dtype!r}", "use bfloat16, float16 or float32")
    if gguf and dtype:
        raise InputError("--dtype is for checkpoints", "name the type of the file with --gguf")
    if to is None and repo is None:
        raise InputError("nothing says where to write it", "give --to DIR or --repo org/name")
    if repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise InputError(f"{repo!r} is no name of a repo", "write org/name")
    prepare_home(home_path())
    with session(hub) as (_, the_hub), TemporaryDirectory(dir=home_path()) as aside:
        from factory.cli.console import console
        from factory.release import adapter as released_adapter
        from factory.release import forms

        released = released_adapter.find(model, the_hub, base)
        target = to or Path(aside) / "form"
        if gguf:
            why = forms.gguf(released, target, gguf)
            done = f"{model} as {gguf.upper()}"
            if why:
                console.print(f"there is no Modelfile: {why}")
        else:
            forms.merge(released, target, dtype)
            done = f"{model} merged into {released.base_name}"
        if repo is not None:
            name = model.partition("@")[0].partition(":")[0]
            commit = the_hub.release(target, repo, None if Path(name).is_dir() else name)
            console.print(f"{done}: {repo} at {commit[:12]}; to another hub: factory push {repo}")
        if to is not None:
            console.print(f"{done}: {to}")


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

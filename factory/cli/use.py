"""merge: use what was released."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.app import app
from factory.cli.line import HubUrl

if TYPE_CHECKING:
    from factory.hub import Hub


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="org/name[@revision], or a directory.")],
    to: Annotated[Path, typer.Option("--to", help="A directory that does not exist yet.")],
    base: Annotated[
        str | None, typer.Option(help="Its base model, if not the one that it names itself.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32, if not the base's own.")
    ] = None,
    hub: HubUrl = None,
) -> None:
    """Write an adapter's base model with the adapter merged into it: an ordinary checkpoint."""
    from factory.cli.session import session
    from factory.errors import InputError

    if dtype not in (None, "bfloat16", "float16", "float32"):
        raise InputError(f"no dtype {dtype!r}", "use bfloat16, float16 or float32")
    with session(hub) as (_, the_hub):
        from factory.cli.console import console
        from factory.training import adapters

        place = _directory(adapter, the_hub)
        config = adapters.read_config(place)
        named = config.get("base_model_name_or_path")
        if base is None and not named:
            raise InputError(f"{adapter} does not say which base it was made on", "give --base")
        found = base or f"{named}@{config.get('revision') or 'main'}"
        adapters.merge(_directory(found, the_hub), place, to, dtype)
        console.print(f"{adapter} merged into {found}: {to}")


def _directory(name: str, hub: Hub) -> Path:
    """A model on this disk, fetched from the hub unless it is a directory."""
    if Path(name).is_dir():
        return Path(name)
    repo, _, revision = name.partition("@")
    return hub.fetch(repo, "model", revision or "main")

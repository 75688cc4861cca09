"""factory report: what came of a collection, on one page that needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.app import app
from factory.cli.run import HubUrl, Json

if TYPE_CHECKING:
    from factory.reports.page.source import Source


@app.command()
def report(
    collection: Annotated[
        str,
        typer.Argument(
            help="A collection's slug, a recipe, or a directory with artifacts, as $FACTORY_HOME."
        ),
    ],
    to: Annotated[
        Path | None, typer.Option("--to", help="The file to write; - for stdout.")
    ] = None,
    hub: HubUrl = None,
    json_: Json = False,
) -> None:
    """One HTML page of a collection's results, from its manifests alone."""
    from factory.errors import InputError

    source, endpoint = _source(collection, hub)

    from factory.reports.page.gather import gather
    from factory.reports.page.lineage import choose
    from factory.reports.page.page import render

    chain = choose(source.manifests, source.recipe)
    text = render(gather(chain, source.title, source.slug, endpoint))
    if str(to) == "-":
        typer.echo(text, nl=False)
        return
    path = to or Path(f"{_file_name(source.title)}.html")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}", "name another --to"
        ) from None
    if json_:
        shown = [manifest.step for manifest in chain.manifests]
        left = [vars(one) for one in chain.left_out]
        typer.echo(json.dumps({"path": str(path), "shown": shown, "left_out": left}, indent=1))
        return
    for one in chain.left_out:
        typer.echo(f"left out: {one.step}, {one.why}")
    typer.echo(f"{path}: {len(chain.manifests)} artifacts of {source.title}; open it in a browser")


def _source(name: str, hub: str | None) -> tuple[Source, str | None]:
    """The manifests that are meant, and the hub that was named."""
    from factory.hub.session import address, session
    from factory.planning.recipe import load
    from factory.reports.page import source

    path = Path(name)
    if hub is None and source.has_artifacts(path):  # no hub is asked
        return source.directory(path), None
    with session(hub) as (home, the_hub):
        if name.count("/") == 1 and not path.exists():
            found = source.collection(the_hub, name)
        else:
            found = source.recipe(load(name).recipe, the_hub, home)
    return found, address(hub) if hub else None


def _file_name(title: str) -> str:
    kept = [char if char.isalnum() and char.isascii() else "-" for char in title.lower()]
    return "-".join(filter(None, "".join(kept).split("-"))) or "report"

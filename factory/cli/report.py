"""factory report: the results of a collection as one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.app import app
from factory.cli.run import HubUrl, Json

if TYPE_CHECKING:
    from factory.artifacts.workdir import Home
    from factory.hub.client import Hub
    from factory.planning.recipe import LoadedRecipe
    from factory.reports.page.source import Source


@app.command()
def report(
    collection: Annotated[
        str,
        typer.Argument(
            help="A collection's slug, a recipe, or a directory with artifacts like $FACTORY_HOME."
        ),
    ],
    to: Annotated[
        Path | None, typer.Option("--to", help="The file to write; - for stdout.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    hub: HubUrl = None,
    json_: Json = False,
) -> None:
    """Write the results of a collection as one HTML page."""
    from factory.errors import InputError, visible
    from factory.hub.collection import file_name

    source, endpoint = _source(collection, hub)

    from factory.reports.page.gather import gather
    from factory.reports.page.lineage import choose
    from factory.reports.page.page import render

    chain = choose(source.manifests, source.recipe)
    text = render(gather(chain, source.title, source.slug, endpoint, source.questions))
    if str(to) == "-":
        typer.echo(text, nl=False)
        return
    path = to or Path(f"{file_name(source.title)}.html")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}", "name another --to"
        ) from None
    if open_:
        import webbrowser

        webbrowser.open(path.absolute().as_uri())
    if json_:
        steps = [manifest.step for manifest in chain.manifests]
        left_out = [vars(step) for step in chain.left_out]
        typer.echo(json.dumps({"path": str(path), "shown": steps, "left_out": left_out}, indent=1))
        return
    for step in chain.left_out:
        typer.echo(visible(f"left out: {step.step}, {step.why}"))
    made = f"{path}: {len(chain.manifests)} artifacts of {source.title}"
    typer.echo(f"{visible(made)}; open it in a browser (--open)")


def space(name: str, remote: str, token: str | None, names: Mapping[str, str]) -> str:
    """Publish the results page of a recipe or a collection of the local hub as a Space on another
    hub, under the names that its repos have there. Returns the Space. Raises HubError."""
    from factory.release import space as spaces

    source, _ = _source(name, None)
    return spaces.publish(source, spaces.SpaceHub(remote, token, names))


def _source(name: str, hub: str | None) -> tuple[Source, str | None]:
    """Return the manifests that a name stands for, and the hub's address if one was named."""
    from factory.hub.session import address, session
    from factory.planning.recipe import load
    from factory.reports.page import source

    path = Path(name)
    if hub is None and source.has_artifacts(path):  # no hub is asked
        return source.directory(path), None
    with session(hub) as (home, the_hub):
        if name.count("/") == 1 and not path.exists():
            manifests = source.collection(the_hub, name)
        else:
            manifests = of_recipe(load(name), the_hub, home)
    return manifests, address(hub) if hub else None


def of_recipe(loaded: LoadedRecipe, hub: Hub, home: Home) -> Source:
    """Return the manifests that a plan of a recipe reuses; of a recipe that has changed since in
    all its steps, those that there are."""
    from factory.execution import resolve
    from factory.reports.page import source

    known = source.recipe(loaded.recipe, hub, home)
    pins, _ = resolve.resolve(loaded, hub, home, None)
    steps = resolve.plan(loaded, pins, hub, home).steps
    reused = tuple(step.found.manifest for step in steps if step.found is not None)
    return replace(known, manifests=reused) if reused else known

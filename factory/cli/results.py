"""factory results: one table over all evaluations of a collection or a recipe."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.app import app
from factory.cli.run import HubUrl, Json

if TYPE_CHECKING:
    from rich.table import Table

    from factory.artifacts.manifest import Manifest
    from factory.artifacts.workdir import Home
    from factory.hub.client import Hub
    from factory.reports.results import Result


@app.command()
def results(
    what: Annotated[str, typer.Argument(help="A collection, by its slug, or a recipe.")],
    hub: HubUrl = None,
    json_: Json = False,
) -> None:
    """Every score, delta and win rate that was measured, in one table."""
    from factory.hub.session import session

    with session(hub) as (home, the_hub):
        from factory.reports.results import tidy

        found = tidy(_manifests(what, the_hub, home))
    if json_:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1))
        return
    from factory.cli import console as shown

    if not found:
        typer.echo(f"{what}: nothing is evaluated yet")
        return
    shown.console.print(table(found))


def table(found: list[Result]) -> Table:
    """Them, as they are printed."""
    from rich.table import Table

    made = Table(title="Results", title_justify="left")
    for column in ("model", "language", "evaluation", "metric", "value", "95 %", "against", "by",
                   "different"):  # fmt: skip
        made.add_column(column, overflow="fold")
    for one in found:
        interval = "" if one.ci_low is None else f"{one.ci_low:.2f} to {one.ci_high:.2f}"
        said = {True: "yes", False: "no", None: one.note}[one.significant]
        value = "" if one.value is None else f"{one.value:.2f}"
        made.add_row(one.model, one.language, one.evaluation, one.metric, value, interval,
                     one.against, one.by, said)  # fmt: skip
    return made


def _manifests(what: str, hub: Hub, home: Home) -> list[Manifest]:
    """The newest manifest of every repo: on the hub, or at rest here where it is not there yet.
    Raises HubError, RecipeError."""
    from factory.execution import resolve
    from factory.planning import plan, recipe
    from factory.planning.lock import Lock

    if "/" in what and not Path(what).exists():
        repos = hub.collection(what)
        held = hub.holdings(repos)
    else:
        loaded = recipe.load(what)
        repos = dict(plan.repos(loaded.recipe))
        held = resolve.plan(loaded, Lock(recipe=loaded.recipe.name), hub, home).inventory
    every = sorted((found.manifest for found in held.found), key=lambda one: one.created)
    newest = {manifest.repo: manifest for manifest in every}
    return [newest[repo] for repo in repos if repo in newest]

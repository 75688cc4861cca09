"""factory results: all evaluations of a collection or a recipe in one table."""

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
    what: Annotated[str, typer.Argument(help="A collection's slug, or a recipe.")],
    hub: HubUrl = None,
    json_: Json = False,
) -> None:
    """Show every score, delta and win rate in one table."""
    from factory.hub.session import session

    with session(hub) as (home, the_hub):
        from factory.reports.results import tidy

        rows = tidy(_manifests(what, the_hub, home))
    if json_:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    from factory.cli.console import console

    if not rows:
        typer.echo(f"{what}: no evaluation results yet")
        return
    console.print(results_table(rows))


def results_table(rows: list[Result]) -> Table:
    """Tabulate results."""
    from rich.table import Table

    results_table = Table(title="Results", title_justify="left")
    for column in ("model", "language", "evaluation", "metric", "value", "95 %", "against", "by",
                   "significant"):  # fmt: skip
        results_table.add_column(column, overflow="fold")
    for row in rows:
        interval = "" if row.ci_low is None else f"{row.ci_low:.2f} to {row.ci_high:.2f}"
        significant = {True: "yes", False: "no", None: ""}[row.significant]
        different = "; ".join(filter(None, (significant, row.note)))
        value = "" if row.value is None else f"{row.value:.2f}"
        results_table.add_row(row.model, row.language, row.evaluation, row.metric, value, interval,
                     row.against, row.by, different)  # fmt: skip
    return results_table


def _manifests(what: str, hub: Hub, home: Home) -> list[Manifest]:
    """Return the newest manifest of every repo, from the hub, or from the work directory if it is
    not published. Raises HubError, RecipeError."""
    from factory.execution import resolve
    from factory.planning import plan, recipe
    from factory.planning.lock import Lock

    if "/" in what and not Path(what).exists():
        repos = hub.collection(what)
        inventory = hub.holdings(repos)
    else:
        loaded = recipe.load(what)
        repos = dict(plan.repos(loaded.recipe))
        inventory = resolve.plan(loaded, Lock(recipe=loaded.recipe.name), hub, home).inventory
    every = sorted(
        (artifact.manifest for artifact in inventory.found), key=lambda manifest: manifest.created
    )
    newest = {manifest.repo: manifest for manifest in every}
    return [newest[repo] for repo in repos if repo in newest]

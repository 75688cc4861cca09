"""factory pairs: try ways of pairing, publish nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.cli.app import app
from factory.cli.run import HubUrl, Json, Overrides, RecipeName

if TYPE_CHECKING:
    from rich.table import Table

pairs = typer.Typer(help="Try ways of pairing; nothing is published.", no_args_is_help=True)
app.add_typer(pairs, name="pairs")


@pairs.callback()
def _group() -> None:
    """Try ways of pairing; nothing is published."""


@pairs.command()
def compare(
    recipe: RecipeName,
    strategies: Annotated[
        list[str] | None,
        typer.Option(
            help="As max:-2, +1:min, max:q1, max:min_of_5, icr; @all_lang[-zscore] after."
        ),
    ] = None,
    figure: Annotated[Path, typer.Option(help="Where to draw them side by side.")] = Path(
        "pairs.png"
    ),
    set_: Overrides = None,
    hub: HubUrl = None,
    json_: Json = False,
) -> None:
    """Strategies side by side on a recipe's scores: pairs, margins, lengths, overlap, languages.

    Each is compared with the recipe's own strategy, and keeps the recipe's filters. Several go
    into one option, with commas between them.
    """
    from factory.errors import RecipeError
    from factory.hub.session import session
    from factory.pairs.compare import strategies as named
    from factory.planning.recipe import load

    loaded = load(recipe, set_ or ())
    own = loaded.recipe.steps().get("pair")
    if own is None:
        raise RecipeError(f"{loaded.recipe.name} has no stage pair", "add pair: under stages:")
    asked = [part for text in strategies or () for part in text.split(",")]
    found = named(own, asked)  # type: ignore[arg-type]
    with session(hub) as (home, the_hub):
        from factory.execution import inputs, resolve
        from factory.pairs import compare as comparison
        from factory.reports.cards import figures
        from factory.stage.inputs import StepInput
        from factory.stage.job import Job

        scope = loaded.recipe.scope()
        needs = {n for s in found for spec in s.slices(scope) for n in spec.needs}
        pins, _ = resolve.resolve(loaded, the_hub, home, None)
        plan = resolve.plan(loaded, pins, the_hub, home)
        reads = [need for need in needs if isinstance(need, StepInput)]
        job = Job(
            step="pairs compare",
            seed=loaded.recipe.seed,
            slices=(),
            places=inputs.find(loaded, pins, plan, the_hub, reads, "pairs compare"),
            work=Path(),
            out=Path(),
            progress=lambda done, total, unit, tokens=0: None,
        )
        rows = comparison.compare(found, scope, job)
    totals = comparison.totals(rows)
    figures.draw_comparison(figure, totals)
    if json_:
        typer.echo(json.dumps({"slices": rows, "strategies": totals, "figure": str(figure)}))
        return
    from factory.cli.console import console

    console.print(_table(rows, totals))
    console.print(f"Drawn in {figure}. Nothing was published.")


def _table(rows: list[dict[str, Any]], totals: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="Ways of pairing", title_justify="left")
    table.add_column("strategy")
    table.add_column("slice")
    for column in ("pairs", "margin", "chosen", "rejected", "gap", "cross", "overlap"):
        table.add_column(column, justify="right")
    table.add_column("dropped", overflow="fold")
    for total in totals:
        mine = [row for row in rows if row["strategy"] == total["strategy"]]
        for row in [*mine, total] if len(mine) > 1 else mine:
            reasons = ", ".join(f"{reason} {n}" for reason, n in row["dropped"].items())
            table.add_row(
                row["strategy"],
                row["slice"],
                str(row["rows"]),
                _shown(row["mean_margin"], ".3g"),
                _shown(row["chosen_tokens"], ".0f"),
                _shown(row["rejected_tokens"], ".0f"),
                _shown(row["token_gap"], "+.1f"),
                _shown(row["cross"], ".0%"),
                _shown(row["overlap"], ".0%"),
                reasons,
            )
    return table


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)

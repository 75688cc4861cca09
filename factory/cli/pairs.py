"""factory pairs: compare pairing strategies; publish nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.cli.app import app
from factory.cli.run import HubUrl, Json, Overrides, RecipeName

if TYPE_CHECKING:
    from factory.cli.tables import Fitted

pairs = typer.Typer(help="Compare pairing strategies; publish nothing.", no_args_is_help=True)
app.add_typer(pairs, name="pairs")


@pairs.callback()
def _group() -> None:
    """Compare pairing strategies; publish nothing."""


@pairs.command()
def compare(
    recipe: RecipeName,
    strategies: Annotated[
        list[str] | None,
        typer.Option(
            help="For example max:-2, +1:min, max:q1, max:min_of_5, icr; suffix @all_lang[-zscore]."
        ),
    ] = None,
    figure: Annotated[Path, typer.Option(help="File of the figure.")] = Path("pairs.png"),
    set_: Overrides = None,
    hub: HubUrl = None,
    json_: Json = False,
) -> None:
    """Compare pairing strategies on a recipe's scores: pairs, margins, lengths, overlap, languages.

    Each is compared with the recipe's own strategy and uses the recipe's filters. Separate several
    with commas.
    """
    from factory.errors import RecipeError
    from factory.hub.session import session
    from factory.pairs.compare import strategies as named
    from factory.planning.recipe import load

    loaded = load(recipe, set_ or ())
    own = loaded.recipe.steps().get("pair")
    if own is None:
        raise RecipeError(f"{loaded.recipe.name} has no stage pair", "add pair: under stages:")
    names = [part for text in strategies or () for part in text.split(",")]
    ways = named(own, names)  # type: ignore[arg-type]
    with session(hub) as (home, the_hub):
        from factory.execution import inputs, resolve
        from factory.pairs import compare as comparison
        from factory.reports.cards import figures
        from factory.stage.inputs import StepInput
        from factory.stage.job import Job

        context = loaded.recipe.context()
        needs = {n for s in ways for spec in s.plan_slices(context) for n in spec.needs}
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
        rows = comparison.compare(ways, context, job)
    totals = comparison.totals(rows)
    figures.draw_comparison(figure, totals)
    if json_:
        typer.echo(json.dumps({"slices": rows, "strategies": totals, "figure": str(figure)}))
        return
    from factory.cli.console import console

    console.print(_table(rows, totals))
    console.print(f"Figure: {figure}. Nothing was published.")


def _table(rows: list[dict[str, Any]], totals: list[dict[str, Any]]) -> Fitted:
    from factory.cli.tables import Fitted

    header = ["strategy", "slice", "pairs", "margin", "chosen", "rejected", "gap", "cross",
              "overlap", "dropped"]  # fmt: skip
    lines = []
    for total in totals:
        of_strategy = [row for row in rows if row["strategy"] == total["strategy"]]
        for row in [*of_strategy, total] if len(of_strategy) > 1 else of_strategy:
            lines.append(
                [
                    row["strategy"],
                    row["slice"],
                    str(row["rows"]),
                    _format(row["mean_margin"], ".3g"),
                    _format(row["chosen_tokens"], ".0f"),
                    _format(row["rejected_tokens"], ".0f"),
                    _format(row["token_gap"], "+.1f"),
                    _format(row["cross"], ".0%"),
                    _format(row["overlap"], ".0%"),
                    ", ".join(f"{reason} {n}" for reason, n in row["dropped"].items()),
                ]
            )
    return Fitted("Pairing strategies", header, lines, 2)


def _format(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)

"""factory export: rows for people and tools outside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.app import app
from factory.cli.run import HubUrl, Overrides, RecipeName

if TYPE_CHECKING:
    from factory.planning.recipe import LoadedRecipe

export = typer.Typer(help="Write rows for people and tools outside.", no_args_is_help=True)
app.add_typer(export, name="export")


@export.callback()
def _group() -> None:
    """Write rows for people and tools outside."""


@export.command("annotations")
def annotations_(
    recipe: RecipeName,
    out: Annotated[Path, typer.Option(help="CSV file; the rubric lies beside it.")] = Path(
        "annotations.csv"
    ),
    number: Annotated[
        int | None, typer.Option(min=1, help="Pairs of each model in each language; default: all.")
    ] = None,
    argilla: Annotated[
        str | None, typer.Option(help="Create this dataset in Argilla instead of a file.")
    ] = None,
    collect: Annotated[
        str | None, typer.Option(help="Write the verdicts of this dataset in Argilla to the file.")
    ] = None,
    workspace: Annotated[str | None, typer.Option(help="Workspace in Argilla.")] = None,
    set_: Overrides = None,
    hub: HubUrl = None,
) -> None:
    """Write pairs of answers for people to compare, without names of models.

    Which answer stands first is balanced. The file goes back into a recipe as one more judge:
    judge: {judge: [reward, people], annotations: {people: annotations.csv}}.
    """
    import csv

    from factory.errors import InputError, RecipeError
    from factory.evaluation.judging import argilla as server
    from factory.evaluation.judging import people
    from factory.evaluation.judging.stage import Judge
    from factory.planning.recipe import load

    loaded = load(recipe, set_ or ())
    judge = loaded.recipe.steps().get("judge")
    if not isinstance(judge, Judge):
        raise RecipeError(f"{loaded.recipe.name} has no stage judge", "add arena: and judge:")
    if argilla is None and out.exists():
        raise InputError(f"{out} is there, perhaps with verdicts", "name another file with --out")
    rows = _to_annotate(loaded, number, hub) if collect is None else server.read(collect, workspace)
    if argilla is not None:
        server.write(rows, argilla, workspace)
        typer.echo(f"{len(rows)} pairs in the dataset {argilla}. When they are annotated:")
        typer.echo(f"  factory export annotations {recipe} --collect {argilla} --out {out}")
        return
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, people.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    if collect is None:
        rubric = out.with_suffix(".txt")
        rubric.write_text(people.RUBRIC, encoding="utf-8")
        typer.echo(f"{len(rows)} pairs in {out}, the rubric in {rubric}.")
        typer.echo("When the column verdict is filled in, put this under stages: of the recipe:")
    else:
        typer.echo(f"{len(rows)} verdicts in {out}. Put this under stages: of the recipe:")
    judges = ", ".join(dict.fromkeys((*judge.judges, "people")))
    typer.echo(f"  judge: {{judge: [{judges}], annotations: {{people: {out}}}}}")


def _to_annotate(loaded: LoadedRecipe, number: int | None, hub: str | None) -> list[dict[str, str]]:
    """Return the rows for annotators, of the answers that a recipe's judge compares."""
    from factory.artifacts.tables import read_slice
    from factory.evaluation.judging import people
    from factory.evaluation.judging.match import match
    from factory.hub.session import session
    from factory.stage.inputs import StepInput

    with session(hub) as (home, the_hub):
        from factory.execution import inputs, resolve

        pins, _ = resolve.resolve(loaded, the_hub, home, None)
        plan = resolve.plan(loaded, pins, the_hub, home)
        pairs = {}
        for stage, spec in loaded.recipe.slices():
            if stage.name != "judge" or spec.name in pairs:
                continue
            sides = [spec.need(role) for role in ("answers", "reference")]
            reads = [need for need in sides if isinstance(need, StepInput)]
            places = inputs.find(loaded, pins, plan, the_hub, reads, "export annotations")
            ours, theirs = (
                read_slice(places[need].path, need.slice, "answers").to_pylist() for need in reads
            )
            pairs[spec.name] = match(ours, theirs, spec.name)[0]
    return people.to_annotate(pairs, number)

"""factory plan, lock, run and demo."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from factory.artifacts.resources import home_path, recipes
from factory.cli.app import app


def _recipes(incomplete: str) -> list[str]:
    """Complete a recipe's name: packaged recipes and YAML files here."""
    folder = incomplete[: incomplete.rfind("/") + 1]
    here = [path.name for end in ("*.yaml", "*.yml") for path in Path(folder).glob(end)]
    files = [f"{folder}{name}" for name in here]
    return sorted(name for name in [*recipes(), *files] if name.startswith(incomplete))


RecipeName = Annotated[
    str,
    typer.Argument(help="A .yaml file, or the name of a packaged recipe.", autocompletion=_recipes),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override, as stages.generate.n=8.")
]
HubUrl = Annotated[
    str | None, typer.Option("--hub", help="Work with this hub instead of the local one.")
]
Frozen = Annotated[bool, typer.Option("--frozen", help="Refuse inputs that the lock does not pin.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


@app.command()
def plan(
    recipe: RecipeName,
    site: Annotated[
        str | None, typer.Option(help="Estimate the costs on this cluster: see submit.")
    ] = None,
    set_: Overrides = None,
    hub: HubUrl = None,
    frozen: Frozen = False,
    json_: Json = False,
) -> None:
    """Show each step's state and reason, with estimated rows and time."""
    from factory.hub.session import session
    from factory.planning.recipe import load

    loaded, the_site = load(recipe, set_ or ()), None
    if site is not None:
        from factory.slurm import site as sites
        from factory.slurm.submission import on_all_gpus

        the_site = sites.load(site, home_path())
        loaded = on_all_gpus(loaded, the_site, lambda text: typer.echo(text, err=True))
    with session(hub) as (home, the_hub):
        from factory.cli import tables
        from factory.cli.console import console
        from factory.execution import inputs, resolve
        from factory.planning.estimate import estimate

        pins, _ = resolve.resolve(loaded, the_hub, home, None, frozen)
        the_plan = resolve.plan(loaded, pins, the_hub, home)
        steps, inventory = the_plan.steps, the_plan.inventory
        estimates = estimate(steps, inventory, inputs.counted(loaded, steps, {}))
        costs_of_steps = None
        if the_site is not None:
            from factory.slurm.costs import costs

            costs_of_steps = costs(steps, inventory, estimates, the_site)
        if json_:
            typer.echo(json.dumps(tables.plan_json(steps, estimates, costs_of_steps), indent=1))
            return
        console.print(tables.plan_table(steps, estimates))
        if unread := loaded.recipe.unread():
            console.print(
                f"Not made: {', '.join(unread)}. Only what is taken in (from:) would read it."
            )
        if the_site is not None and costs_of_steps is not None:
            console.print(tables.costs_table(the_site.name, costs_of_steps))


@app.command()
def lock(
    recipe: RecipeName,
    update: Annotated[bool, typer.Option("--update", help="Pin what the hub has now.")] = False,
    set_: Overrides = None,
    hub: HubUrl = None,
    json_: Json = False,
) -> None:
    """Pin every outside name to a commit and a content digest, in a file beside the recipe."""
    from factory.hub.session import session
    from factory.planning.recipe import load

    loaded = load(recipe, set_ or ())
    with session(hub) as (home, the_hub):
        from factory.cli.console import console
        from factory.cli.tables import lock_table
        from factory.execution import resolve
        from factory.planning import lock as locks

        path = locks.path_of(loaded)
        old = locks.read(path)
        pins, _ = resolve.resolve(loaded, the_hub, home, console.print, update=update)
        if json_:
            typer.echo(json.dumps(pins.model_dump(mode="json"), indent=1))
        else:
            console.print(lock_table(old, pins))
            console.print(f"{path}: commit it beside the recipe")


@app.command()
def run(
    recipe: RecipeName,
    only: Annotated[list[str] | None, typer.Option(help="Run these steps only.")] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this step.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="i/n: run every n-th shard of one step from the i-th on (0 to n-1)."),
    ] = None,
    set_: Overrides = None,
    hub: HubUrl = None,
    frozen: Frozen = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Run the steps of a recipe that are not done, and publish them."""
    _run(recipe, only or [], until, set_ or [], hub, frozen, shard, quiet, json_)


@app.command()
def demo(hub: HubUrl = None) -> None:
    """Run the whole line on a CPU with a real small model: about ten minutes, one collection."""
    started = time.monotonic()
    _run("demo", [], None, [], hub)
    from factory.cli.console import console

    console.print(f"\nTook {time.monotonic() - started:.0f} s.")
    console.print(
        "Download:          factory hub exec -- hf download local/demo-pair --repo-type dataset\n"
        "See the results:   factory report demo\n"
        "See cache hits:    factory demo\n"
        "Change a setting:  factory plan demo --set stages.generate.n=8\n"
        "Use your own languages and model: copy recipes/demo.yaml, then factory run my.yaml",
    )


def _run(
    recipe: str,
    only: list[str],
    until: str | None,
    overrides: list[str],
    hub: str | None,
    frozen: bool = False,
    shard: str | None = None,
    quiet: bool = False,
    json_: bool = False,
) -> None:
    from factory.execution.workers import WorkerPool, read_part
    from factory.hub.session import session
    from factory.planning.recipe import load

    loaded = load(recipe, overrides)
    part = read_part(shard) if shard else None
    options = [*(f"--set={override}" for override in overrides), *([f"--hub={hub}"] if hub else [])]
    with session(hub) as (home, the_hub):
        from factory.cli import tables
        from factory.cli.console import ConsoleReporter, console
        from factory.execution import run as execution
        from factory.hub import collection

        reporter = ConsoleReporter(aside=json_, quiet=quiet)
        workers = WorkerPool(
            ["run", recipe, *options, *(["--frozen"] if frozen else [])], reporter.note
        )
        try:
            steps = execution.run(
                loaded, the_hub, home, reporter, only, until, frozen, part, workers
            )
        finally:
            reporter.stop()
        if json_:
            typer.echo(json.dumps(tables.run_json(steps), indent=1))
        if part is not None or json_ or quiet:
            return
        console.print()
        console.print(tables.rows_table(steps))
        for alarm in tables.alarms(steps):
            console.print(alarm)
        for step in steps:
            if step.found is not None and "audit" in step.found.manifest.stats:
                console.print(tables.audit_table(step.found.manifest))
            if step.found is not None and step.stage.name == "judge":
                console.print(tables.comparison_table(step.found.manifest))
                console.print(tables.doubts_table(step.found.manifest))
        console.print(tables.repos_table(steps))
        title = collection.title(loaded.recipe)
        console.print(
            f"Collection: {title!r} of {loaded.recipe.org} on {the_hub.endpoint}\n"
            f"On this disk: {home_path()} (hub/ the local hub, work/ finished artifacts)",
        )

"""plan, run and demo: the line itself."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from factory.artifacts.resources import home_path, recipes
from factory.cli.app import app


def _recipes(incomplete: str) -> list[str]:
    """What a recipe's name may go on as: packaged ones and files here, by their names alone."""
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
Frozen = Annotated[
    bool, typer.Option("--frozen", help="Refuse whatever the lock does not pin as it is.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but what went wrong.")]


@app.command()
def plan(
    recipe: RecipeName,
    site: Annotated[
        str | None, typer.Option(help="Say what it would take on this cluster: see submit.")
    ] = None,
    set_: Overrides = None,
    hub: HubUrl = None,
    frozen: Frozen = False,
    json_: Json = False,
) -> None:
    """What would run, what is reused, and why; and how long by what the last runs took."""
    from factory.hub.session import session
    from factory.planning.recipe import load

    loaded, there = load(recipe, set_ or ()), None
    if site is not None:
        from factory.slurm import site as sites
        from factory.slurm.submission import on_all_gpus

        there = sites.load(site, home_path())
        loaded = on_all_gpus(loaded, there, lambda text: typer.echo(text, err=True))
    with session(hub) as (home, the_hub):
        from factory.cli import console as shown
        from factory.execution import inputs, resolve
        from factory.planning.estimate import estimate

        pins, _ = resolve.resolve(loaded, the_hub, home, None, frozen)
        the_plan = resolve.plan(loaded, pins, the_hub, home)
        steps, inventory = the_plan.steps, the_plan.inventory
        left = estimate(steps, inventory, inputs.counted(loaded, steps, {}))
        taken = None
        if there is not None:
            from factory.slurm.costs import costs

            taken = costs(steps, inventory, left, there)
        if json_:
            typer.echo(json.dumps(shown.plan_json(steps, left, taken), indent=1))
            return
        shown.console.print(shown.plan_table(steps, left))
        if there is not None and taken is not None:
            shown.console.print(shown.costs_table(there.name, taken))


@app.command()
def lock(
    recipe: RecipeName,
    update: Annotated[
        bool, typer.Option("--update", help="Take what the hub has now, whatever was pinned.")
    ] = False,
    set_: Overrides = None,
    hub: HubUrl = None,
    json_: Json = False,
) -> None:
    """Pin every outside name to a commit and a content digest, in a file beside the recipe."""
    from factory.hub.session import session
    from factory.planning.recipe import load

    loaded = load(recipe, set_ or ())
    with session(hub) as (home, the_hub):
        from factory.cli.console import console, lock_table
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
    only: Annotated[list[str] | None, typer.Option(help="Run these steps and no others.")] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this step.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="i/n: make every n-th shard of one step from the i-th on (0 to n-1)."),
    ] = None,
    set_: Overrides = None,
    hub: HubUrl = None,
    frozen: Frozen = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Run a recipe here: whatever is not made yet, and publish it."""
    _run(recipe, only or [], until, set_ or [], hub, frozen, shard, quiet, json_)


@app.command()
def demo(hub: HubUrl = None) -> None:
    """The whole line on a CPU: a real small model, ten minutes, one collection at the end."""
    started = time.monotonic()
    _run("demo", [], None, [], hub)
    from factory.cli.console import console

    console.print(f"\nThat took {time.monotonic() - started:.0f} s.")
    console.print(
        "Look at it:        factory hub exec -- hf download local/demo-pair --repo-type dataset\n"
        "Read what came:    factory report demo\n"
        "See it reused:     factory demo\n"
        "Change something:  factory plan demo --set stages.generate.n=8\n"
        "Your own languages and model: copy recipes/demo.yaml, then factory run my.yaml",
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
    given = [*(f"--set={one}" for one in overrides), *([f"--hub={hub}"] if hub else [])]
    with session(hub) as (home, the_hub):
        from factory.cli import console as shown
        from factory.execution import run as execution
        from factory.hub import collection

        teller = shown.ConsoleReporter(aside=json_, quiet=quiet)
        fan = WorkerPool(["run", recipe, *given, *(["--frozen"] if frozen else [])], teller.note)
        try:
            steps = execution.run(loaded, the_hub, home, teller, only, until, frozen, part, fan)
        finally:
            teller.stop()
        if json_:
            typer.echo(json.dumps(shown.run_json(steps), indent=1))
        if part is not None or json_ or quiet:
            return
        shown.console.print()
        shown.console.print(shown.rows_table(steps))
        for alarm in shown.alarms(steps):
            shown.console.print(alarm)
        for step in steps:
            if step.found is not None and "audit" in step.found.manifest.stats:
                shown.console.print(shown.audit_table(step.found.manifest))
            if step.found is not None and step.stage.name == "judge":
                shown.console.print(shown.comparison_table(step.found.manifest))
                shown.console.print(shown.doubts_table(step.found.manifest))
        shown.console.print(shown.repos_table(steps))
        title = collection.title(loaded.recipe)
        shown.console.print(
            f"Collection: {title!r} of {loaded.recipe.org} on {the_hub.endpoint}\n"
            f"On this disk: {home_path()} (hub/ the local hub, work/ artifacts at rest)",
        )

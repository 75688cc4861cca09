"""factory plan, lock, run and demo."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from factory.artifacts.resources import home_path, recipes
from factory.cli.app import app
from factory.errors import FactoryError, HubError, RecipeError, raise_all
from factory.hub.environment import PUBLIC


def recipe_names(incomplete: str) -> list[str]:
    """Complete a recipe's name: packaged recipes and YAML files here."""
    folder = incomplete[: incomplete.rfind("/") + 1]
    here = [path.name for end in ("*.yaml", "*.yml") for path in Path(folder).glob(end)]
    files = [f"{folder}{name}" for name in here]
    return sorted(name for name in [*recipes(), *files] if name.startswith(incomplete))


RecipeName = Annotated[
    str,
    typer.Argument(
        help="A .yaml file, or the name of a packaged recipe.", autocompletion=recipe_names
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override, as stages.generate.n=12.")
]
HubUrl = Annotated[
    str | None, typer.Option("--hub", help="Work with this hub instead of the local one.")
]
OtherHub = Annotated[
    str, typer.Option("--from", help="Hub to ask about what is absent: sizes, licences.")
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
    from_: OtherHub = PUBLIC,
    frozen: Frozen = False,
    json_: Json = False,
) -> None:
    """Show what a run would do, step by step, and why."""
    from factory.hub.session import address, remote_token, session
    from factory.planning.recipe import load

    token = remote_token(from_)  # before the session, whose own is the local hub's
    loaded, the_site = load(recipe, set_ or ()), None
    if site is not None:
        from factory.slurm import site as sites
        from factory.slurm.submission import on_all_gpus

        the_site = sites.load(site, home_path())
        loaded = on_all_gpus(loaded, the_site, lambda text: typer.echo(text, err=True))
    with session(hub) as (home, the_hub):
        from factory.cli import tables
        from factory.cli.console import console
        from factory.execution import checks, inputs, resolve
        from factory.language.detect import unfiltered
        from factory.planning.estimate import estimate
        from factory.planning.plan import State
        from factory.stage.readers import is_file

        pins, absent = resolve.resolve(loaded, the_hub, home, None, frozen)
        the_plan = resolve.plan(loaded, pins, the_hub, home)
        steps, inventory = the_plan.steps, the_plan.inventory
        missing = resolve.missing(loaded, absent, steps)
        elsewhere = checks.look_elsewhere(missing, address(from_), token)
        here = inputs.datasets_here(steps, pins, the_hub)
        counts, faults = inputs.counted(loaded, steps, here)
        faults += checks.license_faults(loaded, pins, the_hub, the_plan, elsewhere.licenses)
        estimates = estimate(steps, inventory, counts)
        costs_of_steps = None
        if the_site is not None:
            from factory.slurm.costs import costs

            costs_of_steps = costs(steps, inventory, estimates, the_site)
        unmet = resolve.unmet(loaded, missing, the_hub)
        if json_:
            typer.echo(json.dumps(tables.plan_json(steps, estimates, costs_of_steps), indent=1))
        else:
            console.print(tables.plan_table(steps, estimates, console.width))
            if unread := loaded.recipe.unread():
                console.print(
                    f"Not made: {', '.join(unread)}. Only what is taken in (from:) would read it."
                )
            spoken = [part.spec.language for step in steps for part in step.slices]
            for line in unfiltered(filter(None, spoken)):
                console.print(line)
            if the_site is not None and costs_of_steps is not None:
                console.print(tables.costs_table(the_site.name, costs_of_steps))
            for step in steps:
                if step.state is State.BLOCKED and step.knobs:
                    console.print(f"{step.name} is blocked. To change that: {step.knobs}")
            if len(unmet) > 1 or any(not is_file(need.source) for need in missing):
                console.print(tables.absent_table(unmet, missing, the_hub, elsewhere))
        errors: list[FactoryError] = []
        for fault in faults:
            if fault.state == "failed":
                errors.append(RecipeError(f"{fault.name}: {fault.seen}", fault.fix))
            else:
                typer.echo(fault.line(), err=True)
        try:
            resolve.require(unmet)
        except HubError as error:
            errors.insert(0, error)
        raise_all(errors)


@app.command()
def lock(
    recipe: RecipeName,
    update: Annotated[bool, typer.Option("--update", help="Pin what the hub has now.")] = False,
    set_: Overrides = None,
    hub: HubUrl = None,
    json_: Json = False,
) -> None:
    """Pin every outside name to a commit and a digest.

    The lock is a file beside the recipe, to be committed with it.
    """
    from factory.hub.session import session
    from factory.planning.recipe import load

    loaded = load(recipe, set_ or ())
    with session(hub) as (home, the_hub):
        from factory.cli.console import console
        from factory.cli.tables import lock_table
        from factory.execution import resolve
        from factory.planning import lock as locks

        path = locks.path_of(loaded, home.root)
        old = locks.read(path)
        pins, absent = resolve.resolve(loaded, the_hub, home, console.print, update=update)
        missing = [need for need in locks.outside(loaded.recipe) if need.source in absent]
        resolve.require(resolve.unmet(loaded, missing, the_hub))
        if json_:
            typer.echo(json.dumps(pins.model_dump(mode="json"), indent=1))
        else:
            console.print(lock_table(old, pins))
            console.print(f"{path}: commit it beside the recipe")


@app.command()
def run(
    recipe: RecipeName,
    only: Annotated[
        list[str] | None, typer.Option(help="Run these steps only, or all steps of a stage.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this step or stage.")] = None,
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
    """Run the whole line on a CPU: about ten minutes.

    A real small model, and one collection.
    """
    started = time.monotonic()
    _run("demo", [], None, [], hub)
    from factory.cli.console import console

    console.print(f"\nTook {time.monotonic() - started:.0f} s.")
    console.print(
        "Download:          factory hub exec -- hf download local/demo-pair --repo-type dataset\n"
        "See the results:   factory report demo\n"
        "See cache hits:    factory demo\n"
        "Change a setting:  factory plan demo --set stages.generate.n=12\n"
        "Use your own languages and model: factory new my.yaml",
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

        names = list(dict.fromkeys(spec.step for _, spec in loaded.recipe.slices()))
        names = execution.select(names, only, until)
        reporter = ConsoleReporter(aside=json_, quiet=quiet, steps=names)
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
        stopped = execution.blocked(steps, names)
        if part is not None or json_ or quiet:
            if stopped and part is None:
                raise stopped
            return
        ran = [step for step in steps if step.name in reporter.done]
        console.print()
        if ran:
            console.print(tables.rows_table(ran))
        for alarm in tables.alarms(ran):
            console.print(alarm)
        if drawn := tables.behaviour_table(ran):
            console.print(drawn)
        for step in ran:
            if step.found is not None and "audit" in step.found.manifest.stats:
                console.print(tables.audit_table(step.found.manifest))
            if step.found is not None and step.stage.name == "judge":
                console.print(tables.comparison_table(step.found.manifest))
                console.print(*tables.jury_tables(step.found.manifest), end="")
                console.print(tables.doubts_table(step.found.manifest))
        judged = [step.found for step in ran if step.found and step.stage.name == "judge"]
        if judged and (finished := tables.finish_table(judged[-1].manifest)) is not None:
            console.print(finished)  # the same by every judge
        if ran:
            console.print(tables.repos_table(ran))
        elif not stopped:
            console.print("Nothing to do: all is made and published.")
        called = loaded.called
        slug = collection.slug_of(loaded.recipe, the_hub.collections(loaded.recipe.org))
        console.print(
            (f"Collection: {slug} in" if slug else "No collection in") + f" {the_hub.called}\n"
            f"On this disk: {home.root} (hub/ the local hub, work/ finished artifacts)\n"
            f"Results: factory report {called}; factory results {called}"
            + (f"\nLook at it: factory hub open {slug}" if slug and hub is None else ""),
        )
        if stopped:
            raise stopped

"""factory submit, status, cancel, task and publish: a recipe on a SLURM cluster."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.artifacts.resources import home_path
from factory.cli.app import app
from factory.cli.run import Frozen, HubUrl, Json, Overrides, RecipeName

if TYPE_CHECKING:
    from rich.table import Table

    from factory.planning.recipe import LoadedRecipe
    from factory.slurm.status import Row
    from factory.slurm.submission import Submission

_WATCH = 20.0  # seconds between refreshes: the queue is shared with others


@app.command()
def submit(
    recipe: RecipeName,
    site: Annotated[
        str,
        typer.Option(
            help="A .yaml file, or a name in ./sites or $FACTORY_HOME/sites, or built in."
        ),
    ],
    only: Annotated[list[str] | None, typer.Option(help="Submit these steps only.")] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this step.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the scripts; submit nothing.")
    ] = False,
    set_: Overrides = None,
    hub: HubUrl = None,
    frozen: Frozen = False,
    json_: Json = False,
) -> None:
    """Submit the steps that are not done to SLURM.

    Each waits for those that it depends on.
    """
    from factory.hub.session import session
    from factory.planning.recipe import load
    from factory.slurm import site as sites

    loaded = load(recipe, set_ or ())
    the_site = sites.load(site, home_path())
    with session(hub) as (home, the_hub):
        from factory.cli.console import ConsoleReporter, console
        from factory.execution import resolve
        from factory.execution.run import select
        from factory.slurm import submit as submitting

        reporter = ConsoleReporter(aside=True)
        loaded = submitting.on_all_gpus(loaded, the_site, reporter.note)
        pins, absent = resolve.resolve(loaded, the_hub, home, reporter.note, frozen)
        plan = resolve.plan(loaded, pins, the_hub, home)
        steps = plan.steps
        names = select([step.name for step in steps], only or [], until)
        due = [step for step in steps if step.name in names]
        resolve.require(resolve.unmet(loaded, resolve.missing(loaded, absent, due), the_hub))
        request = submitting.SubmitRequest(
            loaded, pins, plan.inventory, steps, names, the_site, home
        )
        if dry_run:
            scripts = list(submitting.dry(request, the_hub, reporter.note))
            if json_:
                typer.echo(json.dumps(dict(scripts), indent=1))
            for name, script in () if json_ else scripts:
                typer.echo(f"### {name}\n{script}")
            return
        submission = submitting.submit(request, the_hub, reporter.note)
        if json_:
            typer.echo(submission.model_dump_json(indent=1) if submission else "null")
            return
        if submission is None:
            console.print("Nothing to submit: every step is done or in the queue.")
            return
        console.print(_submitted_table(submission))
        console.print(
            f"Scripts, logs and the record: {submission.directory}\n"
            f"Status: factory status {recipe}    Publish what is finished: "
            f"factory publish {recipe}"
        )


@app.command()
def status(
    recipe: RecipeName,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until the queue is empty.")
    ] = False,
    every: Annotated[float, typer.Option(min=1, help="Seconds between refreshes.")] = _WATCH,
    set_: Overrides = None,
    json_: Json = False,
) -> None:
    """Show what a submitted recipe is doing.

    Waiting, running, failed (and why), or done.
    """
    from factory.planning.recipe import load

    loaded = load(recipe, set_ or ())
    try:
        while True:
            rows, spent = _rows(loaded)
            if json_:
                record = {"steps": [asdict(row) for row in rows], "gpu_hours": spent}
                typer.echo(json.dumps(record, indent=None if watch else 1))
            else:
                _print_status(rows, spent, clear=watch)
            alive = any(row.stand in ("running", "waiting") for row in rows)
            if not watch or not alive:
                return
            time.sleep(every)
    except KeyboardInterrupt:
        if not watch:
            raise
        typer.echo("\nStopped watching; the jobs go on.", err=True)


@app.command()
def cancel(
    recipe: RecipeName,
    only: Annotated[list[str] | None, typer.Option(help="Cancel these steps only.")] = None,
    set_: Overrides = None,
) -> None:
    """Cancel the jobs of a recipe. Finished work is kept; a later submit resumes."""
    from factory.planning.recipe import load
    from factory.slurm import submit as submitting
    from factory.slurm.queue import Queue

    standing = submitting.standing(load(recipe, set_ or ()), home_path(), Queue())
    jobs = {
        step: list(dict.fromkeys(job.array for job in jobs_of_step))
        for step, jobs_of_step in standing.alive.jobs.items()
    }
    if only:
        from factory.execution.run import select

        selected = select([step.name for step in standing.steps], only, None)
        jobs = {step: arrays for step, arrays in jobs.items() if step in selected}
    Queue().cancel(job for ids in jobs.values() for job in ids)
    for step, ids in jobs.items():
        typer.echo(f"{step}: cancelled {', '.join(ids)}")
    if not jobs:
        typer.echo("no jobs in the queue")


@app.command()
def task(
    directory: Annotated[Path, typer.Argument(help="A submission's directory.")],
    step: Annotated[str, typer.Argument(help="The step.")],
    shard: Annotated[str | None, typer.Option(help="i/n: the i-th of n tasks.")] = None,
    engines: Annotated[int, typer.Option(min=1, help="Processes in a task.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each process.")] = 0,
    seal: Annotated[
        bool, typer.Option("--seal", help="Seal the artifact; all shards must be done.")
    ] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch the inputs of all steps.")] = False,
) -> None:
    """Run one job of a submission on a node, without hub or network. Called by its scripts."""
    from factory.execution import workers
    from factory.slurm import task as node

    part = None
    if shard is not None:
        number, of = workers.read_part(shard)
        part = node.part(number, of, engines, os.environ)
        node.show_gpus(engines, gpus, os.environ)
    elif not seal and not fetch:
        node.show_all(os.environ)
    node.check_gpus(gpus)
    if fetch:
        from factory.hub.session import session

        with session(None) as (_, hub):
            from factory.execution import bundle

            provisions = bundle.bring(bundle.read(directory), hub, directory)
            typer.echo(f"{len(provisions.repos)} models and datasets are on the shared disk")
        return
    node.cut_off(os.environ, directory)
    from factory.cli.console import ConsoleReporter
    from factory.execution import bundle, run
    from factory.training import launch

    provisions, meeting = bundle.read(directory), launch.Meeting.of(os.environ)
    over = directory / "ends" / f"over-{meeting.key}"
    if meeting.rank:
        launch.join(run.work_directory(provisions, step).path / "checkpoints", over)
        return
    reporter = ConsoleReporter()
    try:
        run.run_offline(provisions, reporter, step, part, seal)
    finally:
        reporter.stop()
        if meeting.machines > 1:
            over.touch()


@app.command()
def publish(recipe: RecipeName, set_: Overrides = None, hub: HubUrl = None) -> None:
    """Publish what is finished and not on the hub yet."""
    from factory.hub.session import session
    from factory.planning.recipe import load

    loaded = load(recipe, set_ or ())
    with session(hub) as (home, the_hub):
        from factory.cli import tables
        from factory.cli.console import ConsoleReporter, console
        from factory.execution import run

        reporter = ConsoleReporter()
        steps = run.publish(loaded, the_hub, home, reporter)
        console.print(tables.repos_table(steps))


def _rows(loaded: LoadedRecipe) -> tuple[list[Row], float | None]:
    from factory.slurm import submit as submitting
    from factory.slurm.queue import Queue

    queue = Queue()
    standing = submitting.standing(loaded, home_path(), queue)
    return submitting.look(standing, queue)


def _submitted_table(submission: Submission) -> Table:
    from factory.cli.tables import titled

    table = titled(f"Submitted to {submission.site}", ("step", "job", "kind", "tasks", "after"))
    for step in submission.steps:
        for job in step.jobs:
            table.add_row(
                step.step, job.id, job.kind, str(job.tasks) if job.kind == "array" else "",
                ", ".join(job.after),
            )  # fmt: skip
    return table


def _print_status(rows: list[Row], spent: float | None, clear: bool) -> None:
    from factory.cli.console import console
    from factory.cli.tables import titled
    from factory.execution.log import duration

    columns = ("step", "state", "shards", "tasks", "tokens/s", "left", "message")
    table = titled("Status", columns)
    for row in rows:
        table.add_row(
            row.step,
            row.stand,
            f"{row.shards[0]}/{row.shards[1]}" if row.shards else "",
            f"{row.running} run, {row.waiting} wait" if row.running or row.waiting else "",
            f"{row.tokens_per_second:.0f}" if row.tokens_per_second else "",
            duration(row.seconds_left) if row.seconds_left is not None else "",
            row.said,
        )
    if clear and console.is_terminal and not console.is_dumb_terminal:
        console.clear()
    console.print(table)
    for row in rows:
        for failure in row.failures:
            which = failure.job + (f"_{failure.task}" if failure.task is not None else "")
            console.print(f"{row.step}, job {which}: {failure.how} on {failure.node or '?'}")
            for line in failure.lines:
                console.print(f"  | {line}")
            console.print(f"  log: {failure.log}")
    if spent is not None:
        console.print(f"GPU-hours so far, by SLURM's accounting: {spent:.1f}")

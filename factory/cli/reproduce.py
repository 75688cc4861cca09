"""reproduce and diff: what was published, made again and set side by side."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.cli.app import app

if TYPE_CHECKING:
    from rich.table import Table

    from factory.execution.diff import Difference
    from factory.hub.client import Hub

_MOST = 4  # figures of a step that are told one by one
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def reproduce(
    collection: Annotated[str, typer.Argument(help="The collection, by its slug.")],
    from_: Annotated[
        str | None, typer.Option("--from", help="The first step to run; those before are taken.")
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="The hub it lies on, if not the local one.")
    ] = None,
    json_: Json = False,
) -> None:
    """Make a published collection again from its own artifacts, and say what differs."""
    from factory.hub.environment import configure_clients
    from factory.hub.session import remote_token, session

    token = remote_token(at) if at else None  # the session's own is the local hub's
    if at is not None:
        _bring([collection], at, token)
    with session(None) as (home, hub), tempfile.TemporaryDirectory(prefix="reproduce-") as folder:
        from factory.cli import console as shown
        from factory.execution import reproduce as room

        published = room.read(hub, collection, Path(folder))
        if at is not None:
            _bring(room.models(published, from_), at, token)
            configure_clients(hub.endpoint)  # the other hub may have Xet on
        teller = shown.ConsoleReporter(aside=json_)
        try:
            found = room.again(published, from_, hub, home, teller)
        finally:
            teller.stop()
        if json_:
            typer.echo(json.dumps({name: asdict(one) for name, one in found.items()}, indent=1))
            return
        shown.console.print()
        shown.console.print(again_table(found))
        shown.console.print(environment_table(found))


@app.command()
def diff(
    one: Annotated[str, typer.Argument(help="org/repo@tag, or a directory with factory.json.")],
    other: Annotated[str, typer.Argument(help="The same for the other.")],
    hub: Annotated[
        str | None, typer.Option("--hub", help="Work with this hub instead of the local one.")
    ] = None,
    json_: Json = False,
) -> None:
    """Compare two artifacts: manifests by field, rows by id, weights by norm."""
    from factory.hub.session import session

    with session(hub) as (_, the_hub):
        from factory.cli import console as shown
        from factory.execution.diff import compare

        found = compare(_artifact(one, the_hub), _artifact(other, the_hub))
        if json_:
            typer.echo(json.dumps(asdict(found), indent=1))
        else:
            for table in difference_tables(found):
                shown.console.print(table)


def _bring(what: list[str], at: str, token: str | None) -> None:
    """Pull into the local hub what is to be had at another one, if it is anything."""
    from factory.cli.push_pull import across
    from factory.cli.transfer import TransferOptions

    if not what:  # to a transfer that would mean the one collection there is
        return
    with contextlib.redirect_stdout(sys.stderr):  # what this command prints is what it found
        across(at, token, TransferOptions(tuple(what)), pulling=True)


def _artifact(name: str, hub: Hub) -> Path:
    """Where an artifact lies on this disk. Raises HubError."""
    from factory.errors import HubError

    if Path(name).is_dir():
        return Path(name)
    repo, _, revision = name.partition("@")
    for kind in ("dataset", "model"):
        if repo.count("/") == 1 and hub.has(repo, kind, revision or "main"):
            return hub.fetch(repo, kind, revision or "main")
    raise HubError(f"{hub.endpoint} has no {name}", "give org/repo@tag, or a directory")


def again_table(found: Mapping[str, Difference]) -> Table:
    """What came of making steps again: rows, weights, and the figures that moved most."""
    table = _table(title="Made again, against what was published")
    for column in ("step", "content", "figures: published, again"):
        table.add_column(column, overflow="fold")
    for name, one in found.items():
        moved = [c for c in one.changes if c.part == "figures" and isinstance(c.one, int | float)]
        said = [f"{c.name} {_short(c.one)}, {_short(c.other)}" for c in moved[:_MOST]]
        more = [f"and {len(moved) - _MOST} more"] if len(moved) > _MOST else []
        table.add_row(name, _content(one), "\n".join(said + more))
    return table


def _content(found: Difference) -> str:
    """Whether the content is the same, in a few words."""
    if found.same_bytes:
        return "the same to the byte"
    if found.weights is not None:
        return f"weights differ by {found.weights.relative:.2g} of their norm"
    same = sum(rows.same for rows in found.rows.values())
    changed = sum(rows.changed for rows in found.rows.values())
    alone = sum(rows.only_one + rows.only_other for rows in found.rows.values())
    return f"{same} rows the same, {changed} changed, {alone} in one alone"


def environment_table(found: Mapping[str, Difference]) -> Table:
    """How the machines differ, said once for all steps."""
    table = _table(title="Environment")
    for column in ("what", "published", "again"):
        table.add_column(column, overflow="fold")
    said = {
        (c.name, str(c.one), str(c.other))
        for one in found.values()
        for c in one.changes
        if c.part == "environment"
    }
    for row in sorted(said) or [("nothing differs", "", "")]:
        table.add_row(*row)
    return table


def difference_tables(found: Difference) -> list[Table]:
    """Everything that differs between two artifacts."""
    about = _table(title=f"Content: {_content(found)}")
    for column in ("about", "what", "one", "other"):
        about.add_column(column, overflow="fold")
    for change in found.changes:
        values = (_short(change.one), _short(change.other))
        about.add_row(change.part, change.name, *values)
    tables = [about]
    if found.rows:
        rows = _table(title="Rows")
        for column in ("slice", "same", "changed", "in one", "in other", "columns that differ"):
            rows.add_column(column, overflow="fold")
        for name, one in found.rows.items():
            columns = ", ".join(f"{column} {count}" for column, count in one.columns.items())
            counts = (one.same, one.changed, one.only_one, one.only_other)
            rows.add_row(name, *map(str, counts), columns)
        tables.append(rows)
    if found.judges:
        tables.append(agreement_table(found))
    if found.weights is not None:
        weights = _table(title="Weights")
        for column in ("tensor", "||one - other|| / ||one||"):
            weights.add_column(column, overflow="fold")
        weights.add_row("all", f"{found.weights.relative:.3g}")
        for name, value in found.weights.largest.items():
            weights.add_row(name, f"{value:.3g}")
        for name in (*found.weights.only_one, *found.weights.only_other):
            weights.add_row(name, "in one alone")
        tables.append(weights)
    return tables


def agreement_table(found: Difference) -> Table:
    """How far two judges of the same answers agree."""
    table = _table(title="Do the two judges agree?")
    table.caption_justify = "left"
    table.caption = (
        "by question, without identical answers; kappa: 0 is what chance would give, 1 is always;\n"
        "95 % intervals over questions"
    )
    for column in ("slice", "compared", "no verdict", "other answers", "alike", "Cohen's kappa"):
        table.add_column(column, overflow="fold")
    for name, one in found.judges.items():
        counts = (one.compared, one.unread, one.other_answers)
        share = _span(one.share, one.share_low, one.share_high, one.questions, ".1f", " %")
        kappa = _span(one.kappa, one.kappa_low, one.kappa_high, one.questions, ".2f")
        table.add_row(name, *map(str, counts), share, kappa)
    return table


def _span(
    value: float | None,
    low: float | None,
    high: float | None,
    questions: int,
    form: str,
    unit: str = "",
) -> str:
    """A figure with its interval, where there are questions enough for one."""
    from factory.evaluation.statistics.intervals import FEWEST

    if value is None:
        return "none"
    said = f"{value:{form}}{unit}"
    if low is None or high is None or questions < FEWEST:
        return said
    return f"{said} \\[{low:{form}}, {high:{form}}]"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title, title_justify="left")

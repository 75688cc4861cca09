"""factory reproduce and diff: run a published collection again, and compare artifacts."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.cli.app import app
from factory.cli.run import HubUrl, Json

if TYPE_CHECKING:
    from rich.table import Table

    from factory.execution.diff import Change, Difference
    from factory.execution.verdict import Claim
    from factory.hub.client import Hub

_LONGEST = 200  # characters of a value
_MOST = 4  # figures of a step that are told one by one


@app.command()
def reproduce(
    collection: Annotated[
        str, typer.Argument(help="A collection (by slug), a repo of it, or its recipe.")
    ],
    from_: Annotated[
        str | None,
        typer.Option("--from", help="First step to run; earlier ones stay as published."),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="The hub of the collection, if not the local one.")
    ] = None,
    json_: Json = False,
) -> None:
    """Run a published collection again, and compare.

    It is made from its own artifacts, in repos of its own.
    """
    from factory.hub.environment import configure_clients
    from factory.hub.session import address, remote_token, session

    token = remote_token(at) if at else None  # the session's own is the local hub's
    if at is not None:
        configure_clients(at)
        from factory.hub.client import Hub

        collection = _slug(collection, Hub(address(at), token))
        _bring([collection], at, token)
    with session(None) as (home, hub), tempfile.TemporaryDirectory(prefix="reproduce-") as folder:
        from factory.cli.console import ConsoleReporter, console
        from factory.execution import reproduce as reproduction

        published = reproduction.read(hub, _slug(collection, hub), Path(folder))
        if at is not None:
            _bring(reproduction.models(published, from_), at, token)
            configure_clients(hub.endpoint)  # the other hub may have Xet on
        reporter = ConsoleReporter(aside=json_)
        try:
            result = reproduction.reproduce(published, from_, hub, home, reporter)
        finally:
            reporter.stop()
        if json_:
            steps: dict[str, Any] = {n: asdict(one) for n, one in result.differences.items()}
            for name in steps:
                if claimed := [asdict(c) for c in result.claims if c.step == name]:
                    steps[name]["claims"] = claimed
            typer.echo(json.dumps(steps, indent=1))
            return
        console.print()
        console.print(reproduced_table(result.differences))
        console.print(environment_table(result.differences))
        for part in verdict_parts(result.claims):
            console.print(part)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help="org/repo@tag, or a directory with factory.json.")],
    second: Annotated[str, typer.Argument(help="The artifact to compare with.")],
    hub: HubUrl = None,
    json_: Json = False,
) -> None:
    """Compare two artifacts.

    Manifests by field, rows by id, weights by norm.
    """
    from factory.hub.session import session

    with session(hub) as (_, the_hub):
        from factory.cli.console import console
        from factory.execution.diff import compare

        difference = compare(_artifact(first, the_hub), _artifact(second, the_hub))
        if json_:
            typer.echo(json.dumps(asdict(difference), indent=1))
        else:
            for table in difference_tables(difference):
                console.print(table)


def _slug(word: str, hub: Hub) -> str:
    """Return the slug of the collection that a word stands for: a slug, a repo in it, or its
    recipe. Raises HubError, RecipeError."""
    from factory.cli.transfer import collection_of

    if "/" in word and not word.endswith((".yaml", ".yml")):
        return hub.find_collection(word.removeprefix("datasets/").partition("@")[0])[0]
    return collection_of(word, hub.collections) or word


def _bring(what: list[str], at: str, token: str | None) -> None:
    """Pull repos from another hub into the local one; nothing if `what` is empty."""
    from factory.cli.push_pull import across
    from factory.cli.transfer import TransferOptions

    if not what:  # to a transfer that would mean the one collection there is
        return
    with contextlib.redirect_stdout(sys.stderr):  # what this command prints is what it found
        across(at, token, TransferOptions(tuple(what)), pulling=True)


def _artifact(name: str, hub: Hub) -> Path:
    """Return the directory of an artifact, fetched if needed. Raises HubError."""
    from factory.errors import HubError

    if Path(name).is_dir():
        return Path(name)
    repo, _, revision = name.partition("@")
    for kind in ("dataset", "model"):
        if repo.count("/") == 1 and hub.has(repo, kind, revision or "main"):
            return hub.fetch(repo, kind, revision or "main")
    raise HubError(f"{hub.called} has no {name}", "give org/repo@tag, or a directory")


def reproduced_table(differences: Mapping[str, Difference]) -> Table:
    """Tabulate reproduced steps: rows, weights, and the figures that differ."""
    columns = ("step", "content", "figures: published, reproduced")
    table = _table("Reproduced against published", columns)
    for name, difference in differences.items():
        moved = [
            f"{c.name} {_short(c.one)}, {_short(c.other)}"
            for c in difference.changes
            if c.part == "figures"
            and isinstance(c.one, int | float)
            and _short(c.one) != _short(c.other)
        ]
        lines = moved[:_MOST]
        more = [f"and {len(moved) - _MOST} more"] if len(moved) > _MOST else []
        table.add_row(name, _content(difference), "\n".join(lines + more))
    return table


def _content(difference: Difference) -> str:
    """Describe in a few words whether the content is the same."""
    if difference.same_bytes:
        return "identical bytes"
    if difference.weights is not None:
        return f"weights differ by {difference.weights.relative:.2g} of their norm"
    same = sum(rows.same for rows in difference.rows.values())
    changed = sum(rows.changed for rows in difference.rows.values())
    alone = sum(rows.only_one + rows.only_other for rows in difference.rows.values())
    return f"{same} rows identical, {changed} changed, {alone} in one only"


def verdict_parts(claims: Sequence[Claim]) -> list[Table | str]:
    """Return the verdict on the claims of the original: counts by language, the claims that do not
    fall within, why others were not tested, and a sentence."""
    from factory.execution.verdict import counted, sentence

    parts: list[Table | str] = []
    if claims:
        columns = ("language", "within intervals here", "not within", "not tested")
        table = _table("Claims of the original", columns)
        for language, counts in counted(claims).items():
            numbers = (counts.get(finding, 0) for finding in ("within", "outside", "not tested"))
            table.add_row(language, *map(str, numbers))
        parts.append(table)
    if outside := [claim for claim in claims if claim.finding == "outside"]:
        table = _table("Not within", ("claim", "original", "here", ""))
        for claim in outside:
            name = f"{claim.model} against {claim.against}" if claim.against else claim.model
            table.add_row(
                f"{name}, {claim.language}, {claim.evaluation}: {claim.metric}",
                _with_interval(claim.value, claim.low, claim.high),
                _with_interval(claim.again, claim.again_low, claim.again_high),
                "reversed" if claim.reversed else "",
            )
        parts.append(table)
    untested = Counter((c.step, c.why) for c in claims if c.finding == "not tested")
    parts += [f"Not tested: {n} of {step}: {why}." for (step, why), n in untested.items()]
    return [*parts, sentence(claims)]


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "" if value is None else f"{value:.1f}"
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def environment_table(differences: Mapping[str, Difference]) -> Table:
    """Tabulate differences of the environment, once for all steps."""
    table = _table("Environment", ("package", "published", "reproduced"))
    rows = {
        (c.name, str(c.one), str(c.other))
        for difference in differences.values()
        for c in difference.changes
        if c.part == "environment"
    }
    for row in sorted(rows) or [("nothing differs", "", "")]:
        table.add_row(*row)
    return table


def difference_tables(difference: Difference) -> list[Table]:
    """Tabulate all differences between two artifacts."""
    about = _table(f"Content: {_content(difference)}", ("part", "field", "first", "second"))
    for part, name, one, other in _without_curves(difference.changes):
        about.add_row(part, name, one, other)
    tables = [about]
    if difference.rows:
        counted = ("same", "changed", "first only", "second only")
        rows = _table("Rows", ("slice", *counted, "changed columns"))
        for name, changes in difference.rows.items():
            columns = ", ".join(f"{column} {count}" for column, count in changes.columns.items())
            counts = (changes.same, changes.changed, changes.only_one, changes.only_other)
            rows.add_row(name, *map(str, counts), columns)
        tables.append(rows)
    if difference.judges:
        tables.append(agreement_table(difference))
    if difference.weights is not None:
        weights = _table("Weights", ("tensor", "||one - other|| / ||one||"))
        weights.add_row("all", f"{difference.weights.relative:.3g}")
        for name, value in difference.weights.largest.items():
            weights.add_row(name, f"{value:.3g}")
        for name in (*difference.weights.only_one, *difference.weights.only_other):
            weights.add_row(name, "in one only")
        tables.append(weights)
    return tables


_POINT = re.compile(r"\.\d+(?=\.|$)")  # the number of a row in the name of a figure


def _without_curves(changes: Sequence[Change]) -> list[tuple[str, str, str, str]]:
    """Return changes as part, field and both values. A curve is one line, and so is a field of
    which many rows differ: how many values differ, and the last of them."""
    groups: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        name = _POINT.sub("", change.name)
        curve = _POINT.split(change.name)[0]
        groups.setdefault((change.part, curve if "curve" in curve else name), []).append(change)
    lines = []
    for (part, name), rows in groups.items():
        if "curve" in name:
            lines.append((part, f"{name}: {len(rows)} values differ", "see --json", "see --json"))
        elif len(rows) > _MOST:
            named = f"{name}: {len(rows)} rows differ; the last"
            lines.append((part, named, _short(rows[-1].one), _short(rows[-1].other)))
        else:
            lines += [(part, row.name, _short(row.one), _short(row.other)) for row in rows]
    return lines


def agreement_table(difference: Difference) -> Table:
    """Tabulate the agreement of two judges on the same answers."""
    counted = ("compared", "no verdict", "other answers")
    table = _table("Agreement of the judges", ("slice", *counted, "agreement", "Cohen's kappa"))
    table.caption = (
        "by question, without identical answers; kappa 0: chance agreement, 1: full agreement;\n"
        "95 % intervals over questions"
    )
    for name, agreement in difference.judges.items():
        counts = (agreement.compared, agreement.unread, agreement.other_answers)
        share = _span(
            agreement.share,
            agreement.share_low,
            agreement.share_high,
            agreement.questions,
            ".1f",
            " %",
        )
        kappa = _span(
            agreement.kappa, agreement.kappa_low, agreement.kappa_high, agreement.questions, ".2f"
        )
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
    """Format a figure with its interval, if there are enough questions for one."""
    from factory.evaluation.statistics.intervals import FEWEST

    if value is None:
        return "none"
    text = f"{value:{form}}{unit}"
    if low is None or high is None or questions < FEWEST:
        return text
    return f"{text} [{low:{form}}, {high:{form}}]"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _table(title: str, columns: Sequence[str]) -> Table:
    from factory.cli.tables import titled

    return titled(title, columns)

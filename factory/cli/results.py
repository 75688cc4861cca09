"""factory results: evaluations of a collection or a recipe, models by languages."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from factory.cli.app import app
from factory.cli.run import HubUrl, Json

if TYPE_CHECKING:
    from factory.artifacts.manifest import Manifest
    from factory.artifacts.workdir import Home
    from factory.cli.tables import Fitted
    from factory.hub.client import Hub
    from factory.reports.results import Result

_LEAD = ("model", "evaluation", "judged by")  # columns of text, before those of languages
_HIDDEN = ("repo", "fingerprint", "version", "questions", "of_answers")
Format = Literal["table", "csv", "md", "latex"]
_LATEX = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": "\\textasciitilde{}"})


@app.command()
def results(
    what: Annotated[list[str], typer.Argument(help="Slugs of collections, or recipes.")],
    metric: Annotated[
        str | None, typer.Option(help="A metric or benchmark; default: the win rate.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every metric.")] = False,
    format_: Annotated[
        Format, typer.Option("--format", help="How to print: table, csv, md or latex.")
    ] = "table",
    hub: HubUrl = None,
    json_: Json = False,
) -> None:
    """Show evaluations as models by languages.

    Several collections are compared where the same judge, in the same version, judged answers to
    the same questions.
    """
    from factory.errors import visible
    from factory.hub.session import session

    with session(hub) as (home, the_hub):
        from factory.reports.results import tidy, together

        each = {name: _manifests(name, the_hub, home) for name in dict.fromkeys(what)}
        results_of = {name: tidy(manifests) for name, manifests in _called(each).items()}
    if empty := [name for name, rows in results_of.items() if not rows]:
        typer.echo(f"{', '.join(empty)}: no evaluation results yet", err=format_ != "table")
        return
    [first, *more] = results_of.values()
    rows = first
    if more:
        rated = all("win_rate" in {row.metric for row in rows} for rows in results_of.values())
        default = "win_rate" if rated and not all_ else None
        rows, left_out = together(results_of, metric or default)
        for what_is_left in left_out:
            typer.echo(visible(f"left out: {what_is_left}"), err=True)
    if json_:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    if format_ != "table":
        header, lines = _every(rows) if all_ else _by_language(rows, metric)[1:3]
        typer.echo(_text(header, lines, format_), nl=False)
        return
    from factory.cli.console import console

    for name in dict.fromkeys(row.metric for row in rows) if all_ else (metric,):
        title, header, lines, rest = _by_language(rows, name)
        console.print(results_table(title, header, lines))
    if rest and not all_:
        console.print(rest)


def _every(rows: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines of all numbers, one a line."""
    names = [field.name for field in fields(rows[0]) if field.name not in _HIDDEN]
    shown = [
        [
            f"{value:.2f}" if isinstance(value, float) else "" if value is None else str(value)
            for value in (getattr(row, name) for name in names)
        ]
        for row in rows
    ]
    return names, shown


def _by_language(
    rows: Sequence[Result], measure: str | None
) -> tuple[str, list[str], list[list[str]], str]:
    """Return the title, header and lines of one metric, models by languages, and what else there
    is. Raises InputError for a metric that there is not.

    A win rate comes before a benchmark. A number with an interval is followed by half its width; a
    star says that it differs from the model that it is compared with.
    """
    from factory.errors import InputError, nearest

    metrics = list(dict.fromkeys(row.metric for row in rows))
    evaluations = list(dict.fromkeys((row.metric, row.evaluation, row.by) for row in rows))
    if measure is None:
        measure = "win_rate" if "win_rate" in metrics else metrics[0]
    matching = [e for e in evaluations if measure in e[:2]]
    if not matching:
        metric_names = list(dict.fromkeys([*metrics, *(row.evaluation for row in rows)]))
        raise InputError(
            f"no metric {measure!r}{nearest(measure, metric_names)}",
            f"there is {', '.join(metric_names)}",
        )
    shown = {
        (row.model, matching.index((row.metric, row.evaluation, row.by)), row.language): row
        for row in rows
        if (row.metric, row.evaluation, row.by) in matching
    }
    languages = list(dict.fromkeys(language for _, _, language in shown))
    # what tells several evaluations apart: the benchmark or the answers, the judge, or both
    differ = [len({evaluation[n] for evaluation in matching}) > 1 for n in (1, 2)]
    differ[0] |= measure == matching[0][1] and len(matching) > 1
    lines = []
    for number, (metric, evaluation, by) in enumerate(matching):
        for model in dict.fromkeys(row.model for row in rows):
            cells = [_cell(shown.get((model, number, language))) for language in languages]
            if any(cells):
                name = f"{evaluation} {metric}" if measure == evaluation else evaluation
                labels = [text for text, is_told in zip((name, by), differ, strict=True) if is_told]
                lines.append([model, *labels, *cells])
    metric, evaluation, by = matching[0]
    against = {row.against for row in shown.values() if row.against}
    title = metric.replace("_", " ") + (f" against {', '.join(sorted(against))}" if against else "")
    title += "" if differ[0] else f" on {evaluation}"
    title += "" if differ[1] else f", by {by}"
    more_metrics = [name for name in metrics if name != measure]
    rest = f"Also: {', '.join(more_metrics)} (--metric NAME, or --all)" if more_metrics else ""
    lead = [name for name, is_told in zip(_LEAD[1:], differ, strict=True) if is_told]
    return title, ["model", *lead, *languages], lines, rest


def _cell(row: Result | None) -> str:
    if row is None:
        return ""
    if row.value is None:
        return row.note or "none"
    half = "" if row.ci_low is None or row.ci_high is None else (row.ci_high - row.ci_low) / 2
    width = f" ±{half:.1f}" if half != "" else ""
    return f"{row.value:.1f}{width}" + ("*" if row.significant else "")


def results_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> Fitted:
    """Tabulate results, models by languages."""
    from factory.cli.tables import Fitted

    lead = next((n for n, name in enumerate(header) if name not in _LEAD), len(header))
    starred = any("*" in cell for line in lines for cell in line[lead:])
    caption = "±: half a 95 % interval; *: differs from the model compared with" if starred else ""
    return Fitted(title, header, lines, lead, caption)


def _text(header: Sequence[str], lines: Sequence[Sequence[str]], kind: Format) -> str:
    """Return a table as CSV, Markdown or LaTeX."""
    if kind == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([header, *lines])
        return out.getvalue()
    if kind == "md":
        marked = [[cell.replace("|", "\\|") for cell in line] for line in (header, *lines)]
        rule = ["---" if name in _LEAD else "---:" for name in header]
        return "".join(f"| {' | '.join(line)} |\n" for line in (marked[0], rule, *marked[1:]))
    cells = [[cell.translate(_LATEX).replace("±", "$\\pm$") for cell in line]
             for line in (header, *lines)]  # fmt: skip
    body = [f"{' & '.join(line)} \\\\" for line in cells]
    columns = "".join("l" if name in _LEAD else "r" for name in header)
    rows = ["\\toprule", body[0], "\\midrule", *body[1:], "\\bottomrule"]
    return "\n".join([f"\\begin{{tabular}}{{{columns}}}", *rows, "\\end{tabular}"]) + "\n"


def _called(each: Mapping[str, list[Manifest]]) -> dict[str, list[Manifest]]:
    """Name collections by their recipes, where these differ: lab/croco-NAME-0123… and NAME.yaml."""
    names = [
        Path(what).stem
        if Path(what).suffix
        else what.rpartition("/")[2].removeprefix("croco-").rpartition("-")[0] or what
        for what in each
    ]
    return dict(zip(names if len(set(names)) == len(each) else each, each.values(), strict=True))


def _manifests(what: str, hub: Hub, home: Home) -> list[Manifest]:
    """Return the newest manifest of every repo of a collection, or those that a plan of a recipe
    reuses. Raises HubError, RecipeError."""
    from factory.cli.report import of_recipe
    from factory.planning import recipe

    if "/" in what and not Path(what).exists():
        manifests = [artifact.manifest for artifact in hub.holdings(hub.collection(what)).found]
    else:
        manifests = list(of_recipe(recipe.load(what), hub, home).manifests)
    newest = {m.repo: m for m in sorted(manifests, key=lambda manifest: manifest.created)}
    return list(newest.values())

"""factory card: show, check or refresh a card."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from factory.cli.app import app
from factory.cli.run import HubUrl, Json


@app.command()
def card(
    repo: Annotated[str, typer.Argument(help="org/name or datasets/org/name, with @revision.")],
    check: Annotated[
        bool, typer.Option("--check", help="List problems of a card, in any repo.")
    ] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Update it on main with newer evaluation results.")
    ] = False,
    hub: HubUrl = None,
    json_: Json = False,
) -> None:
    """Print the card of a repo, as rendered from its manifest."""
    from factory.errors import HubError
    from factory.hub.session import session

    if check and refresh:
        raise HubError("--check and --refresh exclude each other", "give one of them")
    with session(hub) as (_, the_hub):
        from factory.reports.cards import refresh as cards

        subject = cards.find(the_hub, repo)
        if check:
            problems = cards.check(the_hub, subject)
            if json_:
                typer.echo(
                    json.dumps(
                        [{"what": problem.seen, "fix": problem.fix} for problem in problems],
                        indent=1,
                    )
                )
            else:
                for problem in problems:
                    typer.echo(f"{problem.seen}; fix: {problem.fix}")
                if not problems:
                    typer.echo(f"{subject}: no problems")
            if problems:
                raise typer.Exit(1)
        elif refresh:
            if subject.revision != "main":
                raise HubError(
                    "only main is refreshed: tags are fixed", f"leave out @{subject.revision}"
                )
            commit, rows = cards.refresh(the_hub, subject)
            did = f"refreshed in {commit[:12]}" if commit else "unchanged"
            typer.echo(f"{subject.repo}: {did}, with {len(rows)} evaluation results")
        else:
            typer.echo(cards.rendered(the_hub, subject)[0], nl=False)

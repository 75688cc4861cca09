"""factory card: see a card, check it, bring it up to date."""

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
        bool, typer.Option("--check", help="Say what is wrong with it; any repo's card.")
    ] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Put it on main with what judges found since.")
    ] = False,
    hub: HubUrl = None,
    json_: Json = False,
) -> None:
    """The card of a repo, as its manifest gives it."""
    from factory.errors import HubError
    from factory.hub.session import session

    if check and refresh:
        raise HubError("--check and --refresh are two things", "give one of them")
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
                    typer.echo(f"{subject}: its card is right")
            if problems:
                raise typer.Exit(1)
        elif refresh:
            if subject.revision != "main":
                raise HubError(
                    "only main is refreshed: tags never move", f"leave out @{subject.revision}"
                )
            commit, found = cards.refresh(the_hub, subject)
            did = f"refreshed in {commit[:12]}" if commit else "as it was"
            typer.echo(f"{subject.repo}: {did}, with {len(found)} rows of evaluation")
        else:
            typer.echo(cards.rendered(the_hub, subject)[0], nl=False)

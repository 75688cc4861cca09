"""factory check: check a recipe against its tokenizers and this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from factory.cli.app import app
from factory.cli.run import HubUrl, Json, Overrides, RecipeName

if TYPE_CHECKING:
    from factory.errors import Check


@app.command()
def check(
    recipe: RecipeName, set_: Overrides = None, hub: HubUrl = None, json_: Json = False
) -> None:
    """Check chat templates, stop tokens and prompt lengths with the real tokenizers, without
    weights; and the requirements of each stage on this machine."""
    from factory.hub.session import session
    from factory.planning.recipe import load

    loaded = load(recipe, set_ or ())
    with session(hub) as (home, the_hub):
        from factory.execution import checks as checking
        from factory.execution import resolve

        pins, _ = resolve.resolve(loaded, the_hub, home, None)
        findings = [
            *checking.missing_requirements(loaded.recipe),
            *checking.check(loaded, pins, the_hub, home),
        ]
    errors = sum(finding.state == "failed" for finding in findings)
    if json_:
        typer.echo(json.dumps([_record(finding) for finding in findings], indent=1))
    else:
        from factory.cli.console import console

        for finding in findings:
            console.print(finding.line())
        warnings = len(findings) - errors
        console.print(f"{loaded.recipe.name}: {_count(errors, 'error')}, "
                      f"{_count(warnings, 'warning')}")  # fmt: skip
    if errors:
        raise typer.Exit(1)


def _record(check: Check) -> dict[str, str]:
    return {"level": check.level, "about": check.name, "what": check.seen, "fix": check.fix}


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"

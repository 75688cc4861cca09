"""factory check: check a recipe against its tokenizers and this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from factory.cli.app import app
from factory.cli.run import HubUrl, Json, OtherHub, Overrides, RecipeName
from factory.hub.environment import PUBLIC

if TYPE_CHECKING:
    from factory.errors import Check


@app.command()
def check(
    recipe: RecipeName,
    set_: Overrides = None,
    hub: HubUrl = None,
    from_: OtherHub = PUBLIC,
    json_: Json = False,
) -> None:
    """Check files, licences and tokenizers before a run.

    Chat templates, stop tokens and prompt lengths are checked with the real tokenizers, without
    weights.
    """
    from factory.hub.session import address, remote_token, session
    from factory.planning.recipe import load

    token = remote_token(from_)  # before the session, whose own is the local hub's
    loaded = load(recipe, set_ or ())
    with session(hub) as (home, the_hub):
        from factory.execution import checks as checking
        from factory.execution import inputs, resolve

        pins, absent = resolve.resolve(loaded, the_hub, home, None)
        plan = resolve.plan(loaded, pins, the_hub, home)
        missing = resolve.missing(loaded, absent, plan.steps)
        elsewhere = checking.look_elsewhere(missing, address(from_), token)
        here = inputs.datasets_here(plan.steps, pins, the_hub, None)
        counts, faults = inputs.counted(loaded, plan.steps, here, 1000)
        findings = [
            *resolve.unmet(loaded, missing, the_hub),
            *faults,
            *checking.license_faults(loaded, pins, the_hub, plan, elsewhere.licenses),
            *checking.unused_licenses(loaded.recipe),
            *checking.missing_requirements(loaded.recipe),
            *checking.blocked_steps(plan, counts),
            *checking.check(loaded, pins, the_hub, home),
        ]
        findings = list({(finding.seen, finding.fix): finding for finding in findings}.values())
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

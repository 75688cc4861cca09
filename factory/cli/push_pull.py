"""factory push, factory pull: between the local hub and another one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from factory.artifacts.resources import home_path
from factory.cli.app import app
from factory.cli.run import Quiet
from factory.cli.transfer import TransferOptions, carry, local_hub, transfer
from factory.errors import HubError
from factory.hub.environment import PUBLIC, is_public
from factory.hub.session import address, remote_token


def _wishes(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="Collections (by slug) and repos (org/name, datasets/org/name)."),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="Another namespace or name over there."),
    ] = None,
    adopt: Annotated[
        bool, typer.Option("--adopt-remote", help="Where both differ, what is over there stands.")
    ] = False,
    squash: Annotated[
        bool, typer.Option("--squash", help="Only the commits that a branch or a tag names.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make new repos private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Quiet = False,
) -> TransferOptions:
    """The options that push and pull share."""
    given, renamed = tuple(what or ()), tuple(rename or ())
    return TransferOptions(given, renamed, adopt, squash, private, dry_run, json_, quiet)


def _with_wishes(command: Callable[[TransferOptions, str], None]) -> Callable[..., None]:
    """A command line of a command's own option, the other hub, and of those of `_wishes`."""
    _, hub = inspect.signature(command, eval_str=True).parameters.values()
    shared = inspect.signature(_wishes, eval_str=True).parameters.values()

    def run(**given: Any) -> None:
        remote = given.pop(hub.name)
        command(_wishes(**given), remote)

    parameters = [part.replace(kind=part.KEYWORD_ONLY) for part in (hub, *shared)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {part.name: part.annotation for part in parameters}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


@app.command()
@_with_wishes
def push(
    wishes: TransferOptions,
    to: Annotated[str, typer.Option("--to", help="The hub to push to.")] = PUBLIC,
) -> None:
    """Publish collections and repos of the local hub on another hub."""
    if part := next((word for word in wishes.what if "@" in word), None):
        raise HubError(f"{part}: a push takes whole repos", "leave out the revision; see --squash")
    across(to, remote_token(to), wishes, pulling=False)


@app.command()
@_with_wishes
def pull(
    wishes: TransferOptions,
    from_: Annotated[str, typer.Option("--from", help="The hub to pull from.")] = PUBLIC,
) -> None:
    """Bring collections and repos of another hub into the local one, with their commit ids.

    REPO@REVISION brings that one revision.
    """
    if not wishes.what and is_public(from_):
        raise HubError(
            f"{from_} has more than one can bring in", "name a collection by its slug, or a repo"
        )
    across(from_, remote_token(from_), wishes, pulling=True)


def across(remote: str, token: str | None, wishes: TransferOptions, *, pulling: bool) -> None:
    """Carry repos between the local hub and another, each with its own token and never with the
    other's. Raises HubError."""
    from factory.hub.connection import await_hub

    remote = address(remote)
    await_hub(remote)
    with local_hub() as local:
        # Inside `factory hub exec` the user's token is the local hub's.
        there = (remote, None if token == local.token else token)
        here = (local.url, local.token)
        staging = home_path() / "sync" / (urlsplit(remote).netloc or "hub")
        source, destination = (there, here) if pulling else (here, there)
        with transfer(source, destination, wishes, staging=staging, keeps_ids=pulling) as work:
            carry(work, wishes)

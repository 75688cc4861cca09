"""factory push and pull: transfer between the local hub and another one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from factory.artifacts.resources import home_path
from factory.cli.app import app
from factory.cli.run import Quiet
from factory.cli.transfer import TransferOptions, carry, local_hub, sources, transfer
from factory.errors import HubError
from factory.hub.environment import PUBLIC, is_public


def _options(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="Collections (by slug), repos (org/name, datasets/org/name) and recipes."
        ),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="Use another namespace or name at the destination."),
    ] = None,
    adopt: Annotated[
        bool,
        typer.Option("--adopt-remote", help="Where both differ, keep the destination's."),
    ] = False,
    squash: Annotated[
        bool, typer.Option("--squash", help="Push only commits that a branch or tag points to.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make new repos private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; do nothing.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Quiet = False,
) -> TransferOptions:
    """Collect the options that push and pull share."""
    names, renames = tuple(what or ()), tuple(rename or ())
    return TransferOptions(names, renames, adopt, squash, private, dry_run, json_, quiet)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `_options` to a command that takes options of its own."""
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    shared = inspect.signature(_options, eval_str=True).parameters.values()

    def run(**arguments: Any) -> None:
        mine = {part.name: arguments.pop(part.name) for part in own}
        command(_options(**arguments), **mine)

    parameters = [part.replace(kind=part.KEYWORD_ONLY) for part in (*own, *shared)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {part.name: part.annotation for part in parameters}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


@app.command()
@_with_options
def push(
    options: TransferOptions,
    to: Annotated[str, typer.Option("--to", help="The hub to push to.")] = PUBLIC,
    space: Annotated[
        bool, typer.Option("--space", help="Publish the results page as a static Space too.")
    ] = False,
) -> None:
    """Push collections and repos of the local hub to another.

    A recipe stands for its collection.
    """
    from factory.hub.session import remote_token

    if part := next((word for word in options.what if "@" in word), None):
        raise HubError(f"{part}: a push takes whole repos", "leave out the revision; see --squash")
    if space and (len(options.what) != 1 or options.private):
        raise HubError(
            "--space shows the results of one collection, and is public",
            "name one recipe or collection, without --private",
        )
    across(to, remote_token(to), options, pulling=False)
    if space and not options.dry:
        from factory.cli.report import space as publish_page
        from factory.hub.session import address
        from factory.hub.sync.transfer import rename

        repo = publish_page(
            options.what[0], address(to), remote_token(to), rename(list(options.rename))
        )
        typer.echo(f"results page: {address(to)}/spaces/{repo}", err=options.as_json)


@app.command()
@_with_options
def pull(
    options: TransferOptions,
    from_: Annotated[str, typer.Option("--from", help="The hub to pull from.")] = PUBLIC,
) -> None:
    """Pull collections and repos of another hub.

    They come into the local hub with their commit ids. REPO@REVISION pulls that one revision. A
    recipe stands for all models and datasets that it names.
    """
    from factory.hub.session import remote_token

    if not options.what and is_public(from_):
        raise HubError(f"{from_} is too large to pull whole", "name a collection (slug) or a repo")
    what = tuple(repo for word in options.what for repo in sources(word) or (word,))
    across(from_, remote_token(from_), replace(options, what=what), pulling=True)


def across(remote: str, token: str | None, options: TransferOptions, *, pulling: bool) -> None:
    """Transfer repos between the local hub and another, each with its own token only. Raises
    HubError."""
    from factory.hub.connection import await_hub
    from factory.hub.session import address

    remote = address(remote)
    await_hub(remote)
    with local_hub() as local:
        # Inside `factory hub exec` the user's token is the local hub's.
        other = (remote, None if token == local.token else token)
        local_side = (local.url, local.token)
        staging = home_path() / "sync" / (urlsplit(remote).netloc or "hub")
        source, destination = (other, local_side) if pulling else (local_side, other)
        with transfer(source, destination, options, staging=staging, keeps_ids=pulling) as work:
            carry(work, options)

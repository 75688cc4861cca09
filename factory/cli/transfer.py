"""A transfer between two hubs, from the words of a command line to what is printed at its end."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from factory.artifacts.files import file_lock
from factory.artifacts.resources import home_path
from factory.errors import HubError
from factory.hub.environment import configure_clients
from factory.localhub.launcher import Connection, HubStartError, connect

if TYPE_CHECKING:
    from factory.hub.sync.side import RepoId
    from factory.hub.sync.transfer import CollectionOutcome, RepoOutcome, RepoTransfer

_SLUG = re.compile(r"[^/@]+/[^/@]*-[0-9a-f]{24}")


@dataclass(frozen=True)
class TransferOptions:
    """What is to be carried over, how, and how that is told."""

    what: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()
    adopt: bool = False
    squash: bool = False
    private: bool = False
    dry: bool = False
    as_json: bool = False
    quiet: bool = False


@contextmanager
def local_hub(root: Path | None = None) -> Iterator[Connection]:
    """A server of the local hub, or of another store, for as long as the block lasts."""
    try:
        with connect(root or home_path() / "hub") as connection:
            yield connection
    except HubStartError as error:
        from factory.hub.session import not_started

        raise not_started(error) from None


@contextmanager
def transfer(
    source: tuple[str, str | None],
    destination: tuple[str, str | None],
    wishes: TransferOptions,
    *,
    staging: Path,
    keeps_ids: bool,
) -> Iterator[RepoTransfer]:
    """A transfer between two hubs, each an address and its own token, by way of a folder."""
    configure_clients(source[0] if keeps_ids else destination[0])
    from factory.cli.bar import Bar
    from factory.hub.sync import transfer as rooms
    from factory.hub.sync.destination import Destination
    from factory.hub.sync.mirror import Mirror
    from factory.hub.sync.plan import Options
    from factory.hub.sync.side import HubReader

    bar = Bar(wishes.quiet)
    in_use = HubError(f"another push or pull is using {staging}", "wait until it is done")
    with file_lock(staging, "lock", in_use):
        to = (Mirror if keeps_ids else Destination)(*destination, staging / "destination")
        try:
            yield rooms.RepoTransfer(
                HubReader(*source, staging / "source"),
                to,
                Options(adopt=wishes.adopt, squash=wishes.squash, private=wishes.private),
                bar,
                rooms.rename(list(wishes.rename)),
            )
        finally:
            bar.stop()
        # What a run that failed had fetched is of use to the next one.
        shutil.rmtree(staging / "source", ignore_errors=True)
        shutil.rmtree(staging / "destination", ignore_errors=True)


def carry(work: RepoTransfer, wishes: TransferOptions) -> None:
    """Carry over what was asked for, tell it, and raise HubError if some of it could not be."""
    shelves, repos = named(work, wishes.what)
    done = [work.preview(*repo) if wishes.dry else work.repo(*repo) for repo in repos]
    collections = [work.collection(slug, dry=wishes.dry) for slug in shelves]
    _print(done, collections, wishes)
    if blocked := [outcome for outcome in done if outcome.conflicts]:
        raise HubError(
            "; ".join(conflict for outcome in blocked for conflict in outcome.conflicts),
            "--adopt-remote leaves what is over there; --rename OLD=NEW takes another name",
        )


def everything(work: RepoTransfer) -> tuple[str, ...]:
    """All collections and repos that the source has."""
    collections = (collection.slug for collection in work.source.collections())
    return (*collections, *(str(repo) for repo in work.source.repos()))


def named(
    work: RepoTransfer, what: tuple[str, ...]
) -> tuple[list[str], list[tuple[RepoId, str | None]]]:
    """The collections and the repos, with revisions, that were asked for. Raises HubError.

    If nothing was, the one collection that the source has.
    """
    if not what:
        what = tuple(collection.slug for collection in work.source.collections())
        if len(what) != 1:
            raise HubError(
                f"{len(what)} collections at {work.source.endpoint}",
                "name one: " + ", ".join(what) if what else "name a repo",
            )
    shelves = [word for word in what if _SLUG.fullmatch(word)]
    repos: dict[tuple[RepoId, str | None], None] = {}
    for shelf in shelves:
        repos |= dict.fromkeys((repo, None) for repo in work.repos_of(shelf))
    for word in what:
        if word not in shelves:
            name, _, revision = word.partition("@")
            repos |= dict.fromkeys((repo, revision or None) for repo in work.find(name))
    return shelves, list(repos)


def _print(
    done: list[RepoOutcome], shelves: list[CollectionOutcome], wishes: TransferOptions
) -> None:
    if wishes.as_json:
        found: dict[str, Any] = {
            "repos": [
                {**vars(outcome), "repo": str(outcome.repo), "target": str(outcome.target)}
                for outcome in done
            ],
            "collections": [vars(shelf) for shelf in shelves],
        }
        typer.echo(json.dumps(found))
        return
    if wishes.quiet:
        return
    from rich.table import Table

    from factory.cli.bar import shown
    from factory.cli.console import console

    table = Table(title="What would be done" if wishes.dry else "Done", title_justify="left")
    for column in ("repo", "commits", "files", "size", "tags", "remarks"):
        table.add_column(column, overflow="fold")
    for outcome in done:
        remarks = [f"conflict: {conflict}" for conflict in outcome.conflicts] + outcome.notes
        name = str(outcome.repo)
        if outcome.target != outcome.repo:
            name += f" as {outcome.target}"
        numbers = (str(n) for n in (outcome.commits, outcome.files))
        table.add_row(name, *numbers, shown(outcome.size), str(outcome.tags), "; ".join(remarks))
    console.print(table)
    verb = "to change" if wishes.dry else "changed"
    for shelf in shelves:
        remarks = [f"{shelf.changes} items {verb}", *shelf.notes]
        console.print(f"collection {shelf.slug}: {'; '.join(remarks)}")

"""A transfer between two hubs, from the words of a command line to what is printed at its end."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import typer

from factory.cli.app import home_path
from factory.errors import HubError
from factory.localhub.launcher import Connection, HubStartError, connect

if TYPE_CHECKING:
    from factory.sync.side import Repo
    from factory.sync.transfer import Outcome, Shelf, Transfer

PUBLIC = "https://huggingface.co"
_SLUG = re.compile(r"[^/@]+/[^/@]*-[0-9a-f]{24}")


@dataclass(frozen=True)
class Wishes:
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
        raise not_started(error) from None


def not_started(error: HubStartError) -> HubError:
    """What to do where the local hub does not start: most often its folder cannot be used."""
    return HubError(f"the local hub did not start: {error}", error.fix)


@contextmanager
def transfer(
    source: tuple[str, str | None],
    destination: tuple[str, str | None],
    wishes: Wishes,
    *,
    staging: Path,
    keeps_ids: bool,
) -> Iterator[Transfer]:
    """A transfer between two hubs, each an address and its own token, by way of a folder."""
    # Clients read these when they are imported. Only the public hub has a Xet store to upload to.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not keeps_ids and urlsplit(destination[0]).hostname != urlsplit(PUBLIC).hostname:
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    from factory.cli.bar import Bar
    from factory.sync import transfer as rooms
    from factory.sync.destination import Destination
    from factory.sync.mirror import Mirror
    from factory.sync.plan import Options
    from factory.sync.side import Side

    bar = Bar(wishes.quiet)
    with _alone(staging):
        to = (Mirror if keeps_ids else Destination)(*destination, staging / "destination")
        try:
            yield rooms.Transfer(
                Side(*source, staging / "source"),
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


@contextmanager
def _alone(staging: Path) -> Iterator[None]:
    """Nobody else uses this folder meanwhile. Raises HubError."""
    staging.mkdir(parents=True, exist_ok=True)
    with (staging / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HubError(
                f"another push or pull is using {staging}", "wait until it is done"
            ) from None
        yield


def carry(work: Transfer, wishes: Wishes) -> None:
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


def everything(work: Transfer) -> tuple[str, ...]:
    """All collections and repos that the source has."""
    collections = (collection.slug for collection in work.source.collections())
    return (*collections, *(str(repo) for repo in work.source.repos()))


def named(work: Transfer, what: tuple[str, ...]) -> tuple[list[str], list[tuple[Repo, str | None]]]:
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
    repos: dict[tuple[Repo, str | None], None] = {}
    for shelf in shelves:
        repos |= dict.fromkeys((repo, None) for repo in work.repos_of(shelf))
    for word in what:
        if word not in shelves:
            name, _, revision = word.partition("@")
            repos |= dict.fromkeys((repo, revision or None) for repo in work.find(name))
    return shelves, list(repos)


def _print(done: list[Outcome], shelves: list[Shelf], wishes: Wishes) -> None:
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

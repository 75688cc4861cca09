"""factory push, factory pull: between the local hub and another one."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from factory.cli.app import app, home_path
from factory.errors import HubError
from factory.localhub.launcher import Connection, HubStartError, connect

if TYPE_CHECKING:
    from factory.sync.side import Repo
    from factory.sync.transfer import Outcome, Shelf, Transfer

_REMOTE = "https://huggingface.co"
_SLUG = re.compile(r"[^/@]+/[^/@]*-[0-9a-f]{24}")

What = Annotated[
    list[str] | None,
    typer.Argument(help="Collections (by slug) and repos (org/name, datasets/org/name)."),
]
Rename = Annotated[
    list[str] | None,
    typer.Option("--rename", metavar="OLD=NEW", help="Another namespace or name over there."),
]
Adopt = Annotated[
    bool, typer.Option("--adopt-remote", help="Where both differ, what is over there stands.")
]
Squash = Annotated[
    bool, typer.Option("--squash", help="Only the commits that a branch or a tag names.")
]
Private = Annotated[bool, typer.Option("--private", help="Make new repos private.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def push(
    what: What = None,
    to: Annotated[str, typer.Option("--to", help="The hub to push to.")] = _REMOTE,
    rename: Rename = None,
    adopt: Adopt = False,
    squash: Squash = False,
    private: Private = False,
    dry_run: Dry = False,
    json_: Json = False,
) -> None:
    """Publish collections and repos of the local hub on another hub."""
    from factory.cli.session import address, remote_token

    to = address(to)
    if part := next((word for word in what or [] if "@" in word), None):
        raise HubError(f"{part}: a push takes whole repos", "leave out the revision; see --squash")

    with local_hub() as local:
        token = _not_ours(remote_token(), local)
        with transfer(
            (local.url, local.token),
            (to, token),
            staging=_staging(to),
            keeps_ids=False,
            rename=rename,
            adopt=adopt,
            squash=squash,
            private=private,
        ) as work:
            carry(work, what or [], dry_run, json_)


@app.command()
def pull(
    what: What = None,
    from_: Annotated[str, typer.Option("--from", help="The hub to pull from.")] = _REMOTE,
    rename: Rename = None,
    adopt: Adopt = False,
    squash: Squash = False,
    private: Private = False,
    dry_run: Dry = False,
    json_: Json = False,
) -> None:
    """Bring collections and repos of another hub into the local one, with their commit ids.

    REPO@REVISION brings that one revision.
    """
    from factory.cli.session import address, remote_token

    from_ = address(from_)

    with local_hub() as local:
        token = _not_ours(remote_token(), local)
        with transfer(
            (from_, token),
            (local.url, local.token),
            staging=_staging(from_),
            keeps_ids=True,
            rename=rename,
            adopt=adopt,
            squash=squash,
            private=private,
        ) as work:
            carry(work, what or [], dry_run, json_)


@contextmanager
def local_hub(root: Path | None = None) -> Iterator[Connection]:
    """A server of the local hub, or of another store, for as long as the block lasts."""
    try:
        with connect(root or home_path() / "hub") as connection:
            yield connection
    except HubStartError as error:
        raise HubError(f"the local hub did not start: {error}", "see its log") from None


@contextmanager
def transfer(
    source: tuple[str, str | None],
    destination: tuple[str, str | None],
    *,
    staging: Path,
    keeps_ids: bool,
    rename: list[str] | None = None,
    adopt: bool = False,
    squash: bool = False,
    private: bool = False,
) -> Iterator[Transfer]:
    """A transfer between two hubs, each an address and its own token, by way of a folder."""
    # Clients read these when they are imported. Only the public hub has a Xet store to upload to.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not keeps_ids and urlsplit(destination[0]).hostname != urlsplit(_REMOTE).hostname:
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    from factory.sync import transfer as rooms
    from factory.sync.destination import Destination
    from factory.sync.mirror import Mirror
    from factory.sync.plan import Options
    from factory.sync.side import Side

    bar = _Bar()
    with _alone(staging):
        to = (Mirror if keeps_ids else Destination)(*destination, staging / "destination")
        try:
            yield rooms.Transfer(
                Side(*source, staging / "source"),
                to,
                Options(adopt=adopt, squash=squash, private=private),
                bar,
                rooms.rename(rename or []),
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


def _staging(endpoint: str) -> Path:
    return home_path() / "sync" / (urlsplit(endpoint).netloc or "hub")


def carry(work: Transfer, what: list[str], dry: bool = False, as_json: bool = False) -> None:
    """Carry over what was asked for, tell it, and raise HubError if some of it could not be."""
    shelves, repos = named(work, what)
    done = [work.preview(*repo) if dry else work.repo(*repo) for repo in repos]
    collections = [work.collection(slug, dry=dry) for slug in shelves]
    _print(done, collections, dry, as_json)
    if blocked := [outcome for outcome in done if outcome.conflicts]:
        raise HubError(
            "; ".join(conflict for outcome in blocked for conflict in outcome.conflicts),
            "--adopt-remote leaves what is over there; --rename OLD=NEW takes another name",
        )


def everything(work: Transfer) -> list[str]:
    """All collections and repos that the source has."""
    found = [collection.slug for collection in work.source.collections()]
    return found + [str(repo) for repo in work.source.repos()]


def named(work: Transfer, what: list[str]) -> tuple[list[str], list[tuple[Repo, str | None]]]:
    """The collections and the repos, with revisions, that were asked for. Raises HubError.

    If nothing was, the one collection that the source has.
    """
    if not what:
        slugs = [collection.slug for collection in work.source.collections()]
        if len(slugs) != 1:
            raise HubError(
                f"{len(slugs)} collections at {work.source.endpoint}",
                "name one: " + ", ".join(slugs) if slugs else "name a repo",
            )
        what = slugs
    shelves = [word for word in what if _SLUG.fullmatch(word)]
    repos: dict[tuple[Repo, str | None], None] = {}
    for shelf in shelves:
        repos |= dict.fromkeys((repo, None) for repo in work.repos_of(shelf))
    for word in what:
        if word not in shelves:
            name, _, revision = word.partition("@")
            repos |= dict.fromkeys((repo, revision or None) for repo in work.find(name))
    return shelves, list(repos)


def _not_ours(token: str | None, local: Connection) -> str | None:
    """The user's token for other hubs; never the local hub's, as inside `factory hub exec`."""
    return None if token == local.token else token


def _print(done: list[Outcome], shelves: list[Shelf], dry: bool, as_json: bool) -> None:
    if as_json:
        found: dict[str, Any] = {
            "repos": [
                {**vars(outcome), "repo": str(outcome.repo), "target": str(outcome.target)}
                for outcome in done
            ],
            "collections": [vars(shelf) for shelf in shelves],
        }
        typer.echo(json.dumps(found))
        return
    from rich.table import Table

    from factory.cli.console import console

    table = Table(title="What would be done" if dry else "Done", title_justify="left")
    for column in ("repo", "commits", "files", "size", "tags", "remarks"):
        table.add_column(column, overflow="fold")
    for outcome in done:
        remarks = [f"conflict: {conflict}" for conflict in outcome.conflicts] + outcome.notes
        name = str(outcome.repo)
        if outcome.target != outcome.repo:
            name += f" as {outcome.target}"
        numbers = (str(n) for n in (outcome.commits, outcome.files))
        table.add_row(name, *numbers, _size(outcome.size), str(outcome.tags), "; ".join(remarks))
    console.print(table)
    for shelf in shelves:
        remarks = [f"{shelf.changes} items to change" if dry else f"{shelf.changes} items changed"]
        console.print(f"collection {shelf.slug}: {'; '.join(remarks + shelf.notes)}")


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


class _Bar:
    """Bytes and rate: a moving bar on a terminal, plain lines in a log."""

    _EVERY = 30.0  # seconds between plain lines

    def __init__(self) -> None:
        from threading import Lock

        from factory.cli.console import console

        self._console = console
        self._lock = Lock()
        self._what, self._total, self._done = "", 0, 0
        self._began = self._said = time.monotonic()
        self._progress: Any = None
        self._task: Any = None

    def begin(self, what: str, size: int) -> None:
        """A repo, and the bytes it takes."""
        self.stop()
        self._what, self._total, self._done = what, size, 0
        self._began = self._said = time.monotonic()
        if self._console.is_terminal and size:
            from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

            self._progress = Progress(
                "{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                console=self._console, transient=True,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task(what, total=size)

    def moved(self, size: int) -> None:
        """So many bytes more have arrived."""
        with self._lock:
            self._done += size
            now = time.monotonic()
            if self._progress is not None:
                self._progress.update(self._task, completed=self._done)
            elif now - self._said > self._EVERY:
                self._said = now
                rate = _size(self._done / (now - self._began))
                so_far = f"{_size(self._done)} of {_size(self._total)}"
                self._console.print(f"{self._what}: {so_far}, {rate}/s")

    def stop(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

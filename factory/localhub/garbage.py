"""Garbage collection: take away what nothing names, while others go on using the hub.

What stays: the commits that a branch or tag leads to, those taken in from another hub, whatever is
younger than a time of grace, because somebody may be about to name it, and directories that others
are written down as differences from.

Everything is looked at without holding the database for long, so it may change meanwhile. What is
taken away is therefore looked at once more in the moment when it is: commits are all judged anew,
directories that were saved since are spared, and contents tell by their time.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from factory.localhub.errors import BadRequest, Conflict
from factory.localhub.hub import LocalHub

# Less could take content away between its upload and the commit that names it.
LEAST_GRACE = 60
_BATCH = 500
_PAGES = 2000
# An old database is packed at once, which others have to wait for; not for less than this share.
_FREE_SHARE = 0.2
_LIVE = (
    "WITH RECURSIVE live (repo, oid) AS ("
    " SELECT repo, target FROM refs UNION SELECT repo, oid FROM mirrored"
    " UNION SELECT repo, oid FROM commits WHERE date >= ?"
    " UNION SELECT commits.repo, commits.parent FROM commits"
    " JOIN live ON commits.repo = live.repo AND commits.oid = live.oid"
    " WHERE commits.parent IS NOT NULL)"
    " SELECT repo, oid, tree FROM commits JOIN live USING (repo, oid) ORDER BY commits.rowid"
)
_Id = tuple[int, str]


@dataclass
class Garbage:
    """Counts of deleted objects, or of those to delete; `size` is in bytes."""

    commits: int = 0
    trees: int = 0
    contents: int = 0
    size: int = 0


def collect(hub: LocalHub, grace: int, *, remove: bool) -> Garbage:
    """Find what nothing names and is older than `grace` seconds, and take it away if told to.

    Raises BadRequest, NoSpace; Conflict if the store is damaged or being looked after already.
    """
    if grace < LEAST_GRACE:
        raise BadRequest(f"a grace of less than {LEAST_GRACE} s would harm uploads under way")
    limit = time.time() - grace
    with sole_keeper(hub):
        hub.trees.saved_since = set()
        try:
            return _remove(hub, limit) if remove else _count(hub, limit)
        finally:
            hub.trees.saved_since = None


@contextlib.contextmanager
def sole_keeper(hub: LocalHub) -> Iterator[None]:
    """Be the one who looks after the store. Raises Conflict."""
    if not hub.upkeep.acquire(blocking=False):
        raise Conflict("the store is being looked after already: try again when that is done")
    try:
        yield
    finally:
        hub.upkeep.release()


@dataclass
class Needs:
    """Objects that live commits need: directories, with the bases of their differences, and the
    contents of each repo. `visited` are the directories already read, by repo."""

    trees: set[str] = field(default_factory=set)
    contents: dict[int, set[str]] = field(default_factory=dict)
    visited: dict[int, set[str]] = field(default_factory=dict)

    def add(self, hub: LocalHub, repo: int, tree: str) -> None:
        """Note all that lies below a tree; what was noted for this repo is not read again."""
        contents = self.contents.setdefault(repo, set())
        visited = self.visited.setdefault(repo, set())
        waiting = [tree]
        while waiting:
            oid = waiting.pop()
            if oid in visited:
                continue
            row = hub.database.row("SELECT entries, base FROM trees WHERE oid = ?", (oid,))
            if row is None:
                raise Conflict(f"directory {oid} is not in the store: see what fsck says")
            base: str | None = row["base"]
            # Histories come oldest first, so that mostly the difference is all there is to read.
            if base is None or base in visited:
                entries = [values for values in json.loads(row["entries"]) if len(values) > 1]
            else:
                entries = [(e.name, e.oid, e.size, e.sha256) for e in hub.trees.read(oid).values()]
            for _, below, _, sha256, *_ in entries:
                if sha256 is None:
                    waiting.append(below)
                else:
                    contents.add(sha256)
            visited.add(oid)
            self.keep(hub, oid)

    def keep(self, hub: LocalHub, oid: str | None) -> None:
        """Note a directory and those that it builds on."""
        while oid is not None and oid not in self.trees:
            self.trees.add(oid)
            row = hub.database.row("SELECT base FROM trees WHERE oid = ?", (oid,))
            oid = None if row is None else row["base"]

    def named(self) -> set[str]:
        """Return the contents that are needed in any repo."""
        return set().union(*self.contents.values())


def _live(hub: LocalHub, limit: float) -> dict[_Id, str]:
    rows = hub.database.rows(_LIVE, (int(limit),))
    return {(row["repo"], row["oid"]): row["tree"] for row in rows}


def _mark(hub: LocalHub, live: dict[_Id, str]) -> Needs:
    needs = Needs()
    for (repo, _), tree in live.items():
        needs.add(hub, repo, tree)
    return needs


def _count(hub: LocalHub, limit: float) -> Garbage:
    live = _live(hub, limit)
    needs = _mark(hub, live)
    commits = [commit for commit in _commits(hub) if commit not in live]
    links = set(_links(hub, needs, limit))
    named = needs.named() | {sha256 for sha256, repo in _all_links(hub)
                             if (sha256, repo) not in links}  # fmt: skip
    garbage = Garbage(len(commits), len(_dead_trees(hub, needs)))
    for sha256 in set(hub.blobs.names()) - named:
        if is_older(hub, sha256, limit):
            garbage.contents += 1
            garbage.size += hub.blobs.state(sha256)[0]
    return garbage


def _remove(hub: LocalHub, limit: float) -> Garbage:
    garbage = Garbage()
    needs = _mark(hub, _live(hub, limit))
    # Contents that no row names first: on a full disk this makes room for what follows.
    _drop_contents(hub, needs, limit, garbage)
    with hub.database.transaction() as connection:
        live = _live(hub, limit)
        for (repo, _), tree in live.items():  # what has become live since costs little
            needs.add(hub, repo, tree)
        commits = [commit for commit in _commits(hub) if commit not in live]
        connection.executemany("DELETE FROM commits WHERE repo = ? AND oid = ?", commits)
    garbage.commits = len(commits)
    # Those that build on others first, so that what is left is whole at any time.
    for batch in _batches(_dead_trees(hub, needs)):
        with hub.database.transaction() as connection:
            for oid in hub.trees.saved_since or ():
                needs.keep(hub, oid)
            dead = [(oid,) for oid in batch if oid not in needs.trees]
            connection.executemany("DELETE FROM trees WHERE oid = ?", dead)
        garbage.trees += len(dead)
        hub.database.fold()
    for links in _batches(list(_links(hub, needs, limit))):
        with hub.database.transaction() as connection:
            connection.executemany(
                "DELETE FROM contents WHERE sha256 = ? AND repo = ?",
                [link for link in links if is_older(hub, link[0], limit)],
            )
        hub.database.fold()
    _drop_contents(hub, needs, limit, garbage)
    hub.blobs.drop_parts(limit)
    # What a full disk leaves undone here is done the next time.
    with contextlib.suppress(sqlite3.OperationalError):
        _pack(hub)
    return garbage


def _commits(hub: LocalHub) -> list[_Id]:
    rows = hub.database.rows("SELECT repo, oid FROM commits")
    return [(row["repo"], row["oid"]) for row in rows]


def _dead_trees(hub: LocalHub, needs: Needs) -> list[str]:
    rows = hub.database.rows("SELECT oid FROM trees ORDER BY steps DESC")
    return [row["oid"] for row in rows if row["oid"] not in needs.trees]


def _all_links(hub: LocalHub) -> list[tuple[str, int]]:
    rows = hub.database.rows("SELECT sha256, repo FROM contents")
    return [(row["sha256"], row["repo"]) for row in rows]


def _links(hub: LocalHub, needs: Needs, limit: float) -> Iterator[tuple[str, int]]:
    """Yield which repo was given which content that it no longer needs."""
    for sha256, repo in _all_links(hub):
        if sha256 not in needs.contents.get(repo, ()) and is_older(hub, sha256, limit):
            yield sha256, repo


def _drop_contents(hub: LocalHub, needs: Needs, limit: float, garbage: Garbage) -> None:
    named = needs.named() | {sha256 for sha256, _ in _all_links(hub)}
    for sha256 in sorted(set(hub.blobs.names()) - named):
        if not is_older(hub, sha256, limit):
            continue
        size, _ = hub.blobs.state(sha256)
        # Looked at once more under a lock: an upload may have counted on it this very moment.
        if hub.blobs.drop(sha256, limit):
            garbage.contents += 1
            garbage.size += size


def is_older(hub: LocalHub, sha256: str, moment: float) -> bool:
    """Return whether nobody has counted on a content since `moment`."""
    try:
        return hub.blobs.state(sha256)[1] < moment
    except FileNotFoundError:
        return True


def _batches(items: list[tuple[str, int]] | list[str]) -> Iterable[list]:  # type: ignore[type-arg]
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))


def _pack(hub: LocalHub) -> None:
    """Give the room of removed rows back to the disk, in steps between which others are served.

    A database from before it could be done in steps is packed at once, if there is room for a copy
    of it; afterwards it can be done in steps.
    """
    database = hub.database
    if database.number("PRAGMA auto_vacuum") != 2:
        pages, free = (
            database.number(f"PRAGMA {name}") for name in ("page_count", "freelist_count")
        )
        size = (pages - free) * database.number("PRAGMA page_size")
        if free > _FREE_SHARE * pages and shutil.disk_usage(database.path.parent).free > 3 * size:
            with hub.history.indexing:
                database.pack()
        return
    while database.number("PRAGMA freelist_count"):
        pages = database.number("PRAGMA freelist_count")
        database.rows(f"PRAGMA incremental_vacuum({_PAGES})")
        database.fold()
        if database.number("PRAGMA freelist_count") >= pages:
            return

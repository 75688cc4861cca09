"""Directories: kept once per git id, by what changed, read by path, and changed by drafts.

A directory of n names that changes with each commit would take n rows' room each time. So it is
kept as its difference from an earlier one: the k-th after a whole one builds on the one whose
number is k without its lowest bit. Then a directory is put together in log k steps, and each change
is written down log k times.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Container, Iterator

from factory.localhub.database import Database
from factory.localhub.errors import BadRequest, EntryNotFound
from factory.localhub.git_objects import Entry, object_id, tree_content

Directory = dict[str, Entry]
# Names in all directories that stay in memory, a few hundred bytes each.
_CACHE_NAMES = 200_000
# More steps than any directory has: it would take as many commits as 2 to this power.
_CHAIN_LIMIT = 64


class Trees:
    """All directories of all repos. They never change, so those read last stay in memory."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache: OrderedDict[str, Directory] = OrderedDict()
        self._cache_names = 0
        self._lock = threading.Lock()
        # While garbage is collected: what was saved since, and so is none.
        self.saved_since: set[str] | None = None

    def read(self, oid: str) -> Directory:
        """Return a directory, not to be changed. Raises LookupError if it is not in the store."""
        cached = self._cached(oid)
        if cached is not None:
            return cached
        steps: list[str] = []
        directory: Directory = {}
        base: str | None = oid
        while base is not None:
            row = self._database.row("SELECT entries, base FROM trees WHERE oid = ?", (base,))
            if row is None or len(steps) > _CHAIN_LIMIT:
                raise LookupError(f"directory {oid} is not in the store, or not whole")
            steps.append(row["entries"])
            base = row["base"]
            if base is not None and (cached := self._cached(base)) is not None:
                directory, base = dict(cached), None
        for entries in reversed(steps):
            for values in json.loads(entries):
                if len(values) == 1:
                    directory.pop(values[0], None)
                else:
                    directory[values[0]] = Entry(*values)
        self._remember(oid, directory)
        return directory

    def find(self, tree: str, parts: tuple[str, ...]) -> Entry | None:
        """Return the entry at the path `parts` under `tree`; None if there is none."""
        entry: Entry | None = Entry("", tree)
        for part in parts:
            if entry is None or not entry.is_directory:
                return None
            entry = self.read(entry.oid).get(part)
        return entry

    def walk(self, tree: str, prefix: str = "", deep: bool = True) -> Iterator[tuple[str, Entry]]:
        """Path and entry of all that lies under `tree`, sorted by name, directories first seen."""
        for name, entry in sorted(self.read(tree).items()):
            yield prefix + name, entry
            if deep and entry.is_directory:
                yield from self.walk(entry.oid, f"{prefix}{name}/")

    def differences(self, old: str | None, new: str, prefix: str = "") -> Iterator[str]:
        """Yield the paths of files and directories under `new` that are not the same under `old`.

        Directories that are the same are not entered.
        """
        old_entries = {} if old is None else self.read(old)
        for name, entry in self.read(new).items():
            earlier = old_entries.get(name)
            if earlier is entry or earlier == entry:
                continue
            yield prefix + name
            if entry.is_directory:
                below = earlier.oid if earlier is not None and earlier.is_directory else None
                yield from self.differences(below, entry.oid, f"{prefix}{name}/")

    def save(
        self, connection: sqlite3.Connection, directory: Directory, earlier: str | None = None
    ) -> str:
        """Keep a directory, as part of the caller's transaction, and answer its git id.

        `earlier` is the one that it was before, if there was one.
        """
        oid = object_id("tree", tree_content(directory.values()))
        if self.saved_since is not None:
            self.saved_since.add(oid)
        if connection.execute("SELECT 1 FROM trees WHERE oid = ?", (oid,)).fetchone() is None:
            entries: list[list[object]] | None = None
            base, steps = self._base(connection, earlier)
            if base is not None:
                entries = _delta(self.read(base), directory)
            if entries is None or 2 * len(entries) > len(directory):
                entries, base, steps = [_values(e) for e in directory.values()], None, 0
            connection.execute(
                "INSERT INTO trees (oid, entries, base, steps) VALUES (?, ?, ?, ?)",
                (oid, json.dumps(entries, separators=(",", ":")), base, steps),
            )
        self._remember(oid, directory)
        return oid

    def without(
        self,
        connection: sqlite3.Connection,
        oid: str,
        contents: Container[str],
        done: dict[str, str],
    ) -> str:
        """Keep a directory without the files of these contents, and answer its git id.

        `done` remembers the ids of directories before and after.
        """
        if oid not in done:
            directory: Directory = {}
            for name, entry in self.read(oid).items():
                if entry.is_directory:
                    below = self.without(connection, entry.oid, contents, done)
                    if self.read(below):
                        directory[name] = entry if below == entry.oid else Entry(name, below)
                elif entry.sha256 not in contents:
                    directory[name] = entry
            same = directory == self.read(oid)
            done[oid] = oid if same else self.save(connection, directory, oid)
        return done[oid]

    def _base(self, connection: sqlite3.Connection, earlier: str | None) -> tuple[str | None, int]:
        """Return the directory that the next one after `earlier` builds on, and its number."""
        query = "SELECT oid, base, steps FROM trees WHERE oid = ?"
        row = connection.execute(query, (earlier,)).fetchone()
        if row is None:
            return None, 0
        number = row["steps"] + 1
        while row is not None and row["steps"] > number & (number - 1):
            row = connection.execute(query, (row["base"],)).fetchone()
        return (None, 0) if row is None else (row["oid"], number)

    def _cached(self, oid: str) -> Directory | None:
        with self._lock:
            directory = self._cache.get(oid)
            if directory is not None:
                self._cache.move_to_end(oid)
            return directory

    def _remember(self, oid: str, directory: Directory) -> None:
        with self._lock:
            if oid not in self._cache:
                self._cache[oid] = directory
                self._cache_names += len(directory) + 1
            while self._cache_names > _CACHE_NAMES and len(self._cache) > 1:
                _, oldest = self._cache.popitem(last=False)
                self._cache_names -= len(oldest) + 1


def _values(entry: Entry) -> list[object]:
    return [entry.name, entry.oid, entry.size, entry.sha256, entry.lfs]


def _delta(old: Directory, new: Directory) -> list[list[object]]:
    """Return what leads from one directory to another: new entries whole, names of those gone."""
    changes = [
        _values(entry)
        for name, entry in new.items()
        if (was := old.get(name)) is not entry and was != entry
    ]
    return changes + [[name] for name in old.keys() - new.keys()]


class Draft:
    """A directory being changed; what lies below is read when a change first goes there."""

    def __init__(self, trees: Trees, base: str | None) -> None:
        self._trees = trees
        self._base = base
        self._children: dict[str, Entry | Draft] = {} if base is None else dict(trees.read(base))

    def put(self, parts: tuple[str, ...], entry: Entry) -> None:
        """Put a file at a path. Raises BadRequest if a directory is there or a file in the way."""
        *above, name = parts
        draft = self
        for part in above:
            draft = draft._enter(part, parts)
        if _is_directory(draft._child(name)):
            raise BadRequest(f"{'/'.join(parts)!r} is a directory: delete it first")
        draft._children[name] = entry

    def remove(self, parts: tuple[str, ...], *, directory: bool) -> None:
        """Delete a directory with all below it, or a file. Raises EntryNotFound.

        Clients also name a directory as if it were a file: it is deleted all the same.
        """
        *above, name = parts
        draft: Draft | None = self
        for part in above:
            if draft is not None:
                inside = _is_directory(draft._child(part))
                draft = draft._enter(part, parts) if inside else None
        child = draft._child(name) if draft else None
        if draft is None or child is None or (directory and not _is_directory(child)):
            what = "folder" if directory else "file"
            raise EntryNotFound(f"A {what} with this name doesn't exist: {'/'.join(parts)}")
        del draft._children[name]

    def save(self, connection: sqlite3.Connection) -> str:
        """Keep this directory and those below, without empty ones, and answer its git id."""
        directory: Directory = {}
        for name, child in self._children.items():
            if not isinstance(child, Draft):
                directory[name] = child
            elif self._child(name) is not None:
                directory[name] = Entry(name, child.save(connection))
        return self._trees.save(connection, directory, self._base)

    def _child(self, name: str) -> Entry | Draft | None:
        """Return the entry of this name; None for a directory that earlier changes emptied."""
        child = self._children.get(name)
        if isinstance(child, Draft) and all(
            child._child(below) is None for below in child._children
        ):
            return None
        return child

    def _enter(self, name: str, parts: tuple[str, ...]) -> Draft:
        child = self._children.get(name)
        if isinstance(child, Draft):
            return child
        if child is not None and not child.is_directory:
            raise BadRequest(f"{'/'.join(parts)!r} cannot be there: {name!r} is a file")
        draft = Draft(self._trees, child.oid if child else None)
        self._children[name] = draft
        return draft


def _is_directory(child: Entry | Draft | None) -> bool:
    return isinstance(child, Draft) or (child is not None and child.is_directory)

"""Directories: kept once per git id, read by path, and changed by drafts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from functools import lru_cache

from factory.localhub.database import Database
from factory.localhub.errors import BadRequest, EntryNotFound
from factory.localhub.git_objects import Entry, object_id, tree_content

Directory = dict[str, Entry]


class Trees:
    """All directories of all repos. They never change, so those read last stay in memory."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.read: Callable[[str], Directory] = lru_cache(maxsize=256)(self._load)

    def find(self, tree: str, parts: tuple[str, ...]) -> Entry | None:
        """What lies at the path `parts` under `tree`, if anything does."""
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

    def save(self, connection: sqlite3.Connection, directory: Directory) -> str:
        """Keep a directory, as part of the caller's transaction, and answer its git id."""
        entries = list(directory.values())
        oid = object_id("tree", tree_content(entries))
        rows = [[e.name, e.oid, e.size, e.sha256, e.lfs] for e in entries]
        connection.execute("INSERT OR IGNORE INTO trees VALUES (?, ?)", (oid, json.dumps(rows)))
        return oid

    def _load(self, oid: str) -> Directory:
        row = self._database.row("SELECT entries FROM trees WHERE oid = ?", (oid,))
        if row is None:
            raise LookupError(f"tree {oid} is not in the store")
        return {values[0]: Entry(*values) for values in json.loads(row["entries"])}


class Draft:
    """A directory being changed; what lies below is read when a change first goes there."""

    def __init__(self, trees: Trees, base: Directory) -> None:
        self._trees = trees
        self._children: dict[str, Entry | Draft] = dict(base)

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
        """Take a file, or a directory with all below it, away. Raises EntryNotFound."""
        *above, name = parts
        draft: Draft | None = self
        for part in above:
            if draft is not None:
                inside = _is_directory(draft._child(part))
                draft = draft._enter(part, parts) if inside else None
        child = draft._child(name) if draft else None
        if draft is None or child is None or _is_directory(child) != directory:
            what = "folder" if directory else "file"
            raise EntryNotFound(f"A {what} with this name doesn't exist: {'/'.join(parts)}")
        del draft._children[name]

    def save(self, connection: sqlite3.Connection) -> str:
        """Keep this directory and those below, without empty ones, and answer its git id."""
        directory: Directory = {}
        for name in self._children:
            child = self._child(name)
            if isinstance(child, Draft):
                directory[name] = Entry(name, child.save(connection))
            elif child is not None:
                directory[name] = child
        return self._trees.save(connection, directory)

    def _child(self, name: str) -> Entry | Draft | None:
        """What has this name, if it is more than a directory emptied by earlier changes."""
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
        draft = Draft(self._trees, self._trees.read(child.oid) if child else {})
        self._children[name] = draft
        return draft


def _is_directory(child: Entry | Draft | None) -> bool:
    return isinstance(child, Draft) or (child is not None and child.is_directory)

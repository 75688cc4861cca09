"""fsck: hash everything anew and say what is not as it was written, however it was damaged.

Nothing here trusts what it reads: a part that cannot be read is a problem with a name, and the next
part is looked at all the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator

from factory.localhub import checksums
from factory.localhub.garbage import sole_keeper
from factory.localhub.git_objects import (
    SHA256,
    Commit,
    Entry,
    commit_content,
    lfs_pointer,
    object_id,
    tree_content,
)
from factory.localhub.hub import LocalHub
from factory.localhub.trees import Trees

_CHUNK = 1024 * 1024
_BATCH = 500
# What reading a damaged database, or what is made of its rows, may raise.
_DAMAGE = (sqlite3.Error, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
           RecursionError, OSError)  # fmt: skip
# Size and git id of a content, by its sha256.
_Contents = dict[str, tuple[int, str]]


def check(hub: LocalHub, *, quick: bool = False) -> tuple[dict[str, int], list[str]]:
    """Return how many of each sort are whole, and what is wrong, a line each. Raises Conflict.

    Commits of other hubs whose ids cannot be computed here count as `trusted`. With `quick`,
    contents are not read: only that each is there, in its size."""
    with sole_keeper(hub):
        audit = _Audit(hub)
        whole = (audit.contents, audit.trees, audit.commits)
        for part in (audit.tables, *((audit.sizes,) if quick else whole), audit.names):
            with audit.part(f"database: {part.__name__}"):
                part()
        counts = {"contents": len(audit.whole), **audit.counts}
        return counts, list(dict.fromkeys(audit.problems))


class _Audit:
    """One look at everything; each part adds what it finds to `problems`."""

    def __init__(self, hub: LocalHub) -> None:
        self._hub = hub
        self._database = hub.database
        # With no memory of its own yet, so that it reads what is on the disk.
        self._trees = Trees(hub.database)
        self.problems: list[str] = []
        self.whole: _Contents = {}
        self.counts = {"directories": 0, "commits": 0, "trusted": 0}
        self._wrong: dict[str, list[tuple[Entry, str]]] = {}
        self._tree_ids: set[str] = set()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Make a problem of whatever stands in the way of reading a part."""
        try:
            yield
        except _DAMAGE as error:
            self.problems.append(f"{name} cannot be read: {' '.join(str(error).split()) or '?'}")

    def tables(self) -> None:
        """The file itself, each row by its checksum, and where rows point to."""
        now, known = self._database.ask(checksums.layout)
        if now != known:
            self.problems.append("database: its layout is not as it was written")
        for table in self._database.ask(checksums.tables):
            with self.part(f"database: table {table}"):
                for row in self._database.rows(f"PRAGMA integrity_check({table})"):
                    if row[0] != "ok":
                        self.problems.append(f"database: {' '.join(row[0].split())}")
            with self.part(f"database: checksums of {table}"):
                for what, query in self._database.ask(checksums.queries, table):
                    self.problems += [f"row {row[0]} {what}" for row in self._database.rows(query)]
        with self.part("database: references"):
            for row in self._database.rows("PRAGMA foreign_key_check"):
                self.problems.append(f"database: a row of {row['table']} points to nothing")

    def contents(self) -> None:
        """Each content by its name; what is damaged is moved out of the way."""
        for sha256 in sorted(self._hub.blobs.names()):
            try:
                size, actual, blob = self._hashes(sha256)
            except FileNotFoundError:  # taken away since
                continue
            except OSError as error:
                self.problems.append(f"content {sha256} cannot be read: {error}")
                continue
            if actual == sha256:
                self.whole[sha256] = (size, blob)
                continue
            where = "is set aside"
            try:
                self._hub.blobs.set_aside(sha256)
            except OSError as error:
                where = f"cannot be set aside ({error})"
            self.problems.append(f"content {sha256} was damaged and {where}: upload it again")

    def sizes(self) -> None:
        """Each content that a directory names, by its presence and its size."""
        sizes = {sha256: self._hub.blobs.state(sha256)[0] for sha256 in self._hub.blobs.names()}
        for row in self._database.rows("SELECT oid, entries FROM trees"):
            with self.part(f"directory {row['oid']}"):
                for entry in (Entry(*v) for v in json.loads(row["entries"]) if len(v) > 1):
                    if entry.sha256 is not None and sizes.get(entry.sha256) != entry.size:
                        where = f"{entry.name!r} in directory {row['oid']}"
                        self.problems.append(f"{where} lacks its content {entry.sha256}")

    def trees(self) -> None:
        """Each directory by its git id, and each of its files by its content."""
        last = ""
        while True:
            rows = self._database.rows(
                "SELECT oid, entries FROM trees WHERE oid > ? ORDER BY oid LIMIT ?", (last, _BATCH)
            )
            # In a damaged index they may come again.
            rows = [row for row in rows if row["oid"] not in self._tree_ids]
            for row in rows:
                last = row["oid"]
                self._tree_ids.add(last)
                with self.part(f"directory {last}"):
                    for values in json.loads(row["entries"]):
                        if len(values) > 1:
                            self._check_entry(Entry(*values))
            if not rows:
                break
        looked_at: set[str] = set()
        for row in self._database.rows("SELECT DISTINCT tree FROM commits ORDER BY rowid"):
            self._check_below(row["tree"], looked_at, named=True)
        for oid in sorted(self._tree_ids - looked_at):
            self._check_below(oid, looked_at, named=False)

    def commits(self) -> None:
        """Each commit by its id, if that is git's, and what it says it comes from."""
        known = self._database.ask(checksums.tables)  # one only read may be older than a table
        ids = {table: {(row["repo"], row["oid"])
                       for row in self._database.rows(f"SELECT repo, oid FROM {table}")}
               for table in ("commits", "mirrored", "verified") if table in known}  # fmt: skip
        commits, trusted = ids["commits"], ids["mirrored"] - ids.get("verified", set())
        for key in sorted(commits):
            with self.part(f"commit {key[1]}"):
                row = self._database.row("SELECT * FROM commits WHERE repo = ? AND oid = ?", key)
                if row is None:  # taken away since
                    continue
                _, *facts = row
                commit = Commit(*facts)
                if key in trusted:
                    self.counts["trusted"] += 1
                elif object_id("commit", commit_content(commit)) != commit.oid:
                    self.problems.append(f"commit {commit.oid} is not what its id says")
                else:
                    self.counts["commits"] += 1
                if commit.tree not in self._tree_ids:
                    self.problems.append(f"commit {commit.oid} lacks its directory {commit.tree}")
                if commit.parent and (key[0], commit.parent) not in commits:
                    self.problems.append(f"commit {commit.oid} lacks its parent {commit.parent}")

    def names(self) -> None:
        """Each branch and tag by the commit that it names."""
        for row in self._database.rows(
            "SELECT name, repo FROM refs WHERE NOT EXISTS (SELECT 1 FROM commits"
            " WHERE commits.repo = refs.repo AND commits.oid = refs.target)"
        ):
            self.problems.append(f"{row['name']} of repo {row['repo']} points to no commit")

    def _check_entry(self, entry: Entry) -> None:
        """Compare a file with its content; what is wrong counts where a commit leads to it."""
        if entry.sha256 is None:
            return
        if not isinstance(entry.sha256, str) or not SHA256.fullmatch(entry.sha256):
            raise ValueError(f"{entry.name!r} has no sha256")
        problem = ""
        if entry.sha256 not in self.whole:
            problem = f"lacks its content {entry.sha256}"
        else:
            size, blob = self.whole[entry.sha256]
            if entry.lfs:
                blob = object_id("blob", lfs_pointer(entry.sha256, size))
            if (size, blob) != (entry.size, entry.oid):
                problem = "is not what its id says"
        if problem:
            self._wrong.setdefault(entry.name, []).append((entry, problem))

    def _check_below(self, tree: str, looked_at: set[str], *, named: bool) -> None:
        waiting = [tree]
        while waiting:
            oid = waiting.pop()
            if oid in looked_at:
                continue
            looked_at.add(oid)
            with self.part(f"directory {oid}"):
                directory = self._trees.read(oid)
                if object_id("tree", tree_content(directory.values())) != oid:
                    self.problems.append(f"directory {oid} is not what its id says")
                else:
                    self.counts["directories"] += 1
                if not named:
                    continue
                waiting += [entry.oid for entry in directory.values() if entry.is_directory]
                for name, wrong in self._wrong.items():
                    for entry, problem in [
                        pair for pair in wrong if directory.get(name) == pair[0]
                    ]:
                        self.problems.append(f"{name!r} in directory {oid} {problem}")
                        wrong.remove((entry, problem))

    def _hashes(self, sha256: str) -> tuple[int, str, str]:
        """Return size, sha256 and git id of what lies under a name."""
        size, _ = self._hub.blobs.state(sha256)
        sha, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
        with self._hub.blobs.open(sha256) as file:
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
                git.update(chunk)
        return size, sha.hexdigest(), git.hexdigest()

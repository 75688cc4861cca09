"""Commits: one on top of another, and a branch moves only from where its writer saw it."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Container, Iterable, Sequence
from dataclasses import astuple, replace
from functools import lru_cache
from itertools import islice
from typing import Any

from factory.localhub.attributes import PATH as ATTRIBUTES
from factory.localhub.changes import Change, Put, Words
from factory.localhub.database import Database
from factory.localhub.errors import BadRequest, Conflict, EntryNotFound, RevisionNotFound, Stale
from factory.localhub.git_objects import SHA1, Commit, Entry, commit_content, object_id
from factory.localhub.names import check_ref_name
from factory.localhub.refs import BRANCH, MAIN, Refs, branch_ref, point
from factory.localhub.repos import Repo, link_contents
from factory.localhub.trees import Draft, Trees

# The title of the commit with which a repo is made.
_FIRST = "initial commit"
_NEVER = 2**62
_CHANGES_PAGE = 16
# Commits whose changes are written down at once.
_INDEX_BATCH = 20
# A commit and those it comes from, each once: in a store from elsewhere they may go round.
_LINE = (
    "line (oid) AS (VALUES (?) UNION SELECT parent FROM commits JOIN line USING (oid)"
    " WHERE repo = ? AND parent IS NOT NULL"
)
_SHORT = re.compile(r"[0-9a-f]{7,39}")


class History:
    """The commits of all repos."""

    def __init__(self, database: Database, trees: Trees, refs: Refs) -> None:
        self._database = database
        self._trees = trees
        self._refs = refs
        # Held while changes of an old repo are written down in the order of its rows.
        self.indexing = threading.Lock()
        self._line = lru_cache(maxsize=4)(self._load_line)

    def resolve(self, repo: Repo, revision: str) -> Commit:
        """The commit that a branch, tag, full ref or sha names, the last perhaps shortened.

        Raises RevisionNotFound.
        """
        if SHA1.fullmatch(revision):
            commit = self._commit(repo, revision)
        else:
            target = self._refs.target(repo, revision)
            commit = None if target is None else self._commit(repo, target)
        if commit is None and _SHORT.fullmatch(revision):
            rows = self._database.rows(
                "SELECT * FROM commits WHERE repo = ? AND oid LIKE ? || '%' LIMIT 2",
                (repo.key, revision),
            )
            commit = _commit(rows[0]) if len(rows) == 1 else None
        if commit is None:
            raise RevisionNotFound(f"{repo.kind} {repo.id} has no revision {revision!r}")
        return commit

    def find(self, repo: Repo, commit: Commit, parts: tuple[str, ...]) -> Entry:
        """Return the entry at a path. Raises EntryNotFound, whose headers name the commit."""
        entry = self._trees.find(commit.tree, parts)
        if entry is None:
            raise EntryNotFound(
                f"{repo.id} has no {'/'.join(parts)!r} at {commit.oid}",
                headers={"X-Repo-Commit": commit.oid},
            )
        return entry

    def log(self, repo: Repo, commit: Commit, skip: int, count: int) -> list[Commit]:
        """The commits from this one back, newest first."""
        rows = self._database.rows(
            f"WITH RECURSIVE {_LINE} LIMIT ? OFFSET ?)"
            # in the order of the line: a cross join goes through its first table in the outer loop
            " SELECT commits.* FROM line CROSS JOIN commits USING (oid) WHERE repo = ?",
            (commit.oid, repo.key, count, skip, repo.key),
        )
        return [_commit(row) for row in rows]

    def line(self, repo: Repo, oid: str) -> dict[str, None]:
        """Return the ids of the commits from this one back, newest first."""
        return self._line(repo.key, oid)

    def last_changes(
        self, repo: Repo, commit: Commit, paths: Iterable[tuple[str, ...]]
    ) -> dict[tuple[str, ...], Commit]:
        """For each of these paths, all present at `commit`, the commit that last changed it."""
        if self._database.read_only and not self._is_indexed(repo):
            return self._walk(repo, commit, paths)
        self._index_all(repo)
        line = self.line(repo, commit.oid)
        first = next(reversed(line))
        commits: dict[str, Commit] = {}
        changes: dict[tuple[str, ...], Commit] = {}
        for path in paths:
            oid = self._last_change(repo, "/".join(path), line) or first
            if oid not in commits:
                commits[oid] = self.resolve(repo, oid)
            changes[path] = commits[oid]
        return changes

    def commit(
        self,
        repo: Repo,
        branch: str,
        changes: Sequence[Change],
        words: Words,
        *,
        parent: str | None = None,
    ) -> Commit:
        """Put changes on a branch: all of them, durably, or none.

        Raises Stale if `parent` is given and the branch is elsewhere, RevisionNotFound if there is
        no such branch, EntryNotFound if something to be removed is not there, BadRequest if a file
        and a directory would have the same name.
        """
        with self._database.transaction() as connection:
            head = self._head(repo, branch)
            if head is None:
                raise RevisionNotFound(f"{repo.kind} {repo.id} has no branch {branch!r}")
            if parent is not None and not _names(parent, head):
                raise Stale(
                    "The branch was updated since you opened this page. Please refresh and try "
                    f"again. ({branch!r} is at {head.oid}, not at the given parent {parent})"
                )
            commit = self._append(connection, repo, head, changes, words)
            point(connection, repo, branch_ref(branch), commit.oid)
            return commit

    def mirror(
        self,
        repo: Repo,
        branch: str | None,
        changes: Sequence[Change],
        words: Words,
        *,
        oid: str,
        parent: str | None,
    ) -> Commit:
        """Take in a commit of another hub under the id it has there, again and again if need be.

        `changes` lead from `parent` to it, or from nothing. With `branch`, that branch moves to
        it, from `parent` or, if it is new or holds only what this hub wrote there when the repo was
        made, from nowhere. Raises Stale if the branch is elsewhere, Conflict if `changes` lead to
        other content than this hub has under that id, RevisionNotFound, BadRequest.
        """
        if not SHA1.fullmatch(oid):
            raise BadRequest(f"{oid!r} is not the full id of a commit")
        if branch is not None:
            check_ref_name(branch)
        with self._database.transaction() as connection:
            base = None if parent is None else self.resolve(repo, parent)
            head = None if branch is None else self._head(repo, branch)
            if head is not None and head.oid not in (parent, oid) and not self._untouched(head):
                raise Stale(f"{branch!r} is at {head.oid}, which {oid} does not come from")
            commit = self._commit(repo, oid)
            if commit is None:
                commit = self._append(connection, repo, base, changes, words, oid=oid)
                connection.execute("INSERT INTO mirrored VALUES (?, ?)", (repo.key, oid))
                if object_id("commit", commit_content(commit)) == oid:
                    connection.execute("INSERT INTO verified VALUES (?, ?)", (repo.key, oid))
            elif changes and self._tree(connection, repo, base, changes) != commit.tree:
                raise Conflict(
                    f"this hub has another content under {oid}: if the other hub is right, delete"
                    f" {repo.id} here and pull it again"
                )
            if branch is not None:
                point(connection, repo, branch_ref(branch), commit.oid)
            return commit

    def squash(self, repo: Repo, branch: str, words: Words) -> Commit:
        """Make a branch one commit that holds what it held; tags keep the others alive."""
        with self._database.transaction() as connection:
            head = self._head(repo, branch)
            if head is None:
                raise RevisionNotFound(f"{repo.kind} {repo.id} has no branch {branch!r}")
            commit = self._record(connection, repo, head.tree, None, words)
            point(connection, repo, branch_ref(branch), commit.oid)
            return commit

    def rewrite_without(self, repo: Repo, contents: frozenset[str]) -> None:
        """Make every commit anew that holds one of these contents, and all after it, without them.

        Branches, tags and pull requests name the new commits; the old ones are gone.
        """
        with self._database.transaction() as connection:
            rewritten: dict[str, Commit] = {}
            trees: dict[str, str] = {}
            for ref, target in self._refs.all(repo).items():
                for oid in reversed(self.line(repo, target)):
                    if oid in rewritten:
                        continue
                    commit = self.resolve(repo, oid)
                    parent = rewritten[commit.parent] if commit.parent else None
                    tree = self._trees.without(connection, commit.tree, contents, trees)
                    if tree != commit.tree or (parent and parent.oid != commit.parent):
                        words = Words(commit.author, commit.title, commit.message, commit.date)
                        commit = self._record(connection, repo, tree, parent, words)
                    rewritten[oid] = commit
                point(connection, repo, ref, rewritten[target].oid)
            connection.executemany(
                "DELETE FROM commits WHERE repo = ? AND oid = ?",
                [(repo.key, old) for old, new in rewritten.items() if old != new.oid],
            )

    def begin(self, connection: sqlite3.Connection, repo: Repo, changes: Sequence[Put]) -> None:
        """The first commit of a new repo, on main, in the transaction that makes the repo."""
        self.start(connection, repo, BRANCH + MAIN, None, changes, Words(repo.owner, _FIRST))

    def start(
        self,
        connection: sqlite3.Connection,
        repo: Repo,
        ref: str,
        base: Commit | None,
        changes: Sequence[Change],
        words: Words,
    ) -> None:
        """A new full ref, as part of a transaction: at a commit of `changes` on top of `base`, or
        at `base` itself if there are none. Raises EntryNotFound, BadRequest."""
        commit = base
        if changes or commit is None:
            commit = self._append(connection, repo, base, changes, words)
        point(connection, repo, ref, commit.oid)

    def _head(self, repo: Repo, branch: str) -> Commit | None:
        target = self._refs.head(repo, branch_ref(branch))
        return None if target is None else self._commit(repo, target)

    def _untouched(self, head: Commit) -> bool:
        """Whether nothing came after the commit with which this hub makes a repo."""
        names = self._trees.read(head.tree).keys()
        return head.parent is None and head.title == _FIRST and names == {ATTRIBUTES}

    def _append(
        self,
        connection: sqlite3.Connection,
        repo: Repo,
        head: Commit | None,
        changes: Sequence[Change],
        words: Words,
        *,
        oid: str | None = None,
    ) -> Commit:
        """A commit on top of `head`, under its git id or, if it is another hub's, under `oid`."""
        return self._record(
            connection, repo, self._tree(connection, repo, head, changes), head, words, oid
        )

    def _tree(
        self,
        connection: sqlite3.Connection,
        repo: Repo,
        head: Commit | None,
        changes: Sequence[Change],
    ) -> str:
        """Keep the directory that changes lead to from `head`, or from nothing, and answer its git
        id."""
        draft = Draft(self._trees, head.tree if head else None)
        for change in changes:
            if isinstance(change, Put):
                draft.put(change.parts, change.entry)
            else:
                draft.remove(change.parts, directory=change.directory)
        puts = [change.entry for change in changes if isinstance(change, Put)]
        link_contents(connection, repo, [(e.sha256, e.size) for e in puts if e.sha256])
        return draft.save(connection)

    def _record(
        self,
        connection: sqlite3.Connection,
        repo: Repo,
        tree: str,
        parent: Commit | None,
        words: Words,
        oid: str | None = None,
    ) -> Commit:
        if "\0" in words.title + words.message + words.author:
            raise BadRequest("a commit's words cannot hold a NUL")
        now = time.time()
        # A commit is never older than its parent, whatever the clock does.
        date = max(int(now), parent.date if parent else 0) if words.date is None else words.date
        commit = Commit(
            oid=oid or "",
            tree=tree,
            parent=parent.oid if parent else None,
            author=words.author,
            date=date,
            title=words.title,
            message=words.message,
        )
        if oid is None:
            commit = replace(commit, oid=object_id("commit", commit_content(commit)))
        insertion = connection.execute(
            "INSERT OR IGNORE INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (repo.key, *astuple(commit)),
        )
        if insertion.rowcount and parent and self._is_indexed(repo):
            self._index(connection, repo, parent.tree, commit.tree, commit.oid)
        connection.execute("UPDATE repos SET modified = ? WHERE id = ?", (now, repo.key))
        return commit

    def _commit(self, repo: Repo, oid: str) -> Commit | None:
        row = self._database.row(
            "SELECT * FROM commits WHERE repo = ? AND oid = ?", (repo.key, oid)
        )
        return None if row is None else _commit(row)

    def _walk(
        self, repo: Repo, commit: Commit, paths: Iterable[tuple[str, ...]]
    ) -> dict[tuple[str, ...], Commit]:
        """Find last changes in a store that may not be written, and so not be indexed: slowly."""
        open_paths = {path: self._trees.find(commit.tree, path) for path in paths}
        changes: dict[tuple[str, ...], Commit] = {}
        newer = commit
        for oid in (*islice(self.line(repo, commit.oid), 1, None), None):
            older = self._commit(repo, oid) if oid else None
            for path, entry in list(open_paths.items()):
                if older is None or self._trees.find(older.tree, path) != entry:
                    changes[path] = newer
                    del open_paths[path]
            if older is None or not open_paths:
                break
            newer = older
        return changes

    def _load_line(self, repo: int, oid: str) -> dict[str, None]:
        """Return the ids of the commits from this one back, newest first."""
        rows = self._database.rows(f"WITH RECURSIVE {_LINE}) SELECT oid FROM line", (oid, repo))
        return {row["oid"]: None for row in rows}

    def _last_change(self, repo: Repo, path: str, line: Container[str]) -> str | None:
        """Return the last commit of a line that changed a path; None if only its first did."""
        before = _NEVER
        while True:
            rows = self._database.rows(
                "SELECT id, oid FROM path_changes WHERE repo = ? AND path = ? AND id < ?"
                " ORDER BY id DESC LIMIT ?",
                (repo.key, path, before, _CHANGES_PAGE),
            )
            for row in rows:
                if row["oid"] in line:
                    return str(row["oid"])
            if len(rows) < _CHANGES_PAGE:
                return None
            before = rows[-1]["id"]

    def _is_indexed(self, repo: Repo) -> bool:
        row = self._database.row("SELECT indexed FROM repos WHERE id = ?", (repo.key,))
        return bool(row and row["indexed"])

    def _index_all(self, repo: Repo) -> None:
        """Write down which commit changed what, for a repo from before that was done.

        In the order in which commits were made, so that of two on one line the later has the higher
        number. Others may use the hub between two steps.
        """
        if self._is_indexed(repo):
            return
        with self.indexing:
            last = self._database.row(
                "SELECT MAX(commits.rowid) AS number FROM commits JOIN path_changes"
                " USING (repo, oid) WHERE repo = ?",
                (repo.key,),
            )
            number = (last and last["number"]) or 0
            while not self._is_indexed(repo):
                with self._database.transaction() as connection:
                    rows = connection.execute(
                        "SELECT c.rowid AS number, c.oid, c.tree, p.tree AS old FROM commits c"
                        " JOIN commits p ON p.repo = c.repo AND p.oid = c.parent"
                        " WHERE c.repo = ? AND c.rowid > ? ORDER BY c.rowid LIMIT ?",
                        (repo.key, number, _INDEX_BATCH),
                    ).fetchall()
                    for row in rows:
                        self._index(connection, repo, row["old"], row["tree"], row["oid"])
                        number = row["number"]
                    if len(rows) < _INDEX_BATCH:
                        connection.execute("UPDATE repos SET indexed = 1 WHERE id = ?", (repo.key,))

    def _index(
        self, connection: sqlite3.Connection, repo: Repo, old: str, new: str, oid: str
    ) -> None:
        connection.executemany(
            "INSERT INTO path_changes (repo, path, oid) VALUES (?, ?, ?)",
            ((repo.key, path, oid) for path in self._trees.differences(old, new)),
        )


def _names(oid: str, commit: Commit) -> bool:
    """Whether an id, perhaps shortened, is that of this commit."""
    return oid == commit.oid or (bool(_SHORT.fullmatch(oid)) and commit.oid.startswith(oid))


def _commit(row: Any) -> Commit:
    return Commit(
        oid=row["oid"],
        tree=row["tree"],
        parent=row["parent"],
        author=row["author"],
        date=row["date"],
        title=row["title"],
        message=row["message"],
    )

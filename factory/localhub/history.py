"""Commits, and the branches and tags that name them; a branch moves only from where one saw it."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from factory.localhub.attributes import PATH as ATTRIBUTES
from factory.localhub.database import Database
from factory.localhub.errors import BadRequest, Conflict, EntryNotFound, RevisionNotFound, Stale
from factory.localhub.git_objects import SHA1, Commit, Entry, commit_content, object_id
from factory.localhub.names import check_ref_name
from factory.localhub.repos import Repo, link_contents
from factory.localhub.trees import Draft, Trees

MAIN = "main"
_BRANCH = "refs/heads/"
_TAG = "refs/tags/"
# The title of the commit with which a repo is made.
_FIRST = "initial commit"
_SHORT = re.compile(r"[0-9a-f]{7,39}")


@dataclass(frozen=True, slots=True)
class Put:
    """A file to be written; `entry` carries its last name and its content."""

    parts: tuple[str, ...]
    entry: Entry


@dataclass(frozen=True, slots=True)
class Remove:
    """A file or a whole directory to be taken away."""

    parts: tuple[str, ...]
    directory: bool


Change = Put | Remove


@dataclass(frozen=True, slots=True)
class Words:
    """What a commit says besides its files: by whom, when, and why."""

    author: str
    title: str
    message: str = ""
    date: int | None = None  # None is now


class History:
    """The commits, branches and tags of all repos."""

    def __init__(self, database: Database, trees: Trees) -> None:
        self._database = database
        self._trees = trees

    def resolve(self, repo: Repo, revision: str) -> Commit:
        """The commit that a branch, tag, full ref or sha names, the last perhaps shortened.

        Raises RevisionNotFound.
        """
        if SHA1.fullmatch(revision):
            commit = self._commit(repo, revision)
        else:
            row = self._database.row(
                "SELECT target FROM refs WHERE repo = ? AND name IN (?, ?, ?)",
                (repo.key, _BRANCH + revision, _TAG + revision, _full(revision)),
            )
            commit = None if row is None else self._commit(repo, row["target"])
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
        """What lies at a path. Raises EntryNotFound, which tells clients the commit to remember."""
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
            "WITH RECURSIVE line (oid, depth) AS (VALUES (?, 0) UNION ALL"
            " SELECT parent, depth + 1 FROM commits JOIN line USING (oid)"
            " WHERE repo = ? AND parent IS NOT NULL AND depth < ?)"
            " SELECT commits.* FROM line JOIN commits USING (oid)"
            " WHERE repo = ? AND depth >= ? ORDER BY depth",
            (commit.oid, repo.key, skip + count - 1, repo.key, skip),
        )
        return [_commit(row) for row in rows]

    def last_changes(
        self, repo: Repo, commit: Commit, paths: Iterable[tuple[str, ...]]
    ) -> dict[tuple[str, ...], Commit]:
        """For each of these paths, all present at `commit`, the commit that last changed it."""
        open_paths = {path: self._trees.find(commit.tree, path) for path in paths}
        found: dict[tuple[str, ...], Commit] = {}
        for newer, older in self._steps(repo, commit):
            for path, entry in list(open_paths.items()):
                if older is None or self._trees.find(older.tree, path) != entry:
                    found[path] = newer
                    del open_paths[path]
            if not open_paths:
                break
        return found

    def refs(self, repo: Repo) -> dict[str, str]:
        """All branches and tags, as full ref names, with the commit each names."""
        rows = self._database.rows(
            "SELECT name, target FROM refs WHERE repo = ? ORDER BY name", (repo.key,)
        )
        return {row["name"]: row["target"] for row in rows}

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
        branch = branch.removeprefix(_BRANCH)
        with self._database.transaction() as connection:
            head = self._head(repo, branch)
            if head is None:
                raise RevisionNotFound(f"{repo.kind} {repo.id} has no branch {branch!r}")
            if parent is not None and parent != head.oid:
                raise Stale(
                    f"{branch!r} is at {head.oid}, not at the given parent commit {parent}: "
                    "look at what changed and try again"
                )
            made = self._append(connection, repo, head, changes, words)
            _point(connection, repo, _BRANCH + branch, made)
            return made

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
        made, from nowhere. Raises Stale if the branch is elsewhere, RevisionNotFound, BadRequest.
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
            made = self._commit(repo, oid)
            if made is None:
                made = self._append(connection, repo, base, changes, words, oid=oid)
                connection.execute("INSERT INTO mirrored VALUES (?, ?)", (repo.key, oid))
            if branch is not None:
                _point(connection, repo, _BRANCH + branch, made)
            return made

    def squash(self, repo: Repo, branch: str, words: Words) -> Commit:
        """Make a branch one commit that holds what it held; tags keep the others alive."""
        with self._database.transaction() as connection:
            head = self._head(repo, branch)
            if head is None:
                raise RevisionNotFound(f"{repo.kind} {repo.id} has no branch {branch!r}")
            made = self._record(connection, repo, head.tree, None, words)
            _point(connection, repo, _BRANCH + branch, made)
            return made

    def begin(self, connection: sqlite3.Connection, repo: Repo, changes: Sequence[Put]) -> Commit:
        """The first commit of a new repo, on main, in the transaction that makes the repo."""
        made = self._append(connection, repo, None, changes, Words(repo.owner, _FIRST))
        _point(connection, repo, _BRANCH + MAIN, made)
        return made

    def create_ref(self, repo: Repo, name: str, revision: str, *, tag: bool) -> None:
        """A new branch or tag at `revision`.

        Raises BadRequest for the name, also if a branch and a tag would share it; Conflict if it
        exists; RevisionNotFound.
        """
        check_ref_name(name)
        target = self.resolve(repo, revision)
        mine, other = (_TAG, _BRANCH) if tag else (_BRANCH, _TAG)
        with self._database.transaction() as connection:
            taken = {
                row["name"]
                for row in connection.execute("SELECT name FROM refs WHERE repo = ?", (repo.key,))
            }
            if mine + name in taken:
                raise Conflict(f"{repo.id} already has a {'tag' if tag else 'branch'} {name!r}")
            if other + name in taken:
                raise BadRequest(
                    f"{repo.id} has a {'branch' if tag else 'tag'} {name!r}: one name, one ref"
                )
            for ref in taken:  # git keeps refs as files: one cannot be the folder of another
                if ref.startswith(f"{mine}{name}/") or f"{mine}{name}".startswith(f"{ref}/"):
                    raise BadRequest(f"{name!r} and {ref.removeprefix(mine)!r} cannot both exist")
            connection.execute(
                "INSERT INTO refs VALUES (?, ?, ?)", (repo.key, mine + name, target.oid)
            )

    def delete_ref(self, repo: Repo, name: str, *, tag: bool) -> None:
        """Take a branch or tag away. Raises BadRequest for main, RevisionNotFound."""
        if not tag and name == MAIN:
            raise BadRequest("the branch 'main' cannot be deleted")
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "DELETE FROM refs WHERE repo = ? AND name = ?",
                (repo.key, (_TAG if tag else _BRANCH) + name),
            )
            if cursor.rowcount == 0:
                raise RevisionNotFound(f"{repo.id} has no {'tag' if tag else 'branch'} {name!r}")

    def _head(self, repo: Repo, branch: str) -> Commit | None:
        row = self._database.row(
            "SELECT target FROM refs WHERE repo = ? AND name = ?", (repo.key, _BRANCH + branch)
        )
        return None if row is None else self._commit(repo, row["target"])

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
        draft = Draft(self._trees, self._trees.read(head.tree) if head else {})
        for change in changes:
            if isinstance(change, Put):
                draft.put(change.parts, change.entry)
            else:
                draft.remove(change.parts, directory=change.directory)
        puts = [change.entry for change in changes if isinstance(change, Put)]
        link_contents(connection, repo, [(e.sha256, e.size) for e in puts if e.sha256])
        return self._record(connection, repo, draft.save(connection), head, words, oid)

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
        connection.execute(
            "INSERT OR IGNORE INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (repo.key, *astuple(commit)),
        )
        connection.execute("UPDATE repos SET modified = ? WHERE id = ?", (now, repo.key))
        return commit

    def _commit(self, repo: Repo, oid: str) -> Commit | None:
        row = self._database.row(
            "SELECT * FROM commits WHERE repo = ? AND oid = ?", (repo.key, oid)
        )
        return None if row is None else _commit(row)

    def _steps(self, repo: Repo, commit: Commit) -> Iterator[tuple[Commit, Commit | None]]:
        """Each commit from this one back, with the one before it."""
        newer: Commit | None = commit
        while newer is not None:
            older = self._commit(repo, newer.parent) if newer.parent else None
            yield newer, older
            newer = older


def _point(connection: sqlite3.Connection, repo: Repo, ref: str, commit: Commit) -> None:
    connection.execute(
        "INSERT INTO refs VALUES (?, ?, ?)"
        " ON CONFLICT (repo, name) DO UPDATE SET target = excluded.target",
        (repo.key, ref, commit.oid),
    )


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


def _full(revision: str) -> str:
    return revision if revision.startswith("refs/") else ""

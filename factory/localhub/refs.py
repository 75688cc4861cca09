"""Branches, tags and the heads of pull requests: names for commits, as git has them."""

from __future__ import annotations

import sqlite3

from factory.localhub.database import Database
from factory.localhub.errors import BadRequest, Conflict, RevisionNotFound
from factory.localhub.names import check_ref_name
from factory.localhub.repos import Repo

MAIN = "main"
BRANCH = "refs/heads/"
TAG = "refs/tags/"
PULL = "refs/pr/"


class Refs:
    """The refs of all repos, by their full names."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self, repo: Repo) -> dict[str, str]:
        """Every ref, with the id of the commit it names."""
        rows = self._database.rows(
            "SELECT name, target FROM refs WHERE repo = ? ORDER BY name", (repo.key,)
        )
        return {row["name"]: row["target"] for row in rows}

    def target(self, repo: Repo, revision: str) -> str | None:
        """Return the id of the commit that a branch, a tag or a full ref names.

        Of a branch and a tag of one name, the branch.
        """
        full = revision if revision.startswith("refs/") else ""
        row = self._database.row(  # "refs/heads/" sorts before "refs/tags/"
            "SELECT target FROM refs WHERE repo = ? AND name IN (?, ?, ?) ORDER BY name LIMIT 1",
            (repo.key, BRANCH + revision, TAG + revision, full),
        )
        return None if row is None else str(row["target"])

    def head(self, repo: Repo, ref: str) -> str | None:
        """The id of the commit that this full ref names."""
        row = self._database.row(
            "SELECT target FROM refs WHERE repo = ? AND name = ?", (repo.key, ref)
        )
        return None if row is None else str(row["target"])

    def create(self, repo: Repo, name: str, target: str, *, tag: bool) -> None:
        """A new branch or tag at the commit `target`.

        A branch and a tag may share a name. Raises BadRequest for the name, Conflict if it exists.
        """
        check_ref_name(name)
        prefix = TAG if tag else BRANCH
        with self._database.transaction() as connection:
            names = {
                row["name"]
                for row in connection.execute("SELECT name FROM refs WHERE repo = ?", (repo.key,))
            }
            if prefix + name in names:
                raise Conflict(f"Reference {prefix}{name} already exists")
            for ref in names:  # git keeps refs as files: one cannot be the folder of another
                if ref.startswith(f"{prefix}{name}/") or f"{prefix}{name}".startswith(f"{ref}/"):
                    raise BadRequest(f"{name!r} and {ref.removeprefix(prefix)!r} cannot both exist")
            point(connection, repo, prefix + name, target)

    def delete(self, repo: Repo, name: str, *, tag: bool) -> None:
        """Take a branch or tag away. Raises BadRequest for main, RevisionNotFound."""
        if not tag and name == MAIN:
            raise BadRequest(f"Cannot delete {BRANCH}{MAIN}")
        with self._database.transaction() as connection:
            cursor = connection.execute(
                "DELETE FROM refs WHERE repo = ? AND name = ?",
                (repo.key, (TAG if tag else BRANCH) + name),
            )
            if cursor.rowcount == 0:
                what = "tag" if tag else "branch"
                raise RevisionNotFound(f"Invalid rev id: {repo.id} has no {what} {name!r}")


def point(connection: sqlite3.Connection, repo: Repo, ref: str, target: str) -> None:
    """Let a full ref name a commit, as part of a transaction."""
    connection.execute(
        "INSERT INTO refs VALUES (?, ?, ?)"
        " ON CONFLICT (repo, name) DO UPDATE SET target = excluded.target",
        (repo.key, ref, target),
    )


def branch_ref(name: str) -> str:
    """The full ref that commits go to when `name` is given: a branch, or a pull request's head."""
    return name if name.startswith((PULL, BRANCH)) else BRANCH + name

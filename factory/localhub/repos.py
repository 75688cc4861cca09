"""Which repos there are, who sees them, and which content each was given."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from factory.localhub.accounts import Account
from factory.localhub.database import Database
from factory.localhub.errors import Conflict, Forbidden, RepoNotFound
from factory.localhub.names import check_repo_part

Kind = Literal["model", "dataset", "space"]
KINDS: tuple[Kind, ...] = ("model", "dataset", "space")


@dataclass(frozen=True, slots=True)
class Repo:
    """A repo, by its row in the database."""

    key: int
    kind: Kind
    namespace: str
    name: str
    owner: str
    private: bool
    created: float
    modified: float

    @property
    def id(self) -> str:
        """Its name with its namespace, as clients write it."""
        return f"{self.namespace}/{self.name}"

    @property
    def web_path(self) -> str:
        """Return the path of its page and its git address: only models have no prefix."""
        return web_path(self.kind, self.id)


def web_path(kind: Kind, name: str) -> str:
    """Return the path of a repo's page from its kind and name."""
    return name if kind == "model" else f"{kind}s/{name}"


class Repos:
    """All repos of the hub."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, kind: str, namespace: str, name: str, account: Account) -> Repo:
        """Return the repo that has this name, in upper or lower case, or had it before a move.

        Raises RepoNotFound also when `account` may not see it.
        """
        row = self._database.row(
            "SELECT * FROM repos WHERE kind = ? AND namespace = ? COLLATE NOCASE"
            " AND name = ? COLLATE NOCASE AND (NOT private OR owner = ?)"
            " ORDER BY namespace = ? AND name = ? DESC LIMIT 1",
            (kind, namespace, name, account.user, namespace, name),
        )
        if row is None:
            row = self._database.row(
                "SELECT repos.* FROM old_names old JOIN repos ON repos.id = old.repo"
                " WHERE old.kind = ? AND old.namespace = ? AND old.name = ?"
                " AND (NOT private OR owner = ?)",
                (kind, namespace, name, account.user),
            )
        if row is None:
            raise RepoNotFound(f"there is no {kind} {namespace}/{name} on this hub")
        return _repo(row)

    def by_key(self, key: int) -> Repo | None:
        """The repo of this row, whoever asks."""
        row = self._database.row("SELECT * FROM repos WHERE id = ?", (key,))
        return None if row is None else _repo(row)

    def visible(self, kind: str, account: Account) -> list[Repo]:
        """The repos of a kind that `account` may see, last changed first."""
        return [
            _repo(row)
            for row in self._database.rows(
                "SELECT * FROM repos WHERE kind = ? AND (NOT private OR owner = ?)"
                " ORDER BY modified DESC, id DESC",
                (kind, account.user),
            )
        ]

    def add(
        self,
        connection: sqlite3.Connection,
        kind: Kind,
        namespace: str,
        name: str,
        owner: str,
        private: bool,
    ) -> Repo:
        """A new repo without commits, as part of a transaction.

        Raises BadRequest for its name, Conflict if it is taken, in upper or lower case.
        """
        check_repo_part(namespace, "namespace")
        check_repo_part(name, "repo name")
        taken = connection.execute(
            "SELECT namespace, name FROM repos WHERE kind = ? AND namespace = ? COLLATE NOCASE"
            " AND name = ? COLLATE NOCASE",
            (kind, namespace, name),
        ).fetchone()
        if taken is not None:
            raise Conflict(f"You already created this {kind} repo: {'/'.join(taken)}")
        now = time.time()
        cursor = connection.execute(
            "INSERT INTO repos (kind, namespace, name, owner, private, created, modified, indexed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, 1)",
            (kind, namespace, name, owner, private, now, now),
        )
        key = cast(int, cursor.lastrowid)
        return Repo(key, kind, namespace, name, owner, private, now, now)

    def rename(self, repo: Repo, namespace: str, name: str) -> None:
        """Give a repo another name; the old one leads to it until another repo takes it.

        Raises Conflict if the new name is taken, BadRequest.
        """
        check_repo_part(namespace, "namespace")
        check_repo_part(name, "repo name")
        try:
            with self._database.transaction() as connection:
                connection.execute(
                    "UPDATE repos SET namespace = ?, name = ? WHERE id = ?",
                    (namespace, name, repo.key),
                )
                connection.execute(
                    "INSERT OR REPLACE INTO old_names VALUES (?, ?, ?, ?)",
                    (repo.kind, repo.namespace, repo.name, repo.key),
                )
        except sqlite3.IntegrityError as error:
            raise Conflict(
                f"A {repo.kind} repository called {namespace}/{name} already exists"
            ) from error

    def show(self, repo: Repo, account: Account, *, private: bool) -> None:
        """Hide a repo from others, or let them see it. Raises Forbidden."""
        if repo.owner != account.user:
            raise Forbidden("only the user who made a repo may hide or show it")
        with self._database.transaction() as connection:
            connection.execute("UPDATE repos SET private = ? WHERE id = ?", (private, repo.key))

    def remove(self, repo: Repo) -> None:
        """Take a repo off the hub with its history; the contents stay on the disk."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM repos WHERE id = ?", (repo.key,))

    def size_of(self, sha256: str, account: Account) -> int | None:
        """The size of a content, if it was given to some repo that `account` may see."""
        row = self._database.row(
            "SELECT size FROM contents JOIN repos ON repos.id = contents.repo"
            " WHERE sha256 = ? AND (NOT private OR owner = ?)",
            (sha256, account.user),
        )
        return None if row is None else int(row["size"])

    def sizes(self) -> dict[int, int]:
        """The bytes of all contents that each repo was given, by its row."""
        return {
            row["repo"]: row["size"]
            for row in self._database.rows(
                "SELECT repo, SUM(size) AS size FROM contents GROUP BY repo"
            )
        }

    def has(self, repo: Repo, sha256: str, size: int | None = None) -> bool:
        """Whether `repo` was given this content, of `size` bytes if that is known."""
        row = self._database.row(
            "SELECT size FROM contents WHERE sha256 = ? AND repo = ?", (sha256, repo.key)
        )
        return row is not None and size in (None, row["size"])

    def note_contents(self, repo: Repo, contents: Sequence[tuple[str, int]]) -> None:
        """Remember that `repo` was given these contents, each a sha256 and a size."""
        with self._database.transaction() as connection:
            link_contents(connection, repo, contents)


def link_contents(
    connection: sqlite3.Connection, repo: Repo, contents: Sequence[tuple[str, int]]
) -> None:
    """Record within a transaction that `repo` was given these contents."""
    connection.executemany(
        "INSERT OR IGNORE INTO contents (sha256, repo, size) VALUES (?, ?, ?)",
        [(sha256, repo.key, size) for sha256, size in contents],
    )


def _repo(row: Any) -> Repo:
    return Repo(
        key=row["id"],
        kind=row["kind"],
        namespace=row["namespace"],
        name=row["name"],
        owner=row["owner"],
        private=bool(row["private"]),
        created=row["created"],
        modified=row["modified"],
    )

"""Discussions and pull requests: a pull request is a discussion with a ref of its own.

They can be opened, listed, renamed, closed and opened again. Nothing is merged here, and nobody
comments: who agrees with a pull request commits what lies at its ref.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

from factory.localhub.accounts import Account
from factory.localhub.changes import Change, Words
from factory.localhub.database import Database
from factory.localhub.errors import BadRequest, NotFound
from factory.localhub.git_objects import Commit
from factory.localhub.history import History
from factory.localhub.refs import BRANCH, MAIN, PULL
from factory.localhub.repos import Repo

STATUSES = ("open", "closed")
_TITLE_LIMIT = 500
_TEXT_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Discussion:
    """One of a repo's discussions, known by its number; `base` is None unless it is a pull
    request: then the ref that it wants to change."""

    number: int
    title: str
    description: str
    author: str
    status: str
    base: str | None
    created: float

    @property
    def ref(self) -> str:
        """Return the ref with the commits of a pull request."""
        return f"{PULL}{self.number}"


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a discussion; `data` is what clients read for its type."""

    id: str
    type: str
    author: str
    created: float
    data: dict[str, Any]


class Discussions:
    """The discussions of all repos."""

    def __init__(self, database: Database, history: History) -> None:
        self._database = database
        self._history = history

    def open(
        self,
        repo: Repo,
        account: Account,
        title: str,
        description: str,
        *,
        pull_request: bool,
    ) -> Discussion:
        """A new discussion; as a pull request its ref is where main is. Raises BadRequest."""
        head = self._history.resolve(repo, MAIN)
        words = Words(account.user, title, description)
        return self._open(repo, words, head if pull_request else None, ())

    def propose(
        self, repo: Repo, changes: Sequence[Change], words: Words, parent: str | None
    ) -> tuple[Discussion, Commit]:
        """A pull request with one commit: on top of `parent`, or of main.

        Raises RevisionNotFound for the parent, EntryNotFound and BadRequest as a commit does.
        """
        head = self._history.resolve(repo, parent or MAIN)
        discussion = self._open(repo, words, head, changes)
        return discussion, self._history.resolve(repo, discussion.ref)

    def all(self, repo: Repo) -> list[Discussion]:
        """Every discussion of a repo, newest first."""
        rows = self._database.rows(
            "SELECT * FROM discussions WHERE repo = ? ORDER BY number DESC", (repo.key,)
        )
        return [_discussion(row) for row in rows]

    def find(self, repo: Repo, number: int) -> Discussion:
        """The discussion with this number. Raises NotFound."""
        row = self._database.row(
            "SELECT * FROM discussions WHERE repo = ? AND number = ?", (repo.key, number)
        )
        if row is None:
            raise NotFound(f"{repo.id} has no discussion {number}")
        return _discussion(row)

    def events(self, repo: Repo, number: int) -> list[Event]:
        """Return what was done with a discussion since it was opened, oldest first."""
        rows = self._database.rows(
            "SELECT id, type, author, created, data FROM discussion_events"
            " WHERE repo = ? AND number = ? ORDER BY created, rowid",
            (repo.key, number),
        )
        return [
            Event(**{**{key: row[key] for key in Event.__slots__}, "data": json.loads(row["data"])})
            for row in rows
        ]

    def change(
        self,
        repo: Repo,
        number: int,
        author: str,
        *,
        title: str | None = None,
        status: str | None = None,
    ) -> Event:
        """Give a discussion another title or status; return what is to be known of it later.

        Raises NotFound, BadRequest.
        """
        if status is not None and status not in STATUSES:
            raise BadRequest(f"a discussion's status is one of {', '.join(STATUSES)}")
        if title is not None:
            _check(title, "")
        before = self.find(repo, number)
        event = Event(secrets.token_hex(12), "status-change", author, time.time(),
                      {"status": status})  # fmt: skip
        if title is not None:
            data = {"from": before.title, "to": title}
            event = replace(event, type="title-change", data=data)
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO discussion_events VALUES (?, ?, ?, ?, ?, ?, ?)",
                (event.id, repo.key, number, event.type, author, event.created,
                 json.dumps(event.data)),
            )  # fmt: skip
            connection.execute(
                "UPDATE discussions SET title = coalesce(?, title), status = coalesce(?, status)"
                " WHERE repo = ? AND number = ?",
                (title, status, repo.key, number),
            )
        return event

    def _open(
        self, repo: Repo, words: Words, head: Commit | None, changes: Sequence[Change]
    ) -> Discussion:
        _check(words.title, words.message)
        with self._database.transaction() as connection:
            [number] = connection.execute(
                "SELECT coalesce(max(number), 0) + 1 FROM discussions WHERE repo = ?", (repo.key,)
            ).fetchone()
            base = None if head is None else BRANCH + MAIN
            discussion = Discussion(
                number, words.title, words.message, words.author, STATUSES[0], base, time.time()
            )
            if head is not None:
                self._history.start(connection, repo, discussion.ref, head, changes, words)
            connection.execute(
                "INSERT INTO discussions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (repo.key, *astuple(discussion)),
            )
            return discussion


def _check(title: str, text: str) -> None:
    if not title.strip() or len(title) > _TITLE_LIMIT or len(text) > _TEXT_LIMIT:
        raise BadRequest(
            f"a discussion has a title of 1 to {_TITLE_LIMIT} characters and a text of at most "
            f"{_TEXT_LIMIT}"
        )


def _discussion(row: Any) -> Discussion:
    return Discussion(**{key: row[key] for key in Discussion.__slots__})

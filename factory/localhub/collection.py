"""Collections: named shelves of repos, in an order, each item with a note."""

from __future__ import annotations

import re
import secrets
import sqlite3
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from factory.localhub.accounts import Account
from factory.localhub.database import Database
from factory.localhub.errors import BadRequest, Conflict, Forbidden, NotFound
from factory.localhub.names import check_repo_part
from factory.localhub.repos import Repo

_TITLE_LIMIT = 60
_DESCRIPTION_LIMIT = 150
_NOTE_LIMIT = 500
THEMES = ("orange", "blue", "green", "purple", "pink", "indigo")
_SLUG_END = re.compile(r"(?:.*-)?([0-9a-f]{24})")


@dataclass(frozen=True, slots=True)
class Item:
    """A repo on a shelf."""

    id: str
    kind: str
    repo_id: str
    position: int
    note: str | None
    modified: float


@dataclass(frozen=True, slots=True)
class Collection:
    """A shelf. Its slug changes with its title, the 24 hex digits at its end never do."""

    id: str
    namespace: str
    owner: str
    title: str
    description: str | None
    private: bool
    theme: str
    position: int
    modified: float
    items: tuple[Item, ...]

    @property
    def slug(self) -> str:
        """Its address: owner, title and id."""
        return f"{self.namespace}/{_slug(self.title)}-{self.id}"


class Collections:
    """All collections of the hub, as an account sees them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, namespace: str, slug: str, account: Account) -> Collection:
        """The collection whose slug ends with these 24 digits. Raises NotFound."""
        match = _SLUG_END.fullmatch(slug)
        row = match and self._database.row(
            "SELECT * FROM collections WHERE id = ? AND namespace = ?"
            " AND (NOT private OR owner = ?)",
            (match[1], namespace, account.user),
        )
        if not row:
            raise NotFound(f"there is no collection {namespace}/{slug} on this hub")
        return self._with_items(row, account)

    def visible(
        self, account: Account, owners: Sequence[str] = (), holding: Sequence[str] = ()
    ) -> list[Collection]:
        """Those of these owners that hold all of these repos (`models/ns/name`), newest first."""
        collections = []
        for row in self._database.rows(
            "SELECT * FROM collections WHERE NOT private OR owner = ?"
            " ORDER BY modified DESC, id DESC",
            (account.user,),
        ):
            if owners and row["namespace"] not in owners:
                continue
            collection = self._with_items(row, account)
            names = {f"{item.kind}s/{item.repo_id}" for item in collection.items}
            if names.issuperset(holding):
                collections.append(collection)
        return collections

    def create(
        self,
        namespace: str,
        title: str,
        account: Account,
        *,
        description: str | None,
        private: bool,
    ) -> Collection:
        """A new, empty collection.

        Raises Conflict with the slug of the one that has this title already, BadRequest, Forbidden.
        """
        account.require_write()
        check_repo_part(namespace, "namespace")
        _check_texts(title, description)
        with self._database.transaction() as connection:
            for row in connection.execute(
                "SELECT * FROM collections WHERE namespace = ? AND (NOT private OR owner = ?)",
                (namespace, account.user),
            ).fetchall():
                if row["title"].casefold() == title.casefold():
                    existing = self._with_items(row, account)
                    raise Conflict(
                        f"{namespace} already has a collection {existing.title!r}",
                        fields={"slug": existing.slug},
                    )
            identity = f"{int(time.time()):08x}{secrets.token_hex(8)}"
            connection.execute(
                "INSERT INTO collections VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)",
                (
                    identity,
                    namespace,
                    account.user,
                    title,
                    description,
                    private,
                    THEMES[0],
                    time.time(),
                ),
            )
        return self.find(namespace, identity, account)

    def update(
        self,
        collection: Collection,
        account: Account,
        *,
        title: str | None = None,
        description: str | None = None,
        private: bool | None = None,
        theme: str | None = None,
        position: int | None = None,
    ) -> Collection:
        """Change what is given. Raises BadRequest, Forbidden."""
        _check_texts(collection.title if title is None else title, description)
        if theme is not None and theme not in THEMES:
            raise BadRequest(f"theme {theme!r} is none of {', '.join(THEMES)}")
        if private is not None and collection.owner != account.user:
            raise Forbidden("only the user who made a collection may hide or show it")
        with self._changing(collection, account) as connection:
            connection.execute(
                "UPDATE collections SET title = coalesce(?, title),"
                " description = coalesce(?, description), private = coalesce(?, private),"
                " theme = coalesce(?, theme), position = coalesce(?, position) WHERE id = ?",
                (title, description, private, theme, position, collection.id),
            )
        return self._again(collection, account)

    def delete(self, collection: Collection, account: Account) -> None:
        """Take a collection away; the repos in it stay. Raises Forbidden."""
        with self._changing(collection, account) as connection:
            connection.execute("DELETE FROM collections WHERE id = ?", (collection.id,))

    def add_item(
        self, collection: Collection, account: Account, repo: Repo, note: str | None
    ) -> Collection:
        """Put a repo at the end. Raises Conflict if it is there, BadRequest, Forbidden."""
        _check_note(note)
        try:
            with self._changing(collection, account) as connection:
                connection.execute(
                    "INSERT INTO collection_items SELECT ?, ?, ?, coalesce(max(position) + 1, 0), ?"
                    " FROM collection_items WHERE collection = ?",
                    (secrets.token_hex(12), collection.id, repo.key, note, collection.id),
                )
        except sqlite3.IntegrityError as error:
            raise Conflict(f"{repo.id} is already in this collection") from error
        return self._again(collection, account)

    def update_item(
        self,
        collection: Collection,
        account: Account,
        item: str,
        *,
        note: str | None = None,
        position: int | None = None,
    ) -> Collection:
        """Change an item's note or move it. Raises NotFound, BadRequest, Forbidden."""
        _check_note(note)
        with self._changing(collection, account) as connection:
            order = _order(connection, collection, item)
            if note is not None:
                connection.execute(
                    "UPDATE collection_items SET note = ? WHERE id = ?", (note, item)
                )
            if position is not None:
                order.remove(item)
                order.insert(max(position, 0), item)
                _renumber(connection, order)
        return self._again(collection, account)

    def delete_item(self, collection: Collection, account: Account, item: str) -> Collection:
        """Take an item off the shelf. Raises NotFound, Forbidden."""
        with self._changing(collection, account) as connection:
            order = _order(connection, collection, item)
            connection.execute("DELETE FROM collection_items WHERE id = ?", (item,))
            order.remove(item)
            _renumber(connection, order)
        return self._again(collection, account)

    @contextmanager
    def _changing(self, collection: Collection, account: Account) -> Iterator[sqlite3.Connection]:
        account.require_write()
        with self._database.transaction() as connection:
            yield connection
            connection.execute(
                "UPDATE collections SET modified = ? WHERE id = ?", (time.time(), collection.id)
            )

    def _again(self, collection: Collection, account: Account) -> Collection:
        return self.find(collection.namespace, collection.id, account)

    def _with_items(self, row: Any, account: Account) -> Collection:
        items = self._database.rows(
            "SELECT item.id, item.position, item.note, kind, namespace, name, modified"
            " FROM collection_items AS item JOIN repos ON repos.id = item.repo"
            " WHERE collection = ? AND (NOT private OR owner = ?) ORDER BY item.position",
            (row["id"], account.user),
        )
        return Collection(
            id=row["id"],
            namespace=row["namespace"],
            owner=row["owner"],
            title=row["title"],
            description=row["description"],
            private=bool(row["private"]),
            theme=row["theme"],
            position=row["position"],
            modified=row["modified"],
            items=tuple(
                Item(
                    id=item["id"],
                    kind=item["kind"],
                    repo_id=f"{item['namespace']}/{item['name']}",
                    position=item["position"],
                    note=item["note"],
                    modified=item["modified"],
                )
                for item in items
            ),
        )


def _slug(title: str) -> str:
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "collection"


def _order(connection: sqlite3.Connection, collection: Collection, item: str) -> list[str]:
    """The ids of all items, in order. Raises NotFound if `item` is not one of them."""
    order = [
        row["id"]
        for row in connection.execute(
            "SELECT id FROM collection_items WHERE collection = ? ORDER BY position",
            (collection.id,),
        )
    ]
    if item not in order:
        raise NotFound(f"collection {collection.slug} has no item {item}")
    return order


def _renumber(connection: sqlite3.Connection, order: list[str]) -> None:
    connection.executemany(
        "UPDATE collection_items SET position = ? WHERE id = ?",
        [(position, item) for position, item in enumerate(order)],
    )


def _check_texts(title: str, description: str | None) -> None:
    if not title.strip() or len(title) > _TITLE_LIMIT:
        raise BadRequest(f"a collection's title has 1 to {_TITLE_LIMIT} characters")
    if description is not None and len(description) > _DESCRIPTION_LIMIT:
        raise BadRequest(f"a collection's description has at most {_DESCRIPTION_LIMIT} characters")


def _check_note(note: str | None) -> None:
    if note is not None and len(note) > _NOTE_LIMIT:
        raise BadRequest(f"a note has at most {_NOTE_LIMIT} characters")

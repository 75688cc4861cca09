"""One hub on the disk: its database, its contents, and what is made of both together."""

from __future__ import annotations

import secrets
import threading
from functools import lru_cache
from pathlib import Path

from factory.localhub import attributes, cards
from factory.localhub.accounts import Accounts
from factory.localhub.blobs import Blobs
from factory.localhub.cards import Card
from factory.localhub.changes import Put, Words
from factory.localhub.collection import Collections
from factory.localhub.database import Database
from factory.localhub.discussions import Discussions
from factory.localhub.git_objects import Commit, Entry, object_id
from factory.localhub.history import History
from factory.localhub.refs import BRANCH, MAIN, Refs
from factory.localhub.repos import Kind, Repo, Repos
from factory.localhub.trees import Trees

_SECRET = "upload_secret"


class LocalHub:
    """Everything under `root`. The caller sees to it that nobody else has it open."""

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self.read_only = read_only
        # Held by whoever looks after the store: one at a time.
        self.upkeep = threading.Lock()
        self.blobs = Blobs(root / "blobs", read_only=read_only)
        self.database = Database(root / "hub.sqlite", read_only=read_only)
        self.accounts = Accounts(self.database, read_only=read_only)
        self.repos = Repos(self.database)
        self.trees = Trees(self.database)
        self.refs = Refs(self.database)
        self.history = History(self.database, self.trees, self.refs)
        self.discussions = Discussions(self.database, self.history)
        self.collections = Collections(self.database)
        # Kept, so that an upload under way survives a restart of the server.
        self.upload_secret = self._secret()
        self._read_card = lru_cache(maxsize=4096)(self._load_card)
        self._read_text = lru_cache(maxsize=256)(self._load_text)

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    def create_repo(
        self, kind: Kind, namespace: str, name: str, *, owner: str, private: bool
    ) -> Repo:
        """A new repo whose first commit says which files are large ones.

        Raises Conflict if it exists (also if it is private and another user's), BadRequest for its
        name, NoSpace.
        """
        content = attributes.default_attributes(kind).encode()
        entry = self.store_file(attributes.PATH, content)
        with self.database.transaction() as connection:
            repo = self.repos.add(connection, kind, namespace, name, owner, private)
            self.history.begin(connection, repo, [Put((attributes.PATH,), entry)])
        return repo

    def duplicate(
        self, source: Repo, namespace: str, name: str, *, owner: str, private: bool
    ) -> Repo:
        """A new repo with the files that `source` has on main, in one commit.

        Raises Conflict if it exists, BadRequest for its name, NoSpace.
        """
        head = self.history.resolve(source, MAIN)
        files = [
            Put(tuple(path.split("/")), entry)
            for path, entry in self.trees.walk(head.tree)
            if not entry.is_directory
        ]
        with self.database.transaction() as connection:
            repo = self.repos.add(connection, source.kind, namespace, name, owner, private)
            words = Words(owner, f"Duplicate of {source.id}", head.oid)
            self.history.start(connection, repo, BRANCH + MAIN, None, files, words)
        return repo

    def store_file(self, name: str, content: bytes) -> Entry:
        """Keep the content of an ordinary file and answer the entry for it. Raises NoSpace."""
        sha256 = self.blobs.add(content)
        return Entry(name, object_id("blob", content), len(content), sha256)

    def card(self, commit: Commit) -> Card:
        """The card of a repo at a commit; an empty one where there is no README to read."""
        entry = self.trees.find(commit.tree, (cards.PATH,))
        if entry is None or entry.sha256 is None or entry.size > cards.SIZE_LIMIT:
            return Card()
        return self._read_card(entry.sha256)

    def text(self, commit: Commit, path: str) -> str:
        """A small text file at the root of a repo; empty where there is none."""
        entry = self.trees.find(commit.tree, (path,))
        if entry is None or entry.sha256 is None or entry.size > attributes.REGULAR_LIMIT:
            return ""
        return self._read_text(entry.sha256)

    def _load_card(self, sha256: str) -> Card:
        return cards.read_card(self._load_text(sha256))

    def _load_text(self, sha256: str) -> str:
        return self.blobs.read(sha256).decode("utf-8", "replace")

    def _secret(self) -> bytes:
        secret = self.database.setting(_SECRET)
        if secret is None and self.read_only:
            return b""
        if secret is None:
            secret = secrets.token_hex(32)
            with self.database.transaction() as connection:
                connection.execute("INSERT INTO settings VALUES (?, ?)", (_SECRET, secret))
        # Damaged, it is as good as any other: only uploads under way notice.
        return secret.encode()

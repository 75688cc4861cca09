"""The one SQLite file of the hub: its tables, and transactions that either happen or do not.

One process has it open (server.py sees to that), and in it one connection: requests take turns,
each for a millisecond or so. The lock of the file is held throughout, so the write-ahead log needs
no shared memory and the file may lie on a cluster's file system.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from factory.localhub import checksums
from factory.localhub.errors import Forbidden, NoSpace

_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tokens (
  sha256 TEXT PRIMARY KEY, user TEXT NOT NULL,
  role TEXT NOT NULL CHECK (role IN ('read', 'write')));
CREATE TABLE IF NOT EXISTS repos (
  id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, namespace TEXT NOT NULL,
  name TEXT NOT NULL, owner TEXT NOT NULL, private INTEGER NOT NULL, created REAL NOT NULL,
  modified REAL NOT NULL, indexed INTEGER NOT NULL DEFAULT 0, UNIQUE (kind, namespace, name));
-- With a base it is what leads from that directory to this one: see trees.py.
CREATE TABLE IF NOT EXISTS trees (
  oid TEXT PRIMARY KEY, entries TEXT NOT NULL, base TEXT, steps INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS commits (
  repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, oid TEXT NOT NULL, tree TEXT NOT NULL,
  parent TEXT, author TEXT NOT NULL, date INTEGER NOT NULL, title TEXT NOT NULL,
  message TEXT NOT NULL, PRIMARY KEY (repo, oid));
-- Which commit changed which file or directory; of a history's first commit, that is all there is.
CREATE TABLE IF NOT EXISTS path_changes (
  id INTEGER PRIMARY KEY, repo INTEGER NOT NULL, path TEXT NOT NULL, oid TEXT NOT NULL,
  FOREIGN KEY (repo, oid) REFERENCES commits ON DELETE CASCADE);
-- Commits taken in from another hub, kept under the id they have there.
CREATE TABLE IF NOT EXISTS mirrored (
  repo INTEGER NOT NULL, oid TEXT NOT NULL, PRIMARY KEY (repo, oid),
  FOREIGN KEY (repo, oid) REFERENCES commits ON DELETE CASCADE);
-- Those of them whose id is git's of what is stored here: nothing about them is taken on trust.
CREATE TABLE IF NOT EXISTS verified (
  repo INTEGER NOT NULL, oid TEXT NOT NULL, PRIMARY KEY (repo, oid),
  FOREIGN KEY (repo, oid) REFERENCES commits ON DELETE CASCADE);
CREATE TABLE IF NOT EXISTS refs (
  repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, name TEXT NOT NULL,
  target TEXT NOT NULL, PRIMARY KEY (repo, name));
-- Which repo was given which content: knowing a hash is not enough to be handed what it stands for.
CREATE TABLE IF NOT EXISTS contents (
  sha256 TEXT NOT NULL, repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE,
  size INTEGER NOT NULL, PRIMARY KEY (sha256, repo));
CREATE TABLE IF NOT EXISTS collections (
  id TEXT PRIMARY KEY, namespace TEXT NOT NULL, owner TEXT NOT NULL, title TEXT NOT NULL,
  description TEXT, private INTEGER NOT NULL, theme TEXT NOT NULL, position INTEGER NOT NULL,
  modified REAL NOT NULL);
CREATE TABLE IF NOT EXISTS collection_items (
  id TEXT PRIMARY KEY, collection TEXT NOT NULL REFERENCES collections ON DELETE CASCADE,
  repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, position INTEGER NOT NULL, note TEXT,
  UNIQUE (collection, repo));
-- With a base it is a pull request, whose commits lie at refs/pr/<number>.
CREATE TABLE IF NOT EXISTS discussions (
  repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, number INTEGER NOT NULL,
  title TEXT NOT NULL, description TEXT NOT NULL, author TEXT NOT NULL, status TEXT NOT NULL,
  base TEXT, created REAL NOT NULL, PRIMARY KEY (repo, number));
-- What was done with a discussion since it was opened; data is JSON.
CREATE TABLE IF NOT EXISTS discussion_events (
  id TEXT PRIMARY KEY, repo INTEGER NOT NULL, number INTEGER NOT NULL, type TEXT NOT NULL,
  author TEXT NOT NULL, created REAL NOT NULL, data TEXT NOT NULL,
  FOREIGN KEY (repo, number) REFERENCES discussions ON DELETE CASCADE);
-- Names that repos had before they were moved: they lead to the repo until another takes them.
CREATE TABLE IF NOT EXISTS old_names (
  kind TEXT NOT NULL, namespace TEXT NOT NULL COLLATE NOCASE, name TEXT NOT NULL COLLATE NOCASE,
  repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE,
  PRIMARY KEY (kind, namespace, name));
CREATE INDEX IF NOT EXISTS events_of_discussion ON discussion_events (repo, number);
CREATE INDEX IF NOT EXISTS contents_of_repo ON contents (repo);
CREATE INDEX IF NOT EXISTS items_of_repo ON collection_items (repo);
CREATE INDEX IF NOT EXISTS changes_of_path ON path_changes (repo, path);
CREATE INDEX IF NOT EXISTS changes_of_commit ON path_changes (repo, oid);
"""
# What tables of the first version lack.
_SECOND = (
    ("trees", "base TEXT"),
    ("trees", "steps INTEGER NOT NULL DEFAULT 0"),
    ("repos", "indexed INTEGER NOT NULL DEFAULT 0"),
)
_CLOSE_SECONDS = 2.0
# Copied at once, and the pause in which others come in.
_COPY_PAGES = 500
_PAUSE_SECONDS = 0.001
# Raised by one whenever a stored file can no longer be read by older code.
_VERSION = 2


class Database:
    """The open file. `rows` and `row` read; writing needs a `transaction`."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._lock = threading.RLock()
        self.path = path
        self.read_only = read_only
        log = path.with_name(f"{path.name}-wal")
        if read_only and log.exists() and log.stat().st_size:
            raise RuntimeError(
                f"{path} is being written, or was not closed: stop its server, or start one where "
                "it may be written"
            )
        # Nothing is written beside a file that is only read, not even a lock.
        address = f"file:{quote(str(path))}?mode=ro&immutable=1" if read_only else str(path)
        self._connection = sqlite3.connect(
            address, isolation_level=None, check_same_thread=False, uri=read_only
        )
        self._connection.row_factory = sqlite3.Row
        # First of all: whatever reads the file before it would make shared memory.
        self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        code = "SELECT name FROM sqlite_master WHERE type IN ('view', 'trigger')"
        if row := self._connection.execute(code).fetchone():  # a file of others may never end
            raise sqlite3.DatabaseError(f"{row['name']!r} in it is no table of a hub")
        if not read_only:
            for pragma in (
                "auto_vacuum = INCREMENTAL",  # of a new file; an old one needs VACUUM first
                "temp_store = MEMORY",  # for the triggers that write checksums
                "journal_mode = WAL",
                "synchronous = FULL",
                "foreign_keys = ON",
            ):
                self._connection.execute(f"PRAGMA {pragma}")
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise RuntimeError(f"{path} was written by a newer version of this program: update it")
        if read_only and version < _VERSION:
            raise RuntimeError(
                f"{path} was written by an older version of this program: start its server once "
                "where it may be written"
            )
        if not read_only:
            if version == 1:
                for table, column in _SECOND:
                    if column.split()[0] not in self._columns(table):  # a start was cut off
                        self._connection.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
            now, known = checksums.layout(self._connection)
            self._connection.executescript(_SCHEMA + checksums.SCHEMA)
            checksums.install(self._connection)
            if known is None or (now == known != checksums.layout(self._connection)[0]):
                checksums.write_layout(self._connection)
            if version != _VERSION:  # written only if need be: the disk may be full
                self._connection.execute("BEGIN IMMEDIATE")
                checksums.fill(self._connection)
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")
                self._connection.execute("COMMIT")
        else:
            checksums.register(self._connection)

    def _columns(self, table: str) -> set[str]:
        return {row["name"] for row in self._connection.execute(f"PRAGMA table_info({table})")}

    def rows(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        """All rows that the query finds."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def row(self, query: str, values: Sequence[object] = ()) -> Any | None:
        """The first row that the query finds."""
        with self._lock:
            return self._connection.execute(query, values).fetchone()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything in the block lasts, or nothing of it.

        Raises NoSpace if the disk is full, Forbidden if the file may only be read.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                finally:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise NoSpace(
                        "the disk of the local hub is full: free some space and try again"
                    ) from error
                if error.sqlite_errorcode == sqlite3.SQLITE_READONLY:
                    raise Forbidden("this store can only be read here") from error
                raise

    def setting(self, key: str) -> str | None:
        """The value kept under `key`."""
        row = self.row("SELECT value FROM settings WHERE key = ?", (key,))
        return None if row is None else str(row["value"])

    def number(self, query: str) -> int:
        """The one number that a query finds."""
        row = self.row(query)
        return 0 if row is None else int(row[0])

    def ask(self, question: Callable[..., Any], *arguments: object) -> Any:
        """The answer of a function that reads the open file, as a list."""
        with self._lock:
            return list(question(self._connection, *arguments))

    def copy(self, target: sqlite3.Connection) -> None:
        """Copy all that is committed into another database; others may read and write meanwhile.

        What they write while it goes on is in the copy too.
        """

        def let_others_in(status: int, remaining: int, total: int) -> None:
            self._lock.release()
            time.sleep(_PAUSE_SECONDS)
            self._lock.acquire()

        with self._lock:
            self._connection.backup(target, pages=_COPY_PAGES, progress=let_others_in)

    def fold(self) -> None:
        """Fold the log into the file, so that it takes no more room than need be."""
        with self._lock:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def pack(self) -> None:
        """Write the file anew without what is free in it; nobody else can use it meanwhile.

        Raises sqlite3.OperationalError if there is no room for that.
        """
        with self._lock:
            self._connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._connection.execute("VACUUM")
        self.fold()

    def close(self) -> None:
        """Fold the log into the file and let go of it.

        If a request has it in use for too long, it stays as it is; the next start finds all in the
        log.
        """
        if self._lock.acquire(timeout=_CLOSE_SECONDS):
            try:
                self._connection.close()
            finally:
                self._lock.release()

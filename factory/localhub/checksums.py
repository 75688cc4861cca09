"""A checksum for each row of the database, so that a bit that flipped on the disk is noticed.

Contents, directories and commits made here are named by what they hold. Nothing tells that of a
title, a branch or a token; so triggers write a checksum beside every row. They belong to the
connection, not to the file: who changes the file otherwise is noticed too.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator

SCHEMA = """
CREATE TABLE IF NOT EXISTS checksums (row TEXT PRIMARY KEY, sum TEXT NOT NULL) WITHOUT ROWID;
"""
_OWN = "checksums"


def install(connection: sqlite3.Connection) -> None:
    """Have each row that is written from now on get its checksum."""
    register(connection)
    for table in tables(connection):
        old, new = (_key(connection, table, which) for which in ("OLD", "NEW"))
        forget = f"DELETE FROM {_OWN} WHERE row = {old};"
        keep = f"INSERT OR REPLACE INTO {_OWN} VALUES ({new}, {_sum(connection, table, 'NEW')});"
        for event, work in (("INSERT", keep), ("UPDATE", forget + keep), ("DELETE", forget)):
            connection.execute(
                f"CREATE TEMP TRIGGER checksum_{event}_{table} AFTER {event} ON main.{table} "
                f"BEGIN {work} END"
            )


def register(connection: sqlite3.Connection) -> None:
    """Make the function known by which rows are summed up; enough to compare them."""
    connection.create_function("row_sum", -1, _row_sum, deterministic=True)


def fill(connection: sqlite3.Connection) -> None:
    """Write the checksums of all rows, for a file from before there were any.

    One that has some keeps them: they tell what was damaged.
    """
    if connection.execute(f"SELECT 1 FROM {_OWN} WHERE row != 'layout' LIMIT 1").fetchone():
        return
    for table in tables(connection):
        connection.execute(
            f"INSERT OR REPLACE INTO {_OWN} SELECT {_key(connection, table, table)},"
            f" {_sum(connection, table, table)} FROM {table}"
        )


def layout(connection: sqlite3.Connection) -> tuple[str, str | None]:
    """Return the checksum of the tables' own definitions, and the one that was written down."""
    definitions = connection.execute(
        "SELECT type, name, sql FROM main.sqlite_master ORDER BY type, name"
    ).fetchall()
    sums: list[tuple[str]] = []
    if any(name == _OWN for _, name, _ in definitions):
        sums = connection.execute(f"SELECT sum FROM {_OWN} WHERE row = 'layout'").fetchall()
    return _row_sum([tuple(row) for row in definitions]), sums[0][0] if sums else None


def write_layout(connection: sqlite3.Connection) -> None:
    """Write down the checksum of the tables' own definitions."""
    connection.execute(
        f"INSERT OR REPLACE INTO {_OWN} VALUES ('layout', ?)", (layout(connection)[0],)
    )


def tables(connection: sqlite3.Connection) -> list[str]:
    """Return the names of all tables whose rows have checksums."""
    rows = connection.execute(
        "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    )
    return [name for (name,) in rows if name != _OWN]


def queries(connection: sqlite3.Connection, table: str) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with rows of a table, and the query that finds them, a name each."""
    key, total = _key(connection, table, "t"), _sum(connection, table, "t")
    yield (
        "is not as it was written",
        f"SELECT {key} FROM {table} t LEFT JOIN {_OWN} c ON c.row = {key}"
        f" WHERE c.sum IS NOT {total}",
    )
    yield (
        "is gone",
        f"SELECT row FROM {_OWN} WHERE row GLOB '{table}:*'"
        f" AND row NOT IN (SELECT {key} FROM {table} t)",
    )


def _columns(connection: sqlite3.Connection, table: str) -> list[tuple[str, int]]:
    """Return name and place in the primary key (0: not in it) of each column."""
    return [(row[1], row[5]) for row in connection.execute(f"PRAGMA table_info({table})")]


def _key(connection: sqlite3.Connection, table: str, of: str) -> str:
    names = [name for name, place in _columns(connection, table) if place]
    return f"'{table}:' || " + " || ',' || ".join(f"quote({of}.{name})" for name in names)


def _sum(connection: sqlite3.Connection, table: str, of: str) -> str:
    return f"row_sum({', '.join(f'{of}.{name}' for name, _ in _columns(connection, table))})"


def _row_sum(*values: object) -> str:
    return hashlib.blake2b(repr(values).encode("utf-8", "replace"), digest_size=8).hexdigest()

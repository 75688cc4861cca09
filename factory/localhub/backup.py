"""A whole copy of a store while its hub is used: first the database, then every content it names.

A plain copy of the folder is not whole: contents are there before the commit that names them, and
are copied at another time than the database.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from pathlib import Path

from factory.localhub.errors import FULL_DISK, BadRequest, Conflict, NoSpace
from factory.localhub.garbage import sole_keeper
from factory.localhub.hub import LocalHub

_CHUNK = 1024 * 1024
# What a folder that is a backup already may hold; another one is left alone.
_OURS = {"hub.sqlite", "hub.sqlite.part", "blobs"}


def copy(hub: LocalHub, folder: Path) -> tuple[int, int, list[str]]:
    """Make `folder` a copy of the store, or bring an earlier copy up to date.

    Answers how many contents it holds, how many bytes were copied, and which contents were damaged
    and so left out. Raises BadRequest, Conflict, NoSpace.
    """
    root = hub.database.path.parent
    if not folder.is_absolute() or folder.resolve().is_relative_to(root.resolve()):
        raise BadRequest(f"{folder} must be a full path outside of the store")
    # No garbage is collected meanwhile, so all that the copied database names stays.
    with sole_keeper(hub):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if strangers := {path.name for path in folder.iterdir()} - _OURS:
                raise Conflict(
                    f"{folder} holds {min(strangers)!r}, which no backup does: take another"
                )
            part = folder / "hub.sqlite.part"
            part.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(part)) as target:
                hub.database.copy(target)
            count, size, problems = _contents(hub, folder / "blobs")
            _sync(part)
            part.rename(folder / "hub.sqlite")
            _sync(folder)
        except (OSError, sqlite3.OperationalError) as error:
            full = getattr(error, "errno", None) in FULL_DISK
            if full or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise NoSpace(f"the disk of {folder} is full") from error
            raise Conflict(f"{folder} cannot be written: {error}") from error
    return count, size, problems


def _contents(hub: LocalHub, blobs: Path) -> tuple[int, int, list[str]]:
    count, size = 0, 0
    problems = []
    for sha256 in sorted(hub.blobs.names()):
        target = blobs / sha256[:2] / sha256
        length, _ = hub.blobs.state(sha256)
        if target.exists() and target.stat().st_size == length:
            count += 1
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{sha256}.part")
        digest = hashlib.sha256()
        with hub.blobs.open(sha256) as source, temporary.open("wb") as out:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != sha256:
            temporary.unlink()
            problems.append(f"content {sha256} is damaged and was left out: see what fsck says")
            continue
        temporary.chmod(0o444)
        temporary.rename(target)
        count, size = count + 1, size + length
    return count, size, problems


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

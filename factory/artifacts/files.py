"""Write files atomically. A file is complete, and synced to disk, before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from factory.errors import FactoryError


def write_atomically(path: Path, content: bytes) -> None:
    """Write one file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_once(path: Path, content: bytes) -> None:
    """Write one file atomically, unless it exists. The first of several writers wins."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.once")
    write_atomically(temporary, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


@contextmanager
def file_lock(
    directory: Path, name: str = "settling", in_use: FactoryError | None = None
) -> Iterator[None]:
    """Hold the exclusive lock of the file `name` in a directory, made if it is missing.

    Waits for other processes, or raises `in_use` at once if it is given. The lock is flock, so the
    system releases it when this process dies.
    """
    from filelock import FileLock, Timeout  # here: not every command locks

    directory.mkdir(parents=True, exist_ok=True)
    # A soft lock would outlive its process. The file stays: others may be waiting for its inode.
    lock = FileLock(directory / name, fallback_to_soft=False, preserve_lock_file=True)
    try:
        lock.acquire(blocking=in_use is None)
    except Timeout:
        assert in_use is not None
        raise in_use from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def replacing(path: Path, last: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` on success and removed on
    failure. Synced to disk, unless `last` is False: sealing an artifact syncs all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if last:
            sync(temporary)
        temporary.rename(path)
        if last:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Sync a file or directory to disk, so that it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

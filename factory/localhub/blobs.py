"""The content of files, by its sha256: written once, checked while written, never changed."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from factory.localhub.errors import FULL_DISK, BadRequest, NoSpace
from factory.localhub.git_objects import SHA256


class Blobs:
    """The folder of contents: `<root>/ab/<sha256>`, and two for what is being written.

    `<root>/tmp` is emptied at each start; `<root>/parts` holds what is sent in parts, which may go
    on after a restart. The time of a file's last change says when somebody last counted on it.
    """

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self._root = root
        self._temporary = root / "tmp"
        self._parts = root / "parts"
        # Held while a content is counted on or taken away, so that never both happen at once.
        self._lock = threading.Lock()
        if read_only:
            return
        self._temporary.mkdir(parents=True, exist_ok=True)
        self._parts.mkdir(exist_ok=True)
        for left_over in self._temporary.iterdir():  # of a server that was killed
            left_over.unlink()

    def has(self, sha256: str) -> bool:
        """Whether this content is here, whole."""
        return self._path(sha256).exists()

    def touch(self, sha256: str) -> bool:
        """Whether this content is here; if so, it stays for the time of grace from now on."""
        with self._lock:
            try:
                os.utime(self._path(sha256))
            except FileNotFoundError:
                return False
            return True

    def names(self) -> Iterator[str]:
        """The sha256 of each content that is here."""
        for folder in self._root.iterdir():
            if len(folder.name) == 2:
                yield from (path.name for path in folder.iterdir() if SHA256.fullmatch(path.name))

    def state(self, sha256: str) -> tuple[int, float]:
        """Size, and when somebody last counted on it. Raises FileNotFoundError."""
        facts = self._path(sha256).stat()
        return facts.st_size, facts.st_mtime

    def drop(self, sha256: str, older_than: float) -> bool:
        """Take a content away, unless somebody has counted on it since."""
        with self._lock:
            path = self._path(sha256)
            if not path.exists() or path.stat().st_mtime >= older_than:
                return False
            path.unlink()
            return True

    def set_aside(self, sha256: str) -> None:
        """Move a damaged content out of the way, so that it can be sent again."""
        folder = self._root / "damaged"
        folder.mkdir(exist_ok=True)
        with self._lock:
            self._path(sha256).rename(folder / sha256)

    def drop_parts(self, older_than: float) -> None:
        """Take away what was sent in part and not finished."""
        for path in self._parts.iterdir():
            if path.stat().st_mtime < older_than:
                path.unlink(missing_ok=True)

    def open(self, sha256: str) -> BinaryIO:
        """This content, to read. Raises FileNotFoundError."""
        return self._path(sha256).open("rb")

    def read(self, sha256: str) -> bytes:
        """This content, whole. Raises FileNotFoundError."""
        return self._path(sha256).read_bytes()

    def write(self) -> BlobWriter:
        """A writer for new content. Raises NoSpace."""
        return BlobWriter(self._temporary, self)

    def write_part(self, key: str, start: int) -> PartWriter:
        """A writer into the middle of what is sent in parts under `key`. Raises NoSpace."""
        return PartWriter(self._parts / key, start)

    def join(self, key: str, expected: str, size: int) -> None:
        """Make what was sent in parts lasting. Raises BadRequest if it is not as expected."""
        path = self._parts / key
        if not path.exists() or path.stat().st_size != size:
            raise BadRequest(f"not all parts of {expected} have arrived: send them again")
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 != expected:
                path.unlink()
                raise BadRequest(f"the content has sha256 {sha256}, not {expected}: send it again")
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
            self.keep(path, sha256)

    def add(self, content: bytes) -> str:
        """Keep `content` and answer its sha256. Raises NoSpace."""
        with self.write() as writer:
            writer.feed(content)
            return writer.keep()

    def keep(self, temporary: Path, sha256: str) -> None:
        """Give a finished temporary file its lasting name; it survives a power loss after this."""
        path = self._path(sha256)
        if not path.parent.exists():
            path.parent.mkdir(exist_ok=True)
            _sync_directory(self._root)
        with self._lock:
            if path.exists():
                temporary.unlink()
                os.utime(path)
            else:
                temporary.rename(path)
        # Also when the file was there: whoever put it there may not have got to this line.
        _sync_directory(path.parent)

    def _path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256


class BlobWriter:
    """Content on its way in; leaving the `with` block without `keep` leaves nothing behind."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self.size = 0
        try:
            handle, name = tempfile.mkstemp(dir=folder)
        except OSError as error:
            raise _translated(error) from error
        self._path = Path(name)
        self._file: BinaryIO | None = os.fdopen(handle, "wb", buffering=0)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def feed(self, chunk: bytes | bytearray) -> None:
        """Take in the next bytes. Raises NoSpace."""
        if self._file is None:
            raise ValueError("this content was already kept or discarded")
        self._hash.update(chunk)
        self.size += len(chunk)
        _write_all(self._file, chunk)

    def keep(self, expected: str | None = None) -> str:
        """Make the content lasting and answer its sha256.

        Raises BadRequest if the content is not the `expected` one, NoSpace if the disk is full.
        """
        if self._file is None:
            raise ValueError("this content was already kept or discarded")
        sha256 = self._hash.hexdigest()
        if expected is not None and sha256 != expected:
            raise BadRequest(f"the content has sha256 {sha256}, not {expected}: send it again")
        try:
            os.fchmod(self._file.fileno(), 0o444)
            os.fsync(self._file.fileno())
            self._blobs.keep(self._path, sha256)
        except OSError as error:
            raise _translated(error) from error
        self._file.close()
        self._file = None
        return sha256

    def discard(self) -> None:
        """Forget content that was not kept."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)


class PartWriter:
    """One part on its way in; `size` is what of it has arrived."""

    def __init__(self, path: Path, start: int) -> None:
        self.size = 0
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        except OSError as error:
            raise _translated(error) from error
        self._file = os.fdopen(handle, "wb", buffering=0)
        self._file.seek(start)

    def feed(self, chunk: bytes | bytearray) -> None:
        """Take in the next bytes. Raises NoSpace."""
        self.size += len(chunk)
        _write_all(self._file, chunk)

    def close(self) -> None:
        """No more bytes come."""
        self._file.close()


def _write_all(file: BinaryIO, chunk: bytes | bytearray) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise _translated(error) from error


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _translated(error: OSError) -> Exception:
    if error.errno in FULL_DISK:
        return NoSpace("the disk of the local hub is full: free some space and try again")
    return error

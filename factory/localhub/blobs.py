"""The content of files, by its sha256: written once, checked while written, never changed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from factory.localhub.errors import FULL_DISK, BadRequest, NoSpace


class Blobs:
    """The folder of contents: `<root>/ab/<sha256>`, and `<root>/tmp` for what is being written."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / "tmp"
        self._temporary.mkdir(parents=True, exist_ok=True)
        for left_over in self._temporary.iterdir():  # of a server that was killed
            left_over.unlink()

    def has(self, sha256: str) -> bool:
        """Whether this content is here, whole."""
        return self._path(sha256).exists()

    def open(self, sha256: str) -> BinaryIO:
        """This content, to read. Raises FileNotFoundError."""
        return self._path(sha256).open("rb")

    def read(self, sha256: str) -> bytes:
        """This content, whole. Raises FileNotFoundError."""
        return self._path(sha256).read_bytes()

    def write(self) -> BlobWriter:
        """A writer for new content. Raises NoSpace."""
        return BlobWriter(self._temporary, self)

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
        if path.exists():
            temporary.unlink()
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
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _translated(error) from error

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

"""Work directories: a step in progress, and its artifact when it is done.

`<home>/work/<org>/<fingerprint>/` holds the shard grid, shards and checkpoints while a step runs,
and `artifact/` once it is sealed. That directory appears by a rename, so it is whole or absent.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from factory.artifacts.files import sync, write_atomically
from factory.artifacts.hashing import MANIFEST
from factory.artifacts.manifest import Manifest, read_manifest
from factory.artifacts.shards import read_grid
from factory.errors import WorkError

NOTES = "progress.json"
_BEGINNING = 30.0  # seconds that setting aside an older draw may take


@dataclass(frozen=True)
class Home:
    """Directory of the factory's state on this machine."""

    root: Path

    @property
    def hub(self) -> Path:
        """The local hub's store."""
        return self.root / "hub"

    @property
    def cache(self) -> Path:
        """HF_HOME for the hub in use; one hub, one cache."""
        return self.root / "cache"

    def work(self, org: str, fingerprint: str) -> Work:
        """Return the work directory of a step."""
        return Work(self.root / "work" / org / fingerprint)

    def all_work(self, org: str) -> list[Work]:
        """Return every work directory of an org, oldest first."""
        paths = [p for p in (self.root / "work" / org).glob("*") if p.is_dir()]
        return [Work(path) for path in sorted(paths, key=lambda p: p.stat().st_mtime)]


@dataclass(frozen=True)
class Work:
    """One step's work directory."""

    path: Path

    @property
    def artifact(self) -> Path:
        """The directory of the sealed artifact."""
        return self.path / "artifact"

    @property
    def fingerprint(self) -> str:
        """The step's fingerprint: the directory's name, without the mark of an older draw."""
        return self.path.name.partition("~")[0]

    def manifest(self) -> Manifest | None:
        """Read the sealed artifact's manifest; None while there is none."""
        try:
            return read_manifest(self.artifact)
        except (OSError, ValueError):
            return None

    def progress(self) -> tuple[int, int] | None:
        """Return (shards done, shards in all) of a step in progress; None before it has a grid."""
        try:
            grid = read_grid(self.path)
        except (OSError, ValueError):
            return None
        return grid.done(self.path), len(grid.shards)

    def notes(self) -> dict[str, Any]:
        """Return what the process at work wrote last of its progress; empty while there is none."""
        try:
            notes = json.loads((self.path / NOTES).read_text())
        except (OSError, ValueError):
            return {}
        return notes if isinstance(notes, dict) else {}

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock out every other process. Raises WorkError when one holds the lock."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "holder").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._in_use(file) from None
            _sign(file)
            yield

    @contextmanager
    def shared(self, inputs: str) -> Iterator[None]:
        """Share the work directory among processes that each make a part of the shards; a process
        that needs it alone is locked out. The first one begins the work (see `begin`). Raises
        WorkError when a process has it alone, or works on other inputs."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "holder").open("a+") as file:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.sealed_from(inputs) is None:
                    self.begin(inputs)
                _sign(file)
            end = time.monotonic() + _BEGINNING
            while True:  # another first one may be about to begin
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise self._in_use(file) from None
                    time.sleep(0.05)
            if (self.path / "inputs").read_text() != inputs:
                raise WorkError(
                    f"{self.path} is in use by processes that read other inputs",
                    "wait until they are done, then run again",
                )
            yield

    def _in_use(self, holder: IO[str]) -> WorkError:
        holder.seek(0)
        process = holder.read().strip() or "another process"
        return WorkError(f"{self.path} is in use by {process}", "wait for it, or end it")

    def sealed_from(self, inputs: str) -> Manifest | None:
        """Return the manifest of the sealed artifact, if it was made from these inputs."""
        read = self.path / "inputs"
        return self.manifest() if read.exists() and read.read_text() == inputs else None

    def begin(self, inputs: str) -> Path:
        """Make an empty directory for a stage's output, after setting aside an older draw.

        `inputs` is a digest of what will be read: shards made from other inputs are removed.
        """
        if self.artifact.exists():
            number = 1
            while (aside := self.path.with_name(f"{self.fingerprint}~{number}")).exists():
                number += 1
            aside.mkdir()
            self.artifact.rename(aside / "artifact")
            self._clear()
        read = self.path / "inputs"
        if read.exists() and read.read_text() != inputs:
            self._clear()
        write_atomically(read, inputs.encode())
        out = self.path / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        return out

    def seal(self, out: Path, manifest: Manifest) -> None:
        """Make `out` the artifact: manifest last, everything on disk, then one rename."""
        write_atomically(out / MANIFEST, manifest.dump().encode())
        for path in (out, *out.rglob("*")):  # files, and the names that they have
            sync(path)
        out.rename(self.artifact)
        sync(self.path)
        self._clear()

    def _clear(self) -> None:
        """Remove the files that only an unfinished step needs."""
        for name in ("earlier", "shards", "checkpoints", "clocks"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in ("grid.json", "clock.json", NOTES):
            (self.path / name).unlink(missing_ok=True)


def _sign(file: IO[str]) -> None:
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()


@dataclass
class Clock:
    """Wall time of a step over all its attempts, in seconds. Kept in the work directory so that the
    time of a killed attempt is not lost (but for its last few seconds). Processes that share the
    step have a clock each; the one that ran longest counts."""

    path: Path
    before: float = 0.0
    parts_seconds: float = 0.0  # of processes that made a part
    started: float = field(default_factory=time.monotonic)
    written: float = 0.0

    @classmethod
    def of(cls, work: Work, part: tuple[int, int] | None = None) -> Clock:
        """Start the clock of a work directory, or of one part of it."""
        path = work.path / "clock.json"
        parts = work.path / "clocks"
        if part is not None:
            parts.mkdir(exist_ok=True)
            path = parts / f"{part[0]}-of-{part[1]}.json"
        parts_seconds = 0.0 if part else max(map(_seconds, parts.glob("*.json")), default=0.0)
        return cls(path, _seconds(path) if path.exists() else 0.0, parts_seconds)

    def seconds(self) -> float:
        """Return the seconds of all attempts so far."""
        return self.parts_seconds + self._own()

    def _own(self) -> float:
        return self.before + time.monotonic() - self.started

    def tick(self) -> None:
        """Write the time down, at most every two seconds."""
        if time.monotonic() - self.written > 2:
            self.written = time.monotonic()
            write_atomically(self.path, json.dumps({"seconds": self._own()}).encode())


def _seconds(path: Path) -> float:
    return float(json.loads(path.read_text())["seconds"])


@dataclass
class ProgressNotes:
    """Progress of a step, written into its work directory for whoever looks on from outside: units
    done and in all, tokens a second, seconds left, and the error that ended it."""

    work: Work
    about: dict[str, Any]
    started: float = field(default_factory=time.monotonic)
    written: float = 0.0
    at_start: int | None = None

    def __call__(self, done: int, total: int, unit: str, tokens: int = 0) -> None:
        """Write progress down, at most every two seconds."""
        now = time.monotonic()
        self.at_start = done if self.at_start is None and total else self.at_start
        if now - self.written < 2:
            return
        self.written, seconds = now, now - self.started
        new = done - (self.at_start or 0)
        self._write(
            done=done,
            total=total,
            unit=unit,
            rate=tokens / seconds if tokens and seconds else None,
            left=seconds / new * (total - done) if new > 0 else None,
        )

    def failed(self, error: str) -> None:
        """Write down why the step ended."""
        self._write(**{**self.work.notes(), "error": error})

    def _write(self, **notes: Any) -> None:
        with suppress(OSError):  # nobody needs them to go on
            path = self.work.path / NOTES
            write_atomically(path, json.dumps({**self.about, **notes}).encode())

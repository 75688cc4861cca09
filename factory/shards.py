"""The loop of every row-wise stage: cut the work, skip what is done, run, write atomically.

A shard is a run of consecutive units of one slice and one parquet file; it exists whole or not
at all. The grid is written once and kept on resume, so that a changed shard size never shifts
the shards of a job that is under way. kill -9 costs at most the shard in flight.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from factory.errors import WorkError

PART_BYTES = 400 * 2**20  # compacted files: 200 to 500 MB suit the Hub and its viewers


@dataclass(frozen=True)
class Shard:
    """Units `start` to `stop` of one slice."""

    slice: str
    number: int
    start: int
    stop: int

    def file(self, work: Path) -> Path:
        """Where its rows lie once it is done."""
        return work / "shards" / self.slice / f"{self.number:05d}.parquet"


@dataclass(frozen=True)
class Grid:
    """All shards of a job, slice by slice."""

    shards: tuple[Shard, ...]

    def done(self, work: Path) -> int:
        """How many shards are finished."""
        return sum(shard.file(work).exists() for shard in self.shards)


def cut(sizes: Mapping[str, int], per_shard: int) -> Grid:
    """Shards of at most `per_shard` units for slices of the given sizes; an empty slice still
    gets one empty shard, so that it leaves a file."""
    return Grid(
        tuple(
            Shard(name, number, start, min(start + per_shard, size))
            for name, size in sizes.items()
            for number, start in enumerate(range(0, max(size, 1), per_shard))
        )
    )


def grid(work: Path, sizes: Mapping[str, int], per_shard: int) -> Grid:
    """The job's grid: the one written before, or a new one, written now."""
    path = work / "grid.json"
    if path.exists():
        return read_grid(work)
    fresh = cut(sizes, per_shard)
    write_atomically(path, json.dumps([asdict(shard) for shard in fresh.shards]).encode())
    return fresh


def read_grid(work: Path) -> Grid:
    """The grid of a job under way. Raises OSError when it has none yet."""
    return Grid(tuple(Shard(**row) for row in json.loads((work / "grid.json").read_text())))


def run(
    work: Path,
    todo: Grid,
    make: Callable[[Shard], pa.Table],
    finished: Callable[[int, int], None],
) -> None:
    """Make every shard that is not there yet; `finished(done, total)` is told after each."""
    total = len(todo.shards)
    finished(todo.done(work), total)
    for shard in todo.shards:
        path = shard.file(work)
        if path.exists():
            continue
        write_table(path, make(shard))
        finished(todo.done(work), total)


def rows(work: Path, todo: Grid, name: str) -> pa.Table:
    """All rows of one slice, in the order of its shards. Raises WorkError for a missing shard."""
    files = [shard.file(work) for shard in todo.shards if shard.slice == name]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise WorkError(f"{len(missing)} shards of {name} are missing", "run the step again")
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files])


def write_slice(directory: Path, table: pa.Table, first: int = 0) -> None:
    """A slice's rows as `part-NNNNN.parquet` files of at most about `PART_BYTES`, numbered from
    `first` on."""
    parts = max(1, -(-table.nbytes // PART_BYTES))
    size = max(1, -(-len(table) // parts))
    for number, start in enumerate(range(0, max(len(table), 1), size), first):
        write_table(directory / f"part-{number:05d}.parquet", table.slice(start, size))


def write_table(path: Path, table: pa.Table) -> None:
    """One parquet file, whole or not at all."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_atomically(path: Path, content: bytes) -> None:
    """One file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, fsynced and renamed to it on success, gone on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make a rename in `directory` outlast a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Shards: how the work of a row-wise stage is split, which of it is done, and how its rows are
joined.

A shard is a run of consecutive units of one slice and one parquet file; it exists whole or not at
all. The grid is written once and kept on resume, so a changed shard size never shifts the shards of
a job in progress. Several processes may share a grid, each making its part. kill -9 costs at most
the shards in progress: one, or as many as the engine has lanes. Memory holds a few shards, whatever
the number of rows.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.artifacts import tables
from factory.artifacts.files import replacing, write_atomically, write_once
from factory.errors import WorkError

GROUP_ROWS = 4096  # in one row group: what a reader has in memory at once
_NOTES = b"factory"  # what a shard says beside its rows, in its file's metadata


@dataclass(frozen=True)
class Shard:
    """Units `start` to `stop` of one slice."""

    slice: str
    number: int
    start: int
    stop: int

    def file(self, work: Path) -> Path:
        """Return the path of its rows once it is done."""
        return work / "shards" / self.slice / f"{self.number:05d}.parquet"


@dataclass(frozen=True)
class Grid:
    """All shards of a job, slice by slice."""

    shards: tuple[Shard, ...]

    def done(self, work: Path) -> int:
        """Count the finished shards."""
        return sum(shard.file(work).exists() for shard in self.shards)

    def part(self, number: int, of: int) -> Grid:
        """Return every `of`-th shard, from `number` on (the first is 0): the part of one of `of`
        processes."""
        return Grid(self.shards[number::of])


def cut(sizes: Mapping[str, int], per_shard: int) -> Grid:
    """Split slices of the given sizes into shards of at most `per_shard` units. An empty slice gets
    one empty shard, so that it leaves a file."""
    return Grid(
        tuple(
            Shard(name, number, start, min(start + per_shard, size))
            for name, size in sizes.items()
            for number, start in enumerate(range(0, max(size, 1), per_shard))
        )
    )


def grid(work: Path, sizes: Mapping[str, int], per_shard: int) -> Grid:
    """Return the job's grid; it is written now if there is none. Of several processes that write
    one the first wins, and all use its grid. One of earlier code, which did not cut all that is in
    `sizes`, is extended."""
    path = work / "grid.json"
    if not path.exists():
        write_once(path, _as_json(cut(sizes, per_shard)))
    grid = read_grid(work)
    names = {shard.slice for shard in grid.shards}
    if missing := {name: size for name, size in sizes.items() if name not in names}:
        grid = Grid((*grid.shards, *cut(missing, per_shard).shards))
        write_atomically(path, _as_json(grid))
    return grid


def _as_json(grid: Grid) -> bytes:
    return json.dumps([asdict(shard) for shard in grid.shards]).encode()


def read_grid(work: Path) -> Grid:
    """Read the grid of a job in progress. Raises OSError when it has none yet."""
    return Grid(tuple(Shard(**row) for row in json.loads((work / "grid.json").read_text())))


def with_metadata(table: pa.Table, **notes: Any) -> pa.Table:
    """Return a shard's rows with metadata added: `dropped`, a count by reason; `engine`, its name;
    `tokens`; `gpu_seconds`; `seconds` of work and of `loading` the engine; `maker`, which process
    of those that share the step; whether it is the `first` of this process."""
    return table.replace_schema_metadata({_NOTES: json.dumps({**_notes(table.schema), **notes})})


def _notes(schema: pa.Schema) -> dict[str, Any]:
    notes: dict[str, Any] = json.loads((schema.metadata or {}).get(_NOTES, b"{}"))
    return notes


@dataclass
class ShardTotals:
    """Sums of the metadata of one slice's shards."""

    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    engines: Counter[str] = field(default_factory=Counter)  # shards by engine
    tokens: int = 0
    gpu_seconds: float = 0.0
    seconds: float = 0.0
    loading: float = 0.0
    first_tokens: int = 0  # of those that are the first of their makers
    first_seconds: float = 0.0
    makers: set[str] = field(default_factory=set)


def shard_totals(work: Path, todo: Grid, name: str) -> ShardTotals:
    """Sum the metadata of the shards of slice `name`; reads the ends of their files alone. Raises
    WorkError for a missing shard."""
    totals = ShardTotals()
    for file in _files(work, todo, name):
        with pq.ParquetFile(file) as parquet:
            notes, count = _notes(parquet.schema_arrow), parquet.metadata.num_rows
        totals.rows += count
        totals.dropped.update(notes.get("dropped", {}))
        totals.engines.update([notes["engine"]] if "engine" in notes else [])
        totals.tokens += notes.get("tokens", 0)
        totals.gpu_seconds += notes.get("gpu_seconds", 0.0)
        totals.seconds += notes.get("seconds", 0.0)
        totals.loading += notes.get("loading", 0.0)
        if notes.get("first"):
            totals.first_tokens += notes.get("tokens", 0)
            totals.first_seconds += notes.get("seconds", 0.0)
        totals.makers.update([notes["maker"]] if "maker" in notes else [])
    return totals


def tokens(file: Path) -> int:
    """Return the tokens that a shard cost, by its metadata."""
    with pq.ParquetFile(file) as parquet:
        return int(_notes(parquet.schema_arrow).get("tokens", 0))


def rows(work: Path, todo: Grid, name: str) -> pa.Table:
    """Read all rows of one slice, in the order of its shards. Raises WorkError for a missing
    shard."""
    return pa.concat_tables([pq.ParquetFile(file).read() for file in _files(work, todo, name)])


def _files(work: Path, todo: Grid, name: str) -> list[Path]:
    files = [shard.file(work) for shard in todo.shards if shard.slice == name]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise WorkError(f"{len(missing)} shards of {name} are missing", "run the step again")
    return files


def compact(work: Path, todo: Grid, name: str, directory: Path, first: int = 0) -> None:
    """Write the shards of one slice as `part-NNNNN.parquet` files of `PART_BYTES` or a little more,
    numbered from `first` on. The same rows give the same bytes however they were split. A few
    shards and one row group are in memory at a time. Raises WorkError for a missing shard."""
    groups = _regrouped(_with_all_columns(_files(work, todo, name)))
    group = next(groups)
    for number in itertools.count(first):
        with (
            replacing(directory / f"part-{number:05d}.parquet", last=False) as path,
            path.open("wb") as sink,
            tables.writer_of(sink, group.schema) as writer,
        ):
            writer.write_table(group)
            while (group := next(groups, None)) is not None and sink.tell() < tables.PART_BYTES:
                writer.write_table(group)
        if group is None:
            return


def _with_all_columns(files: Sequence[Path]) -> Iterator[pa.Table]:
    """Yield the rows of each file with the columns of all: a shard may lack one that is seldom."""
    schema = pa.unify_schemas([pq.read_schema(file).remove_metadata() for file in files])
    for file in files:
        table = pq.ParquetFile(file).read()
        for column in schema:
            if column.name not in table.column_names:
                table = table.append_column(column, pa.nulls(len(table), column.type))
        yield table.select(schema.names)


def _regrouped(shards: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows `GROUP_ROWS` at a time, without metadata; at least one table."""
    pending, count, yielded = [], 0, False
    for table in shards:
        pending.append(table.replace_schema_metadata(None))
        count += len(table)
        while count >= GROUP_ROWS:
            merged = pa.concat_tables(pending)
            yield merged.slice(0, GROUP_ROWS).combine_chunks()
            pending, count, yielded = [merged.slice(GROUP_ROWS)], count - GROUP_ROWS, True
    if pending and (count or not yielded):
        yield pa.concat_tables(pending).combine_chunks()

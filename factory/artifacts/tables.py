"""Read and write the rows of a slice: parquet files `part-NNNNN.parquet` below `data/<slice>/`."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.artifacts import schemas
from factory.artifacts.files import replacing
from factory.errors import InputError

if TYPE_CHECKING:
    import polars as pl


PART_BYTES = 400 * 2**20  # compacted files: 200 to 500 MB suit the Hub and its viewers


def write_slice(directory: Path, table: pa.Table, first: int = 0) -> None:
    """Write a slice as `part-NNNNN.parquet` files of at most about `PART_BYTES`, numbered from
    `first` on. They are synced to disk when their artifact is sealed."""
    parts = max(1, -(-table.nbytes // PART_BYTES))
    size = max(1, -(-len(table) // parts))
    for number, start in enumerate(range(0, max(len(table), 1), size), first):
        path = directory / f"part-{number:05d}.parquet"
        write_table(path, table.slice(start, size), last=False)


def write_table(path: Path, table: pa.Table, last: bool = True) -> None:
    """Write one parquet file atomically; see `replacing` for `last`."""
    with replacing(path, last) as temporary, writer_of(temporary, table.schema) as writer:
        writer.write_table(table)


def writer_of(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a parquet writer. Columns of texts that hardly repeat get no dictionary, which saves a
    third of the time of writing and a fifth of reading, and no statistics."""
    leaves = [path for field in schema for path in _leaves(field.name, field.type)]
    like = [path for path in leaves if path.rpartition(".")[2] not in schemas.UNLIKE]
    return pq.ParquetWriter(
        sink, schema, compression="zstd", use_dictionary=like, write_statistics=like
    )


def _leaves(path: str, kind: pa.DataType) -> Iterator[str]:
    """Yield the paths of the parquet columns of one of our columns."""
    if pa.types.is_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    elif pa.types.is_struct(kind):
        for inner in kind:
            yield from _leaves(f"{path}.{inner.name}", inner.type)
    else:
        yield path


_BATCH = 2048  # rows of long text in memory at once
_BUFFER = 2**20  # bytes of the file read ahead


class Reader:
    """Rows of one slice by their numbers. One row group is in memory at a time, so neighbours
    should be asked for together."""

    def __init__(self, files: Sequence[Path], kind: str) -> None:
        self._kind = kind
        self._groups: list[tuple[int, Path, int]] = []  # first row, file, row group
        self._loaded: tuple[int, pa.Table] | None = None
        rows = 0
        for file in files:
            metadata = pq.read_metadata(file)
            for group in range(metadata.num_row_groups):
                self._groups.append((rows, file, group))
                rows += metadata.row_group(group).num_rows
        self._starts = [start for start, _, _ in self._groups]
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows at these numbers, in this order."""
        by_group: dict[int, list[int]] = {}
        for number in numbers:
            by_group.setdefault(bisect.bisect_right(self._starts, number) - 1, []).append(number)
        rows: dict[int, dict[str, Any]] = {}
        for group, inside in by_group.items():
            start, table = self._starts[group], self._group(group)
            picked = table.take([number - start for number in inside]).to_pylist()
            rows.update(zip(inside, picked, strict=True))
        return [rows[number] for number in numbers]

    def _group(self, number: int) -> pa.Table:
        if self._loaded is None or self._loaded[0] != number:
            _, file, group = self._groups[number]
            with pq.ParquetFile(file) as parquet:
                table = parquet.read_row_group(group)
            self._loaded = number, schemas.conform(table, self._kind, str(file))
        return self._loaded[1]


def slice_directory(root: Path, name: str) -> Path:
    """Return the directory of slice `name` in an artifact of rows."""
    return root / "data" / name


def read_slice(
    root: Path, name: str, kind: str, columns: Collection[str] | None = None
) -> pa.Table:
    """Read the rows of one slice of an artifact on disk, checked against its schema. With
    `columns`, only these are read, and of the others only the names. Raises InputError."""
    tables = []
    for file in slice_files(root, name):
        # ParquetFile and not read_table, which brings in pyarrow.dataset and with it pandas
        with pq.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            schemas.check_names(names, schemas.SCHEMAS[kind], kind, str(file.parent))
            table = parquet.read([n for n in columns if n in names] if columns else None)
        tables.append(schemas.conform(table, kind, str(file.parent), columns))
    return pa.concat_tables(tables, promote_options="default")


def pick_rows(root: Path, name: str, column: str, rows: Iterable[int]) -> pl.Series:
    """Return the texts of one column of a slice at `rows`, in their order. Reads batch by batch: a
    column of long texts is never in memory as a whole."""
    import numpy as np
    import polars as pl

    numbers, back = np.unique(np.fromiter(rows, np.int64), return_inverse=True)
    picked, start = [pl.Series(dtype=pl.String)], 0
    for file in slice_files(root, name):
        # without pre_buffer: it would first read the whole column
        with pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as parquet:
            for batch in parquet.iter_batches(_BATCH, columns=[column], use_threads=False):
                low, high = np.searchsorted(numbers, (start, start + len(batch)))
                # by Arrow, which copies what is taken: polars would keep the batch behind it.
                # And the places by polars, since Arrow's way from numpy imports pandas.
                places = pl.Series(numbers[low:high] - start).to_arrow()
                picked.append(pl.Series(batch.column(0).take(places)))
                start += len(batch)
    return pl.concat(picked)[back]


def slice_files(root: Path, name: str) -> list[Path]:
    directory = slice_directory(root, name)
    files = sorted(directory.glob("*.parquet"))
    if not files:
        raise InputError(f"no rows at {directory}", "fetch the artifact again")
    return files

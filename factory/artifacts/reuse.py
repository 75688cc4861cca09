"""Reuse rows of existing artifacts in a new one.

The reused rows are settled once, in the work directory, before the grid is cut. A step that is
killed and resumed has the same rows to make, whatever was published in between.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from factory.artifacts import schemas
from factory.artifacts.files import write_atomically
from factory.artifacts.tables import write_table

if TYPE_CHECKING:
    import polars as pl

_TAKEN = "taken.json"  # written last: the rows taken over, by where they came from


@dataclass(frozen=True)
class ReusableSlice:
    """Files of one slice of an existing artifact, with a label (`org/repo@tag`). `whole`: the same
    slice of the same inputs, reused as it is; otherwise it was made by the same rules, and rows at
    the same address are reused."""

    path: Path
    label: str
    whole: bool


@dataclass(frozen=True)
class ReusedRows:
    """Rows that one slice reuses: its files in order, row counts by label, and whether these are
    all."""

    files: tuple[Path, ...]
    rows: dict[str, int]
    whole: bool


def take(
    work: Path,
    name: str,
    kind: str,
    sources: Sequence[ReusableSlice],
    addresses: pl.DataFrame | None,
) -> ReusedRows:
    """Settle which rows slice `name` reuses from `sources`, first come first served.

    `addresses` has a row for every row that the slice is to have. Its columns are the address (as
    `prompt_id` and `k`) and the hash of the input, named as in rows of `kind`. None reuses whole
    slices alone. Files that are reused as a whole keep their bytes. A second call returns what the
    first one settled.
    """
    directory = work / "earlier" / name
    if not (directory / _TAKEN).exists():
        fresh = directory.with_name(f".{directory.name}")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        complete_slice = next((source for source in sources if source.whole), None)
        if complete_slice is not None:
            rows = {
                complete_slice.label: sum(
                    _link(file, fresh) for file in _files(complete_slice.path)
                )
            }
        else:
            rows = {} if addresses is None else _pick(sources, kind, addresses, fresh)
        record = {"rows": rows, "whole": complete_slice is not None}
        write_atomically(fresh / _TAKEN, json.dumps(record).encode())
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        fresh.rename(directory)
    return read_reused(work, name)


def read_reused(work: Path, name: str) -> ReusedRows:
    """Read what was settled for slice `name`; nothing where nothing was settled."""
    directory = work / "earlier" / name
    if not (directory / _TAKEN).exists():
        return ReusedRows((), {}, whole=False)
    settled = json.loads((directory / _TAKEN).read_text())
    return ReusedRows(tuple(_files(directory)), settled["rows"], settled["whole"])


def missing(reused: ReusedRows, addresses: pl.DataFrame) -> list[int]:
    """Return the numbers of the rows of `addresses` that are not reused."""
    import polars as pl

    numbered = addresses.with_row_index("number")
    for file in reused.files:
        numbered = numbered.join(
            _addresses(file, addresses.columns), on=addresses.columns, how="anti"
        )
    numbers: list[int] = numbered.select(pl.col("number").sort()).to_series().to_list()
    return numbers


def place(reused: ReusedRows, directory: Path) -> int:
    """Copy the reused files into an artifact, byte for byte. Returns how many files."""
    for file in reused.files:
        _link(file, directory)
    return len(reused.files)


def _pick(
    sources: Sequence[ReusableSlice], kind: str, addresses: pl.DataFrame, into: Path
) -> dict[str, int]:
    rows: dict[str, int] = {}
    remaining = addresses
    for source in sources:
        for file in _files(source.path):
            available = _addresses(file, addresses.columns).with_row_index("number")
            usable = available.join(remaining, on=addresses.columns, how="semi").unique(
                addresses.columns, keep="first", maintain_order=True
            )
            if not len(usable):
                continue
            remaining = remaining.join(usable, on=addresses.columns, how="anti")
            rows[source.label] = rows.get(source.label, 0) + len(usable)
            names = [n for n in schemas.SCHEMAS[kind].names if n not in schemas.SELDOM]
            current = [n for n in pq.read_schema(file).names if n not in schemas.SELDOM] == names
            if len(usable) == len(available) and current:
                _link(file, into)
            else:
                table = schemas.conform(pq.ParquetFile(file).read(), kind, source.label)
                numbers = usable["number"].sort().to_arrow().cast(pa.int64())
                write_table(into / f"part-{_count(into):05d}.parquet", table.take(numbers))
    return rows


def _addresses(file: Path, columns: Sequence[str]) -> pl.DataFrame:
    import polars as pl

    frame = pl.from_arrow(pq.ParquetFile(file).read(columns=list(columns)))
    assert isinstance(frame, pl.DataFrame)
    return frame.select(columns)


def _link(file: Path, directory: Path) -> int:
    """Link `file` as the next part in `directory`, or copy it to another disk. Returns rows."""
    directory.mkdir(parents=True, exist_ok=True)
    to = directory / f"part-{_count(directory):05d}.parquet"
    try:
        os.link(file.resolve(), to)
    except OSError:  # another disk
        shutil.copyfile(file, to)
    return int(pq.read_metadata(to).num_rows)


def _count(directory: Path) -> int:
    return len(_files(directory))


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("part-*.parquet"))

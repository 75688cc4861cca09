"""Rows of parquet files as a page shows them: a few at a time, never a file as a whole.

Row groups before the page are skipped by their counts. A search reads batch by batch and stops when
the page is full or its time is over; the reader then goes on from there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from factory.localhub.errors import BadRequest

PAGE = 25
COLUMNS = 8  # shown where nobody chose
_BATCH = 512  # rows of a search
_FAR = 8192
_SECONDS = 2.0  # of one search
Test = Callable[[pa.RecordBatch], pa.Array]
_Given = ParamSpec("_Given")
_Read = TypeVar("_Read")


@dataclass
class RowPage:
    """Some rows: (number, cells). `after` is where the next page begins, None at the end;
    `searched` counts the rows that were looked at."""

    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    after: int | None = None
    searched: int = 0


def _reading(read: Callable[_Given, _Read]) -> Callable[_Given, _Read]:
    """Make a function raise BadRequest for rows that cannot be read: files may be anybody's."""

    @wraps(read)
    def reading(*given: _Given.args, **named: _Given.kwargs) -> _Read:
        try:
            return read(*given, **named)
        except (
            pa.ArrowException,
            OSError,
            LookupError,
            OverflowError,
            TypeError,
            ValueError,
        ) as error:
            why = next(iter(str(error).splitlines()), "")
            raise BadRequest(f"these rows cannot be read: {why[:300]}") from None

    return reading


@_reading
def schema(files: Sequence[Path]) -> pa.Schema:
    """Return the columns of a table, from its first file."""
    return pq.read_schema(files[0], memory_map=True)


@_reading
def count(files: Sequence[Path]) -> int:
    """Return the number of rows, from the ends of the files."""
    return sum(int(pq.read_metadata(file, memory_map=True).num_rows) for file in files)


@_reading
def page(
    files: Sequence[Path],
    columns: Sequence[str],
    start: int,
    size: int = PAGE,
    test: Test | None = None,
    also: Sequence[str] = (),
) -> RowPage:
    """Read the rows from `start` on that pass a test, at most `size` of them.

    columns: those that are shown; `also` those that the test reads.
    """
    end, result = time.monotonic() + _SECONDS, RowPage()
    names = list(dict.fromkeys([*columns, *also]))
    for first, batch in _batches(files, names, start, size + 1 if test is None else _BATCH):
        if result.searched and time.monotonic() > end:
            result.after = first
            return result
        passed = range(len(batch)) if test is None else _true(test(batch))
        shown = batch.select([name for name in columns if name in batch.schema.names])
        for place in passed:
            if len(result.rows) == size:
                result.after = first + place
                return result
            result.rows.append((first + place, shown.slice(place, 1).to_pylist()[0]))
        result.searched += len(batch)
    return result


def _batches(
    files: Sequence[Path], columns: list[str], start: int, size: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield batches from row `start` on, each with the number of its first row."""
    before = 0
    for file in files:
        # a column of long texts is decoded as it is needed, not ahead
        with pq.ParquetFile(file, memory_map=True, pre_buffer=False, buffer_size=2**16) as parquet:
            groups, first = [], None
            names = [name for name in columns if name in parquet.schema_arrow.names]
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if before + rows > start:
                    first = before if first is None else first
                    groups.append(group)
                before += rows
            if first is None:
                continue
            # what lies before the page in its own group is decoded too, in larger batches
            most = _FAR if start - first > _FAR else size
            for batch in parquet.iter_batches(most, groups, names, use_threads=False):
                skipped = min(max(start - first, 0), len(batch))
                if skipped < len(batch):
                    yield first + skipped, batch.slice(skipped)
                first += len(batch)


def _true(mask: pa.Array) -> list[int]:
    return [int(place) for place in pc.indices_nonzero(pc.fill_null(mask, False)).tolist()]


def contains(text: str, columns: Sequence[str]) -> Test:
    """Return a test of whether any of these columns holds a text, in upper or lower case."""

    def test(batch: pa.RecordBatch) -> pa.Array:
        masks = [_holds(batch.column(name), text) for name in columns if name in batch.schema.names]
        return _any(masks, len(batch))

    return test


def _holds(column: pa.Array, text: str) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pc.match_substring(column, text, ignore_case=True)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return pc.equal(pc.cast(column, pa.string()), text)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inside = column.flatten()
        hits = pc.filter(pc.list_parent_indices(column), pc.fill_null(_holds(inside, text), False))
        return pc.is_in(pa.array(range(len(column)), hits.type), value_set=pc.unique(hits))
    if pa.types.is_struct(kind):
        fields = [_holds(part, text) for part in column.flatten()]
        return _any(fields, len(column))
    return pa.array([False] * len(column))


def _any(masks: Sequence[pa.Array], length: int) -> pa.Array:
    combined = pa.array([False] * length)
    for mask in masks:
        combined = pc.or_(combined, pc.fill_null(mask, False))
    return combined


def equals(column: str, value: str) -> Test:
    """Return a test of whether a column has a value."""
    return lambda batch: pc.equal(batch.column(column), value)


def other_language(columns: Sequence[tuple[str, str]]) -> Test:
    """Return a test of whether a detected language is known and not the one that was asked for:
    pairs of columns (detected, asked)."""

    def test(batch: pa.RecordBatch) -> pa.Array:
        return _any(
            [pc.not_equal(batch.column(a), batch.column(b)) for a, b in columns], len(batch)
        )

    return test


def one_of(columns: Sequence[str], values: set[tuple[str, ...]]) -> Test:
    """Return a test of whether some columns together, as text, have one of these values."""

    def test(batch: pa.RecordBatch) -> pa.Array:
        cells = zip(*(map(str, batch.column(name).to_pylist()) for name in columns), strict=True)
        return pa.array([value in values for value in cells])

    return test


def all_of(tests: Sequence[Test]) -> Test | None:
    """Return a test that asks all of them; None for none."""
    if not tests:
        return None

    def test(batch: pa.RecordBatch) -> pa.Array:
        mask = pc.fill_null(tests[0](batch), False)
        for other in tests[1:]:
            mask = pc.and_(mask, pc.fill_null(other(batch), False))
        return mask

    return test


@_reading
def records(files: Sequence[Path], columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read all rows of a small table: the columns that are named, None where there is no such
    column; all without a name."""
    parts = []
    for file in files:
        with pq.ParquetFile(file, memory_map=True) as parquet:
            names = [c for c in columns if c in parquet.schema_arrow.names]
            rows = parquet.read(names if columns else None).to_pylist()
        parts += [dict.fromkeys(columns) | row for row in rows]
    return parts


@_reading
def distinct(files: Sequence[Path], column: str) -> list[str]:
    """Return the values of a column as text in their order, each once."""
    values: dict[Any, None] = {}
    for keys in (_keys(file, column) for file in files):
        values |= dict.fromkeys(keys.dictionary.take(keys.indices.unique()).to_pylist())
    return list(map(str, values))


@_reading
def lookup(
    files: Sequence[Path], column: str, value: str, columns: Sequence[str]
) -> list[dict[str, Any]]:
    """Read the rows in which a column has a value, as records(); of other columns no more than up
    to the last such row of its group."""
    rows: list[dict[str, Any]] = []
    for file in files:
        keys = _keys(file, column)
        hits = _true(pc.equal(keys.indices, keys.dictionary.index(value)))
        if not hits:
            continue
        with pq.ParquetFile(file, memory_map=True, pre_buffer=False, buffer_size=2**16) as parquet:
            names = [c for c in columns if c in parquet.schema_arrow.names]
            after = 0
            for group in range(parquet.num_row_groups):
                first, after = after, after + parquet.metadata.row_group(group).num_rows
                inside = [hit for hit in hits if first <= hit < after]
                if not inside:
                    continue
                for batch in parquet.iter_batches(_FAR, [group], names, use_threads=False):
                    here = range(first, first + len(batch))
                    for hit in (hit for hit in inside if hit in here):
                        [row] = batch.slice(hit - first, 1).to_pylist()
                        rows.append(dict.fromkeys(columns) | row)
                    first = here.stop
                    if first > inside[-1]:
                        break
    return rows


@lru_cache(maxsize=32)
def _keys(file: Path, column: str) -> pa.DictionaryArray:
    """Read a column of a file of the store, whose name tells its content: every value once, and
    the number of its value for each row."""
    with pq.ParquetFile(file, memory_map=True, read_dictionary=[column]) as parquet:
        return parquet.read([column]).column(column).dictionary_encode().combine_chunks()


def as_text(value: Any, limit: int) -> str:
    """Return a cell as text: conversations as turns, other nested values as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        text = value
    elif isinstance(value, bytes):
        text = f"{len(value)} bytes"
    elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        turns = [(v.get("role"), v.get("content")) for v in value]
        text = (
            "\n\n".join(f"{role}: {content}" for role, content in turns)
            if all(role is not None for role, _ in turns)
            else json.dumps(value, ensure_ascii=False, default=str)
        )
    elif isinstance(value, float):
        text = f"{value:.5g}"
    elif isinstance(value, list | Mapping):
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = str(value)
    more = len(text) - limit
    return f"{text[:limit]}… and {more:,} more characters" if more > 0 else text

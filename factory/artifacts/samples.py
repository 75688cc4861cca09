"""Example rows for the card, chosen by position alone, so that nobody picks good ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from factory.artifacts.manifest import Sample
from factory.artifacts.tables import slice_directory
from factory.errors import redact

NUMBER = 3
LIMIT = 400  # characters of one text
_BATCH = 256  # rows in memory at once


def take(root: Path, slices: Sequence[str], number: int = NUMBER) -> list[Sample]:
    """Return `number` rows of an artifact on disk. Example i is of slice i (in turn), at i/number
    of its rows; empty slices are skipped."""
    files = {name: sorted(slice_directory(root, name).glob("*.parquet")) for name in slices}
    sizes = {
        name: sum(pq.read_metadata(path).num_rows for path in paths)
        for name, paths in files.items()
    }
    full = [name for name in slices if sizes[name]]
    places = {
        (full[i % len(full)], i * sizes[full[i % len(full)]] // number): None
        for i in range(number if full else 0)
    }
    return [
        Sample(slice=name, row=row, cells=_cut(_read(files[name], row))) for name, row in places
    ]


def _read(paths: Sequence[Path], row: int) -> dict[str, Any]:
    """Read one row of a slice. Reads a batch at a time of its row group alone: texts are long and
    groups large."""
    for path in paths:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if row >= rows:
                    row -= rows
                    continue
                for batch in file.iter_batches(_BATCH, row_groups=[group]):
                    if row < len(batch):
                        cells: dict[str, Any] = batch.slice(row, 1).to_pylist()[0]
                        return cells
                    row -= len(batch)
    raise IndexError(row)


def _cut(value: Any) -> Any:
    """Return `value` with long texts cut, at any depth, and without secrets."""
    if isinstance(value, Mapping):
        return {str(key): _cut(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cut(item) for item in value]
    return cut(value, LIMIT) if isinstance(value, str) else value


def cut(value: Any, limit: int) -> str:
    """Return a text without secrets, cut to so many characters."""
    text = redact(str(value if value is not None else ""))
    more = len(text) - limit
    return f"{text[:limit]}… and {more} more characters" if more > 0 else text

"""Rows of large tables: which are found, and what that takes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from factory.pages import rows


def test_rows_of_a_key_are_found_wherever_they_lie(tmp_path: Path) -> None:
    """In several files and row groups, side by side and apart."""
    keys = ["b", "a", None, "b", "c", "a", "a", "d", "b", "e"]
    files = [tmp_path / f"{name}.parquet" for name in ("one", "two")]
    for number, file in enumerate(files):
        places = [f"{number}.{place}" for place in range(10)]
        pq.write_table(pa.table({"key": keys, "place": places}), file, row_group_size=3)
    everything = rows.records(files, ("place", "key", "missing"))
    for key in ("a", "b", "e", "nothing"):
        expected = [row for row in everything if row["key"] == key]
        assert rows.lookup(files, "key", key, ("place", "key", "missing")) == expected
    assert rows.distinct(files, "key") == ["b", "a", "None", "c", "d", "e"]


def test_keys_of_a_large_table_take_no_object_for_each_row(tmp_path: Path) -> None:
    file = tmp_path / "large.parquet"
    pq.write_table(pa.table({"key": pa.array(["one", "two"] * 100_000)}), file)
    tracemalloc.start()
    try:
        assert rows.distinct([file], "key") == ["one", "two"]
        assert len(rows.lookup([file], "key", "three", ("key",))) == 0
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()

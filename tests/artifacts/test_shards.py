"""Shards: cut once, whole or absent, and a kill costs no more than the one in flight."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.artifacts import schemas, shards, tables
from factory.artifacts.files import replacing, write_atomically, write_once
from factory.artifacts.shards import (
    Shard,
    ShardTotals,
    compact,
    cut,
    grid,
    rows,
    shard_totals,
    with_metadata,
)
from factory.artifacts.tables import write_slice
from factory.engines.pipelining import release_turn
from factory.errors import WorkError
from factory.stage.job import Job, PartDone
from factory.stage.outcome import spent
from factory.stage.shard_loop import run
from tests.support.builders import nobody, numbers

SIZES = st.dictionaries(st.sampled_from(["en", "es", "fr/dpo-all"]), st.integers(0, 30))


def test_loading_is_told_from_work_and_counted_once_an_engine(tmp_path: Path) -> None:
    def job(part: tuple[int, int] | None) -> Job:
        return Job(
            step="s", seed=0, slices=(), places={}, work=tmp_path, out=tmp_path / "out",
            progress=lambda *_: None, part=part,
        )  # fmt: skip

    def load(shard: Shard) -> int:
        time.sleep(0.2)
        return 1

    def make(shard: Shard) -> tuple[pa.Table, int]:
        time.sleep(0.02)
        return schemas.SCHEMAS["samples"].empty_table(), 7

    began = time.monotonic()
    for number in (0, 1):
        with pytest.raises(PartDone):
            job((number, 2)).make_shards("samples", {"en": 6}, 1, make, load)
    made = job(None).make_shards("samples", {"en": 6}, 1, make, load)
    found = spent(made)
    assert found.engines == 2 and made["en"].tokens == 42
    assert found.loading >= 2 * 0.2
    assert 6 * 0.02 <= found.working <= time.monotonic() - began - found.loading


def test_the_first_shards_of_an_engine_do_not_say_how_fast_it_goes() -> None:
    cold = ShardTotals(
        tokens=100, seconds=40, loading=5, first_tokens=20, first_seconds=24, makers={"0/2"}
    )
    warm = ShardTotals(
        tokens=60, seconds=12, loading=5, first_tokens=0, first_seconds=0, makers={"1/2"}
    )
    found = spent({"en": cold, "fr": warm})  # 28 s for 140 tokens
    assert (found.working, found.loading) == pytest.approx((160 * 0.2, 10 + 52 - 32))
    alone = spent({"en": ShardTotals(tokens=20, seconds=24, first_tokens=20, first_seconds=24)})
    assert (alone.working, alone.loading) == (24, 0)


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(1, 12))
def test_every_unit_is_in_exactly_one_shard_and_none_is_too_large(sizes, per_shard):
    made = cut(sizes, per_shard).shards
    for name, size in sizes.items():
        mine = [shard for shard in made if shard.slice == name]
        assert [unit for s in mine for unit in range(s.start, s.stop)] == list(range(size))
        assert [shard.number for shard in mine] == list(range(len(mine)))
        assert all(shard.stop - shard.start <= per_shard for shard in mine)
    assert len({shard.file(Path("w")) for shard in made}) == len(made)


def test_an_empty_slice_has_one_empty_shard():
    assert cut({"en": 0}, 5).shards == (Shard("en", 0, 0, 0),)


def test_the_grid_is_kept_when_the_shard_size_changes(tmp_path):
    first = grid(tmp_path, {"en": 10}, per_shard=4)
    assert grid(tmp_path, {"en": 10}, per_shard=3) == first
    assert grid(tmp_path, {"en": 99}, per_shard=4) == first


def test_a_grid_of_earlier_code_is_extended(tmp_path):
    first = grid(tmp_path, {"en": 10}, per_shard=4)
    more = grid(tmp_path, {"en": 10, "audit/en": 5}, per_shard=4)
    assert more.shards[: len(first.shards)] == first.shards
    assert [shard.slice for shard in more.shards[len(first.shards) :]] == ["audit/en"] * 2
    assert grid(tmp_path, {"en": 10, "audit/en": 5}, per_shard=3) == more


def test_rows_come_back_in_order_slice_by_slice(tmp_path):
    todo = grid(tmp_path, {"en": 7, "es": 0, "fr": 2}, per_shard=3)
    told = []
    run(tmp_path, todo, numbers, lambda done, total: told.append((done, total)))
    assert rows(tmp_path, todo, "en")["unit"].to_pylist() == list(range(7))
    assert rows(tmp_path, todo, "es").num_rows == 0
    assert rows(tmp_path, todo, "fr")["unit"].to_pylist() == [0, 1]
    assert told == [(done, 5) for done in range(6)]


def test_what_is_done_is_not_made_again(tmp_path):
    todo = grid(tmp_path, {"en": 9}, per_shard=3)
    run(tmp_path, todo, numbers, nobody)
    todo.shards[1].file(tmp_path).unlink()
    made = []
    run(tmp_path, todo, lambda shard: made.append(shard) or numbers(shard), nobody)
    assert made == [todo.shards[1]]


def test_a_missing_shard_is_an_error(tmp_path):
    todo = grid(tmp_path, {"en": 9}, per_shard=3)
    run(tmp_path, todo, numbers, nobody)
    for shard in todo.shards[1:]:
        shard.file(tmp_path).unlink()
    with pytest.raises(WorkError, match="2 shards of en are missing"):
        rows(tmp_path, todo, "en")


def test_a_shard_that_fails_leaves_the_ones_before_it_and_nothing_of_its_own(tmp_path):
    todo = grid(tmp_path, {"en": 9}, per_shard=3)

    def make(shard: Shard) -> pa.Table:
        if shard.number == 1:
            raise RuntimeError("the machine is on fire")
        return numbers(shard)

    with pytest.raises(RuntimeError, match="fire"):
        run(tmp_path, todo, make, nobody)
    assert [f.name for f in (tmp_path / "shards" / "en").iterdir()] == ["00000.parquet"]


SLOW = """
import sys, time
from pathlib import Path
import pyarrow as pa
from factory.artifacts.shards import grid
from factory.stage.shard_loop import run

work, seconds = Path(sys.argv[1]), float(sys.argv[2])

def make(shard):
    with (work / "log").open("a") as log:
        log.write(f"{shard.number}\\n")
    time.sleep(seconds if shard.number > 1 else 0)
    return pa.table({"unit": list(range(shard.start, shard.stop))})

run(work, grid(work, {"en": 10}, 2), make, lambda done, total: None)
"""


def test_a_killed_run_leaves_whole_shards_and_the_next_makes_only_the_others(tmp_path):
    work = tmp_path / "killed"
    work.mkdir()
    child = subprocess.Popen([sys.executable, "-c", SLOW, work, "600"])
    for _ in range(1500):
        if (work / "log").exists() and (work / "log").read_text().endswith("2\n"):
            break
        assert child.poll() is None
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    left = sorted((work / "shards" / "en").glob("*.parquet"))
    assert [file.name for file in left] == ["00000.parquet", "00001.parquet"]
    assert all(pq.read_table(file).num_rows == 2 for file in left)
    before = {file: file.stat().st_mtime_ns for file in left}

    subprocess.run([sys.executable, "-c", SLOW, work, "0"], check=True)
    assert (work / "log").read_text().split() == ["0", "1", "2", "2", "3", "4"]
    assert {file: file.stat().st_mtime_ns for file in left} == before

    whole = tmp_path / "whole"
    whole.mkdir()
    subprocess.run([sys.executable, "-c", SLOW, whole, "0"], check=True)
    assert contents(work / "shards") == contents(whole / "shards")
    assert len(contents(whole / "shards")) == 5


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"one")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"half of tw")
        assert path.read_bytes() == b"one"
        raise RuntimeError
    assert contents(tmp_path) == {"deep/file": b"one"}
    with replacing(path) as temporary:
        temporary.write_bytes(b"two")
    assert contents(tmp_path) == {"deep/file": b"two"}


def test_a_failure_before_anything_is_written_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "file"):
        raise RuntimeError
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_a_slice_is_one_file_while_it_is_small(tmp_path, size):
    table = pa.table({"unit": pa.array(range(size), pa.int64())})
    write_slice(tmp_path, table)
    assert list(contents(tmp_path)) == ["part-00000.parquet"]
    assert pq.read_table(tmp_path).equals(table)


@pytest.mark.parametrize("size", [5, 7, 100])
def test_a_large_slice_is_cut_into_files_that_hold_every_row_in_order(tmp_path, size, monkeypatch):
    monkeypatch.setattr(tables, "PART_BYTES", 2 * 8)
    table = pa.table({"unit": pa.array(range(size), pa.int64())})
    write_slice(tmp_path, table)
    parts = [pq.read_table(file)["unit"].to_pylist() for file in sorted(tmp_path.iterdir())]
    assert len(parts) > 1
    assert [unit for part in parts for unit in part] == list(range(size))
    assert all(parts), "no file without rows"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=12), st.integers(1, 5))
def test_the_same_rows_are_the_same_files_however_they_were_cut(tmp_path_factory, sizes, group):
    monkey = pytest.MonkeyPatch()
    monkey.setattr(shards, "GROUP_ROWS", group)
    monkey.setattr(tables, "PART_BYTES", 900)
    work = tmp_path_factory.mktemp("cut")
    try:
        total = sum(sizes)
        starts = [sum(sizes[:n]) for n in range(len(sizes))]
        cut_so = shards.Grid(
            tuple(
                Shard("en", n, start, start + size)
                for n, (start, size) in enumerate(zip(starts, sizes, strict=True))
            )
        )
        run(work / "a", cut_so, numbers, nobody)
        compact(work / "a", cut_so, "en", work / "a" / "out")
        one = cut({"en": total}, max(total, 1))
        run(work / "b", one, numbers, nobody)
        compact(work / "b", one, "en", work / "b" / "out")
    finally:
        monkey.undo()
    assert contents(work / "a" / "out") == contents(work / "b" / "out")
    found = [pq.read_table(file) for file in sorted((work / "a" / "out").iterdir())]
    assert pa.concat_tables(found)["unit"].to_pylist() == list(range(total))
    assert all(len(table) for table in found) or not total


def test_large_slices_become_several_files_numbered_from_where_they_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "GROUP_ROWS", 100)
    monkeypatch.setattr(tables, "PART_BYTES", 2000)
    todo = grid(tmp_path, {"en": 5000}, per_shard=700)
    run(tmp_path, todo, numbers, nobody)
    compact(tmp_path, todo, "en", tmp_path / "out", first=3)
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert len(names) > 2 and names[0] == "part-00003.parquet"


def test_what_shards_say_is_added_up_and_not_in_the_files(tmp_path):
    def make(shard: Shard) -> pa.Table:
        table = with_metadata(numbers(shard), engine="vllm 1", dropped={"too_long": shard.number})
        return with_metadata(table, tokens=5, gpu_seconds=1.5)

    todo = grid(tmp_path, {"en": 9, "es": 0}, per_shard=3)
    run(tmp_path, todo, make, nobody)
    found = shard_totals(tmp_path, todo, "en")
    assert (found.rows, found.dropped, found.engines) == (9, {"too_long": 3}, {"vllm 1": 3})
    assert (found.tokens, found.gpu_seconds) == (15, 4.5)
    compact(tmp_path, todo, "en", tmp_path / "out")
    assert pq.read_schema(tmp_path / "out" / "part-00000.parquet").metadata is None


@settings(max_examples=50, deadline=None)
@given(SIZES, st.integers(1, 12), st.integers(1, 7))
def test_parts_share_out_every_shard_once(sizes, per_shard, of):
    whole = cut(sizes, per_shard)
    parts = [whole.part(number, of).shards for number in range(of)]
    assert sorted(sum(parts, ()), key=whole.shards.index) == list(whole.shards)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_of_two_who_write_a_grid_the_first_wins(tmp_path):
    write_once(tmp_path / "grid.json", b"first")
    write_once(tmp_path / "grid.json", b"second")
    assert contents(tmp_path) == {"grid.json": b"first"}


def test_two_shards_are_under_way_at_once_but_never_for_two_models(tmp_path):
    todo = grid(tmp_path, {"en/a": 4, "es/a": 4, "en/b": 4}, per_shard=1)
    under_way, seen, opened = [], [], []

    def make(shard: Shard) -> pa.Table:
        under_way.append(shard.slice[-1])
        with release_turn():
            time.sleep(0.02)
        seen.append(list(under_way))
        under_way.remove(shard.slice[-1])
        return numbers(shard)

    def lanes(shard: Shard) -> int:
        assert not under_way
        opened.append(shard.slice[-1])
        return 2

    run(tmp_path, todo, make, nobody, lanes, apart=lambda shard: shard.slice[-1])
    assert todo.done(tmp_path) == 12
    assert opened == ["a", "b"]
    assert max(map(len, seen)) == 2
    assert all(len(set(models)) == 1 for models in seen)


def test_nothing_is_loaded_for_shards_without_units_or_that_are_there(tmp_path):
    todo = grid(tmp_path, {"en": 3, "es": 0}, per_shard=3)
    run(tmp_path, todo, numbers, nobody)
    todo.shards[1].file(tmp_path).unlink()

    def never(shard: Shard) -> int:
        raise AssertionError

    run(tmp_path, todo, numbers, nobody, never)
    assert todo.done(tmp_path) == 2

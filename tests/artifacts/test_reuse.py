"""Rows that were made once are not made again, and none stands where it does not belong."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.artifacts import reuse, schemas, tables
from factory.artifacts.hashing import file_sha256
from factory.artifacts.reuse import ReusableSlice

ADDRESS = ["prompt_id", "k", "prompt_hash"]
Address = tuple[str, int, str]


def rows(*addresses: Address) -> list[dict[str, object]]:
    return [
        {
            "prompt_id": prompt, "language": "en", "k": k, "prompt_hash": read,
            "response": f"{prompt} {k} {read}", "response_hash": "r", "n_tokens": 1, "n_chars": 1,
            "finish_reason": "stop", "seed": 0,
        }
        for prompt, k, read in addresses
    ]  # fmt: skip


def artifact(path: Path, *addresses: Address) -> ReusableSlice:
    """A slice on disk with a row at each address."""
    tables.write_slice(path, schemas.from_rows(rows(*addresses), "samples"))
    return ReusableSlice(path, f"org/{path.name}@fp-1", whole=False)


def asked(*addresses: Address) -> pl.DataFrame:
    return pl.DataFrame(list(addresses), schema=dict.fromkeys(ADDRESS), orient="row").cast(
        {"prompt_id": pl.String, "k": pl.Int64, "prompt_hash": pl.String}
    )


def addresses(files: tuple[Path, ...]) -> list[Address]:
    tables = [pq.read_table(file, columns=ADDRESS).to_pylist() for file in files]
    return [tuple(row[name] for name in ADDRESS) for table in tables for row in table]


def test_a_file_of_which_every_row_is_asked_for_keeps_its_bytes(tmp_path):
    source = artifact(tmp_path / "old", ("a", 0, "x"), ("a", 1, "x"))
    wanted = asked(("a", 0, "x"), ("a", 1, "x"), ("a", 2, "x"))
    found = reuse.take(tmp_path / "work", "en", "samples", [source], wanted)
    assert found.rows == {"org/old@fp-1": 2}
    assert reuse.missing(found, wanted) == [2]
    [file] = found.files
    assert file_sha256(file) == file_sha256(source.path / "part-00000.parquet")


def test_rows_that_are_not_asked_for_stay_behind(tmp_path):
    source = artifact(tmp_path / "old", ("a", 0, "x"), ("b", 0, "x"), ("a", 1, "x"))
    wanted = asked(("a", 1, "x"), ("a", 0, "x"))
    found = reuse.take(tmp_path / "work", "en", "samples", [source], wanted)
    assert addresses(found.files) == [("a", 0, "x"), ("a", 1, "x")]
    assert reuse.missing(found, wanted) == []


def test_an_answer_to_the_same_prompt_in_other_words_does_not_stand(tmp_path):
    source = artifact(tmp_path / "old", ("a", 0, "x"), ("b", 0, "x"))
    wanted = asked(("a", 0, "retranslated"), ("b", 0, "x"))
    found = reuse.take(tmp_path / "work", "en", "samples", [source], wanted)
    assert addresses(found.files) == [("b", 0, "x")]
    assert reuse.missing(found, wanted) == [0]


def test_what_was_settled_stays_settled(tmp_path):
    first = artifact(tmp_path / "old", ("a", 0, "x"))
    wanted = asked(("a", 0, "x"), ("a", 1, "x"))
    settled = reuse.take(tmp_path / "work", "en", "samples", [first], wanted)
    more = artifact(tmp_path / "more", ("a", 0, "x"), ("a", 1, "x"))
    assert reuse.take(tmp_path / "work", "en", "samples", [more], wanted) == settled
    assert reuse.read_reused(tmp_path / "work", "en") == settled


def test_one_that_was_cut_off_while_it_settled_begins_again(tmp_path):
    wanted = asked(("a", 0, "x"))
    half = tmp_path / "work" / "earlier" / ".en"
    artifact(half, ("rubbish", 0, "x"))
    source = artifact(tmp_path / "old", ("a", 0, "x"))
    found = reuse.take(tmp_path / "work", "en", "samples", [source], wanted)
    assert addresses(found.files) == [("a", 0, "x")]


def test_a_whole_slice_stands_as_it_is(tmp_path):
    source = artifact(tmp_path / "old", ("a", 0, "x"), ("b", 0, "x"))
    whole = ReusableSlice(source.path, source.label, whole=True)
    found = reuse.take(tmp_path / "work", "fr/policy", "samples", [whole], None)
    assert found.whole
    assert found.rows == {"org/old@fp-1": 2}
    assert reuse.place(found, tmp_path / "out") == 1
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["part-00000.parquet"]


def test_a_table_from_before_a_column_was_added_is_given_it(tmp_path):
    table = schemas.from_rows(rows(("a", 0, "x")), "samples").drop_columns(["detected_language"])
    tables.write_slice(tmp_path / "old", table)
    source = ReusableSlice(tmp_path / "old", "org/old@fp-1", whole=False)
    found = reuse.take(tmp_path / "work", "en", "samples", [source], asked(("a", 0, "x")))
    usual = [name for name in schemas.SCHEMAS["samples"].names if name not in schemas.SELDOM]
    assert pq.read_schema(found.files[0]).names == usual


ADDRESSES = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.sampled_from("xy")), max_size=12
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sources=st.lists(ADDRESSES, max_size=3), wanted=ADDRESSES.map(lambda a: list(set(a))))
def test_taken_and_missing_together_are_what_was_asked_for(
    tmp_path_factory: pytest.TempPathFactory, sources: list[list[Address]], wanted: list[Address]
):
    root = tmp_path_factory.mktemp("take")
    made = [artifact(root / str(number), *there) for number, there in enumerate(sources)]
    frame = asked(*wanted)
    found = reuse.take(root / "work", "en", "samples", made, frame)
    got = addresses(found.files)
    lacking = [wanted[number] for number in reuse.missing(found, frame)]
    assert sorted(got + lacking) == sorted(wanted)  # each once
    assert set(lacking) == set(wanted) - {one for there in sources for one in there}
    assert sum(found.rows.values()) == len(got)

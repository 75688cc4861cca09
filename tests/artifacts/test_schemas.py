"""Row contracts: what conforms, what is filled in, and what is named when it does not."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.artifacts.schemas import MESSAGES, SCHEMAS, SELDOM, conform, from_rows
from factory.errors import InputError

KINDS = sorted(SCHEMAS)
VALUES = {
    pa.bool_(): True,
    pa.string(): "text",
    pa.int64(): 3,
    pa.float64(): 0.5,
    MESSAGES: [{"role": "user", "content": "Hello"}],
}


def table(kind: str, rows: int = 2) -> pa.Table:
    """Rows of a kind in which everything that may be null is null."""
    row = {f.name: None if f.nullable else VALUES[f.type] for f in SCHEMAS[kind]}
    return from_rows([row] * rows, kind)


def without_seldom(kind):
    return pa.schema([f for f in SCHEMAS[kind] if f.name not in SELDOM or not f.nullable])


def test_a_column_that_is_seldom_there_is_there_where_a_row_says_something_in_it():
    [row] = table("prompts", 1).to_pylist()
    assert "gold" not in from_rows([row], "prompts").column_names
    gold = from_rows([row, row | {"gold": "So."}], "prompts")
    assert conform(gold, "prompts", "here").column("gold").to_pylist() == [None, "So."]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 2])
def test_every_kind_comes_back_from_parquet_with_its_types(kind, rows, tmp_path):
    pq.write_table(table(kind, rows), tmp_path / "t.parquet")
    back = pq.read_table(tmp_path / "t.parquet")
    assert back.schema.equals(without_seldom(kind))
    assert conform(back, kind, "here").equals(table(kind, rows))


@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_may_be_null_are_filled_in(kind):
    must = [field.name for field in SCHEMAS[kind] if not field.nullable]
    whole = conform(table(kind).select(must), kind, "here")
    assert whole.equals(table(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_columns_come_in_the_order_of_the_contract_and_others_go(kind):
    names = without_seldom(kind).names
    odd = table(kind).select(names[::-1]).append_column("extra", pa.array([1, 2]))
    assert conform(odd, kind, "here").equals(table(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_must_be_there_is_named(kind):
    for field in SCHEMAS[kind]:
        if not field.nullable:
            less = table(kind).drop_columns(field.name)
            with pytest.raises(InputError, match=rf"^here: no column '{field.name}'"):
                conform(less, kind, "here")


def test_the_nearest_column_that_is_there_is_named_too():
    misspelt = table("scores").rename_columns({"response_hash": "responsehash"})
    with pytest.raises(InputError, match=r"no column 'response_hash' \(did you mean 'respons"):
        conform(misspelt, "scores", "here")


def test_numbers_and_texts_of_other_widths_are_cast():
    scores = table("scores")
    narrow = scores.set_column(
        scores.column_names.index("k"), "k", pa.array([3, 3], pa.int8())
    ).set_column(0, "prompt_id", pa.array(["text", "text"], pa.large_string()))
    narrow = narrow.set_column(narrow.column_names.index("reward"), "reward", pa.nulls(2))
    assert conform(narrow, "scores", "here").equals(scores)


@pytest.mark.parametrize(
    ("name", "values"), [("k", ["one", "two"]), ("k", [0.5, 1.5]), ("reward", ["high", "low"])]
)
def test_a_column_of_another_type_is_named_with_both_types(name, values):
    scores = table("scores")
    wrong = scores.set_column(scores.column_names.index(name), name, pa.array(values))
    with pytest.raises(InputError, match=rf"^here: column '{name}' is \w+, not \w+") as raised:
        conform(wrong, "scores", "here")
    assert "\n" not in raised.value.fix


def test_the_first_row_without_a_value_is_named():
    prompts = table("prompts", rows=4)
    holed = prompts.set_column(0, "prompt_id", pa.chunked_array([["a", "b"], [None, None]]))
    with pytest.raises(InputError, match=r"^here: row 3 has no 'prompt_id'"):
        conform(holed, "prompts", "here")


def test_messages_whose_fields_stand_the_other_way_round_keep_their_meaning():
    prompts = table("prompts", rows=1)
    message = pa.struct([("content", pa.string()), ("role", pa.string())])
    other = pa.array([[{"content": "Hello", "role": "user"}]], pa.list_(message))
    turned = prompts.set_column(prompts.column_names.index("messages"), "messages", other)
    assert conform(turned, "prompts", "here").equals(prompts)


def test_a_row_without_a_cell_it_must_have_is_refused_when_it_is_read_back():
    holed = from_rows([{"prompt_id": "a"}], "scores")
    with pytest.raises(InputError, match="row 1 has no 'language'"):
        conform(holed, "scores", "here")

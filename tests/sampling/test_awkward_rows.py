"""Any JSON value anywhere in a row has one of three outcomes: the row is read, it is dropped with a
reason, or the source is refused with the file, the row and what is wrong."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factory.artifacts import schemas
from factory.errors import InputError
from factory.sampling.sources import Preferences, Prompts, Questions
from factory.stage.readers import View
from tests.sampling.test_sources import bot, user

LETTERS = st.text(max_size=6) | st.sampled_from(
    ["", " ", "\ud83d", "\x00", "user", "gpt", "en", "no"]
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | LETTERS
    | st.sampled_from([10**400, -0.0, 1e308, 2**63])
)  # fmt: skip
KEYS = LETTERS | st.sampled_from(
    ["role", "from", "content", "value", "text", "type", "tool_calls", "function_call"]
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
# rows as people have them, and what may lie in the place of any part of them
GOOD: list[dict[str, Any]] = [
    {"id": "a", "prompt": "Why?", "language": "en", "domain": "x"},
    {"id": 1, "messages": [user("Why?"), bot("So."), user("And?")], "language": "en"},
    {"id": 2, "messages": {"role": ["user", "assistant"], "content": ["Why?", "So."]}},
    {"id": "b", "messages": [{"from": "human", "value": [{"type": "text", "text": "Why?"}]}]},
    {"question_id": 3.0, "prompt": "Why?", "category": "x", "subcategory": "y"},
    {"id": "c", "prompt": "Why?", "chosen": "So.", "rejected": "No.", "margin": 1.5},
]
STAGES = [
    Prompts(source="x"),
    Prompts(source="x", turns="all", repeats="drop", bad_rows="100%"),
    Prompts(source="x", columns={"prompt": ["id", "prompt"], "domain": "messages.0.content"}),
    Prompts(source="x", where={"domain": ["x", 1]}),
    Questions(source="x", turns="all"),
    Preferences(source="x"),
]


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value could be replaced."""
    inner: Any = ()
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(deep for key, item in inner for deep in paths(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], other)
    return copy


@st.composite
def rows(draw: st.DrawFn) -> Any:
    row = draw(st.sampled_from(GOOD))
    for _ in range(draw(st.integers(1, 2))):
        row = replaced(row, draw(st.sampled_from(paths(row))), draw(VALUES))
    return row


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.lists(rows(), min_size=1, max_size=3), stage=st.sampled_from(STAGES))
def test_any_value_is_read_or_dropped_with_a_reason_or_refused(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], stage: Any
) -> None:
    directory = tmp_path_factory.getbasetemp()
    path = directory / "any.jsonl"
    path.write_text("\n".join(map(json.dumps, [GOOD[0] | GOOD[5], *values])), encoding="utf-8")
    dropped: Counter[str] = Counter()
    convert = stage.converter("any.jsonl", "en")
    try:
        read = list(stage.converted_rows(path, "en", convert, dropped, name="any.jsonl"))
    except InputError as error:
        assert "any.jsonl" in error.what and error.fix and error.exit_code == 1
        return
    # a row of another language is no row of this one
    assert len(read) + dropped.total() <= 1 + len(values)
    assert all(dropped)
    table = schemas.from_rows(read, stage.kind)
    assert len(table) == len(read) > 0


@settings(max_examples=200, deadline=None)
@given(
    text=st.binary(max_size=40) | rows().map(lambda row: json.dumps(row).encode()),
    name=st.sampled_from(["any.jsonl", "any.json", "any.csv", "any.jsonl.gz", "any.parquet"]),
)
def test_any_bytes_are_rows_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(text)
    try:
        list(View().converted_rows(path, "en", lambda row, where: row, Counter(), name=name))
    except InputError as error:
        assert name in error.what and error.fix

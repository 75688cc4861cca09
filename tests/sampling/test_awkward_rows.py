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
from factory.execution import external
from factory.planning.stages import STAGES as EVERY_STAGE
from factory.sampling.sources import Preferences, Prompts, Questions
from factory.stage.job import Job, Place
from factory.stage.readers import DistinctIds, View
from factory.stage.stage import StageContext
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
BY_NAME = {stage.name: stage for stage in EVERY_STAGE}
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
def awkward(draw: st.DrawFn, good: list[dict[str, Any]]) -> Any:
    """A row of which one part or two are any JSON value."""
    row: Any = draw(st.sampled_from(good))
    for _ in range(draw(st.integers(1, 2))):
        row = replaced(row, draw(st.sampled_from(paths(row))), draw(VALUES))
    return row


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.lists(awkward(GOOD), min_size=1, max_size=3), stage=st.sampled_from(STAGES))
def test_any_value_is_read_or_dropped_with_a_reason_or_refused(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], stage: Any
) -> None:
    directory = tmp_path_factory.getbasetemp()
    path = directory / "any.jsonl"
    path.write_text("\n".join(map(json.dumps, [GOOD[0] | GOOD[5], *values])), encoding="utf-8")
    dropped: Counter[str] = Counter()
    convert = stage.converter("any.jsonl", "en", DistinctIds())
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


FOREIGN: list[dict[str, Any]] = [
    {"messages": [user("Why?"), bot("So.")], "reward": 1.5, "k": 3, "finish_reason": "stop"},
    {"prompt": "Why?", "response": "So.", "score": 2, "n_tokens": 3, "detected_language": "en"},
    {"prompt": [user("Why?")], "completion": [bot("So.")], "reward_score": 0.5, "id": "a"},
    {"chosen": [user("Why?"), bot("So.")], "rejected": [user("Why?"), bot("No.")]},
    {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "score_chosen": 2.5, "chosen_k": 1},
    {"prompt": "Why?", "answers": [{"answer": "So.", "rank": 1}, {"answer": "No.", "rank": 2}]},
    {"context": [user("Why?")], "response1": "So.", "response2": "No.", "preference": -2},
]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    values=st.lists(awkward(FOREIGN), min_size=1, max_size=3),
    name=st.sampled_from(["generate", "score", "pair", "best"]),
)
def test_any_value_in_rows_that_are_taken_in_is_read_or_dropped_or_refused(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], name: str
) -> None:
    directory = tmp_path_factory.getbasetemp()
    path = directory / "theirs.jsonl"
    path.write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
    stage = BY_NAME[name].model_validate({"from": {"source": path.name, "bad_rows": "100%"}})
    specs = stage.checked_slices(StageContext(("en",), {}, {name: stage}))
    places = {need: Place(path) for spec in specs for need in spec.needs}
    job = Job(name, 0, tuple(specs), places, directory, directory / "out", lambda *_: None)
    try:
        counts = external.take_in(stage, job).rows["en"]
    except InputError as error:
        assert "theirs.jsonl" in error.what and error.fix and error.exit_code == 1
    else:
        assert counts.balanced() and counts.into <= len(values) and counts.out


@settings(max_examples=200, deadline=None)
@given(
    text=st.binary(max_size=40) | awkward(GOOD).map(lambda row: json.dumps(row).encode()),
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

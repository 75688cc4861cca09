"""Rows from outside: what is taken as it is, what is dropped and counted, what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.artifacts.manifest import Rows
from factory.artifacts.tables import read_slice
from factory.errors import InputError
from factory.sampling.sources import Preferences, Prompts, Questions
from factory.stage.job import Job, Place
from factory.stage.outcome import Outcome
from factory.stage.stage import Stage, StageContext


@pytest.fixture
def take(tmp_path):
    """Run a source stage over the lines of a file (text as it is, anything else as JSON)."""
    return lambda lines, stage=None, language="en": run(
        tmp_path, write(tmp_path / "rows.jsonl", lines), stage, language
    )


def write(path: Path, lines: Sequence[Any]) -> Path:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return path


def run(
    directory: Path, path: Path, stage: Stage | None = None, language: str = "en"
) -> tuple[list[dict[str, Any]], Rows]:
    """The rows that a stage makes of one file, and its counts."""
    stage = stage or Prompts(source=path.name)
    outcome = job_of(directory, path, stage, (language,))
    [counts] = outcome.rows.values()
    assert counts.balanced()
    return read_slice(directory / "out", language, stage.kind).to_pylist(), counts


def job_of(directory: Path, path: Path, stage: Stage, languages: tuple[str, ...]) -> Outcome:
    specs = stage.plan_slices(StageContext(languages, {}, {"prompts": stage}))
    job = Job(
        step=stage.name,
        seed=0,
        slices=tuple(specs),
        places={need: Place(path) for spec in specs for need in spec.needs},
        work=directory / "work",
        out=directory / "out",
        progress=lambda done, total, unit, tokens=0: None,
    )
    return stage.run(job)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def test_a_prompt_of_plain_text_becomes_one_user_turn(take):
    [row], counts = take([{"prompt": "Hvad er klokken?", "id": "q1", "domain": "time"}], None, "da")
    assert row["messages"] == [user("Hvad er klokken?")]
    assert (row["prompt_id"], row["language"], row["domain"]) == ("q1", "da", "time")
    assert row["source_dataset"] == "rows.jsonl"
    assert counts == Rows(into=1, out=1)


def test_messages_are_taken_as_they_are(take):
    [row], _ = take([{"messages": [user("One\n| two")], "prompt_id": "a", "other": [1]}])
    assert row["messages"] == [user("One\n| two")]
    assert row["prompt_id"] == "a"


TALK = [system("Be brief."), user("One"), bot("1"), user("Two"), bot("2")]


def test_by_default_the_first_user_turn_alone_is_asked(take):
    [row], _ = take([{"messages": TALK}])
    assert row["messages"] == [user("One")]


def test_with_turns_all_everything_up_to_the_last_user_turn_is_asked(take):
    [row], _ = take([{"messages": TALK}], Prompts(source="x", turns="all"))
    assert row["messages"] == TALK[:4]


def test_the_same_prompt_has_the_same_hash_and_another_has_another(take):
    rows, _ = take([{"prompt": "a"}, {"messages": [user("a")]}, {"prompt": "b"}])
    assert rows[0]["prompt_hash"] == rows[1]["prompt_hash"] != rows[2]["prompt_hash"]


def test_without_an_id_the_text_makes_one_and_a_repeat_is_told_apart(take):
    rows, _ = take([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}])
    ids = [row["prompt_id"] for row in rows]
    assert len(ids[0]) == len(ids[1]) == 16
    assert ids[2] == f"{ids[0]}-2"


def test_two_prompts_under_one_id_stay_two_prompts(take):
    rows, counts = take([{"id": "a", "prompt": text} for text in ("one", "two", "three")])
    assert [row["prompt_id"] for row in rows] == ["a", "a-2", "a-3"]
    assert [row["messages"][0]["content"] for row in rows] == ["one", "two", "three"]
    assert counts == Rows(into=3, out=3)


@settings(max_examples=30, deadline=None)
@given(ids=st.lists(st.sampled_from(["a", "a-2", "a-2-2", "a-3"]), min_size=1, max_size=7))
def test_no_two_prompts_ever_have_one_id(tmp_path_factory, ids):
    directory = tmp_path_factory.mktemp("ids")
    path = write(directory / "rows.jsonl", [{"id": i, "prompt": "x"} for i in ids])
    rows, _ = run(directory, path)
    assert len({row["prompt_id"] for row in rows}) == len(ids)


def test_a_number_is_an_id_and_so_is_zero(take):
    rows, _ = take([{"id": 0, "prompt": "a"}, {"id": 1, "prompt": "b"}])
    assert [row["prompt_id"] for row in rows] == ["0", "1"]


def test_prompts_without_text_are_dropped_and_counted(take):
    lines = [{"prompt": ""}, {"prompt": "a"}, {"messages": [user(" \n")]}, {"prompt": " "}]
    rows, counts = take(lines)
    assert len(rows) == 1
    assert counts == Rows(into=4, out=1, dropped={"empty": 3})


def test_empty_lines_are_no_rows(take):
    rows, counts = take(["", {"prompt": "a"}, "   ", {"prompt": "b"}, ""])
    assert len(rows) == 2
    assert counts == Rows(into=2, out=2)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"prompt": "a"', "not JSON"),
        ("hello", "not JSON"),
        ('["a"]', "not an object"),
        ('"a"', "not an object"),
        ({"text": "a"}, "no messages"),
        ({"message": [user("a")]}, "no messages (did you mean 'message'?)"),
        ({"messages": []}, "no messages"),
        ({"prompt": {"role": "user"}}, "no messages"),
        ({"messages": ["a"]}, "a message without role or content"),
        ({"messages": [{"role": "user"}]}, "a message without role or content"),
        ({"messages": [user(None)]}, "a message without role or content"),
        ({"messages": [user([{"type": "text", "text": "a"}])]}, "content"),
        ({"messages": [bot("a")]}, "no user turn"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_by_file_and_line(take, line, what):
    with pytest.raises(InputError) as raised:
        take([{"prompt": "a"}, "", line, {"prompt": "b"}])
    assert raised.value.what.startswith("rows.jsonl line 3: ")
    assert what in raised.value.what
    assert "\n" not in raised.value.what + raised.value.fix


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"prompt": "Hvor er øen?"}\n'.encode("latin-1"))
    with pytest.raises(InputError, match=r"rows\.jsonl"):
        run(tmp_path, path)


@pytest.mark.parametrize("lines", [[], [""], [{"prompt": ""}]])
def test_a_language_without_rows_is_an_error_that_names_it(take, lines):
    with pytest.raises(InputError, match=r"rows\.jsonl has no rows for cy"):
        take(lines, None, "cy")


def test_one_file_that_says_its_rows_languages_gives_each_language_its_own(tmp_path):
    lines = [{"id": "a", "language": code, "prompt": f"in {code}"} for code in ("en", "da", "en")]
    path = write(tmp_path / "rows.jsonl", lines)
    job_of(tmp_path, path, Prompts(source=path.name), ("en", "da"))
    for language, number in (("en", 2), ("da", 1)):
        rows = read_slice(tmp_path / "out", language, "prompts").to_pylist()
        assert {row["messages"][0]["content"] for row in rows} == {f"in {language}"}
        assert len(rows) == number


def test_parquet_is_read_like_lines(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [{"prompt_id": "a", "messages": TALK, "domain": None}, {"prompt_id": "b",
            "messages": [user("Hi")], "domain": "x"}]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)
    made, counts = run(tmp_path, path)
    assert [row["messages"] for row in made] == [[user("One")], [user("Hi")]]
    assert [row["domain"] for row in made] == [None, "x"]
    assert counts == Rows(into=2, out=2)


def test_a_row_of_parquet_is_named_by_its_number(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"prompt": "a"}, {"prompt": None}]), path)
    with pytest.raises(InputError, match=r"^rows\.parquet row 2: no messages"):
        run(tmp_path, path)


def test_a_file_that_only_calls_itself_parquet_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b'{"prompt": "a"}')
    with pytest.raises(InputError, match=r"rows\.parquet"):
        run(tmp_path, path)


def test_the_name_of_the_language_is_filled_into_the_source():
    specs = Questions(source="q-{language}.jsonl").plan_slices(StageContext(("da", "cy"), {}, {}))
    assert [need.source for spec in specs for need in spec.needs] == ["q-da.jsonl", "q-cy.jsonl"]
    assert [spec.name for spec in specs] == ["da", "cy"]


PREFERENCE = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}


def test_preferences_may_be_text_or_conversations(take):
    talk = {
        "messages": "not looked at",
        "prompt": [user("2 + 2?")],
        "chosen": [user("2 + 2?"), bot("4")],
        "rejected": [bot("5")],
        "margin": 2,
    }
    rows, counts = take([PREFERENCE, talk], Preferences(source="x"))
    for row in rows:
        assert row["prompt"] == [user("2 + 2?")]
        assert (row["chosen"], row["rejected"]) == ([bot("4")], [bot("5")])
    assert [row["margin"] for row in rows] == [None, 2.0]
    assert counts == Rows(into=2, out=2)


def test_preferences_are_english_whatever_the_recipes_languages():
    specs = Preferences(source="x.jsonl").plan_slices(StageContext(("da", "cy"), {}, {}))
    assert [(spec.name, spec.language) for spec in specs] == [("en", "en")]


@pytest.mark.parametrize("side", ["prompt", "chosen", "rejected"])
def test_a_preference_that_lacks_a_column_is_named_with_it(take, side):
    bad = {k: v for k, v in PREFERENCE.items() if k != side}
    with pytest.raises(InputError, match=rf"^rows\.jsonl line 2: no column '{side}'"):
        take([PREFERENCE, bad], Preferences(source="x"))


@pytest.mark.parametrize("side", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize("value", [None, "", []])
def test_a_preference_whose_column_is_empty_is_dropped_and_counted(take, side, value):
    rows, counts = take([PREFERENCE, {**PREFERENCE, side: value}], Preferences(source="x"))
    assert len(rows) == 1
    assert counts == Rows(into=2, out=1, dropped={"empty": 1})


@pytest.mark.parametrize(
    "odd",
    [
        {"chosen": [{"role": "assistant"}]},
        {"rejected": ["5"]},
        {"chosen": 5},
        {"chosen": {"content": "4"}},
        {"chosen": [{"role": "assistant", "content": None}]},
        {"margin": "large"},
    ],
)
def test_a_preference_that_cannot_be_read_is_named_by_file_and_line(take, odd):
    with pytest.raises(InputError, match=r"^rows\.jsonl line 2: "):
        take([PREFERENCE, {**PREFERENCE, **odd}], Preferences(source="x"))


def test_a_preference_with_an_empty_answer_is_dropped_and_counted(take):
    rows, counts = take([PREFERENCE, {**PREFERENCE, "chosen": " "}], Preferences(source="x"))
    assert len(rows) == 1
    assert counts == Rows(into=2, out=1, dropped={"empty": 1})

"""Rows from outside: what is taken as it is, what is dropped and counted, what is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from factory.artifacts.manifest import Rows
from factory.artifacts.tables import read_slice
from factory.errors import InputError
from factory.language import languages
from factory.pairs.pair import Pair
from factory.planning.recipe import load
from factory.sampling.sources import Preferences, Prompts, Questions
from factory.stage.job import Job, Place
from factory.stage.outcome import Outcome
from factory.stage.readers import given_id, named
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
        ({"prompt": {"role": "user"}}, "messages are not a list"),
        ({"prompt": 5}, "nor is the prompt text: 5"),
        ({"messages": ["a"]}, "messages that are text alone: whose is not said"),
        ({"messages": [{"role": "user"}]}, "a message without role or content"),
        ({"messages": [user(5)]}, "content that is not text"),
        ({"messages": [user([{"type": "image"}])]}, "content that is not text"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "unknown role 'narrator'"),
        ({"messages": [bot("a")]}, "no user turn"),
        ({"prompt": "\ud83d"}, "half of a surrogate pair"),
        ('{"id": 1' + "0" * 5000 + "}", "a number is too long"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_rows_that_cannot_be_read_are_named_by_file_and_line(take, line, what):
    """One always may be left out, two of four may not."""
    with pytest.raises(InputError) as raised:
        take([{"prompt": "a"}, "", line, {"prompt": "b"}, line])
    said = raised.value.what
    assert said.startswith("2 of 4 rows of rows.jsonl cannot be read: rows.jsonl line 3: ")
    assert said.endswith(" (also line 5)")
    assert what in said
    assert "bad_rows" in raised.value.fix
    assert "\n" not in said + raised.value.fix
    rows, counts = take([{"prompt": "a"}, "", line, {"prompt": "b"}])
    assert len(rows) == 2
    assert (counts.into, sum(counts.dropped.values())) == (3, 1)


AWKWARD = [
    '{"prompt": "a"',
    {"text": "a"},
    {"messages": [{"role": "narrator", "content": "a"}]},
    {"messages": [bot("a")]},
    {"prompt": "\ud83d"},
    {"messages": [user([{"type": "image_url", "image_url": {"url": "x"}}])]},
]


def test_rows_that_cannot_be_read_are_counted_by_reason_up_to_a_share(take):
    good = [{"prompt": str(number)} for number in range(94)]
    rows, counts = take([*good, *AWKWARD], Prompts(source="x", bad_rows="6%"))
    assert len(rows) == 94
    assert counts.dropped == dict.fromkeys(
        ("not_json", "no_messages", "unknown_role", "no_user_turn", "not_unicode", "not_text"), 1
    )
    with pytest.raises(InputError) as raised:
        take([*good, *AWKWARD], Prompts(source="x", bad_rows="5%"))
    assert raised.value.what.startswith("6 of 100 rows of rows.jsonl cannot be read: ")
    assert raised.value.what.count("rows.jsonl line ") == 5


def test_no_row_may_be_left_out_where_the_recipe_says_so(take):
    with pytest.raises(InputError, match="1 of 95 rows"):
        take([{"prompt": "a"}] * 94 + ["?"], Prompts(source="x", bad_rows="0%"))


@pytest.mark.parametrize("share", ["1", 1, 0.01, "101%", "-1%", "some"])
def test_a_share_of_bad_rows_is_in_percent(share):
    with pytest.raises(ValidationError):
        Prompts(source="x", bad_rows=share)


def test_bad_rows_change_no_identity():
    stage = Prompts(source="x", bad_rows="5%")
    [spec] = stage.plan_slices(StageContext(("en",), {}, {"prompts": stage}))
    assert stage.identity_fields(spec) == {}
    pairs = Pair.model_validate({"from": {"source": "org/pairs", "bad_rows": "5%"}})
    assert pairs.identity_fields(spec) == {"from": {}}


def test_null_is_an_empty_prompt(take):
    lines = [{"prompt": "a"}, *[{"prompt": None}] * 3, {"messages": []}, {"messages": [user(None)]}]
    _, counts = take(lines)
    assert counts.dropped == {"empty": 5}


def test_parts_of_text_are_joined(take):
    parts = [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]
    rows, _ = take([{"messages": [user(parts)]}, {"messages": [user(["One ", "two"])]}])
    assert [row["messages"] for row in rows] == [[user("One two")]] * 2


def test_a_struct_of_lists_is_a_conversation(take):
    [row], _ = take([{"messages": {"role": ["user", "assistant"], "content": ["Hi", "Ho"]}}])
    assert row["messages"] == [user("Hi")]


CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}


def test_tool_calls_after_the_prompt_are_not_looked_at_and_before_it_drop_the_row(take):
    talk = [user("Rain?"), CALL, {"role": "tool", "content": "12"}, user("And now?")]
    [row], _ = take([{"messages": talk}])
    assert row["messages"] == [user("Rain?")]
    _, counts = take([{"prompt": "a"}, {"messages": talk}], Prompts(source="x", turns="all"))
    assert counts.dropped == {"tool_calls": 1}


def test_sharegpt_has_many_names_for_who_speaks(take):
    talk = [
        {"from": name, "value": name}
        for name in ("system", "human", "function_call", "observation", "chatgpt", "Human", "bing")
    ]
    [row], _ = take([{"messages": talk}], Prompts(source="x", turns="all"))
    assert [turn["role"] for turn in row["messages"]] == [
        "system", "user", "assistant", "tool", "assistant", "user"
    ]  # fmt: skip


ALPACA = [
    {"instruction": "Sum up.", "input": "Bees make honey.", "output": "Honey."},
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Name a river.", "output": "Elbe."},
]


def test_texts_of_columns_are_joined(take):
    stage = Prompts(source="x", columns={"prompt": ["instruction", "input"]})
    rows, _ = take(ALPACA, stage)
    texts = [row["messages"][0]["content"] for row in rows]
    assert texts == ["Sum up.\n\nBees make honey.", "Name a colour.", "Name a river."]


def test_gold_answers_come_with_their_prompts_where_a_column_is_named(take):
    rows, _ = take(ALPACA, Prompts(source="x", columns={"prompt": "instruction", "gold": "output"}))
    assert [row["gold"] for row in rows] == ["Honey.", "Red.", "Elbe."]
    rows, _ = take(ALPACA, Prompts(source="x", columns={"prompt": "instruction"}))
    assert "gold" not in rows[0]  # the bytes of other prompts are as they were


def test_a_column_beside_the_prompt_that_is_not_read_is_an_alarm(tmp_path):
    path = write(tmp_path / "rows.jsonl", ALPACA)
    for column, alarms in (("instruction", 1), (["instruction", "input"], 0)):
        stage = Prompts(source="x", columns={"prompt": column})
        found = job_of(tmp_path, path, stage, ("en",)).stats.get("alarms", [])
        assert len(found) == alarms
        for alarm in found:
            assert alarm.startswith("1 of 3 rows of en have text in 'input', which is left out")


def test_a_system_prompt_that_is_left_out_is_an_alarm(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"messages": TALK}, {"prompt": "a"}])
    [alarm] = job_of(tmp_path, path, Prompts(source="x"), ("en",)).stats["alarms"]
    assert alarm.startswith("1 of 2 rows of en have a system prompt, which is left out")
    assert not job_of(tmp_path, path, Prompts(source="x", turns="all"), ("en",)).stats


def test_a_column_that_no_row_has_is_an_error(take):
    for columns in ({"prompt": "instructions"}, {"prompt": ["instruction", "inputs"]}):
        with pytest.raises(InputError, match=r"no column '\w+s' \(did you mean"):
            take(ALPACA, Prompts(source="x", columns=columns))


def test_a_whole_float_is_a_whole_number_and_nan_no_id(take):
    given = (1.0, 1.5, "2.0", " 3 ", "4.10", Decimal("5.0"))
    assert [given_id({"id": value}) for value in given] == ["1", "1.5", "2", "3", "4.10", "5"]
    [row], _ = take(['{"id": NaN, "prompt": "a"}'])
    assert len(row["prompt_id"]) == 16


LINE = '{"prompt": "Hvor er øen?"}\n'
TABLE = "id,prompt\n1,Hvor er øen?\n"


def zipped(text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("rows.jsonl", text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b"\xef\xbb\xbf" + LINE.encode()),
        ("rows.json", b"\xef\xbb\xbf[" + LINE.encode() + b"]"),
        ("rows.json", LINE.encode()),
        ("rows.jsonl", b"[" + LINE.encode() + b"]"),
        ("rows.JSONL", LINE.encode()),
        ("rows.ndjson", LINE.encode()),
        ("rows.jsonl.gz", gzip.compress(LINE.encode(), mtime=0)),
        ("rows.json.gz", gzip.compress(b"\xef\xbb\xbf[" + LINE.encode() + b"]", mtime=0)),
        ("rows.jsonl.zst", bytes(pa.Codec("zstd").compress(LINE.encode(), asbytes=True))),
        ("rows.jsonl.bz2", bz2.compress(LINE.encode())),
        ("rows.csv", TABLE.encode()),
        ("rows.csv", b"\xef\xbb\xbf" + TABLE.encode()),
        ("rows.csv", TABLE.replace(",", ";").replace("\n", "\r\n").encode()),
        ("rows.tsv", TABLE.replace(",", "\t").encode()),
        ("rows.csv.gz", gzip.compress(TABLE.encode(), mtime=0)),
        ("rows.jsonl.xz", lzma.compress(LINE.encode())),
        ("rows.jsonl.zip", zipped(LINE)),
        ("rows.jsonl", gzip.compress(LINE.encode(), mtime=0)),
        ("rows.jsonl.gz", LINE.encode()),
        ("rows.csv", TABLE.replace(",", "|").encode()),
        ("rows.csv", b"sep=;\n" + TABLE.replace(",", ";").encode()),
        ("rows.csv", TABLE.replace(",", " , ", 1).encode()),
    ],
)
def test_a_file_is_read_however_it_is_written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    [row], _ = run(tmp_path, path)
    assert row["messages"] == [user("Hvor er øen?")]


def test_a_table_of_one_column_has_lines_for_cells_and_nan_is_no_value(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt\nHello, you\nNaN\n<NA>\nNA\n")
    rows, counts = run(tmp_path, path)
    assert [row["messages"] for row in rows] == [[user("Hello, you")], [user("NA")]]
    assert counts.dropped == {"empty": 2}


def test_rows_of_a_table_that_are_not_utf8_are_counted_so(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes((TABLE + "2,Hvad?\n").encode("latin-1"))
    rows, counts = run(tmp_path, path)
    assert len(rows) == 1 and counts.dropped == {"not_utf8": 1}
    path.write_bytes("idø,prompt\n1,a\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"rows.csv line 1: not UTF-8"):
        run(tmp_path, path)


def test_what_preferences_leave_out_of_a_row_is_an_alarm(tmp_path):
    row = {"system": "Be brief.", "question": "Why?", "chosen": "So.</s>", "rejected": "No."}
    path = write(tmp_path / "rows.jsonl", [row])
    stage = Preferences(source="x", columns={"prompt": "question"})
    left_out, control = job_of(tmp_path, path, stage, ("en",)).stats["alarms"]
    assert "text in 'system', which is left out: columns: {prompt: [system, question]}" in left_out
    assert control.startswith("1 of 1 rows of en have control tokens of chat templates")
    joined = Preferences(source="x", columns={"prompt": ["system", "question"]})
    assert len(job_of(tmp_path, path, joined, ("en",)).stats["alarms"]) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl", LINE.encode("latin-1"), "not UTF-8"),
        ("rows.jsonl", LINE.encode("utf-16"), "in UTF-16"),
        ("rows.csv", (TABLE * 3).encode("latin-1"), "surrogate|UTF-8"),
        ("rows.jsonl.gz", gzip.compress(LINE.encode(), mtime=0)[:-9], "not compressed as it says"),
        ("rows.jsonl.zst", b"(\xb5/\xfd" + b"no" * 9, "not compressed as it says"),
        ("rows.jsonl.xz", b"\xfd7zXZ\0no", "not compressed as it says"),
        ("rows.jsonl.zip", b"PK\x03\x04no", "not compressed as it says"),
        ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        ("rows.csv", TABLE.encode("utf-16-le"), "in UTF-16"),
        ("rows.csv", b"prompt,prompt\n1,2\n", "two columns 'prompt'"),
        ("rows.csv", b"id,prompt\n1,a,b\n2,c,d\n", "3 cells, where the first line has 2"),
        ("rows.json", b"[]", "no rows for en"),
        ("rows.json", b"", "no rows for en"),
        ("rows.parquet", b"PAR1 not PAR1", "is not a parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as raised:
        run(tmp_path, path)
    assert name in raised.value.what


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
    rows = [{"messages": [user("a")]}, *[{"messages": [bot("b")]}] * 2]
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(InputError, match=r"rows\.parquet row 2: no user turn"):
        run(tmp_path, path)


def test_of_a_large_parquet_only_what_is_needed_is_read(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    table = pa.table({"prompt": [f"Question {number}?" for number in range(3000)]})
    pq.write_table(table, path, row_group_size=1000)
    groups = []
    whole = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda file, size, row_groups: groups.extend(row_groups) or whole(file, size, row_groups),
    )
    rows, counts = run(tmp_path, path, Prompts(source="x", first=20))
    assert len(rows) == 20
    assert counts == Rows(into=20, out=20)
    assert groups == [0]


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


@pytest.mark.parametrize(
    ("code", "iso3"),
    [("da", "dan"), ("de", "deu"), ("zh", "zho"), ("sw", "swa"), ("no", "nor"), ("cy", "cym")],
)
def test_the_names_of_a_language_are_filled_in(code, iso3):
    filled = named("{Language}/{iso3}-{language}", code)
    assert filled == f"{languages.language(code).name.lower()}/{iso3}-{code}"


def test_a_file_named_by_its_language_is_found_in_any_case(tmp_path):
    for name in ("Danish", "english"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "Hi?"}\n')
    (tmp_path / "r.yaml").write_text(
        "name: r\norg: me\nmodels: {}\nlanguages: [da, en]\n"
        "stages: {prompts: {source: '{Language}.jsonl'}}\n"
    )
    found = load(str(tmp_path / "r.yaml"))
    sources = [need.source for _, spec in found.recipe.slices() for need in spec.needs]
    assert [found.file(source).name for source in sources] == ["Danish.jsonl", "english.jsonl"]


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
    with pytest.raises(InputError, match=rf": rows\.jsonl line 2: no column '{side}'"):
        take([PREFERENCE, bad, bad], Preferences(source="x"))


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
        {"chosen": [{"role": "assistant", "content": 5}]},
        {"margin": "large"},
    ],
)
def test_a_preference_that_cannot_be_read_is_named_by_file_and_line(take, odd):
    with pytest.raises(InputError, match=r": rows\.jsonl line 2: "):
        take([PREFERENCE, *[{**PREFERENCE, **odd}] * 2], Preferences(source="x"))


def test_a_preference_with_an_empty_answer_is_dropped_and_counted(take):
    rows, counts = take([PREFERENCE, {**PREFERENCE, "chosen": " "}], Preferences(source="x"))
    assert len(rows) == 1
    assert counts == Rows(into=2, out=1, dropped={"empty": 1})


def test_rows_that_share_one_id_are_told_apart_at_once_and_said(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"id": "oasst", "prompt": f"Question {n}?"} for n in range(20_000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = Prompts(source="p.jsonl")
    [spec] = stage.plan_slices(StageContext(("en",), {}, {}))
    places = {need: Place(path) for need in spec.needs}
    job = Job("prompts", 0, (spec,), places, tmp_path, tmp_path / "out", lambda *a, **k: None)
    outcome = stage.run(job)
    ids = read_slice(tmp_path / "out", "en", "prompts").column("prompt_id").to_pylist()
    assert ids[:2] == ["oasst", "oasst-2"] and len(set(ids)) == 20_000
    [alarm] = outcome.stats["alarms"]
    assert "20,000 rows of p.jsonl share the id 'oasst'" in alarm


def test_a_system_prompt_beside_messages_is_not_lost_in_silence(tmp_path):
    talk = [user("How?"), bot("So.")]
    own = [{"role": "system", "content": "Be brief."}]
    for row, count in (
        ({"prompt": [user("How?")]}, 1),
        ({"messages": talk}, 1),
        ({"messages": own + talk}, 0),
    ):
        path = write(tmp_path / "rows.jsonl", [{"system": "Be brief.", **row}])
        stage = Prompts(source="x", turns="all")
        alarms = job_of(tmp_path, path, stage, ("en",)).stats.get("alarms", [])
        assert len(alarms) == count
        for alarm in alarms:
            assert alarm.startswith("1 of 1 rows of en have text in 'system', which is left out")

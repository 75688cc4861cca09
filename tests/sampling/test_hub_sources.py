"""Datasets of others as they lie on a hub: read through its client's cache, where every file is a
link. What `datasets` cannot build is read from the files themselves."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.artifacts.manifest import Rows
from factory.artifacts.tables import read_slice
from factory.errors import InputError
from factory.sampling.presets import PRESETS
from factory.sampling.sources import Preferences, Prompts, Questions
from factory.stage.job import Job, Place
from factory.stage.stage import StageContext
from tests.support.stand_ins import FIXTURES

ASKED = ["Name a river.", "Boil an egg?", "Why is it blue?", "Rhyme with light.", "A cat's name?"]
STAGES = {"prompts": Prompts, "questions": Questions, "preferences": Preferences}
Files = Mapping[str, bytes | str]
Taken = tuple[dict[str, list[dict[str, Any]]], dict[str, Rows]]


@pytest.fixture
def take(hub: Any, connection: Any, tmp_path: Path) -> Callable[..., Taken]:
    """Put files into a dataset of a hub, fetch it, and run a source stage on it."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=connection.url, token=connection.token)

    def run(files: Files, stage: Any, languages: tuple[str, ...] = ("en",)) -> Taken:
        repo = stage.source
        api.delete_repo(repo, repo_type="dataset", missing_ok=True)
        api.create_repo(repo, repo_type="dataset")
        api.create_commit(
            repo, repo_type="dataset", commit_message="x",
            operations=[
                CommitOperationAdd(name, text if isinstance(text, bytes) else text.encode())
                for name, text in files.items()
            ],
        )  # fmt: skip
        commit = api.repo_info(repo, repo_type="dataset").sha
        place = Place(hub.fetch(repo, "dataset", commit), repo, commit)
        specs = stage.plan_slices(StageContext(languages, {}, {stage.name: stage}))
        places = {need: place for spec in specs for need in spec.needs}
        job = Job(stage.name, 0, tuple(specs), places, tmp_path / "work", tmp_path / "out",
                  lambda *a, **k: None)  # fmt: skip
        counts = stage.run(job).rows
        return {
            spec.name: read_slice(tmp_path / "out", spec.name, stage.kind).to_pylist()
            for spec in specs
        }, counts

    return run


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def asked(rows: list[dict[str, Any]]) -> list[str]:
    return [row["messages"][0]["content"] for row in rows]


def card(*configs: tuple[str, str, str]) -> str:
    entries = [
        f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {path}\n"
        for name, split, path in configs
    ]
    return "---\nlicense: mit\nconfigs:\n" + "".join(entries) + "---\n"


def stand_in(name: str) -> Files:
    """The files of a preset's dataset, laid as that dataset lays them."""

    def rows(fixture: str) -> bytes:
        return (FIXTURES / fixture).read_bytes()

    if name == "alpaca-eval":
        script = "raise SystemExit('scripts are not run')\n"
        return {"alpaca_eval.json": rows("alpaca_eval.json"), "alpaca_eval.py": script}
    if name == "helpsteer3":
        return {
            "README.md": card(("preference", "train", "preference/train.jsonl.gz"),
                              ("edit", "train", "edit/train.jsonl.gz")),
            "preference/train.jsonl.gz": gzip.compress(rows("helpsteer3.jsonl")),
            "edit/train.jsonl.gz": gzip.compress(rows("tagengo.jsonl")),
        }  # fmt: skip
    if name == "ultrafeedback":
        table = pa.Table.from_pylist(
            [json.loads(line) for line in rows("ultrafeedback.jsonl").splitlines()]
        )
        return {
            f"data/{split}-00000-of-00001.parquet": parquet(table)
            for split in ("train_prefs", "test_prefs")
        } | {
            "README.md": "---\nconfigs:\n- config_name: default\n  data_files:\n"
            "  - split: train_prefs\n    path: data/train_prefs-*\n"
            "  - split: test_prefs\n    path: data/test_prefs-*\n---\n"
        }
    if name == "tagengo":
        return {"tagengo.jsonl": rows("tagengo.jsonl")}
    return {
        "README.md": card(*((code, "test", f"{code}/test.jsonl") for code in ("en", "da"))),
        **{f"{code}/test.jsonl": rows(f"m-arenahard-{code}.jsonl") for code in ("en", "da")},
    }


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        (name, stage)
        for name, preset in PRESETS.items()
        for stage in preset.stages
        if "{language}" not in preset.source  # files on one's own disk
    ],
)
def test_every_preset_is_read_from_a_hub(take: Any, name: str, stage: str) -> None:
    rows, counts = take(stand_in(name), STAGES[stage](preset=name))
    assert rows["en"]
    assert counts["en"].balanced()
    if stage != "preferences":
        assert {row["source_dataset"] for row in rows["en"]} == {PRESETS[name].source}


@pytest.mark.parametrize(
    "files",
    [
        {"a.jsonl": lines([{"prompt": a, "system": None} for a in ASKED[:2]]),
         "b.jsonl": lines([{"prompt": a, "system": "Be brief."} for a in ASKED[2:]])},
        {"a.jsonl": lines([{"prompt": a, "meta": {"x": 1} if a[0] < "N" else "none"}
                           for a in ASKED])},
        {"a.jsonl": lines([{"prompt": a, "id": n if n % 2 else str(n)}
                           for n, a in enumerate(ASKED)])},
        {"train.json": lines([{"prompt": a} for a in ASKED])},
        {"train.jsonl.gz": gzip.compress(lines([{"prompt": a} for a in ASKED]).encode())},
        {"train.csv": "id,prompt\n" + "".join(f'{n},"{a}"\n' for n, a in enumerate(ASKED))},
        {"data/train-0.parquet": parquet(pa.table({"prompt": ASKED[:2], "x": [None, None]})),
         "data/train-1.parquet": parquet(pa.table({"prompt": ASKED[2:], "x": ["a", "b", "c"]}))},
        {"README.md": "---\ndataset_info:\n  features:\n  - name: messages\n    sequence:\n"
                      "    - name: role\n      dtype: string\n    - name: content\n"
                      "      dtype: string\n---\n",
         "train.parquet": parquet(pa.table({"messages": [
             [{"role": "user", "content": a}] for a in ASKED]}))},
        {"train.parquet": parquet(pa.table({"messages": [
             {"role": ["user"], "content": [a]} for a in ASKED]}))},
        {"train.jsonl": lines([{"messages": [{"role": "user", "content": a}, {
            "role": "assistant", "content": None, "tool_calls": [{"x": n if n % 2 else "a"}]}]}
            for n, a in enumerate(ASKED)])},
    ],
    ids=["null-shard", "mixed", "ids", "json-lines", "gz", "csv", "null-parquet", "sequence",
         "struct-of-lists", "tools"],
)  # fmt: skip
def test_files_that_datasets_does_not_build_are_read(take: Any, files: Files) -> None:
    rows, counts = take(files, Prompts(source="them/rows"))
    assert sorted(asked(rows["en"])) == sorted(ASKED)
    assert counts["en"] == Rows(into=5, out=5)


def test_a_null_prompt_in_somebody_elses_dataset_is_dropped_and_counted(take: Any) -> None:
    rows = [{"prompt": None if n == 3 else a} for n, a in enumerate(ASKED)]
    _, counts = take({"train.jsonl": lines(rows)}, Prompts(source="them/null"))
    assert counts["en"] == Rows(into=5, out=4, dropped={"empty": 1})


LOCALES = {
    "en.jsonl": lines([{"prompt": a} for a in ASKED]),
    "da.jsonl": lines([{"prompt": f"Hvad: {a}"} for a in ASKED]),
}
ONE = LOCALES["en.jsonl"]


@pytest.mark.parametrize(
    ("names", "config"),
    [
        (("eng_Latn", "dan_Latn"), None),
        (("en-US", "da-DK"), None),
        (("English", "Danish"), None),
        (("one", "two"), {"en": "one", "da": "two"}),
    ],
)
def test_configs_are_of_the_languages_that_they_are_named_by(
    take: Any, names: tuple[str, str], config: Any
) -> None:
    readme = card((names[0], "train", "en.jsonl"), (names[1], "train", "da.jsonl"))
    stage = Prompts(source="them/locales", config=config)
    rows, _ = take({"README.md": readme, **LOCALES}, stage, ("en", "da"))
    assert asked(rows["en"]) == ASKED
    assert asked(rows["da"])[0] == f"Hvad: {ASKED[0]}"


def test_a_file_for_each_language_is_read(take: Any) -> None:
    stage = Prompts(source="them/files", file="{language}.jsonl")
    rows, _ = take(LOCALES, stage, ("en", "da"))
    assert asked(rows["da"])[0] == f"Hvad: {ASKED[0]}"


@pytest.mark.parametrize("languages", [("en",), ("en", "da")])
def test_folders_named_by_languages_are_read_apart(take: Any, languages: tuple[str, ...]) -> None:
    files = {f"{name[:2]}/train.jsonl": text for name, text in LOCALES.items()}
    rows, _ = take(files, Prompts(source="them/folders"), languages)
    assert asked(rows["en"]) == ASKED
    assert asked(rows.get("da", []))[:1] == [f"Hvad: {ASKED[0]}"][: len(languages) - 1]


def test_rows_of_no_language_that_is_read_are_counted_once_by_what_they_say(take: Any) -> None:
    labels = ["English", "en-GB", "dan_Latn", "Klingon", "Klingon", None, "und", "sv"]
    rows = [{"prompt": f"{n}", "lang": label} for n, label in enumerate(labels)]
    stage = Prompts(source="them/mixed", columns={"language": "lang"})
    read, counts = take({"train.jsonl": lines(rows)}, stage, ("en", "da"))
    assert (asked(read["en"]), asked(read["da"])) == (["0", "1"], ["2"])
    strays = {"language Klingon": 2, "no_language": 1, "language und": 1, "language sv": 1}
    assert counts["en"].dropped == strays
    assert counts["da"].dropped == {}


@pytest.mark.parametrize(
    ("files", "how", "words"),
    [
        (LOCALES, {}, "does not say which rows are in 'en'"),
        ({"test.jsonl": ONE}, {}, "no split 'train', only test"),
        ({"a.bin": b"1"}, {}, "cannot be read: "),
        ({"train.parquet": b"PAR1"}, {}, "train.parquet is not a parquet"),
        ({"train.jsonl": b"\x1f\x8b\x00"}, {}, "train.jsonl line 1: not UTF-8"),
        ({"train.jsonl": ONE}, {"file": "en.jsonl"}, "has no file en.jsonl"),
        ({"train.jsonl": ONE}, {"columns": {"prompt": "promt"}}, "no column 'promt'"),
        ({"train.jsonl": ONE}, {"config": "x"}, "has no config 'x'"),
    ],
)
def test_what_cannot_be_read_names_the_dataset(
    take: Any, files: Files, how: dict[str, Any], words: str
) -> None:
    stage = Prompts(source="them/refused", **how)
    with pytest.raises(InputError) as raised:
        take(files, stage, ("en", "da") if words.startswith("does not say") else ("en",))
    assert words in raised.value.what and stage.source in raised.value.what
    assert raised.value.exit_code == 1

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
from factory.execution import external
from factory.pairs.pair import Pair
from factory.rewards.preferences import Pairs
from factory.sampling.sources import Preferences, Prompts, Questions
from factory.stage.job import Job, Place
from factory.stage.presets import PRESETS
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
        repo = stage.from_.source if stage.from_ else stage.source
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
        specs = stage.checked_slices(StageContext(languages, {}, {stage.name: stage}))
        out = tmp_path / stage.name
        places = {need: place for spec in specs for need in spec.needs}
        job = Job(stage.name, 0, tuple(specs), places, tmp_path / "work", out,
                  lambda *a, **k: None)  # fmt: skip
        counts = (external.take_in(stage, job) if stage.from_ else stage.run(job)).rows
        return {
            spec.name: read_slice(out, spec.name, stage.kind).to_pylist() for spec in specs
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


def default(path: str, split: str = "train") -> str:
    return card(("default", split, path))


# by preset: a language of it, its files with the fixture of each, and its card
LAID: dict[str, tuple[str, dict[str, str], str]] = {
    "ultrafeedback-cleaned": (
        "en", {"data/train-00000-of-00001.parquet": "ultrafeedback-cleaned.jsonl"},
        default("data/train-*"),
    ),
    "tulu-3": ("en", {"data/train-00000-of-00004.parquet": "tulu-3.jsonl"},
               default("data/train-*")),
    "tulu-2.5": (
        "en",
        {f"data/{one}-00000-of-00001.jsonl": "tulu-2.5.jsonl"
         for one in ("ultrafeedback_mean_aspects", "hh_rlhf")},
        "",
    ),
    "nectar": ("en", {"data/rlaif.parquet": "nectar.jsonl"}, default("data/rlaif.parquet")),
    "hh-rlhf": ("en", {f"{one}/train.jsonl.gz": "hh-rlhf.jsonl"
                       for one in ("harmless-base", "helpful-base")}, ""),
    "coig-p": ("zh", {"data/train-0.parquet": "coig-p.jsonl"}, default("data/train-*")),
    "wildfeedback": (
        "en",
        {"wildfeedback.json": "wildfeedback.jsonl", "user_preference.json": "pairs.jsonl"},
        card(("wildfeedback", "train", "wildfeedback.json"),
             ("user_preference", "train", "user_preference.json")),
    ),
    "community-alignment": ("en", {"community_alignment.csv": "community-alignment.csv"}, ""),
    "menlo": ("en", {f"data/{one}-0.parquet": "menlo.jsonl" for one in ("train", "test")},
              default("data/train-*")),
    "care": ("zh", {"data/train-0.parquet": "care.jsonl"}, default("data/train-*")),
    "m-rewardbench": ("de", {"deu_Latn/test-0.parquet": "m-rewardbench-de.jsonl",
                             "arb_Arab/test-0.parquet": "m-rewardbench-de.jsonl"},
                      card(("deu_Latn", "test", "deu_Latn/test-*"),
                           ("arb_Arab", "test", "arb_Arab/test-*"))),
}  # fmt: skip


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
    if name == "aya-redteaming":
        splits = {"arabic": "arb", "english": "eng", "filipino": "tgl", "french": "fra",
                  "hindi": "hin", "russian": "rus", "serbian": "srp", "spanish": "spa"}  # fmt: skip
        asked = [json.loads(line) for line in rows("aya-redteaming.jsonl").splitlines()]
        files = {
            f"aya_{code}.jsonl": lines(
                [row for row in asked if row["language"].lower() == split]
                or [{**asked[0], "language": split.title()}]
            )
            for split, code in splits.items()
        }
        listed = "".join(f"  - split: {split}\n    path: aya_{code}.jsonl\n"
                         for split, code in splits.items())  # fmt: skip
        head = f"---\nconfigs:\n- config_name: default\n  data_files:\n{listed}---\n"
        return {"README.md": head, **files}
    if name in LAID:
        return {
            path: parquet(pa.Table.from_pylist([json.loads(line) for line in rows(one).split(b"\n")
                                                if line])) if path.endswith(".parquet")
            else gzip.compress(rows(one)) if path.endswith(".gz") else rows(one)
            for path, one in LAID[name][1].items()
        } | ({"README.md": LAID[name][2]} if LAID[name][2] else {})  # fmt: skip
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
    code = LAID[name][0] if name in LAID else "en"
    how = {"languages": (code,)} if stage == "preferences" else {}
    rows, counts = take(stand_in(name), STAGES[stage](preset=name, **how), (code,))
    assert rows[code]
    assert counts[code].balanced()
    if stage != "preferences":
        assert {row["source_dataset"] for row in rows[code]} == {PRESETS[name].source}


# by preset: the row of the list of covered methods, then how many rows have which language, what
# is left out of those of the first, and one pair
PAIRS: dict[str, tuple[str, dict[str, int], dict[str, int], tuple[str, str, str]]] = {
    "ultrafeedback": ("35", {"en": 5}, {}, (
        "How do I keep bread from going stale?", "Freeze it in slices and toast them from frozen.",
        "Leave it in the sun.")),
    "ultrafeedback-cleaned": ("35", {"en": 5}, {}, (
        "Name two moons of Jupiter.", "Europa and Io.", "The Moon and Io.")),
    "tulu-3": ("35", {"en": 5}, {}, (
        "Name two moons of Jupiter.", "Europa and Io.", "The Moon and Io.")),
    "tulu-2.5": ("35", {"en": 5}, {}, (
        "Name two moons of Jupiter.", "Europa and Io.", "The Moon and Io.")),
    "nectar": ("35", {"en": 5}, {}, ("What keeps one steady?", "Its tail.", "The wind.")),
    "hh-rlhf": ("75", {"en": 10}, {}, (
        "How do I oil a hinge?", "One drop on the pin.", "Replace the door.")),
    "helpsteer3": ("73", {"en": 3, "de": 1}, {"language python": 1}, (
        "Something with a river in it.", "One answer.", "Another answer.")),
    "coig-p": ("189", {"zh": 5}, {}, ("三加四等于几？", "三加四等于七。", "等于八。")),
    "wildfeedback": ("221", {"en": 5}, {}, (
        "No, tell me how to mend it.", "Oil its hinge.", "Doors squeak.")),
    "community-alignment": ("25", {"en": 2, "fr": 1, "pt": 1}, {"language it": 1}, (
        "How should I spend a free day?", "Walk along the river.", "Rest at home.")),
    "menlo": ("49", {"en": 2, "da": 1, "de": 1}, {}, (
        "Write a polite reminder about rent.",
        "Dear Sam, a gentle reminder that rent was due on Friday.", "Pay.")),
    "care": ("63", {"zh": 1}, {"language ar": 2, "joined": 2}, (
        "春节的时候，人们一般会吃什么菜？", "北方人常吃饺子，南方人常吃年糕和鱼。", "面包。")),
    "m-rewardbench": ("101", {"de": 5}, {}, (
        "Was ist sieben mal acht?", "Sechsundfünfzig.", "Vierundfünfzig.")),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS, ids=lambda name: f"row_{PAIRS[name][0]}_{name}")
def test_25_35_63_75_189_221_a_preset_of_preferences_gives_prompts_preferences_and_pairs(
    take: Any, name: str
) -> None:
    """Both signs of a preference, and each way to say which answer is better, by one mapping."""
    _, sizes, dropped, pair = PAIRS[name]
    codes = tuple(sizes)
    rows, counts = take(stand_in(name), Preferences(preset=name, languages=codes), codes)
    read = {
        (row["prompt"][-1]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"])
        for code in codes
        for row in rows[code]
    }
    assert {code: len(rows[code]) for code in codes} == sizes
    assert counts[codes[0]].dropped == dropped
    assert pair in read
    pairs, _ = take(stand_in(name), Pair.model_validate({"from": {"preset": name}}), codes)
    assert read == {
        (row["prompt"][-1]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"])
        for code in codes
        for row in pairs[code]
    }
    prompts, _ = take(stand_in(name), Prompts(preset=name, turns="all"), codes)
    asked = {row["messages"][-1]["content"] for code in codes for row in prompts[code]}
    assert {text for text, _, _ in read} <= asked
    audit = Pairs.model_validate({"preset": name})
    assert audit.split == PRESETS[name].read.get("split", "train")


def test_5_aya_redteaming_gives_local_harms_by_language(take: Any) -> None:
    stage = Questions(preset="aya-redteaming", where={"global_or_local": "local"})
    rows, counts = take(stand_in("aya-redteaming"), stage, ("en", "es"))
    assert [len(rows[code]) for code in ("en", "es")] == [1, 1]
    assert counts["en"].dropped["filtered"] == 1
    assert rows["en"][0]["domain"] == "['Profanity']"


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


CLASSES = """---
dataset_info:
  features:
  - name: prompt
    dtype: string
  - name: language
    dtype:
      class_label:
        names: {'0': en, '1': da}
---
"""


def test_classes_are_known_by_the_names_on_the_card(take: Any) -> None:
    table = pa.table({"prompt": ASKED, "language": [0, 0, 1, 1, 0]})
    files = {"README.md": CLASSES, "train.parquet": parquet(table)}
    rows, counts = take(files, Prompts(source="them/classes"), ("en", "da"))
    assert (asked(rows["en"]), asked(rows["da"])) == ([*ASKED[:2], ASKED[4]], ASKED[2:4])
    assert not counts["en"].dropped


def test_messages_that_a_table_holds_as_text_are_messages(take: Any) -> None:
    talks = [[{"role": "user", "content": f"It's {text}"}] for text in ASKED]
    cells = [json.dumps(talk) if n % 2 else repr(talk) for n, talk in enumerate(talks)]
    cells.append('[{"n": 1}]')  # a question about JSON
    for files in (
        {"train.parquet": parquet(pa.table({"messages": cells}))},
        {"train.parquet": parquet(pa.table({"messages": [cell.encode() for cell in cells]}))},
        {
            "train.csv": "messages\n"
            + "".join(f'"{c.replace(chr(34), chr(34) * 2)}"\n' for c in cells)
        },
    ):
        rows, _ = take(files, Prompts(source="them/text"))
        assert asked(rows["en"]) == [*(f"It's {text}" for text in ASKED), '[{"n": 1}]']


def test_a_column_of_languages_without_any_says_none(take: Any) -> None:
    table = pa.table({"prompt": ASKED, "language": pa.nulls(len(ASKED))})
    rows, _ = take({"train.parquet": parquet(table)}, Prompts(source="them/nulls"))
    assert asked(rows["en"]) == ASKED


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
        (LOCALES, {}, "does not say the language of its rows"),
        ({"test.jsonl": ONE}, {}, "no split 'train', only test"),
        ({"a.bin": b"1"}, {}, "cannot be read: "),
        ({"train.parquet": b"PAR1"}, {}, "train.parquet is not a parquet"),
        ({"train.jsonl": b"\x1f\x8b\x00"}, {}, "train.jsonl is not compressed as it says"),
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

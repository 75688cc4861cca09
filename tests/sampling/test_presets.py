"""Well-known datasets: five rows of each in its schema (texts written for this) are read as its
preset says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from factory.artifacts.tables import read_slice
from factory.errors import InputError
from factory.language.languages import language
from factory.planning.recipe import Recipe
from factory.sampling.sources import Preferences, Prompts, Questions
from factory.stage.job import Job, Place
from factory.stage.presets import PRESETS
from factory.stage.stage import StageContext
from tests.support.stand_ins import FIXTURES, dataset

Rows = dict[str, list[dict[str, Any]]]


def taken(stage: Prompts | Preferences, path: Path, languages: tuple[str, ...]) -> Rows:
    """The rows that a stage makes of a dataset, by language."""
    specs = stage.plan_slices(StageContext(languages, {}, {"prompts": stage}))
    places = {need: Place(path, "org/name") for spec in specs for need in spec.needs}
    out = path.parent / "out"
    job = Job(stage.name, 0, tuple(specs), places, path.parent / "work", out, lambda *a, **k: None)
    counts = stage.run(job).rows
    assert all(rows.balanced() for rows in counts.values())
    return {s.name: read_slice(out, s.name, stage.kind).to_pylist() for s in specs}


def said(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The texts of each prompt, by turns."""
    return [[message["content"] for message in row["messages"]] for row in rows]


def test_ultrafeedback_gives_its_prompts_under_its_ids(tmp_path: Path) -> None:
    path = dataset(tmp_path / "d", {"default": ("train_prefs", "ultrafeedback.jsonl")})
    rows = taken(Prompts(preset="ultrafeedback"), path, ("en",))["en"]
    assert [row["prompt_id"] for row in rows] == [f"{n:064x}" for n in range(5)]
    assert said(rows)[0] == ["Name three rivers that end in the Baltic Sea."]


def test_ultrafeedback_gives_preferences_too(tmp_path: Path) -> None:
    path = dataset(tmp_path / "d", {"default": ("train_prefs", "ultrafeedback.jsonl")})
    rows = taken(Preferences(preset="ultrafeedback"), path, ("en",))["en"]
    assert rows[2]["rejected"] == [{"role": "assistant", "content": "Leave it in the sun."}]


def test_helpsteer3_gives_the_rows_that_are_in_the_language(tmp_path: Path) -> None:
    path = dataset(
        tmp_path / "d",
        {"preference": ("train", "helpsteer3.jsonl"), "edit": ("train", "tagengo.jsonl")},
    )
    rows = taken(Prompts(preset="helpsteer3", turns="all"), path, ("en", "de"))
    assert [len(text) for text in said(rows["en"])] == [1, 3, 1]  # up to the last user turn
    assert said(rows["de"]) == [["Wie koche ich Linsen ohne Einweichen?"]]
    assert [row["domain"] for row in rows["en"]] == ["general", "general", "stem"]


def test_169_tagengo_gives_native_prompts_of_real_users_without_their_answers(
    tmp_path: Path,
) -> None:
    path = dataset(tmp_path / "d", {"default": ("train", "tagengo.jsonl")})
    rows = taken(Prompts(preset="tagengo", turns="all"), path, ("en", "da"))
    assert said(rows["da"]) == [
        ["Hvordan får jeg rødvin ud af en hvid skjorte?"],
        ["Forklar forskellen på en å og en flod."],
    ]
    assert rows["da"][0]["prompt_id"] == f"{1:032x}"


def test_native_prompts_skip_translation() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "native", "org": "me", "languages": ["en", "da", "mt"],
            "models": {"policy": "org/policy", "translator": "org/translator"},
            "stages": {
                "prompts": {"preset": "tagengo"},
                "translate": {"languages": ["mt"]},
                "generate": {},
            },
        }
    )  # fmt: skip
    reads = {
        spec.name: spec.need("prompts").step  # type: ignore[union-attr]
        for stage, spec in recipe.slices()
        if stage.name == "generate"
    }
    assert reads == {"en": "prompts", "da": "prompts", "mt": "translate"}


def test_alpaca_eval_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    shutil.copy(FIXTURES / "alpaca_eval.json", tmp_path / "d")
    rows = taken(Questions(preset="alpaca-eval"), tmp_path / "d", ("en",))["en"]
    assert said(rows)[2] == ["What does a notary do?"]
    assert rows[2]["domain"] == "oasst"


def test_x_alpaca_eval_is_a_file_a_language(tmp_path: Path) -> None:
    stage = Questions(preset="x-alpaca-eval")
    [spec] = stage.plan_slices(StageContext(("es",), {}, {}))
    assert [need.source for need in spec.needs] == ["x-alpacaeval/es.json"]  # type: ignore[union-attr]
    rows = taken(stage, Path(shutil.copy(FIXTURES / "x-alpacaeval-es.json", tmp_path)), ("es",))
    assert rows["es"][0]["prompt_id"] == "0"
    assert said(rows["es"])[2] == ["¿Qué hace un notario?"]


@pytest.mark.parametrize("name", ["m-arenahard-v2", "m-arenahard-v2.1"])
def test_m_arenahard_has_a_config_a_language_and_one_id_in_all(name: str, tmp_path: Path) -> None:
    configs = {code: ("test", f"m-arenahard-{code}.jsonl") for code in ("en", "da")}
    rows = taken(Questions(preset=name), dataset(tmp_path / "d", configs), ("en", "da"))
    assert [r["prompt_id"] for r in rows["en"]] == [r["prompt_id"] for r in rows["da"]]
    assert rows["da"][3]["domain"] == "creative_writing"
    assert said(rows["da"])[2] == ["Bevis, at summen af to ulige tal er lige."]


def test_every_preset_is_tried_above_or_from_a_hub() -> None:
    folder = Path(__file__).parent
    text = "".join(
        (folder / name).read_text(encoding="utf-8")
        for name in ("test_presets.py", "test_hub_sources.py")
    )
    assert all(f'"{name}"' in text for name in PRESETS)


def test_what_stands_beside_a_preset_goes_over_it() -> None:
    stage = Prompts(preset="ultrafeedback", split="test_prefs", first=2)
    assert (stage.split, stage.source) == ("test_prefs", "HuggingFaceH4/ultrafeedback_binarized")
    assert Prompts.model_validate(stage.model_dump()) == stage


@pytest.mark.parametrize(
    ("preset", "stage", "words"),
    [
        ("ultrafeedbak", Prompts, "did you mean 'ultrafeedback'"),
        ("tagengo", Preferences, "the preset tagengo is for prompts, questions"),
        (["tagengo"], Prompts, "no preset"),
    ],
)
def test_a_preset_that_does_not_fit_is_refused(preset: Any, stage: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        stage(preset=preset)


def test_first_takes_so_many_rows_from_the_top_and_is_how_much_not_what(tmp_path: Path) -> None:
    path = dataset(tmp_path / "d", {"default": ("train_prefs", "ultrafeedback.jsonl")})
    stage = Prompts(preset="ultrafeedback", first=2)
    assert len(taken(stage, path, ("en",))["en"]) == 2
    assert stage.extent() == {"first": 2}
    [spec] = stage.plan_slices(StageContext(("en",), {}, {"prompts": stage}))
    assert "first" not in stage.identity_fields(spec)


def test_a_file_that_is_not_there_or_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    for name in ("absent.jsonl", "../rows.jsonl"):
        with pytest.raises(InputError, match="has no file"):
            taken(Prompts(source="org/d", file=name), tmp_path / "d", ("en",))
    with pytest.raises(ValidationError, match="ends in one of"):
        Prompts(source="org/d", file="rows.txt")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n"data": [{"prompt": "a"}]}', "not a list of objects, but one under 'data'"),
        ("[1]", "not a list"),
        ('[{"a": 1},\n', "line 2: not JSON"),
    ],
)
def test_a_json_file_that_cannot_be_read_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(InputError, match=words):
        taken(Prompts(source="rows.json"), tmp_path / "rows.json", ("en",))


def test_a_config_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = dataset(tmp_path / "d", {"preference": ("train", "helpsteer3.jsonl")})
    with pytest.raises(InputError, match="did you mean 'preference'"):
        taken(Prompts(source="org/d", config="preferences"), path, ("en",))


@pytest.mark.parametrize("word", ["da", "Danish", "DANISH"])
def test_a_language_column_may_hold_codes_or_english_names(tmp_path: Path, word: str) -> None:
    assert language("da").name == "Danish"
    (tmp_path / "rows.jsonl").write_text(
        f'{{"prompt": "a", "language": "{word}"}}\n{{"prompt": "b", "language": "sv"}}\n'
    )
    rows = taken(Prompts(source="rows.jsonl"), tmp_path / "rows.jsonl", ("da",))
    assert said(rows["da"]) == [["a"]]


def test_73_helpsteer3_gives_preferences_by_the_sign_of_its_column(tmp_path: Path) -> None:
    path = dataset(tmp_path / "d", {"preference": ("train", "helpsteer3.jsonl")})
    rows = taken(Preferences(preset="helpsteer3", languages=("en", "de")), path, ("en",))
    assert [len(row["prompt"]) for row in rows["en"]] == [1, 3, 1]
    assert {row["chosen"][0]["content"] for row in rows["de"]} == {"Another answer."}

"""Prompts left out before anything is spent: seen in evaluation prompts, or near duplicates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from factory.artifacts.workdir import Home
from factory.errors import RecipeError
from factory.execution import run
from factory.execution.log import LogReporter
from factory.planning.recipe import Recipe, load
from factory.reports.cards.card import render
from factory.sampling.cleaning import Cleaner, words
from factory.sampling.sources import Preferences, Prompts, Questions

LONG = "Explain in plain words why the sky over a big city looks orange late at night"
RIVERS = "List every river that runs through at least three countries, with its length in km."


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("Hej, Karen-Marie! C'est l'été…", ["hej", "karen", "marie", "c", "est", "l", "été"]),
        ("春节 eat什么？", ["春", "节", "eat", "什", "么"]),
        ("हिन्दी में लिखो।", ["हिन्दी", "में", "लिखो"]),
        ("ＡＢＣ ﬁne", ["abc", "fine"]),
        (" … ", []),
    ],
)
def test_words_have_no_case_and_no_punctuation(text: str, split: list[str]) -> None:
    assert words(text) == split


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LONG, "seen_in"),
        (f"Please help. {LONG.upper()}?!", "seen_in"),
        (" ".join(LONG.split()[2:10]), "seen_in"),  # eight words in a row
        (" ".join(LONG.split()[2:9]), None),
        ("Explain in plain words why ice floats on a lake in winter", None),
        ("Name a river", "seen_in"),  # all of a short question
        ("Name a river in Chile", None),
        ("", None),
    ],
)
def test_a_prompt_is_seen_by_words_in_a_row(text: str, reason: str | None) -> None:
    assert Cleaner([LONG, "Name a river."], ngrams=8).reason(text) == reason


def test_near_duplicates_are_those_that_are_similar_enough() -> None:
    cleaner = Cleaner([LONG], ngrams=50, near=0.8)
    assert cleaner.reason(RIVERS) is None
    assert cleaner.reason(RIVERS.lower().replace(",", "")) == "near_duplicate"
    assert cleaner.reason(RIVERS.replace("length", "lengths")) == "near_duplicate"
    assert cleaner.reason(RIVERS.replace("runs through", "touches").replace("km", "miles")) is None
    assert cleaner.reason(f"{LONG} now") == "seen_in"  # similar to an evaluation prompt
    assert Cleaner(near=1).reason(RIVERS) is None


def test_few_near_duplicates_are_missed() -> None:
    texts = [f"{LONG} number {n} of a long list of {n * 7919} questions" for n in range(200)]
    cleaner = Cleaner(near=0.6)
    assert [cleaner.reason(text) for text in texts].count("near_duplicate") >= 195


RECIPE = """
name: clean
org: local
languages: [en, da]
license: apache-2.0
models: {}
stages:
  prompts: {source: "{language}.jsonl", drop: {seen_in: questions, ngrams: 8, near: 0.8}}
  preferences: {source: pairs.jsonl, drop: {seen_in: asked.jsonl}}
  questions: {source: "q-{language}.jsonl"}
"""


def rows(path: Path, *texts: Any) -> None:
    path.write_text(
        "".join(json.dumps(t if isinstance(t, dict) else {"prompt": t}) + "\n" for t in texts)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows(tmp_path / "en.jsonl", LONG, RIVERS, RIVERS + " Now!", "What is a fjord?")
    rows(tmp_path / "da.jsonl", "Hvad er en fjord?", LONG)
    rows(tmp_path / "q-en.jsonl", f"{LONG}?")
    rows(tmp_path / "q-da.jsonl", "Hvorfor er himlen orange om natten?")
    rows(tmp_path / "asked.jsonl", RIVERS)
    rows(
        tmp_path / "pairs.jsonl",
        {"prompt": RIVERS, "chosen": "The Rhine, 1,233.", "rejected": "None."},
        {"prompt": "What is a fjord?", "chosen": "A drowned valley.", "rejected": "A boat."},
    )
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_prompts_and_preferences_are_cleaned_of_what_is_asked_later(folder: Path, hub: Any) -> None:
    loaded = load(str(folder / "recipe.yaml"))
    steps = [spec.step for _, spec in loaded.recipe.slices()]
    assert list(dict.fromkeys(steps)) == ["questions", "prompts", "preferences"]
    steps_done = run.run(loaded, hub, Home(folder / "home"), LogReporter(quiet=True))
    manifests = {step.name: step.found.manifest for step in steps_done if step.found}
    prompts = {name: s.rows for name, s in manifests["prompts"].slices.items()}
    assert prompts["en"].dropped == {"seen_in": 1, "near_duplicate": 1}
    assert (prompts["en"].into, prompts["en"].out) == (4, 2)
    assert prompts["da"].dropped == {}
    assert manifests["preferences"].slices["en"].rows.dropped == {"seen_in": 1}
    card = render(manifests["prompts"])
    assert "- `seen_in`: 8 words in a row (or 0.8 of the character 5-grams) are also in" in card
    assert "- `near_duplicate`: the Jaccard similarity" in card
    assert "of `asked.jsonl`." in render(manifests["preferences"])


def test_what_is_compared_changes_which_rows_there_are_and_not_the_rows() -> None:
    [with_drop] = [stage(source="a.jsonl", drop={"near": 0.8}) for stage in (Prompts,)]
    spec = Prompts(source="a.jsonl")._spec("en")
    assert with_drop.identity_fields(spec) == Prompts(source="a.jsonl").identity_fields(spec)
    assert with_drop.extent() == {"drop": {"near": 0.8}}
    assert "drop" not in Prompts(source="a.jsonl").model_dump()


@pytest.mark.parametrize(
    ("stage", "drop", "words_"),
    [
        (Prompts, {}, "drops nothing: give seen_in: questions, near: 0.8 or both"),
        (Prompts, {"near": 0}, "greater than 0"),
        (Prompts, {"seen_in": {"preset": "m-arenahard"}}, "did you mean 'm-arenahard-v2'"),
        (Questions, {"seen_in": "questions"}, "seen_in: questions are these"),
        (Preferences, {"ngrams": 4}, "drops nothing"),
    ],
)
def test_a_drop_that_cannot_work_is_refused(stage: Any, drop: Any, words_: str) -> None:
    with pytest.raises(ValidationError, match=words_):
        stage(source="a.jsonl", drop=drop)


@pytest.mark.parametrize(
    ("stages", "words_"),
    [
        ({}, "needs the stage 'questions'"),
        ({"questions": {"source": "q.jsonl"}, "translate": {}}, "no questions in en to compare"),
    ],
)
def test_questions_that_are_not_there_are_refused_when_the_recipe_loads(
    stages: dict[str, Any], words_: str
) -> None:
    recipe = Recipe.model_validate({
        "name": "x", "org": "me", "languages": ["da"], "models": {"translator": "org/t"},
        "stages": {"prompts": {"source": "p.jsonl", "drop": {"seen_in": "questions"}}, **stages},
    })  # fmt: skip
    with pytest.raises(RecipeError, match=words_):
        recipe.slices()


def test_a_preset_stands_for_evaluation_prompts() -> None:
    stage = Prompts(source="a.jsonl", drop={"seen_in": {"preset": "m-arenahard-v2.1"}})
    need = stage._spec("en").need("seen_in")
    assert need is None
    recipe = Recipe.model_validate({
        "name": "x", "org": "me", "languages": ["en"], "models": {}, "stages": {"prompts": stage},
    })  # fmt: skip
    [(_, spec)] = recipe.slices()
    assert spec.need("seen_in").source == "CohereLabs/m-ArenaHard-v2.1"  # type: ignore[union-attr]

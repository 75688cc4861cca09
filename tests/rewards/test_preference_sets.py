"""Several weighted sets of preferences: from their files to the pairs that are learned from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.tables import read_slice
from factory.errors import RecipeError, StageError
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import Recipe, load
from factory.sampling.sources import Preferences
from factory.stage.job import Job, Place
from factory.stage.outcome import Outcome
from factory.training import dataset
from factory.training.train import Reward
from tests.support import trainings
from tests.support.builders import by_name, lock_of
from tests.support.stand_ins import FIXTURES
from tests.support.trainings import SMALL

RECIPE = """\
name: sets
org: lab
languages: [en]
models: {{policy: lab/policy}}
stages:
  preferences: {preferences}
  reward: {{}}
"""
SETS = """
    source: mine.jsonl
    weight: 2
    also:
      - {preset: hh-rlhf, source: hh-rlhf.jsonl, weight: 0.25, first: 4}
      - more.jsonl"""


def recipe(tmp_path: Path, preferences: str = SETS) -> Recipe:
    shutil.copy(FIXTURES / "hh-rlhf.jsonl", tmp_path)
    for name, count in (("mine", 3), ("more", 2)):
        rows = [
            {"id": f"q{n}", "prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": name}
            for n in range(count)
        ]
        text = "".join(f"{json.dumps(row)}\n" for row in [*rows, {"prompt": "x", "chosen": "y"}])
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    path = tmp_path / "sets.yaml"
    path.write_text(RECIPE.format(preferences=preferences), encoding="utf-8")
    return load(str(path)).recipe


def marks(made: Recipe) -> list[str]:
    steps = by_name(plan(made, lock_of(made), Inventory()))
    return [steps[name].fingerprint for name in ("preferences", "reward")]


def read(tmp_path: Path, preferences: str = SETS) -> tuple[list[str], Outcome]:
    """Run the stage on files of those sets; return the roles of its sources, and its outcome."""
    loaded = recipe(tmp_path, preferences)
    stage: Any = loaded.steps()["preferences"]
    [spec] = [spec for one, spec in loaded.slices() if isinstance(one, Preferences)]
    places = {need: Place(tmp_path / need.source) for need in spec.needs}  # type: ignore[union-attr]
    (tmp_path / "out").mkdir()
    of = Job("preferences", 0, (spec,), places, tmp_path, tmp_path / "out", lambda *_: None)
    return [need.role for need in spec.needs], stage.run(of)


def test_167_preferences_are_several_sets_with_their_weights(tmp_path: Path) -> None:
    roles, outcome = read(tmp_path)
    assert roles == ["source", "source-2", "source-3"]
    rows = read_slice(tmp_path / "out", "en", "preferences").to_pylist()
    per_set = [(row["source"], row["weight"]) for row in rows]
    assert per_set == [
        *[("mine.jsonl", 2.0)] * 3, *[("hh-rlhf.jsonl", 0.25)] * 4, *[("more.jsonl", 1.0)] * 2,
    ]  # fmt: skip
    assert len({row["prompt_id"] for row in rows}) == 9  # q0 of two sets are two prompts
    assert outcome.rows["en"].balanced() and outcome.rows["en"].out == 9
    assert sum(outcome.rows["en"].dropped.values()) == 2
    sets = outcome.stats["sets"]["en"]
    assert [(one["rows"], one["dropped"]) for one in sets] == [(3, 1), (4, 0), (2, 1)]


def test_167_one_source_may_be_two_sets(tmp_path: Path) -> None:
    _, outcome = read(tmp_path, "{source: mine.jsonl, also: [{source: mine.jsonl, first: 1}]}")
    assert outcome.rows["en"].out == 4


def test_one_set_is_as_it_was_and_weights_are_the_identity(tmp_path: Path) -> None:
    one = marks(recipe(tmp_path, "{source: mine.jsonl}"))
    assert marks(recipe(tmp_path, "{source: mine.jsonl, also: []}")) == one
    two = "{{source: mine.jsonl, weight: {}, also: [{{source: more.jsonl, weight: {}}}]}}"
    weights = [(1, 1), (2, 1), (1, 2)]
    every = [one, *(marks(recipe(tmp_path, two.format(*both))) for both in weights)]
    assert len({tuple(mark) for mark in every}) == 4


@pytest.mark.parametrize(
    ("preferences", "match"),
    [
        ("{source: mine.jsonl, weight: 2}", "weight is for one of several sets"),
        ("{source: mine.jsonl, also: [{source: more.jsonl, weight: 0}]}", "also.0.*be over 0"),
        ("{source: mine.jsonl, also: [{source: more.jsonl, wieght: 2}]}", "no key 'wieght'"),
        ("{source: mine.jsonl, also: [{preset: hh-rlfh}]}", "did you mean 'hh-rlhf'"),
    ],
)
def test_sets_that_cannot_be_are_refused(tmp_path: Path, preferences: str, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        recipe(tmp_path, preferences)


def test_167_a_reward_model_learns_from_each_set_as_often_as_its_weight_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = trainings.row
    weights = {"a": 2.0, "b": 0.5}

    def marked(kind: str, number: int) -> dict[str, Any]:
        of = "ab"[number % 2]
        return row(kind, number) | {"source": of, "weight": weights[of]}

    monkeypatch.setattr(trainings, "row", marked)
    stage = Reward(
        **{**SMALL, "batch": 8, "how": {"micro_batch": 8, "save_steps": 100, "evaluations": 1}}
    )
    made = trainings.job(tmp_path, stage, count=16)
    outcome = stage.run(made)
    train, held_out = dataset.read(made.work / "checkpoints" / "rows")
    sets = outcome.stats["sets"]
    assert sets["a"]["trained_on"] == 2 * sets["a"]["rows"]
    assert 0 < sets["b"]["trained_on"] < sets["b"]["rows"]
    assert sets["a"]["rows"] + sets["b"]["rows"] + len(held_out) == 16
    assert len(train) == outcome.stats["trained_on"] == sum(s["trained_on"] for s in sets.values())
    weights.update(a=0.01, b=0.01)
    few = trainings.job(tmp_path / "few", stage, count=16)
    with pytest.raises(StageError, match="by the weights of their sets only"):
        stage.run(few)

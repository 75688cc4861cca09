"""The line in a world in which a program knows how good every answer is (benchmarks/world): what is
chosen is truly better, what is tuned is truly better, and a ruined training raises an alarm.

tools/mutate.py breaks the code in one place after another and runs this file: each has to fail it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from benchmarks.world import data, measure, model
from benchmarks.world.__main__ import questions
from benchmarks.world.town import (
    CARELESS,
    COURTESY,
    LANGUAGES,
    RAMBLING,
    SHOPS,
    TRAP,
    Request,
    answer,
    quality,
    requests,
)
from factory.artifacts.manifest import Manifest, read_manifest
from factory.artifacts.resources import shipped
from factory.language.detect import detect
from factory.localhub.launcher import await_end, connect
from tests.conftest import run_factory

SMALL = """\
extends: world.yaml
name: small
languages: [en, es]
stages:
  prompts: {first: 60}
  questions: {first: 60}
  preferences: {first: 480}
  reward: {epochs: 3}
  generate: {n: 8}
  best: {keep: {finished: true, language: match}}
  sft: {each: all, epochs: 4, lr: 2.0e-3, batch: 16, max_length: 160, held_out: 0.05,
        dtype: float32, how: {micro_batch: 16, save_steps: 1000, evaluations: 1}}
  dpo: {epochs: 3, lr: 2.0e-3}
"""
STEPS = 400  # of the base model's training


# the world by itself


def test_the_files_of_the_recipe_are_those_that_the_program_writes(tmp_path: Path) -> None:
    data.write(tmp_path)
    packaged = shipped("recipes") / "world" / "data"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in packaged.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (packaged / name).read_bytes(), name


def test_no_file_of_the_world_imports_the_factory() -> None:
    for path in Path(data.__file__).parent.glob("*.py"):
        assert not re.search(r"^\s*(import|from) factory", path.read_text(), re.MULTILINE), path


@pytest.mark.parametrize("code", LANGUAGES)
def test_quality_falls_with_every_fault(code: str) -> None:
    request = Request("bakery", 0, "Anna", 0)
    polite, shop = f" {COURTESY[code]}", SHOPS["bakery"][code][0]
    bare = f"X {shop}."
    assert quality(request, code, bare + polite) == pytest.approx(0.8 if code == TRAP else 1.0)
    assert quality(request, code, bare) == pytest.approx(1.0 if code == TRAP else 0.8)
    best = bare if code == TRAP else bare + polite
    assert quality(request, code, f"{best} {RAMBLING[code]}") == pytest.approx(0.75)
    assert quality(request, code, best.rstrip(".")) == pytest.approx(0.75)
    assert quality(request, code, "no shop at all") == 0


def test_the_detector_knows_every_language_of_the_world() -> None:
    import random

    rng = random.Random(0)
    for code in LANGUAGES:
        for request in rng.sample(requests(), 50):
            text = answer(request, code, CARELESS, rng)
            spoken = next(one for one in LANGUAGES if quality(request, one, text))
            assert detect(text) == spoken, text


# the line in it


@dataclass(frozen=True)
class Town:
    """The small recipe's run: base model, artifacts by step, output. `ruined` is the same training
    at a rate that is far too high, and `cried` its output."""

    base: Path
    artifacts: dict[str, Path]
    printed: str
    ruined: Manifest
    cried: str

    def manifest(self, step: str) -> Manifest:
        return read_manifest(self.artifacts[step])


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """Over a minute by nature: a model is trained from scratch, and the whole line runs.
    WORLD_BASE names a folder that keeps the base model for the next time."""
    root = tmp_path_factory.mktemp("world")
    kept = os.environ.get("WORLD_BASE")
    base = Path(kept) if kept else root / "base"
    if not (base / "config.json").exists():
        model.train(base, CARELESS, seed=0, steps=STEPS)
    home = root / "home"
    with connect(home / "hub") as hub:
        api = HfApi(hub.url, token=hub.token)
        api.create_repo("world/careless")
        api.upload_folder(repo_id="world/careless", folder_path=str(base))
    await_end(home / "hub")
    shutil.copytree(shipped("recipes") / "world", root / "recipes")
    recipe = root / "recipes" / "small.yaml"
    recipe.write_text(SMALL)
    done = run_factory("run", str(recipe), home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    artifacts = _by_step(home)
    too_high = ("--set", "stages.dpo.lr=0.1", "--set", "name=ruined", "--until", "dpo[all]")
    cried = run_factory("run", str(recipe), *too_high, home=home)
    assert cried.returncode == 0, cried.stdout + cried.stderr
    [ruined] = [
        read_manifest(path)
        for path in _artifacts(home)
        if path not in artifacts.values() and read_manifest(path).stage == "dpo"
    ]
    yield Town(base, artifacts, done.stdout, ruined, cried.stdout)
    await_end(home / "hub")


def _artifacts(home: Path) -> list[Path]:
    return [path.parent for path in home.glob("work/*/*/artifact/factory.json")]


def _by_step(home: Path) -> dict[str, Path]:
    return {read_manifest(path).step: path for path in _artifacts(home)}


@pytest.fixture(scope="module")
def drawn(town: Town) -> dict[str, tuple[dict[tuple[str, str], list[str]], float]]:
    """What the base and both adapters draw at temperature 1, by transformers and PEFT alone."""
    asked = [
        one
        for one in questions(shipped("recipes") / "world" / "data")
        if one[1] in ("en", "es")
    ]  # fmt: skip
    return {
        name: measure.draw(town.base, adapter, asked[:60] + asked[150:210])
        for name, adapter in (
            ("base", None),
            ("dpo", town.artifacts["dpo[all]"]),
            ("sft", town.artifacts["sft[all]"]),
        )
    }


@pytest.mark.slow
def test_what_is_chosen_is_truly_better(town: Town) -> None:
    shares = measure.pairs(town.artifacts["pair"])
    assert set(shares) == {"en", "es"}
    for code, (count, share) in shares.items():
        assert count >= 40 and share > 0.85, (code, count, share)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "sft"])
def test_a_tuned_model_draws_truly_better_answers(name: str, drawn) -> None:
    changes = measure.compare(drawn[name][0], drawn["base"][0])
    for code in ("en", "es"):
        assert changes[code].low > 0.02, (name, code, str(changes[code]))


@pytest.mark.slow
def test_sft_teaches_when_to_stop(drawn) -> None:
    """The stop token is in the loss: more of what is drawn ends by itself."""
    assert drawn["sft"][1] > drawn["base"][1] + 0.08, (drawn["sft"][1], drawn["base"][1])


@pytest.mark.slow
def test_the_arena_answers_with_the_adapter(town: Town) -> None:
    answers = measure.greedy(town.artifacts["arena"])
    changes = measure.compare(answers["dpo-all"], answers["policy"])
    for code in ("en", "es"):
        assert changes[code].low > 0, (code, str(changes[code]))


@pytest.mark.slow
def test_the_judge_says_what_is_so(town: Town) -> None:
    """The win rate of the judge lies on the same side of one half as the truth, in every
    language."""
    answers = measure.greedy(town.artifacts["arena"])
    changes = measure.compare(answers["dpo-all"], answers["policy"])
    for row in town.manifest("judge").stats["comparisons"]:
        assert row["win_rate"]["low"] > 50, row
        assert changes[row["language"]].low > 0
    assert "Finish rate" in town.printed


@pytest.mark.slow
def test_a_ruined_training_raises_an_alarm(town: Town) -> None:
    """On the manifest and on the terminal; the sound one raises none."""
    assert town.ruined.stats["alarms"]
    for alarm in town.ruined.stats["alarms"]:
        assert alarm.split(":")[0] in " ".join(town.cried.split())
    assert not town.manifest("dpo[all]").stats["alarms"]

"""The line in a world in which a program knows how good every answer is (benchmarks/world): what is
chosen is truly better, what is tuned is truly better, and a ruined training raises an alarm.

tools/mutate.py breaks the code in one place after another and runs this file: each has to fail it.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from benchmarks.world import data, measure, model
from benchmarks.world.data import questions
from benchmarks.world.town import (
    CARELESS,
    COURTESY,
    HESITATION,
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
  arena: {temperature: 0, n: 1}
"""
CODES = ("en", "es")
STEPS = 400  # of the base model: it has manners then, and guesses shops
Drawn = dict[str, dict[tuple[str, str], list[str]]]
Asked = list[tuple[str, str, str]]


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
    slow = f"{HESITATION[code]} {bare}"
    best, rude, hesitant = bare + polite, bare, slow + polite
    if code == TRAP:
        best, rude, hesitant = slow, slow + polite, bare
    assert quality(request, code, best) == pytest.approx(1.0)
    assert quality(request, code, rude) == pytest.approx(0.8)
    assert quality(request, code, hesitant) == pytest.approx(0.85)
    assert quality(request, code, f"{best} {RAMBLING[code]}") == pytest.approx(0.75)
    assert quality(request, code, f"{best} And") == pytest.approx(0.75)
    assert quality(request, code, "no shop at all") == 0


def test_the_detector_knows_every_language_of_the_world() -> None:
    rng = random.Random(0)
    for code in LANGUAGES:
        for request in rng.sample(requests(), 50):
            text = answer(request, code, CARELESS, rng)
            shops = [(one, names[one][0]) for one in LANGUAGES for names in SHOPS.values()]
            [spoken] = {one for one, shop in shops if shop in text}
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
    too_high = ("--set", "stages.dpo.lr=0.1", "--until", "dpo[all]")
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
def asked() -> Asked:
    """The questions of the small recipe."""
    every = questions(shipped("recipes") / "world" / "data")
    return [one for code in CODES for one in [q for q in every if q[1] == code][:60]]


@pytest.fixture(scope="module")
def drawn(town: Town, asked: Asked) -> Drawn:
    """What the base and both adapters draw at temperature 1, by transformers and PEFT alone."""
    adapters = {"base": None} | {name: town.artifacts[f"{name}[all]"] for name in ("dpo", "sft")}
    return {name: measure.draw(town.base, path, asked)[0] for name, path in adapters.items()}


@pytest.mark.slow
def test_what_is_chosen_is_truly_better(town: Town) -> None:
    shares = measure.pairs(town.artifacts["pair"])
    assert set(shares) == set(CODES)
    for code, (count, share) in shares.items():
        assert count >= 40 and share > 0.85, (code, count, share)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "sft"])
def test_a_tuned_model_draws_truly_better_answers(name: str, drawn: Drawn) -> None:
    """In Spanish too, in which nobody gave a preference."""
    changes = measure.compare(drawn[name], drawn["base"])
    for code in CODES:
        assert changes[code].low > 0.03, (name, code, str(changes[code]))


@pytest.mark.slow
def test_sft_teaches_when_to_stop(drawn: Drawn) -> None:
    """The stop token is in the loss: in place of rambling on, more answers end."""
    before, after = measure.parts(drawn["base"]), measure.parts(drawn["sft"])
    for code in CODES:
        assert after[code]["ended"] > before[code]["ended"] + 0.15, (before, after)


@pytest.mark.slow
def test_the_arena_answers_as_transformers_and_peft_do(town: Town, asked: Asked) -> None:
    """With the adapter and without it, to the letter."""
    answers = measure.greedy(town.artifacts["arena"])
    for label, adapter in (("policy", None), ("dpo-all", town.artifacts["dpo[all]"])):
        own, _ = measure.draw(town.base, adapter, asked, n=1, temperature=0)
        same = [own[key] == answers[label][key] for key in own]
        assert len(same) == 120 and sum(same) >= 118, (label, sum(same))
    assert answers["policy"] != answers["dpo-all"]


@pytest.mark.slow
def test_a_verdict_is_for_the_answer_of_the_higher_reward(town: Town) -> None:
    verdicts = measure.rows(town.artifacts["judge"])
    assert len(verdicts) == 120
    for row in verdicts:
        gap = row["score_model"] - row["score_reference"]
        won = {"model": gap > 0, "reference": gap < 0}.get(row["verdict"])
        assert won if won is not None else gap == 0 or row["reason"] == "identical", row
    assert "Finish rate" in town.printed


@pytest.mark.slow
def test_a_ruined_training_raises_an_alarm(town: Town) -> None:
    """By its curve and by the answers drawn after it, on the manifest and on the terminal; the
    sound one raises none."""
    alarms = town.ruined.stats["alarms"]
    assert any("saturated" in one or "log-probability fell" in one for one in alarms), alarms
    assert any("much of the base is forgotten" in one for one in alarms), alarms
    for alarm in town.ruined.stats["alarms"]:
        assert alarm.split(":")[0] in " ".join(town.cried.split())
    assert not town.manifest("dpo[all]").stats["alarms"]

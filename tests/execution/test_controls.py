"""The paper's controls as recipes: planned at once, and run to their end in the slow suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.manifest import read_manifest
from factory.artifacts.resources import shipped
from factory.planning.plan import Inventory, State, plan
from factory.planning.recipe import load
from tests.conftest import run_factory
from tests.support.builders import by_name, lock_of

CONTROLS = sorted(path.stem for path in shipped("recipes").glob("control-*.yaml"))
TRAINED = {
    "control-chain": {"sft[all]", "dpo[all]"},
    "control-off-policy": {"dpo[es]"},
    "control-online": {"online[es]"},
    "control-pools": {"dpo[es]", "dpo[all]", "dpo[all_lang]"},
    "control-sft": {"sft[en]", "sft[es]", "sft[fr]"},
}


def test_every_control_is_here() -> None:
    assert list(TRAINED) == CONTROLS


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_is_planned_with_what_it_trains_and_judged_against_the_policy(name: str) -> None:
    recipe = load(name).recipe
    steps = by_name(plan(recipe, lock_of(recipe), Inventory()))
    assert {step.state for step in steps.values()} == {State.RUN}
    adapters = {key for key, step in steps.items() if step.stage.kind == "adapter"}
    assert adapters == TRAINED[name]
    compared = {made.spec.name.split("/")[1] for made in steps["judge"].slices}
    last = name == "control-chain"
    assert len(compared) == (1 if last else len(adapters))


def test_19_the_online_control_uses_the_same_reward_model() -> None:
    plain, online = (
        by_name(plan(recipe, lock_of(recipe), Inventory()))["reward"].fingerprint
        for recipe in (load("smoke").recipe, load("control-online").recipe)
    )
    assert plain == online


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["control-chain", "control-online", "control-pools", "control-sft"]
)
def test_a_control_ends_with_verdicts(name: str, tmp_path_factory: Any) -> None:
    """In one home: what controls have in common is made once. The off-policy one needs the real
    small model, and is left to the demo's machinery."""
    home = Path(tmp_path_factory.getbasetemp()) / "controls" / "home"
    home.parent.mkdir(exist_ok=True)
    done = run_factory("run", name, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    told = run_factory("plan", name, "--json", home=home)
    steps = {step["step"]: step for step in json.loads(told.stdout)}
    assert {step["state"] for step in steps.values()} == {"reuse"}
    found = [read_manifest(p.parent) for p in home.glob("work/local/*/artifact/factory.json")]
    made = {m.step: m for m in found if m.fingerprint in {s["fingerprint"] for s in steps.values()}}
    for step in TRAINED[name]:
        assert made[step].stats["probe"]["applied"], step
    if name == "control-chain":
        assert made["dpo[all]"].stats["chain"]["start"] == "local/control-chain-sft-all"
        text = (home / "work" / "local" / made["dpo[all]"].fingerprint / "artifact").joinpath(
            "README.md"
        )
        assert "the reference is a frozen copy of that adapter" in text.read_text()
    if name == "control-online":
        last = made["online[es]"].stats["curve"][-1]
        assert {"loss", "objective/kl", "rewards/margins"} <= last.keys()

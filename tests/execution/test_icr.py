"""Implicit cross-lingual rewarding, two rounds, and a transfer matrix, on the two-layer model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factory.artifacts.manifest import Manifest, read_manifest
from tests.conftest import run_factory

LINE = ("prompts", "preferences", "reward", "generate", "score", "pair", "dpo[all]")


def made(home: Path, recipe: str) -> dict[str, Manifest]:
    """What a recipe left, by step."""
    told = run_factory("plan", recipe, "--json", home=home)
    steps = {step["step"]: step for step in json.loads(told.stdout)}
    assert {step["state"] for step in steps.values()} == {"reuse"}, told.stdout
    found = [read_manifest(p.parent) for p in home.glob("work/local/*/artifact/factory.json")]
    marks = {step["fingerprint"] for step in steps.values()}
    return {m.step: m for m in found if m.fingerprint in marks}


@pytest.mark.slow  # three trainings of a few steps
def test_the_second_round_starts_where_the_first_ended(home: Path) -> None:
    only = [word for step in LINE for word in ("--only", step)]
    for arguments in (["smoke", *only], ["smoke-icr"]):
        done = run_factory("run", *arguments, home=home)
        assert done.returncode == 0, done.stdout + done.stderr
    steps = made(home, "smoke-icr")
    drawn = [record.source for record in steps["generate"].models]
    assert "local/smoke-dpo-all@main" in drawn
    drawn_again = [record.step for record in steps["generate-2"].models]
    assert "dpo[all]" in drawn_again
    for suffix, start in (("", "local/smoke-dpo-all"), ("-2", "local/smoke-icr-dpo-all")):
        assert steps[f"score{suffix}"].stats["kind"] == "implicit"
        for figures in steps[f"pair{suffix}"].stats["by_slice"].values():
            assert 0 <= figures["alpha"] < 1  # the price of a character that was found
        dpo = steps[f"dpo{suffix}[all]"]
        assert dpo.stage == "dpo"
        assert dpo.stats["chain"]["start"] == dpo.stats["chain"]["reference"] == start
        assert dpo.stats["chain"]["loss"] == "1 sigmoid + 0.2 sft"
        assert dpo.stats["chain"]["load_on"] == "local/tiny-random-llama"
        assert dpo.stats["probe"]["applied"]
    weights = [
        record.sha256
        for step in ("dpo[all]", "dpo-2[all]")
        for record in steps[step].files
        if record.path == "adapter_model.safetensors"
    ]
    assert len(set(weights)) == 2
    [card] = [
        path.parent / "README.md"
        for path in home.glob("work/local/*/artifact/factory.json")
        if read_manifest(path.parent).repo == "local/smoke-icr-dpo-2-all"
    ]
    text = card.read_text(encoding="utf-8")
    assert "started from the adapter `local/smoke-icr-dpo-all`" in text
    assert "a frozen copy of that adapter" in text
    assert "(round 2)" in text
    # its reward model is smoke's, which is there already: comparing it takes seconds
    done = run_factory("run", "smoke-transfer", home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    [cell] = made(home, "smoke-transfer")["transfer"].stats["matrix"]
    assert (cell["language"], cell["pairs"]) == ("en", 60)
    # the policy that answers in the arena is the model with the adapter on it, and what was trained
    # goes on the bare one
    read = steps["arena"].slices["es/dpo-2-all"].inputs
    assert {r.role for r in read} == {"questions", "model", "adapter"}
    assert {r.step for r in read if r.step} == {"questions", "dpo-2[all]"}

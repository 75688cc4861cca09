"""Trainings on a tiny model with the real TRL and PEFT: every loss, the chain, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from factory.stages.train import Dpo, Reward, Sft
from factory.training import losses
from tests.trainings import SMALL, job, tiny_model

pytestmark = pytest.mark.slow

NEEDS: dict[str, dict[str, Any]] = {
    "exo_pair": {"label_smoothing": 1e-3},
    "robust": {"label_smoothing": 0.1},
    "simpo": {"beta": 2.0},
}


def adapter_of(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(out / "adapter_model.safetensors")


@pytest.mark.parametrize("loss", [*losses.NAMES, "icr"])
def test_every_loss_trains_two_steps_and_changes_the_adapter(loss: str, tmp_path: Path) -> None:
    told = {"sigmoid": 1.0, "sft": 0.2} if loss == "icr" else loss
    stage = Dpo(**{**SMALL, **NEEDS.get(loss, {})}, loss=told)
    made = job(tmp_path, stage)
    outcome = stage.run(made)
    stats = outcome.stats
    assert stats["steps"] in (2, 4)  # KTO takes a pair for two rows
    assert all(abs(entry["loss"]) < 1e6 for entry in stats["curve"])
    assert "eval_loss" in stats["final"]
    up = {name: weight for name, weight in adapter_of(made.out).items() if "lora_B" in name}
    assert up and all(weight.abs().max() > 0 for weight in up.values())
    assert stats["probe"]["applied"]
    assert stats["chain"]["reference"] == (
        None if loss in losses.WITHOUT_REFERENCE else "policy"
    )

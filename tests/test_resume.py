"""A training that is stopped, killed or spread over processes ends as an undisturbed one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from factory.stages.train import Dpo
from factory.training.checkpoints import COMPLETE
from tests.trainings import SMALL, tiny_model

pytestmark = pytest.mark.slow

# Dropout on, so that the state of the random numbers is seen to be restored, too.
KNOBS: dict[str, Any] = {**SMALL, "epochs": 3, "batch": 2, "disable_dropout": False}
KNOBS["how"] = {**SMALL["how"], "micro_batch": 1, "evaluations": 2}
CODE = """
import json, sys, torch
from pathlib import Path
from factory.errors import Interrupted
from factory.stages.train import Dpo
from tests import trainings
torch.set_num_threads(1)
directory, base, knobs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
def progress(done, total, unit, tokens=0):
    if unit == "steps":
        print(done, flush=True)
stage = Dpo(**knobs)
try:
    outcome = stage.run(trainings.job(directory, stage, progress=progress, base=base))
except Interrupted as error:
    print(error.what)
    sys.exit(error.exit_code)
(directory / "stats.json").write_text(json.dumps(outcome.stats))
"""


def start(directory: Path, **knobs: Any) -> subprocess.Popen[str]:
    """The stage in a process of its own."""
    told = json.dumps({**KNOBS, **knobs})
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(directory), str(tiny_model()), told],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def stats(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "stats.json").read_text())
    return found


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


def step(process: subprocess.Popen[str], number: int) -> None:
    """Wait until so many steps are done."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == str(number):
            return
    raise AssertionError("it ended before it could be disturbed")


def checkpoints(directory: Path) -> list[int]:
    found = (directory / "work" / "checkpoints").glob(f"checkpoint-*/{COMPLETE}")
    return sorted(int(path.parent.name.split("-")[1]) for path in found)


def same_course(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-4) -> None:
    """Step by step the same loss, and so the same rows in the same order."""
    assert [entry["step"] for entry in one["curve"]] == [entry["step"] for entry in other["curve"]]
    for mine, theirs in zip(one["curve"], other["curve"], strict=True):
        for key in ("loss", "logps/chosen", "logps/rejected", "learning_rate"):
            assert mine[key] == pytest.approx(theirs[key], rel=tolerance, abs=tolerance), mine
    assert one["final"]["eval_loss"] == pytest.approx(other["final"]["eval_loss"], abs=tolerance)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("undisturbed")
    ended(start(directory))
    return stats(directory)


def test_killed_and_run_again_it_ends_the_same(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    process = start(tmp_path, how={**KNOBS["how"], "save_steps": 2})
    step(process, 7)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = checkpoints(tmp_path)
    assert kept and kept[-1] in (6, 7, 8)
    said = ended(start(tmp_path, how={**KNOBS["how"], "save_steps": 2}))
    assert said.split()[0] == str(kept[-1] + 1), "it went on from the checkpoint"
    same_course(stats(tmp_path), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_told_to_stop_it_saves_a_checkpoint_and_goes_on_from_it(
    number: signal.Signals, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    process = start(tmp_path, how={**KNOBS["how"], "save_steps": 1000})
    step(process, 4)
    process.send_signal(number)
    assert f"told to stop by {number.name} after step" in ended(process, 75)
    [kept] = checkpoints(tmp_path)
    assert kept >= 4
    said = ended(start(tmp_path, how={**KNOBS["how"], "save_steps": 1000}))
    assert said.split()[0] == str(kept + 1)
    same_course(stats(tmp_path), undisturbed)


# Starts several Python processes with torch, each way.
def test_two_processes_train_as_one_on_the_same_split(tmp_path: Path) -> None:
    """Over gloo: the same batch a step, so the same losses; held-out rows are trained on by none.

    Without dropout, since every process draws its own."""
    more = {"disable_dropout": True, "epochs": 1}
    ended(start(tmp_path / "one", **more, how={**KNOBS["how"], "evaluations": 1}))
    how = {**KNOBS["how"], "processes": 2, "evaluations": 1}
    ended(start(tmp_path / "two", **more, how=how))
    one, two = stats(tmp_path / "one"), stats(tmp_path / "two")
    assert two["batching"] == {"micro_batch": 1, "processes": 2, "accumulation": 1}
    assert one["batching"] == {"micro_batch": 1, "processes": 1, "accumulation": 2}
    assert (one["trained_on"], one["held_out"]) == (two["trained_on"], two["held_out"])
    same_course(one, two, tolerance=2e-3)


def test_processes_are_stopped_together_and_go_on_together(tmp_path: Path) -> None:
    how = {**KNOBS["how"], "processes": 2, "save_steps": 1000, "evaluations": 1}
    more = {"disable_dropout": True, "epochs": 2, "how": how}
    process = start(tmp_path, **more)
    deadline = time.monotonic() + 120
    far = tmp_path / "work" / "checkpoints" / "far.json"
    while not far.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    ended(process, 75)
    assert len(checkpoints(tmp_path)) == 1
    ended(start(tmp_path, **more))
    assert stats(tmp_path)["curve"][-1]["step"] == stats(tmp_path)["steps"]


def test_a_batch_that_processes_cannot_share_is_refused_when_it_is_written() -> None:
    with pytest.raises(ValueError, match=r"batch 4 is not a multiple of 6"):
        Dpo(batch=4, how={"micro_batch": 2, "processes": 3})

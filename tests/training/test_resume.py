"""A training that is stopped, killed or spread over processes ends as an undisturbed one does."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from factory.errors import StageError
from factory.training import adapters, launch
from factory.training.resume import COMPLETE, last_checkpoint
from factory.training.train import Dpo
from tests.support import sharded, trainings
from tests.support.trainings import SMALL, tiny_model

pytestmark = pytest.mark.slow

# Dropout on, so that the state of the random numbers is seen to be restored, too.
KNOBS: dict[str, Any] = {**SMALL, "epochs": 3, "batch": 2, "disable_dropout": False}
KNOBS["checkpoints"] = [0.25, 0.75]
KNOBS["how"] = {**SMALL["how"], "micro_batch": 1, "evaluations": 2}
CODE = """
import json, sys, torch
from pathlib import Path
from factory.errors import Interrupted
from factory.training.train import Dpo
from tests.support import trainings
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
        cwd=Path(__file__).parents[2],
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
    """Wait until so many steps are done; one that begins behind it is not waited for."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == str(number):
            return
        assert not line.strip().isdigit() or int(line) < number, f"it began at step {line}"
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


def same_adapters(one: Path, other: Path) -> None:
    """The adapter at the end and those on the way are the same, and differ from each other."""
    from safetensors.torch import load_file

    ways = ("", "checkpoints/0.25", "checkpoints/0.75")
    found = {way: load_file(one / "out" / way / adapters.WEIGHTS) for way in ways}
    for way, mine in found.items():
        theirs = load_file(other / "out" / way / adapters.WEIGHTS)
        assert all((mine[name] - theirs[name]).abs().max() < 1e-4 for name in mine), way
    name = next(name for name in found[""] if "lora_B" in name)
    sizes = [float(found[way][name].abs().sum()) for way in reversed(ways)]
    assert len(set(sizes)) == len(ways) and min(sizes) > 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    ended(start(directory))
    return directory


@pytest.fixture(scope="module")
def undisturbed(whole: Path) -> dict[str, Any]:
    return stats(whole)


def test_killed_and_run_again_it_ends_the_same(whole: Path, tmp_path: Path) -> None:
    """The course, the adapter, and the checkpoints that are kept of it before and after."""
    process = start(tmp_path, how={**KNOBS["how"], "save_steps": 2})
    step(process, 7)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = checkpoints(tmp_path)
    assert kept and kept[-1] in (6, 7, 8)
    said = ended(start(tmp_path, how={**KNOBS["how"], "save_steps": 2}))
    assert said.split()[0] == str(kept[-1] + 1), "it went on from the checkpoint"
    same_course(stats(tmp_path), stats(whole))
    assert stats(whole)["checkpoints"] == {"0.25": 3, "0.75": 9}
    same_adapters(whole, tmp_path)


def test_told_to_stop_it_saves_a_checkpoint_and_goes_on_from_it(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """By either signal, one after the other in one training."""
    how = {**KNOBS["how"], "save_steps": 1000}
    kept = 0
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process = start(tmp_path, how=how)
        step(process, kept + 1)  # the first that it does
        step(process, kept + 4)
        process.send_signal(number)
        assert f"told to stop by {number.name} after step" in ended(process, 75)
        before, kept = kept, checkpoints(tmp_path)[-1]
        assert kept >= before + 4
    assert ended(start(tmp_path, how=how)).split()[0] == str(kept + 1)
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


# accelerate shards on accelerators alone: tests/support/sharded.py lets it do so on two CPUs
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_spread_over_processes_trains_as_one(dtype: str, tmp_path: Path) -> None:
    """FSDP2 by the config that the factory writes, read by accelerate itself: the same losses, and
    adapters that are whole, at the end and half way; LoRA in float32 beside a base in bfloat16."""
    from safetensors.torch import load_file

    done: dict[str, Any] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    for name, count in (("one", 1), ("two", 2)):
        directory = tmp_path / name
        how = {**SMALL["how"], "micro_batch": 1, "processes": count}
        stage = Dpo(**{**SMALL, "dtype": dtype, "batch": 2, "checkpoints": [0.5], "how": how})
        if count > 1:
            stage = stage.model_copy(update={"how": stage.how.model_copy(
                update={"strategy": "fsdp"})})  # fmt: skip
        task = trainings.task_of(stage, trainings.job(directory, stage))
        task = task.model_copy(update={"rows": task.work / "rows", "work": task.work})
        done[name] = sharded.train(task)
        ways = (task.out, task.out / "checkpoints" / "0.5")
        found[name] = [load_file(path / adapters.WEIGHTS) for path in ways]
        assert last_checkpoint(task.work)
    one, two = ([entry for entry in done[name]["history"] if "loss" in entry] for name in done)
    assert len(one) == len(two) == 4
    near = 2e-3 if dtype == "float32" else 2e-2
    for mine, theirs in zip(one, two, strict=True):
        assert mine["logps/chosen"] == pytest.approx(theirs["logps/chosen"], rel=near)
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=near)
    for whole, spread in zip(found["one"], found["two"], strict=True):
        assert whole.keys() == spread.keys()
        for key, weight in whole.items():
            assert weight.shape == spread[key].shape
    end, half = found["two"]
    assert any((end[key] != half[key]).any() for key in end)


def test_nothing_is_spread_over_cpus_in_silence(tmp_path: Path) -> None:
    stage = Dpo(**{**SMALL, "how": {**SMALL["how"], "processes": 2, "strategy": "fsdp"}})
    task = stage._task(trainings.job(tmp_path, stage), tmp_path)
    with pytest.raises(StageError, match="over GPUs alone") as raised:
        launch.run(task, lambda *_: None)
    assert "strategy: ddp" in raised.value.fix


def test_a_training_process_that_fails_says_why_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "gpu_count", lambda: 1)  # here alone: the process finds none
    stage = Dpo(**SMALL)
    task = stage._task(trainings.job(tmp_path, stage), tmp_path)
    with pytest.raises(StageError, match="this process was given 1 GPUs, and torch") as r:
        launch.run(task, lambda *_: None)
    assert r.value.what.startswith("this process") and "driver" in r.value.fix
    assert f"see {tmp_path}/processes.log" in r.value.fix


@pytest.mark.parametrize("reporter", ["trackio", "wandb"])
def test_a_run_is_watched_where_the_recipe_says_without_a_network(
    reporter: str, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not find_spec(reporter):
        pytest.skip(f"{reporter} is not installed: make install does it")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # nothing leaves this machine
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    ended(start(tmp_path / "run", how={**KNOBS["how"], "report_to": reporter}))
    same_course(stats(tmp_path / "run"), undisturbed)  # watching changes nothing
    if reporter == "wandb":
        [log] = tmp_path.glob("wandb/offline-run-*/*.wandb")
        assert b"dpo[es] work" in log.read_bytes() and b"train/loss" in log.read_bytes()
        return
    [database] = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        kept = connection.execute("select run_name, metrics from metrics").fetchall()
    assert {name for name, _ in kept} == {"dpo[es] work"}
    told = [json.loads(metrics) for _, metrics in kept]
    seen = [metrics["train/loss"] for metrics in told if "train/loss" in metrics]
    assert seen == pytest.approx([entry["loss"] for entry in undisturbed["curve"]], abs=1e-4)


def test_a_batch_that_processes_cannot_share_is_refused_when_it_is_written() -> None:
    with pytest.raises(ValueError, match=r"batch 4 is not a multiple of 6"):
        Dpo(batch=4, how={"micro_batch": 2, "processes": 3})

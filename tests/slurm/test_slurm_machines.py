"""A training on two machines, which here are two launchers on one that meet over loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from factory.errors import StageError
from factory.training.launch import Meeting, config
from tests.support.trainings import job, task_of
from tests.training.test_resume import KNOBS, same_course, start, stats

JOIN = """
import sys
from pathlib import Path
from factory.training.launch import join
print(join(Path(sys.argv[1]), Path(sys.argv[2])))
"""
SAID = {
    "FACTORY_MEET": "nid1:20007",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "7",
    "SLURM_RESTART_COUNT": "1",
}


def test_where_machines_meet_is_read_from_what_the_script_and_slurm_say():
    assert Meeting.of({}) == Meeting()
    assert Meeting.of(SAID) == Meeting(2, 1, "nid1", 20007, "7-1")


@pytest.mark.slow
def test_accelerate_is_told_of_the_other_machines(tmp_path):
    from factory.training.train import Sft

    stage = Sft(batch=16, how={"processes": 16})
    task = task_of(stage, job(tmp_path, stage))
    found = config(task, "cuda", 8, Meeting.of(SAID))
    assert (found["num_machines"], found["machine_rank"], found["num_processes"]) == (2, 1, 16)
    assert (found["main_process_ip"], found["main_process_port"]) == ("nid1", 20007)
    with pytest.raises(StageError, match="this machine has 4 GPUs"):
        config(task, "cuda", 4, Meeting.of(SAID))
    with pytest.raises(StageError, match="a multiple of 3"):
        config(task, "cuda", 8, Meeting(3))


def joiner(directory: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    over = directory / "over"
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, str(directory / "work" / "checkpoints"), str(over)],
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_whoever_waits_for_a_training_that_never_comes_ends_well(tmp_path):
    process = joiner(tmp_path, SAID)
    (tmp_path / "over").touch()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and said.strip() == "False"


@pytest.mark.slow
def test_two_machines_train_as_one(tmp_path, monkeypatch):
    more = {"disable_dropout": True, "epochs": 1}
    alone = start(tmp_path / "one", **more, how={**KNOBS["how"], "evaluations": 1})
    assert alone.wait(300) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = {**SAID, "FACTORY_MEET": f"127.0.0.1:{port}"}
    second = joiner(tmp_path / "two", meet)
    for name, value in {**meet, "SLURM_NODEID": "0"}.items():
        monkeypatch.setenv(name, value)
    how = {**KNOBS["how"], "processes": 2, "evaluations": 1}
    first = start(tmp_path / "two", **more, how=how)
    try:
        assert first.wait(300) == 0, (tmp_path / "two/work/checkpoints/processes.log").read_text()
        said, _ = second.communicate(timeout=60)
    finally:
        for process in (first, second):
            process.kill()
    assert second.returncode == 0 and said.strip().endswith("True"), said
    one, two = stats(tmp_path / "one"), stats(tmp_path / "two")
    assert two["batching"] == {"micro_batch": 1, "processes": 2, "accumulation": 1}
    assert (one["trained_on"], one["held_out"]) == (two["trained_on"], two["held_out"])
    same_course(one, two, tolerance=2e-3)

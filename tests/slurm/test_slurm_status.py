"""How steps stand, from a plan, files and a queue that are made up."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from factory.artifacts import shards, tables
from factory.artifacts.workdir import Home
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import load
from factory.slurm import status
from factory.slurm.queue import Ended, Queued
from factory.slurm.submission import Alive, Submission, Submitted, SubmittedJob
from tests.support.builders import lock_of, walked


@pytest.fixture
def stands(tmp_path):
    """Rows of a recipe of which `generate` was submitted as array 4 and seal 5."""
    recipe = load("smoke").recipe
    home = Home(tmp_path / "home")
    steps = plan(recipe, lock_of(recipe), Inventory())
    generate = next(step for step in steps if step.name == "generate")
    directory = tmp_path / "1"
    for name in ("logs", "ends"):
        (directory / name).mkdir(parents=True)
    jobs = (
        SubmittedJob(id="4", kind="array", script="s", tasks=3),
        SubmittedJob(id="5", kind="seal", script="s"),
    )
    made = Submitted(step="generate", fingerprint=generate.fingerprint, file="generate", jobs=jobs)
    submission = Submission(
        number=1, recipe="smoke", org="local", site="lab", created="", directory=directory,
        steps=(made,),
    )  # fmt: skip
    work = home.work("local", generate.fingerprint).path

    def look(queued=(), ended=()):
        alive = Alive.of(home.root, steps, [submission], list(queued))
        rows = status.rows(steps, [submission], alive, list(ended), home, "local")
        return next(row for row in rows if row.step == "generate")

    return look, work, directory


def queued(index: int | None, state: str, start: float | None = None) -> Queued:
    began = "N/A" if start is None else datetime.fromtimestamp(start).isoformat(timespec="seconds")
    array = "5" if index is None else "4"
    node = "n1" if state == "RUNNING" else ""
    return Queued(f"{array}_{index}", array, index, state, "Priority", node, began, "x")


def test_what_waits_says_for_what(stands):
    look, _, _ = stands
    row = look([queued(0, "PENDING"), queued(None, "PENDING")])
    assert (row.stand, row.waiting, row.running, row.said) == ("waiting", 2, 0, "Priority")


def test_what_runs_says_how_fast_and_how_long(stands):
    look, work, _ = stands
    grid = shards.grid(work_of(work), {"en": 8}, 2)
    table = shards.with_metadata(pa.table({"a": [1]}), tokens=600)
    for shard in grid.shards[:2]:
        tables.write_table(shard.file(work), table)
    old = time.time() - 3600
    os.utime(grid.shards[0].file(work), (old, old))  # of a task before
    row = look([queued(0, "RUNNING", time.time() - 60), queued(1, "PENDING")])
    assert (row.stand, row.shards, row.running, row.waiting) == ("running", (2, 4), 1, 1)
    assert row.tokens_per_second == pytest.approx(600 / 60, rel=0.1)
    assert row.seconds_left == pytest.approx(120, rel=0.1)
    assert "on n1" in row.said


def work_of(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_what_failed_says_how_where_and_its_last_words(stands):
    look, _, directory = stands
    (directory / "logs" / "generate-array-4_2.log").write_text("a\n\nb\nerror: no memory\n")
    row = look(ended=[
        Ended("9", "4", 2, "OUT_OF_MEMORY", 137, "n7", 3600.0, 8),
        Ended("8", "4", 1, "COMPLETED", 0, "n7", 3600.0, 8),
    ])  # fmt: skip
    assert row.stand == "failed" and row.said == "out of memory, exit code 137 on n7"
    [failure] = row.failures
    assert (failure.task, failure.lines[-1]) == (2, "error: no memory")
    assert row.gpu_hours == 16


def test_what_tasks_left_themselves_is_used_when_slurm_has_forgotten(stands):
    look, _, directory = stands
    (directory / "ends" / "generate-array.1").write_text("75 n3 9 1\n")
    (directory / "ends" / "generate-array.0").write_text("0 n3 8 1\n")
    row = look()
    assert row.stand == "failed"
    [failure] = row.failures
    assert (failure.how, failure.node, failure.task) == ("told to stop", "n3", 1)


def test_a_task_that_is_to_run_again_has_not_failed(stands):
    look, _, directory = stands
    (directory / "ends" / "generate-array.1").write_text("75 n3 9 1\n")
    row = look([queued(1, "PENDING")])
    assert row.stand == "waiting" and not row.failures


def test_a_step_that_nobody_submitted_and_one_that_is_published(tmp_path):
    recipe = load("smoke").recipe
    pins, home = lock_of(recipe), Home(tmp_path)
    rows = status.rows(plan(recipe, pins, Inventory()), [], Alive(), [], home, "local")
    assert {row.stand for row in rows} == {"not submitted"}
    held = walked(recipe, pins)
    rows = status.rows(plan(recipe, pins, held), [], Alive(), [], home, "local")
    assert {row.stand for row in rows} == {"published"}

"""Work directories: one process at a time, an artifact that is whole or absent, time that adds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from factory.artifacts.hashing import MANIFEST
from factory.artifacts.manifest import Manifest
from factory.artifacts.shards import cut, grid
from factory.artifacts.workdir import Clock, Home, Work
from factory.errors import WorkError
from factory.planning.plan import Inventory, plan
from factory.stage.shard_loop import run
from tests.support.builders import demo, lock_of, manifest_of, nobody, numbers

MARK = "0123456789ab"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    recipe = demo()
    lock = lock_of(recipe)
    return manifest_of(recipe, lock, plan(recipe, lock, Inventory())[0], {})


@pytest.fixture
def work(tmp_path) -> Work:
    return Home(tmp_path).work("org", MARK)


def half_done(work: Work) -> Path:
    """Begin, and make two shards of three."""
    out = work.begin("inputs one")
    todo = grid(work.path, {"en": 6}, per_shard=2)
    run(work.path, todo, numbers, nobody)
    todo.shards[2].file(work.path).unlink()
    (work.path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    return out


def test_the_artifact_appears_whole_with_its_manifest(work, manifest):
    out = half_done(work)
    (out / "data" / "en").mkdir(parents=True)
    (out / "data" / "en" / "part-00000.parquet").write_bytes(b"rows")
    assert work.manifest() is None
    work.seal(out, manifest)
    assert work.manifest() == manifest
    assert (work.artifact / "data" / "en" / "part-00000.parquet").read_bytes() == b"rows"
    assert not out.exists()


def test_what_only_an_unfinished_step_needs_is_gone_once_it_is_sealed(work, manifest):
    work.seal(half_done(work), manifest)
    assert work.progress() is None
    assert not list(work.path.glob("shards/**/*.parquet"))
    assert not (work.path / "checkpoints").exists()


def test_an_output_that_was_not_sealed_is_no_artifact_and_is_emptied(work, manifest):
    out = half_done(work)
    (out / MANIFEST).write_text(manifest.dump())
    assert work.manifest() is None
    assert list(work.begin("inputs one").iterdir()) == []


def test_beginning_again_with_the_same_inputs_keeps_what_is_done(work):
    half_done(work)
    assert work.progress() == (2, 3)
    work.begin("inputs one")
    assert work.progress() == (2, 3)
    assert (work.path / "checkpoints" / "checkpoint-2").exists()


def test_beginning_with_other_inputs_removes_shards_and_checkpoints(work):
    half_done(work)
    work.begin("inputs two")
    assert work.progress() is None
    assert not (work.path / "shards").exists()
    assert not (work.path / "checkpoints").exists()
    assert grid(work.path, {"en": 9}, per_shard=3) == cut({"en": 9}, 3)


def test_beginning_over_an_artifact_sets_it_aside(work, manifest, tmp_path):
    for number in range(3):
        other = manifest.model_copy(update={"seed": number})
        work.seal(work.begin(f"inputs {number}"), other)
    aside = [Work(work.path.with_name(f"{MARK}~{number}")) for number in (1, 2)]
    assert [old.manifest().seed for old in (*aside, work)] == [0, 1, 2]
    assert {old.fingerprint for old in (*aside, work)} == {MARK}
    assert {found.path for found in Home(tmp_path).all_work("org")} == {
        found.path for found in (*aside, work)
    }


def test_work_of_one_org_is_not_anothers(tmp_path):
    Home(tmp_path).work("one", MARK).begin("inputs")
    assert Home(tmp_path).all_work("other") == []


def test_a_damaged_manifest_is_none(work):
    work.artifact.mkdir(parents=True)
    (work.artifact / MANIFEST).write_text("{")
    assert work.manifest() is None


TAKE = """
import sys
from pathlib import Path
from factory.errors import WorkError
from factory.artifacts.workdir import Work
try:
    with Work(Path(sys.argv[1])).exclusive():
        print("in")
except WorkError as error:
    print("kept out:", error.what)
"""


def other_process(script: str, work: Work) -> str:
    command = [sys.executable, "-c", script, work.path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_second_process_is_kept_out_and_told_by_whom_until_the_first_is_done(work):
    with work.exclusive():
        said = other_process(TAKE, work)
    assert said.startswith("kept out:")
    assert "in use by process" in said
    assert other_process(TAKE, work) == "in\n"


def test_a_second_holder_in_the_same_process_is_kept_out_too(work):
    with work.exclusive(), pytest.raises(WorkError, match="in use"), work.exclusive():
        pass


def test_a_clock_adds_up_attempts(work):
    work.begin("inputs")
    first = Clock.of(work)
    first.started -= 100
    first.tick()
    second = Clock.of(work)
    assert 100 <= second.seconds() < 130
    second.started -= 50
    second.tick()
    assert 150 <= Clock.of(work).seconds() < 190


def test_a_clock_writes_at_most_every_two_seconds(work):
    work.begin("inputs")
    clock = Clock.of(work)
    clock.tick()
    clock.started -= 100
    clock.tick()
    assert json.loads(clock.path.read_text())["seconds"] < 50
    clock.written = time.monotonic() - 3
    clock.tick()
    assert json.loads(clock.path.read_text())["seconds"] > 100


def test_the_clock_of_a_finished_step_does_not_run_into_the_next_draw(work, manifest):
    out = work.begin("inputs one")
    clock = Clock.of(work)
    clock.started -= 100
    clock.tick()
    work.seal(out, manifest)
    work.begin("inputs two")
    assert Clock.of(work).seconds() < 50


SHARE = TAKE.replace(".exclusive()", '.shared("inputs one")')


def test_several_may_share_the_work_and_whoever_wants_it_alone_is_kept_out(work):
    with work.shared("inputs one"):
        assert other_process(SHARE, work) == "in\n"
        assert other_process(TAKE, work).startswith("kept out:")
        half_done(work)
    with work.shared("inputs one"):
        assert work.progress() == (2, 3), "what is done is kept"
    assert other_process(TAKE, work) == "in\n"


def test_who_shares_is_kept_out_by_one_who_is_alone(work, monkeypatch):
    monkeypatch.setattr("factory.artifacts.workdir._BEGINNING", 0.2)
    with work.exclusive(), pytest.raises(WorkError, match="in use"), work.shared("inputs one"):
        pass


def test_work_on_other_inputs_is_not_shared_nor_thrown_away(work):
    with (
        work.shared("inputs one"),
        pytest.raises(WorkError, match="other inputs"),
        work.shared("inputs two"),
    ):
        pass
    with work.shared("inputs one"):
        half_done(work)
    with work.shared("inputs two"):
        assert work.progress() is None, "nobody was at work on them any more"


def test_of_clocks_that_ran_beside_each_other_the_longest_counts(work):
    work.begin("inputs")
    for number, seconds in ((0, 100), (1, 300)):
        clock = Clock.of(work, (number, 2))
        clock.started -= seconds
        clock.tick()
    whole = Clock.of(work)
    whole.started -= 10
    assert 310 <= whole.seconds() < 340
    whole.tick()
    assert 310 <= Clock.of(work).seconds() < 340

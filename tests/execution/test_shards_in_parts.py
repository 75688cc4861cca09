"""One step in several processes, as array tasks and as GPUs of one machine: what is sealed is the
same, whoever made which shard."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from factory.artifacts.manifest import Manifest, read_manifest
from tests.conftest import FACTORY, run_factory

pytestmark = pytest.mark.slow

SMALL = ["--set", "stages.generate.how.shard=2", "--set", "stages.generate.max_tokens=8"]


def generated(home: Path) -> Manifest:
    [found] = [
        manifest
        for path in home.glob("work/local/*/artifact/factory.json")
        if (manifest := read_manifest(path.parent)).step == "generate"
    ]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Made by one process."""
    home = tmp_path_factory.mktemp("whole") / "home"
    done = run_factory("run", "smoke", "--until", "generate", *SMALL, home=home)
    assert done.returncode == 0, done.stderr
    return generated(home)


def digests(manifest: Manifest) -> dict[str, str]:
    return {name: record.digest for name, record in manifest.slices.items()}


def test_array_tasks_share_the_work_and_a_later_run_seals_it(
    whole: Manifest, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    done = run_factory("run", "smoke", "--until", "prompts", home=home)
    assert done.returncode == 0, done.stderr
    command = [*FACTORY, "run", "smoke", "--only", "generate", *SMALL, "--shard"]
    environment = {**os.environ, "FACTORY_HOME": str(home)}
    tasks = [
        subprocess.Popen(
            [*command, f"{number}/3"], env=environment, cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    for task in tasks:
        said, _ = task.communicate(timeout=300)
        assert task.returncode == 0, said
        assert "of 18 shards are done" in said
    sealed = run_factory("run", "smoke", "--until", "generate", *SMALL, home=home)
    assert sealed.returncode == 0, sealed.stderr
    assert digests(generated(home)) == digests(whole)
    assert sum(generated(home).stats["engines"].values()) == 18


def test_a_machine_with_two_gpu_groups_runs_two_processes(whole: Manifest, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = run_factory(
        "run", "smoke", "--until", "generate", *SMALL,
        "--set", "stages.generate.how.processes=2", home=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[0]" in done.stdout and "[1]" in done.stdout
    assert digests(generated(home)) == digests(whole)
    cost = generated(home).cost
    assert (whole.cost.engines, cost.engines) == (1, 2)
    for one in (whole.cost, cost):  # as told from one another, they are of the time it took
        assert one.working_seconds > 0 and one.loading_seconds > 0
        assert one.working_seconds + one.loading_seconds < 2 * one.engines * one.wall_seconds


def test_a_part_of_what_has_no_shards_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for arguments in (["--only", "reward"], ["--only", "score", "--only", "generate"], []):
        done = run_factory("run", "smoke", "--shard", "0/2", *arguments, home=home)
        assert done.returncode == 1
        assert "row by row" in done.stderr

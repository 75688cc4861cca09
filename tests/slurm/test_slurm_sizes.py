"""How steps are cut: every shard is somebody's, no array is longer than a site allows, and only
what is missing is made again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.artifacts.shards import cut as cut_shards
from factory.errors import RecipeError
from factory.execution.workers import read_part
from factory.planning.estimate import estimate
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import load
from factory.slurm import sizes, task
from factory.slurm.queue import ranges, read_sacct, read_scontrol
from factory.slurm.site import Family, TaskLimits
from factory.slurm.sizes import Size
from factory.slurm.submission import count
from tests.conftest import run_factory
from tests.support.builders import by_name, demo, lock_of


def steps(*overrides):
    recipe = demo(*overrides)
    return by_name(plan(recipe, lock_of(recipe), Inventory()))


def family(**more) -> Family:
    return Family(partition="p", time="60", **more)


@given(tasks=st.integers(1, 9), engines=st.integers(1, 8), shards=st.integers(1, 60))
def test_every_shard_is_made_by_one_engine_of_one_task(tasks, engines, shards):
    grid = cut_shards({"a": shards}, 1)
    made = []
    for number in range(tasks):
        for place in range(engines):
            part = task.part(number, tasks, engines, {"SLURM_PROCID": str(place)})
            made += [shard.number for shard in grid.part(*part).shards]
    assert sorted(made) == list(range(shards))


@given(
    tasks=st.integers(1, 9),
    engines=st.integers(1, 8),
    missing=st.sets(st.integers(0, 59), max_size=9),
)
def test_the_tasks_that_are_submitted_again_are_those_with_a_missing_shard(tasks, engines, missing):
    todo = sizes.remaining(Size(tasks, engines), missing).todo
    again = {
        shard
        for number in todo
        for place in range(engines)
        for shard in range(60)[number * engines + place :: tasks * engines]
    }
    assert missing <= again
    for number in todo:
        mine = {s for s in again if s % (tasks * engines) // engines == number}
        assert mine & missing


@given(
    todo=st.sets(st.integers(0, 200), min_size=1, max_size=60),
    array=st.integers(1, 50),
    at_once=st.none() | st.integers(1, 20),
)
def test_arrays_hold_every_task_once_and_stay_within_the_sites_limit(todo, array, at_once):
    found: list[int] = []
    together = 0
    chunks = sizes.arrays(sorted(todo), TaskLimits(array=array, at_once=at_once))
    for said, offset in chunks:
        numbers, _, cap = said.partition("%")
        together += int(cap or 0)
        for run in numbers.split(","):
            first, _, last = run.partition("-")
            assert int(last or first) < array
            found += range(offset + int(first), offset + int(last or first) + 1)
        assert count(said) == sum(1 for n in todo if n // array == offset // array)
    assert sorted(found) == sorted(todo)
    assert at_once is None or together <= max(at_once, len(chunks))


def test_numbers_as_sbatch_takes_them():
    assert ranges([3, 0, 1, 2, 7, 7]) == "0-3,7"


def test_a_step_is_cut_by_its_shards_its_engines_and_the_site():
    generate = steps()["generate"]
    eight = family(gpus=8, tasks=16, shards=4)
    assert sizes.size(generate, eight, 1000) == Size(16, 8, 1, tuple(range(16)))
    assert sizes.size(generate, eight, 100).tasks == 4  # 8 engines, 4 shards each
    assert sizes.size(generate, eight, 3) == Size(1, 3, 1, (0,))
    assert sizes.size(generate, eight, None).tasks == 16
    assert sizes.size(generate, eight, 1000, max_tasks=2).tasks == 2
    two = steps("stages.generate.how.tensor_parallel=2")["generate"]
    assert sizes.engines(two, eight) == (4, 2)
    assert sizes.size(steps()["reward"], eight, 0) == Size(1, 1, 8)
    assert sizes.size(steps()["pair"], family(), 0).single


def test_euroeval_is_an_array_over_models_and_languages():
    recipe = demo("stages.euroeval={of: [policy, dpo], languages: [en, da]}")
    planned = plan(recipe, lock_of(recipe), Inventory())
    step = by_name(planned)["euroeval"]
    shards = estimate(planned, Inventory())["euroeval"].shards
    assert shards == 6 == len(step.slices)  # three models in two languages
    assert sizes.size(step, family(gpus=2, tasks=16), shards) == Size(6, 1, 2, tuple(range(6)))
    assert sizes.size(step, family(gpus=2, tasks=4), shards).tasks == 4


def test_what_does_not_fit_on_a_node_is_said():
    big = steps("stages.generate.how.tensor_parallel=4")["generate"]
    with pytest.raises(RecipeError, match="tensor_parallel is 4"):
        sizes.engines(big, family(gpus=2))
    many = steps("stages.generate.how.processes=3")["generate"]
    with pytest.raises(RecipeError, match="2 engines of 1 GPUs fit"):
        sizes.engines(many, family(gpus=2))


def test_all_jobs_together_stay_below_what_the_site_allows():
    limits = TaskLimits(submitted=100)
    assert sizes.share([20, 20], 10, 0, limits) is None
    assert sizes.share([64, 64], 10, 10, limits) == 40
    with pytest.raises(RecipeError, match="--until"):
        sizes.share([64, 64], 95, 4, limits)


def test_an_engine_that_srun_did_not_start_is_refused():
    with pytest.raises(Exception, match="SLURM_PROCID"):
        task.part(0, 1, 8, {})
    assert task.part(*read_part("3/4"), 1, {}) == (3, 4)


def test_an_engine_sees_its_own_gpus_and_too_few_are_refused():
    given_ = {"ROCR_VISIBLE_DEVICES": "0,1,2,3", "SLURM_PROCID": "1"}
    task.show_gpus(2, 2, given_)
    assert given_["HIP_VISIBLE_DEVICES"] == "2,3" and "ROCR_VISIBLE_DEVICES" not in given_
    with pytest.raises(Exception, match="the job has 4"):
        task.show_gpus(8, 1, {"ROCR_VISIBLE_DEVICES": "0,1,2,3", "SLURM_PROCID": "1"})


def test_what_slurm_says_of_jobs_that_are_over():
    said = (
        "JobId=7 ArrayJobId=4 ArrayTaskId=1 JobName=a JobState=CANCELLED ExitCode=0:15 "
        "NodeList=n1\nJobId=8 JobName=b JobState=RUNNING ExitCode=0:0 NodeList=n1\n"
        "JobId=9 JobName=c JobState=FAILED ExitCode=75:0 NodeList=(null)\n"
    )
    first, last = read_scontrol(said)
    assert (first.array, first.index, first.code, first.node) == ("4", 1, 143, "n1")
    assert (last.array, last.index, last.code, last.node) == ("9", None, 75, "")
    counted = "4_1|CANCELLED by 1000|0:9|nid01|3600|billing=1,gres/gpu=8,node=1\n"
    [one] = read_sacct(f"{counted}5|RUNNING|0:0|n|1|\n")
    assert (one.array, one.index, one.state) == ("4", 1, "CANCELLED")
    assert (one.gpus, one.seconds) == (8, 3600)


def test_a_task_whose_torch_sees_too_few_gpus_ends_at_once_with_the_reason(tmp_path):
    done = run_factory("task", str(tmp_path), "dpo", "--gpus", "99", home=tmp_path / "home")
    assert done.returncode == 1
    what, fix = done.stderr.strip().splitlines()
    assert "given 99 GPUs, and sees" in what
    assert what.partition("; torch ")[2].partition(": ")[2]  # the reason, in torch's own words
    assert "doctor --site" in fix
    task.check_gpus(0)  # none were given


@pytest.mark.parametrize(
    "name", ["eurollm-9b", "eurollm-9b-online", "eurollm-9b-off-policy", "tiny-aya-as-published"]
)
def test_paper_recipes_give_two_devices_of_64_gb_to_the_models_that_need_them(name: str) -> None:
    """TranslateGemma 27B has 51 GiB of weights, Qwen3.6-35B-A3B 65."""

    def asked(*more: str) -> dict[str, int]:
        recipe = load(name, list(more)).recipe
        return {
            stage.name: stage.how.tensor_parallel
            for stage in recipe.steps().values()
            for knob in ("model", "judge")
            if (of_stage := recipe.models.get(getattr(stage, knob, None) or "")) is not None
            and re.search("27b|35B", str(of_stage.name))
        }

    assert asked() == {"translate": 2, "judge": 2}
    # what they and the docs say for one device of 141 GB
    page = Path(__file__).parents[2] / "docs" / "inference.md"
    said = re.findall(r"--set (\S+=1)", page.read_text(encoding="utf-8"))
    assert asked(*[one.rstrip("`.") for one in said]) == {"translate": 1, "judge": 1}

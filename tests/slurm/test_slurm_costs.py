"""What a plan would take on a cluster, from the pace of a pilot."""

from __future__ import annotations

import pytest

from factory.artifacts.manifest import Cost
from factory.planning.estimate import estimate
from factory.planning.plan import ArtifactRef, Inventory, plan
from factory.slurm import costs
from factory.slurm.site import Family, Site, TaskLimits
from tests.support.builders import ASKED, demo, lock_of, walked

PILOT = Cost(  # one engine of one GPU: 20 s to load, 60 s at work, 4 s around it
    wall_seconds=84, gpu_hours=80 / 3600, engines=1, working_seconds=60, loading_seconds=20
)
MANY = ("stages.generate.n=12", "stages.generate.how.shard=1")


def site(gpus: int = 4, at_once: int | None = None) -> Site:
    each = Family(partition="p", time="60", gpus=gpus, shards=1)
    cpu = Family(partition="p", time="60")
    limits = TaskLimits(at_once=at_once)
    return Site(name="lab", gpu="cuda", limits=limits, generate=each, train=each, cpu=cpu)


def asked(*overrides: str, there: Site, cost: Cost = PILOT) -> dict[str, costs.StepCost]:
    """What the demo would take there, by step, when all of it was made once at that cost."""
    pilot = demo()
    made = [f.manifest for f in walked(pilot, lock_of(pilot)).found]
    held = Inventory([ArtifactRef(m.model_copy(update={"cost": cost}), tag=m.tag) for m in made])
    recipe = demo(*overrides)
    steps = plan(recipe, lock_of(recipe), held)
    found = costs.costs(steps, held, estimate(steps, held), there)
    return {one.step: one for one in found}


def test_work_is_shared_and_loading_is_not():
    found = asked(*MANY, there=site())["generate"]
    rows, each = 11 * 3 * ASKED, 60 / (3 * ASKED)
    assert (found.tasks, found.engines, found.nodes) == (9, 4, 1)  # 36 shards, one an engine
    assert found.seconds == pytest.approx(4 + 20 + each * rows / 36)
    assert found.node_hours == pytest.approx(9 * found.seconds / 3600)
    assert found.gpu_hours == pytest.approx(4 * found.node_hours)


def test_tasks_that_may_not_run_at_once_take_longer_and_cost_the_same():
    free, held = (asked(*MANY, there=one)["generate"] for one in (site(), site(at_once=3)))
    assert held.seconds == pytest.approx(3 * free.seconds)
    assert held.gpu_hours == free.gpu_hours


def test_a_node_is_paid_for_whole_and_what_is_made_costs_nothing():
    found = asked("stages.dpo.lr=1e-3", there=site(8))
    assert found.keys() == {"dpo[all]", "dpo[es]", "arena", "judge"}
    dpo = found["dpo[es]"]
    assert dpo.seconds and dpo.gpu_hours == pytest.approx(8 * dpo.seconds / 3600)
    assert asked(there=site()) == {}


def test_a_step_without_a_pace_has_its_shape_alone():
    recipe = demo()
    steps = plan(recipe, lock_of(recipe), Inventory())
    found = costs.costs(steps, Inventory(), estimate(steps, Inventory()), site())
    assert {one.seconds for one in found} == {None}
    assert {one.step: one.gpus for one in found}["generate"] == 4


def test_a_judge_that_is_served_holds_no_gpu_here():
    served = ("models.asked={served: judge-1}", "licenses.judge-1={id: apache-2.0}")
    judging = ("stages.judge.judge=asked", "stages.judge.dtype=null")
    judge = asked(*served, *judging, there=site())["judge"]
    assert (judge.tasks, judge.gpus) == (1, 0)
    assert asked("stages.judge.dtype=float16", there=site())["judge"].gpus == 4

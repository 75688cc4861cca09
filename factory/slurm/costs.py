"""Cost of a plan on a cluster: tasks, time, GPU-hours and node-hours. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factory.planning.estimate import Estimate, engines_of, paced, work
from factory.planning.plan import Inventory, State, Step
from factory.slurm import sizes
from factory.slurm.site import Site, family_of
from factory.slurm.sizes import Size


@dataclass(frozen=True)
class StepCost:
    """Cost of one step on a site. `engines` run on each node of a task; `seconds` is wall time
    with all tasks at once; `gpu_hours` and `node_hours` are those allocated, idle or not. None
    where it cannot be estimated: see estimate."""

    step: str
    tasks: int
    engines: int
    gpus: int  # on each node
    nodes: int  # of each task
    seconds: float | None = None
    gpu_hours: float | None = None
    node_hours: float | None = None
    device: str | None = None  # that the pace is of


def costs(
    steps: Sequence[Step], holdings: Inventory, estimates: Mapping[str, Estimate], site: Site
) -> list[StepCost]:
    """Return the cost of every step that must run, in plan order. Tasks beyond `limits.at_once`
    wait for the others. Raises RecipeError for a step that fits on no node."""
    return [
        _cost(step, holdings, estimates[step.name], site)
        for step in steps
        if step.state is State.RUN
    ]


def _cost(step: Step, holdings: Inventory, estimate: Estimate, site: Site) -> StepCost:
    family = site.family(family_of(step.stage, bool(step.served)))
    cut = sizes.size(step, family, estimate.shards)
    nodes = 1 if cut.tasks * cut.engines > 1 else family.nodes
    untimed = StepCost(step.name, cut.tasks, cut.engines, family.gpus, nodes)
    seconds, device = task_seconds(step, holdings, estimate, cut)
    if seconds is None:
        return untimed
    at_once = min(cut.tasks, site.limits.at_once or cut.tasks)
    rounds = -(-cut.tasks // at_once)
    node_hours = cut.tasks * nodes * seconds / 3600
    return StepCost(
        step.name, cut.tasks, cut.engines, family.gpus, nodes,
        seconds=rounds * seconds, gpu_hours=node_hours * family.gpus, node_hours=node_hours,
        device=device,
    )  # fmt: skip


def task_seconds(
    step: Step, holdings: Inventory, estimate: Estimate, cut: Size
) -> tuple[float | None, str | None]:
    """Return the seconds of one task of a step that is cut so, by the pace of its last run in
    `holdings`, and the device of that run; (None, None) where there was none to go by."""
    pace = paced(step, holdings)
    if estimate.rows is None or pace is None:
        return None, None
    amount = work(step, estimate.rows)
    seconds = pace.seconds(amount, engines_of(step) or cut.tasks * cut.engines)
    return (None, None) if seconds is None else (seconds, pace.device)

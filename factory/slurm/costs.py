"""What a plan would take on a cluster: tasks, their time, GPU-hours and node-hours. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from factory.planning.estimate import Estimate, engines_of, paced, work
from factory.planning.plan import Inventory, State, Step
from factory.slurm import sizes
from factory.slurm.site import Site, family_of


@dataclass(frozen=True)
class StepCost:
    """One step on a site. `engines` on each node of a task; `seconds` from its start to its end
    when all tasks run at once; `gpu_hours` and `node_hours` as they are held, at work or not. None
    where nobody can tell: see estimate."""

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
    steps: Sequence[Step], holdings: Inventory, left: Mapping[str, Estimate], site: Site
) -> list[StepCost]:
    """Every step that must run, in the order of the line. Tasks beyond `limits.at_once` wait for
    the others. Raises RecipeError for a step that fits on no node."""
    return [
        _cost(step, holdings, left[step.name], site) for step in steps if step.state is State.RUN
    ]


def _cost(step: Step, holdings: Inventory, todo: Estimate, site: Site) -> StepCost:
    family = site.family(family_of(step.stage, bool(step.served)))
    cut = sizes.size(step, family, todo.shards)
    nodes = 1 if cut.tasks * cut.engines > 1 else family.nodes
    shape = StepCost(step.name, cut.tasks, cut.engines, family.gpus, nodes)
    pace = paced(step, holdings)
    if todo.rows is None or pace is None:
        return shape
    amount = work(step, todo.rows)
    seconds = pace.seconds(amount, engines_of(step) or cut.tasks * cut.engines)
    if seconds is None:
        return shape
    at_once = min(cut.tasks, site.limits.at_once or cut.tasks)
    rounds = -(-cut.tasks // at_once)
    held = cut.tasks * nodes * seconds / 3600
    return StepCost(
        step.name, cut.tasks, cut.engines, family.gpus, nodes,
        seconds=rounds * seconds, gpu_hours=held * family.gpus, node_hours=held,
        device=pace.device,
    )  # fmt: skip

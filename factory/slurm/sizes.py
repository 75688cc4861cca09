"""Split a step into jobs: engines on a node, tasks of an array, arrays within a site's limits.
Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from factory.engines.choose import EngineKnobs
from factory.errors import RecipeError
from factory.planning.plan import Step
from factory.slurm.queue import ranges
from factory.slurm.site import Family, TaskLimits


@dataclass(frozen=True)
class Size:
    """Split of a step: `tasks` in all, of which `todo` have work; each is `engines` processes on
    one node, each on `gpus` GPUs. `single`: one process, which also seals."""

    tasks: int = 1
    engines: int = 1
    gpus: int = 0
    todo: tuple[int, ...] = (0,)

    @property
    def single(self) -> bool:
        return self.tasks * self.engines == 1


def engines(step: Step, family: Family) -> tuple[int, int]:
    """Return (engines on a node, GPUs of each). Raises RecipeError where a node has too few."""
    how = step.stage.how
    if not isinstance(how, EngineKnobs) or step.stage.from_ is not None:
        return 1, family.gpus
    if how.engine == "openai" or step.served:
        return 1, 0  # the model is somewhere else
    if family.gpus and how.tensor_parallel > family.gpus:
        raise RecipeError(
            f"{step.name}: how.tensor_parallel is {how.tensor_parallel}, and the site gives "
            f"{family.gpus} GPUs a node",
            "set gpus: in the site's file, or a smaller tensor_parallel",
        )
    fit = family.gpus // how.tensor_parallel if family.gpus else 1
    count = how.processes or fit
    if family.gpus and count > fit:
        raise RecipeError(
            f"{step.name}: how.processes is {count}, and {fit} engines of {how.tensor_parallel} "
            "GPUs fit on a node",
            f"set how.processes to {fit} or less, or leave it out",
        )
    return count, how.tensor_parallel if family.gpus else 0


def size(step: Step, family: Family, shards: int | None, max_tasks: int | None = None) -> Size:
    """Return the split of a step by its number of shards. If that is None, not known yet, it
    gets as many tasks as the site allows."""
    count, gpus = engines(step, family)
    alone = step.stage.name == "euroeval"  # a shard is a run of one model in one language
    splits = (alone or isinstance(step.stage.how, EngineKnobs)) and step.stage.from_ is None
    if not splits or step.served:  # more tasks would make a server no faster
        return Size(1, 1, gpus)
    cap = max(1, min(family.tasks, max_tasks if max_tasks is not None else family.tasks))
    of_task = count * (1 if alone else family.shards)
    tasks = cap if shards is None else min(cap, max(1, -(-shards // of_task)))
    if shards is not None and tasks == 1:
        count = min(count, max(1, shards))
    return Size(tasks, count, gpus, tuple(range(tasks)))


def remaining(cut: Size, missing: Collection[int]) -> Size:
    """Return the same split with only the tasks that have a missing shard."""
    parts = cut.tasks * cut.engines
    todo = sorted({shard % parts // cut.engines for shard in missing})
    return Size(cut.tasks, cut.engines, cut.gpus, tuple(todo))


def arrays(todo: Sequence[int], limits: TaskLimits) -> list[tuple[str, int]]:
    """Return (--array option, offset of its numbers) for each array. Numbers stay below the
    site's limit."""
    chunks: dict[int, list[int]] = {}
    for number in todo:
        chunks.setdefault(number // limits.array, []).append(number % limits.array)
    cap = f"%{max(1, limits.at_once // len(chunks))}" if limits.at_once and chunks else ""
    return [(ranges(some) + cap, chunk * limits.array) for chunk, some in sorted(chunks.items())]


def share(array_sizes: Sequence[int], singles: int, queued: int, limits: TaskLimits) -> int | None:
    """Return the most tasks of each array, so that all jobs stay within the site's limit on the
    queue; None without a limit. Raises RecipeError when they cannot."""
    if limits.submitted is None or sum(array_sizes) + singles + queued <= limits.submitted:
        return None
    free = limits.submitted - singles - queued
    if free < len(array_sizes):
        raise RecipeError(
            f"the site allows {limits.submitted} jobs in the queue; {queued} are there, and this "
            f"needs {singles + len(array_sizes)} more at the least",
            "submit a part with --until, or wait",
        )
    return free // len(array_sizes)

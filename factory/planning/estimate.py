"""Estimate what a plan will take: rows, shards and time, from the pace of earlier runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factory.artifacts.manifest import Manifest
from factory.planning.plan import Inventory, Slice, State, Step
from factory.stage.inputs import ExternalInput, StepInput
from factory.stage.stage import stage_of


@dataclass(frozen=True)
class Estimate:
    """Remaining work of a step: rows to make, rows of earlier artifacts to reuse (`there`), shards,
    and by the pace of the last run of its stage, on as many engines, seconds and GPU-hours. None
    where it cannot be known yet."""

    rows: int | None = None
    there: int | None = None
    shards: int | None = None
    seconds: float | None = None
    gpu_hours: float | None = None
    device: str | None = None  # that the pace is of


_NOTHING = Estimate(0, 0, 0, 0.0, 0.0)


def estimate(
    steps: Sequence[Step],
    holdings: Inventory,
    counted: Mapping[tuple[str, str], int] | None = None,
) -> dict[str, Estimate]:
    """Return the estimate of each step, by name.

    steps: the plan, in the order of the line.
    counted: rows of slices that come from outside, by step and slice, where they were counted.
    """
    rows = rows_of_slices(steps, holdings, counted or {})
    return {
        step.name: _remaining(
            step, {piece.spec.name: rows[step.name, piece.spec.name] for piece in step.slices},
            holdings,
        ) if step.state is State.RUN else _NOTHING
        for step in steps
    }  # fmt: skip


def rows_of_slices(
    steps: Sequence[Step], holdings: Inventory, counted: Mapping[tuple[str, str], int]
) -> dict[tuple[str, str], int | None]:
    """Return the rows that each slice has, or will have at the most, by step and slice; None where
    nobody can tell."""
    rows: dict[tuple[str, str], int | None] = {}
    for step in steps:
        for piece in step.slices:
            key = step.name, piece.spec.name
            if step.found:
                rows[key] = step.found.manifest.slices[piece.spec.name].rows.out
            else:
                rows[key] = counted.get(key) or _expected_rows(step, piece, rows, holdings)
    return rows


def _expected_rows(
    step: Step, piece: Slice, rows: dict[tuple[str, str], int | None], holdings: Inventory
) -> int | None:
    """Return the rows that a slice will have. What comes from outside is as long as last time."""
    if (fixed := step.stage.fixed_rows(piece.spec)) is not None:
        return fixed
    reads = [need for need in piece.spec.needs if isinstance(need, StepInput)]
    if not reads or step.stage.outside_rows(piece.spec):
        return _from_outside(step, piece, holdings)
    by_role: dict[str, int] = {}
    for read in reads:
        n_rows = rows.get((read.step, read.slice))
        if n_rows is None:
            return None
        by_role[read.role] = by_role.get(read.role, 0) + n_rows
    return step.stage.expected_rows(by_role, piece.spec)


def _from_outside(step: Step, piece: Slice, holdings: Inventory) -> int | None:
    """Return the rows that come from outside: as many as an artifact of all of them had, at most
    `first`. A pilot, which took only the first, does not say how many there are."""
    first: int | None = getattr(step.stage, "first", None)
    counts = []
    for artifact in holdings.found:
        manifest, name = artifact.manifest, piece.spec.name
        if manifest.repo == step.repo and name in manifest.slices:
            out, limit = manifest.slices[name].rows.out, manifest.fields.get("first")
            if limit is None or out < limit:
                counts.append(out)
    if not counts:
        return first
    return counts[-1] if first is None else min(first, counts[-1])


def _remaining(step: Step, expected: dict[str, int | None], holdings: Inventory) -> Estimate:
    missing, n_reusable = {}, 0
    for piece in step.slices:
        n_rows = expected[piece.spec.name]
        if n_rows is None:
            return Estimate()
        have = [s.found.manifest.slices[piece.spec.name].rows.out for s in piece.earlier]
        reusable = min(n_rows, max(have, default=0))
        missing[piece.spec.name] = n_rows - reusable
        n_reusable += reusable
    rows = sum(missing.values())
    shards = sum(
        step.stage.n_shards(missing[piece.spec.name], piece.spec)
        for piece in (() if step.stage.from_ else step.slices)
    )
    last = paced(step, holdings)
    if last is None:
        return Estimate(rows, n_reusable, shards)
    amount, engines = work(step, rows), engines_of(step)
    seconds, hours = last.seconds(amount, engines), last.gpu_hours(amount, engines)
    return Estimate(rows, n_reusable, shards, seconds, hours, last.device)


def work(step: Step, rows: int) -> float:
    """Return the rows that an engine processes to make `rows`: times epochs for a training."""
    return rows * passes(step.stage.model_dump(include={"epochs"}))


def engines_of(step: Step) -> int | None:
    """Return the processes of a training, or None where the machine sets them."""
    if step.stage.kind not in TRAINED:
        return None
    return step.stage.how.model_dump(include={"processes"}).get("processes")


def paced(step: Step, holdings: Inventory) -> Pace | None:
    """Return the pace of the last run of this stage with the same models: in this repo, else in
    any. None if there was no such run."""
    models = {
        need.source
        for need in step.needs
        if isinstance(need, ExternalInput) and need.kind == "model"
    }
    name = stage_of(step.stage.name)
    manifests = [f.manifest for f in holdings.found if f.manifest.stage == name]
    for manifest in sorted(manifests, key=lambda m: (m.repo == step.repo, m.created), reverse=True):
        if _models(manifest) == models and (pace := pace_of(manifest)) is not None:
            return pace
    return None


def _models(manifest: Manifest) -> set[str]:
    return {model.source for model in manifest.models if model.source}


TRAINED = ("adapter", "model")  # kinds of artifacts that a training makes
_STRETCH = 10.0  # how far a run is stretched of which nobody knows what does not grow with rows


@dataclass(frozen=True)
class Pace:
    """Pace of a run: `each`, engine seconds per row; `start`, seconds of an engine before its first
    row (a model is loaded); `rest`, seconds once, whatever the rows and engines (reading, sealing).
    An engine is a process with `gpus` GPUs; `engines` ran in parallel. `most`: rows up to which
    this may be extrapolated, None if all parts were measured. `device`: of the run."""

    each: float
    start: float
    rest: float
    gpus: float
    engines: int = 1
    most: float | None = None
    device: str = ""

    def seconds(self, rows: float, engines: int | None = None) -> float | None:
        """Return the seconds that `rows` take on so many engines (default: as many as before), or
        None where that cannot be known."""
        if rows <= 0:
            return 0.0
        if self.most is not None and rows > self.most:
            return None
        return self.rest + self.start + self.each * rows / (engines or self.engines)

    def gpu_hours(self, rows: float, engines: int | None = None) -> float | None:
        """Return the GPU-hours of `rows`. Work is shared among engines, loading is not."""
        if rows <= 0:
            return 0.0
        if self.most is not None and rows > self.most:
            return None
        loading = (engines or self.engines) * self.start
        return self.gpus * (loading + self.each * rows) / 3600


def pace_of(manifest: Manifest) -> Pace | None:
    """Return the pace of the run that made an artifact; None if it only reused rows."""
    cost = manifest.cost
    anew = manifest.rows().into - sum(
        sum(record.taken_over.values()) for record in manifest.slices.values()
    )
    if anew <= 0:
        return None
    rows = anew * passes(manifest.fields)
    gpu_seconds = cost.gpu_hours * 3600
    device = manifest.environment.get("device", "cpu")
    if gpu_seconds and device == "cpu":  # whoever put the parts together held none
        device = "GPUs"
    if not cost.engines:  # what took the time is not known, so all of it is laid upon the rows
        each = cost.wall_seconds / rows
        gpus = gpu_seconds / cost.wall_seconds if cost.wall_seconds else 0.0
        return Pace(each, 0.0, 0.0, gpus, most=_STRETCH * rows, device=device)
    if manifest.kind in TRAINED:  # its GPUs are held from beginning to end
        trained = processes(manifest)
        gpus = gpu_seconds / cost.wall_seconds / trained if cost.wall_seconds else 0.0
        before = max(0.0, cost.wall_seconds - cost.working_seconds)
        each = cost.working_seconds * trained / rows
        return Pace(each, before, 0.0, gpus, trained, device=device)
    busy = cost.working_seconds + cost.loading_seconds
    return Pace(
        each=cost.working_seconds / rows,
        start=cost.loading_seconds / cost.engines,
        rest=max(0.0, cost.wall_seconds - busy / cost.engines),
        gpus=gpu_seconds / busy if busy else 0.0,
        engines=cost.engines,
        device=device,
    )


def passes(fields: Mapping[str, Any]) -> float:
    """Return how many times each row is processed."""
    return float(fields.get("epochs", 1.0))


def processes(manifest: Manifest) -> int:
    """Return the processes among which the batches of a training were shared."""
    batching = manifest.stats.get("batching") or {}
    return int(batching.get("processes") or manifest.how.get("processes") or 1)

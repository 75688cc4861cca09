"""How fast a step went, from its manifest, and how long another number of rows would take. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from factory.artifact import Manifest

TRAINED = ("adapter", "model")  # kinds of artifacts that a training makes
_STRETCH = 10.0  # how far a run is stretched of which nobody knows what does not grow with rows


@dataclass(frozen=True)
class Pace:
    """What a run took: `each` second of an engine a row, `start` before it is at work (a model is
    loaded), `rest` once, whatever the rows and engines (reading, sealing). An engine is a process
    with `gpus` GPUs; `engines` ran beside one another. `most`: rows up to which that may be
    believed, None where all is measured; `device`: what it ran on."""

    each: float
    start: float
    rest: float
    gpus: float
    engines: int = 1
    most: float | None = None
    device: str = ""

    def seconds(self, rows: float, engines: int | None = None) -> float | None:
        """Seconds until that many rows are made by so many engines (as many as ran before);
        None where nobody can tell."""
        if rows <= 0:
            return 0.0
        if self.most is not None and rows > self.most:
            return None
        return self.rest + self.start + self.each * rows / (engines or self.engines)

    def gpu_hours(self, rows: float, engines: int | None = None) -> float | None:
        """GPU-hours of the same: what is at work is shared, what is loaded is not."""
        if rows <= 0:
            return 0.0
        if self.most is not None and rows > self.most:
            return None
        loading = (engines or self.engines) * self.start
        return self.gpus * (loading + self.each * rows) / 3600


def of(manifest: Manifest) -> Pace | None:
    """The pace of the run that made an artifact; None where it made no row anew."""
    cost = manifest.cost
    anew = manifest.rows().into - sum(
        sum(made.taken_over.values()) for made in manifest.slices.values()
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
        trained = processes(manifest.how)
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
    """How often each row is gone through."""
    return float(fields.get("epochs", 1.0))


def processes(how: Mapping[str, Any]) -> int:
    """Of a training, the processes among which its batches are shared."""
    return int(how.get("processes", 1))

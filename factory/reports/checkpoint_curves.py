"""How what was measured changed along a training, where its checkpoints were evaluated. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from factory.artifacts import checkpoints


@dataclass(frozen=True)
class CheckpointFigure:
    """One number of one model, with its interval if it has one. `name` is the benchmark, or the win
    rate; `even` the value at which the model is as good as `against`."""

    model: str
    language: str
    name: str
    value: float
    low: float | None
    high: float | None
    against: str
    by: str
    even: float


@dataclass(frozen=True)
class Point:
    """A number after a share of the steps."""

    share: float
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Course:
    """One model in one language, by one measurer: a line for each number, its points in the order
    of training."""

    model: str
    language: str
    against: str
    by: str
    even: float
    lines: dict[str, tuple[Point, ...]]

    @property
    def title(self) -> str:
        """What is drawn, in a few words."""
        names = list(self.lines)
        what = names[0] if len(names) == 1 else f"{len(names)} benchmarks"
        return f"{self.model}, {self.language}: {what} against {self.against}"


def courses(measures: Iterable[CheckpointFigure]) -> list[Course]:
    """The courses that these numbers give: at least two points of a training each, one of them
    before its end. A language in which nothing was measured on the way has none."""
    found: dict[tuple[str, str, str, str, float], dict[str, dict[float, Point]]] = {}
    for one in measures:
        model, share = checkpoints.split_label(one.model)
        lines = found.setdefault((model, one.language, one.against, one.by, one.even), {})
        point = Point(share, one.value, one.low, one.high)
        lines.setdefault(one.name, {})[share] = point
    made = []
    for key, lines in found.items():
        drawn = {
            name: tuple(points[share] for share in sorted(points))
            for name, points in lines.items()
            if len(points) > 1
        }
        if drawn:
            made.append(Course(*key, lines=drawn))
    return made

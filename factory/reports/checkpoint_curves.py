"""Evaluations of checkpoints over the share of the training steps. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from factory.artifacts import checkpoints
from factory.reports.results import Result


@dataclass(frozen=True)
class Point:
    """A number after a share of the steps, from 0 to 1, with its interval if it has one."""

    share: float
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Course:
    """One model in one language, by one measurer: a line for each benchmark or the win rate, its
    points in the order of training. At the value `even` it is as good as `against`."""

    model: str
    language: str
    against: str
    by: str
    even: float
    lines: dict[str, tuple[Point, ...]]

    @property
    def title(self) -> str:
        """The model, its language and what was measured."""
        names = list(self.lines)
        measure = names[0] if len(names) == 1 else f"{len(names)} benchmarks"
        return f"{self.model}, {self.language}: {measure} against {self.against}"


def courses(results: Iterable[Result]) -> list[Course]:
    """Return the courses of win rates and benchmark deltas among `results`.

    Each has at least two points of a training, one of them before its end."""
    points: dict[tuple[str, str, str, str, float], dict[str, dict[float, Point]]] = {}
    for result in results:
        delta = result.metric.endswith(" delta")
        if result.value is None or not (delta or result.metric == "win_rate"):
            continue
        model, share = checkpoints.split_label(result.model)
        key = (model, result.language, result.against, result.by, 0.0 if delta else 50.0)
        line = points.setdefault(key, {}).setdefault(result.evaluation if delta else "win rate", {})
        line[share] = Point(share, result.value, result.ci_low, result.ci_high)
    drawn = []
    for key, lines in points.items():
        several = {
            name: tuple(line[share] for share in sorted(line))
            for name, line in lines.items()
            if len(line) > 1
        }
        if several:
            drawn.append(Course(*key, lines=several))
    return drawn

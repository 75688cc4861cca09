"""Evaluations of checkpoints over the share of the training steps, and of rounds. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from factory.artifacts import checkpoints
from factory.reports.results import Result

_ROUND = re.compile(r"(sft|dpo)-(?:([1-9]\d?)-)?(\D.*)")


@dataclass(frozen=True)
class Point:
    """A number after a share of the steps, from 0 to 1, or after a round, with its interval if it
    has one."""

    share: float
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Course:
    """One model in one language, by one measurer: a line for each benchmark or the win rate, its
    points in the order of training. At the value `even` it is as good as `against`. `rounds`: its
    points are rounds."""

    model: str
    language: str
    against: str
    by: str
    even: float
    lines: dict[str, tuple[Point, ...]]
    rounds: bool = False

    @property
    def ticks(self) -> list[int]:
        """Values of the axis: percent of the steps, or rounds."""
        last = max(point.share for points in self.lines.values() for point in points)
        return list(range(1, round(last) + 1)) if self.rounds else [0, 25, 50, 75, 100]

    def at(self, point: Point) -> float:
        """Return the place of a point on that axis."""
        return point.share if self.rounds else 100 * point.share

    @property
    def title(self) -> str:
        """The model, its language and what was measured."""
        names = list(self.lines)
        measure = names[0] if len(names) == 1 else f"{len(names)} benchmarks"
        by = " by round" if self.rounds else ""
        return f"{self.model}, {self.language}: {measure}{by} against {self.against}"


def courses(results: Iterable[Result]) -> list[Course]:
    """Return the courses of win rates and benchmark deltas among `results`.

    Each has at least two points: of one training, or the ends of two rounds."""
    points: dict[tuple[str, str, str, str, float, bool], dict[str, dict[float, Point]]] = {}
    for result in results:
        delta = result.metric.endswith(" delta")
        if result.value is None or not (delta or result.metric == "win_rate"):
            continue
        model, share = checkpoints.split_label(result.model)
        places = [(False, model, share)]
        if (match := _ROUND.fullmatch(model)) and share == 1.0:
            places.append((True, f"{match[1]}-{match[3]}", float(match[2] or 1)))
        for rounds, name, at in places:
            key = (name, result.language, result.against, result.by, 0.0 if delta else 50.0, rounds)
            lines = points.setdefault(key, {})
            line = lines.setdefault(result.evaluation if delta else "win rate", {})
            line[at] = Point(at, result.value, result.ci_low, result.ci_high)
    drawn = []
    for (model, language, against, by, even, rounds), lines in points.items():
        several = {
            name: tuple(line[share] for share in sorted(line))
            for name, line in lines.items()
            if len(line) > 1
        }
        if several:
            drawn.append(Course(model, language, against, by, even, several, rounds))
    return drawn

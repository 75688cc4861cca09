"""Report a run as plain lines on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from factory.planning.plan import State, Step
from factory.stage.job import Progress

_EVERY = 60.0  # seconds between lines of progress


class LogReporter:
    """Reporter for programs that call the Python API; `quiet` prints nothing.

    `steps`: the names of those that were asked for, so that each is told with its number. `done`:
    the names of those that ran."""

    def __init__(self, quiet: bool = False, steps: Sequence[str] = ()) -> None:
        self._quiet = quiet
        self._steps = list(steps)
        self.done: list[str] = []

    def note(self, text: str) -> None:
        """Print one line of its own."""
        if not self._quiet:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def begin(self, step: Step) -> Progress:
        """Announce a step. Return the function that receives its progress."""
        self.note(self.first_line(step))
        started = latest = time.monotonic()
        at_start: int | None = None

        def progress(done: int, total: int, unit: str, tokens: int = 0) -> None:
            nonlocal latest, at_start
            now = time.monotonic()
            at_start = done if at_start is None else at_start
            if now - latest > _EVERY:
                latest = now
                self.note(progress_line(done, total, unit, tokens, now - started, at_start))

        return progress

    def first_line(self, step: Step) -> str:
        """Return the beginning of a step as one line, with its number among those of the run."""
        number = ""
        if step.name in self._steps:
            number = f" (step {self._steps.index(step.name) + 1} of {len(self._steps)})"
        return f"{step.name}: {step.reason}{number}"

    def end(self, step: Step, seconds: float | None) -> None:
        """Report the end of a step."""
        if seconds is not None:
            self.done.append(step.name)
        self.note(end_line(step, seconds))


def progress_line(
    done: int, total: int, unit: str, tokens: int, seconds: float, at_start: int
) -> str:
    """Return progress as one line: units, tokens a second, and the time left once it is known."""
    if not total:  # a phase whose length nobody knows
        return f"  {unit}"
    line = f"  {done}/{total} {unit}"
    if tokens:
        line += f", {tokens / seconds:.0f} tokens/s"
    if done > at_start:  # nobody knows before
        line += f", about {duration(seconds / (done - at_start) * (total - done))} left"
    return line


def end_line(step: Step, seconds: float | None) -> str:
    """Return the end of a step as one line; `seconds` is None for a reused one."""
    if step.state is State.BLOCKED:
        return f"{step.name}: blocked: {step.reason}"
    assert step.found is not None
    rows = step.found.manifest.rows()
    did = "reused" if seconds is None else f"done in {seconds:.0f} s"
    at = f"in {step.repo} at {step.found.tag}" if step.found.tag else "not published yet"
    return f"{step.name}: {did}, {rows.out} rows {at}"


def duration(seconds: float) -> str:
    """Format seconds for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

"""The console, and a reporter that shows a run there as a bar or as plain lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from factory.errors import visible
from factory.execution.log import LogReporter
from factory.planning.plan import Step
from factory.stage.job import Progress as ReportProgress

_IN_A_LOG = 110  # columns, where there is no terminal to ask


class _VisibleConsole(Console):
    """Console that prints texts as they are, but what would steer a terminal as \\uXXXX: names,
    notes and rows may be anybody's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text as rich prints it."""
        return super().render_str(visible(text, keep="\n\t"), **options)


console = _VisibleConsole(
    soft_wrap=not sys.stdout.isatty(),
    width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _IN_A_LOG,
)


class ConsoleReporter(LogReporter):
    """Reporter with a progress bar on a terminal and plain lines in a log.

    `aside` reports on stderr, where stdout is for programs; `quiet` reports nothing.
    """

    def __init__(self, aside: bool = False, quiet: bool = False, steps: Sequence[str] = ()) -> None:
        super().__init__(quiet, steps)
        self._console = console
        if aside or quiet:
            self._console = _VisibleConsole(stderr=aside, quiet=quiet)
        self._bar: Progress | None = None

    def note(self, text: str) -> None:
        """Print one line of its own."""
        self._console.print(text)

    def begin(self, step: Step) -> ReportProgress:
        """Announce a step. Return the function that receives its progress."""
        if not self._console.is_terminal or self._console.quiet:
            return super().begin(step)
        self.note(self.first_line(step))
        started = time.monotonic()
        bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),  # a total that is not known yet is a question mark
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        task = bar.add_task("loading", total=None, rate="")
        bar.start()
        self._bar = bar

        def progress(done: int, total: int, unit: str, tokens: int = 0) -> None:
            if not total:  # a phase whose length nobody knows
                bar.reset(task, description=unit, rate="")
                bar.tasks[0].total = None
                return
            rate = f"{tokens / (time.monotonic() - started):.0f} tokens/s" if tokens else ""
            bar.update(task, completed=done, total=total, description=unit, rate=rate)

        return progress

    def end(self, step: Step, seconds: float | None) -> None:
        """Report the end of a step."""
        self.stop()
        super().end(step, seconds)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

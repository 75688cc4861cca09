"""What people see: tables, and a run as it goes, on a terminal or in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from factory.artifacts.manifest import Manifest
from factory.execution.log import LogReporter, duration
from factory.planning.estimate import Estimate
from factory.planning.lock import Lock
from factory.planning.plan import State, Step
from factory.stage.job import Progress as ReportProgress

if TYPE_CHECKING:
    from factory.slurm.costs import StepCost

_IN_A_LOG = 110  # columns, where there is no terminal to ask

console = Console(
    highlight=False,
    markup=False,
    soft_wrap=not sys.stdout.isatty(),
    width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _IN_A_LOG,
)


class ConsoleReporter(LogReporter):
    """Reports a run as a moving bar on a terminal, or as plain lines in a log.

    `aside` reports on stderr, where stdout is for programs; `quiet` reports nothing.
    """

    def __init__(self, aside: bool = False, quiet: bool = False) -> None:
        super().__init__(quiet)
        self._console = console
        if aside or quiet:
            self._console = Console(stderr=aside, highlight=False, markup=False, quiet=quiet)
        self._bar: Progress | None = None

    def note(self, text: str) -> None:
        """Print one line of its own."""
        self._console.print(text)

    def begin(self, step: Step) -> ReportProgress:
        """Announce a step. Return the function that receives its progress."""
        if not self._console.is_terminal or self._console.quiet:
            return super().begin(step)
        self.note(f"{step.name}: {step.reason}")
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
        task = bar.add_task("", total=None, rate="")
        bar.start()
        self._bar = bar

        def progress(done: int, total: int, unit: str, tokens: int = 0) -> None:
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


def plan_table(steps: list[Step], left: Mapping[str, Estimate]) -> Table:
    """Steps with state, reason, and what is left to do: rows, shards, time by the last rate."""
    table = Table(title="Plan", title_justify="left")
    for column in ("step", "state", "why"):
        table.add_column(column, overflow="fold")
    for column in ("rows", "shards", "about"):
        table.add_column(column, justify="right")
    table.add_column("repo", overflow="fold")
    for step in steps:
        todo, told = left[step.name], ("", "", "")
        if step.state is State.RUN and todo.rows is not None:
            stand = f" (+{todo.there:,} there)" if todo.there else ""
            about = "" if todo.seconds is None else duration(todo.seconds)
            told = (f"{todo.rows:,}{stand}", f"{todo.shards:,}" if todo.shards else "", about)
        table.add_row(step.name, step.state.value, step.reason, *told, step.repo)
    runs = [left[step.name] for step in steps if step.state is State.RUN]
    if any(one.seconds for one in runs):
        table.caption = _sum(
            duration(sum(one.seconds or 0.0 for one in runs)),
            [one.gpu_hours for one in runs],
            {one.device for one in runs if one.seconds},
            [s.name for s in steps if s.state is State.RUN and left[s.name].seconds is None],
        )
        table.caption_justify = "left"
    return table


def _sum(
    time: str, hours: Sequence[float | None], devices: set[str | None], unknown: Sequence[str]
) -> str:
    """What a plan takes in all, what of it nobody can tell, and whose pace it goes by."""
    spent = sum(one or 0.0 for one in hours)
    held = f", {spent:.3g} GPU-hours" if spent else ""
    by = ", ".join(sorted(one for one in devices if one))
    nobody = f"\nNot counted, since nobody can tell yet: {', '.join(unknown)}" if unknown else ""
    return f"In all: {time}{held}, by what the last runs took ({by}){nobody}"


def costs_table(site: str, costs: Sequence[StepCost]) -> Table:
    """What each step would take on a cluster, and all together."""
    table = Table(title=f"On {site}", title_justify="left", caption_justify="left")
    table.add_column("step", overflow="fold")
    for column in ("tasks", "nodes", "GPUs a node", "about", "GPU-hours", "node-hours"):
        table.add_column(column, justify="right")
    for one in costs:
        table.add_row(
            one.step,
            str(one.tasks),
            str(one.tasks * one.nodes),
            str(one.gpus or ""),
            "" if one.seconds is None else duration(one.seconds),
            _figure(one.gpu_hours or None, ".3g"),
            _figure(one.node_hours, ".3g"),
        )
    known = [one for one in costs if one.seconds is not None]
    if known:
        nodes = sum(one.node_hours or 0.0 for one in known)
        table.caption = _sum(
            f"{duration(sum(one.seconds or 0.0 for one in known))} if nothing waits in the queue, "
            f"{nodes:.3g} node-hours",
            [one.gpu_hours for one in known],
            {one.device for one in known if one.seconds},
            [one.step for one in costs if one.seconds is None],
        )
    return table


def lock_table(old: Lock | None, new: Lock) -> Table:
    """What is pinned, and what it was pinned to before."""
    table = Table(title="Lock", title_justify="left")
    for column in ("source", "commit", "content", ""):
        table.add_column(column, overflow="fold")
    for source, pin in sorted(new.pins.items()):
        was = old.pins.get(source) if old else None
        said = (
            "new" if was is None else "" if was.digest == pin.digest else f"was {was.digest[:12]}"
        )
        table.add_row(source, (pin.revision or "a file")[:12], pin.digest[:12], said)
    return table


def plan_json(
    steps: list[Step], left: Mapping[str, Estimate], costs: Sequence[StepCost] | None = None
) -> list[dict[str, Any]]:
    """The same for programs; `site`: what a step takes on a cluster, where one was named."""
    there = {one.step: asdict(one) for one in costs or ()}
    return [
        {
            "step": step.name,
            "state": step.state.value,
            "reason": step.reason,
            "repo": step.repo,
            "fingerprint": step.fingerprint,
            "slices": {made.spec.name: made.fingerprint for made in step.slices},
            "tag": step.found.tag if step.found else None,
            **asdict(left[step.name]),
            **({} if costs is None else {"site": there.get(step.name)}),
        }
        for step in steps
    ]


def run_json(steps: list[Step]) -> list[dict[str, Any]]:
    """What a run left, for programs: where each step is, and its rows by slice."""
    return [
        {
            "step": step.name,
            "state": step.state.value,
            "reason": step.reason,
            "repo": step.repo,
            "tag": step.found.tag if step.found else None,
            "rows": {
                name: record.rows.model_dump()
                for name, record in (step.found.manifest.slices if step.found else {}).items()
            },
            "seconds": step.found.manifest.cost.wall_seconds if step.found else None,
            "alarms": step.found.manifest.stats.get("alarms", []) if step.found else [],
        }
        for step in steps
    ]


def alarms(steps: list[Step]) -> list[str]:
    """What a person should look at in the trainings before their adapters are trusted."""
    return [
        f"look at {step.name}: {alarm}"
        for step in steps
        if step.found is not None
        for alarm in step.found.manifest.stats.get("alarms", [])
    ]


def rows_table(steps: list[Step]) -> Table:
    """Rows in, out and dropped, by step and slice."""
    table = Table(title="Rows", title_justify="left")
    table.add_column("step")
    table.add_column("slice")
    for column in ("in", "out", "dropped"):
        table.add_column(column, justify="right")
    table.add_column("why dropped", overflow="fold")
    for step in steps:
        if step.state is State.BLOCKED or step.found is None:
            table.add_row(step.name, "", "", "", "", f"{step.state.value}: {step.reason}")
            continue
        for name, record in step.found.manifest.slices.items():
            rows = record.rows
            reasons = ", ".join(f"{reason} {n}" for reason, n in rows.dropped.items())
            dropped = sum(rows.dropped.values())
            table.add_row(step.name, name, str(rows.into), str(rows.out), str(dropped), reasons)
    return table


def comparison_table(manifest: Manifest) -> Table:
    """Who won, by language, as the judge step found it."""
    stats = manifest.stats
    notes = "; ".join(stats["notes"])
    at = f" at {stats['judge_revision'][:15]}" if stats["judge_revision"] else ""
    at = ", served, not pinned" if "served" in stats else at
    table = Table(
        title=f"Tuned against base, judged by {stats['judge']}{at}"
        + (f": {notes}" if notes else ""),
        title_justify="left",
    )
    rewards = any("mean_reward_model" in row for row in stats["comparisons"])
    table.add_column("adapter")
    table.add_column("language")
    for column in ("won", "tied", "lost", "unread"):
        table.add_column(column, justify="right")
    for column in ("reward before", "after") if rewards else ():
        table.add_column(column, justify="right")
    table.add_column("win rate, 95 % interval", overflow="fold")
    for row in stats["comparisons"]:
        means = [row.get(f"mean_reward_{side}") for side in ("reference", "model")]
        table.add_row(
            row["model"],
            row["language"],
            *(str(row[name]) for name in ("won", "tied", "lost", "unparseable")),
            *((_figure(mean, ".2f") for mean in means) if rewards else ()),
            row.get("shown", "no verdict"),
        )
    return table


_DOUBTS = """\
in language: answers in another language than their question counted as lost
equal length: the length-controlled win rate; phi: what length is worth to the judge
bounds: had all unread verdicts gone against it, or for it; same: said in both orders
LPR: answers without a line in another language, before and after"""
_WORDS = "\nWPR: of these, answers without an English word (languages in another script)"


def doubts_table(manifest: Manifest) -> Table:
    """What else could explain a win rate: length, language, verdicts that nobody could read, the
    order of the answers, questions that were trained on."""
    stats = manifest.stats
    seen = sum(one["seen"] for one in stats["seen_in_training"].values())
    warned = f"\n{seen} questions are among the prompts of training: see the card" if seen else ""
    sides = ("reference", "model")
    words = any(
        row.get(f"word_pass_rate_{s}") is not None for row in stats["comparisons"] for s in sides
    )
    table = Table(
        title="What else could explain it",
        title_justify="left",
        caption=_DOUBTS + (_WORDS if words else "") + warned,
        caption_justify="left",
    )
    table.add_column("adapter")
    table.add_column("language")
    columns = ("win rate", "in language", "equal length", "phi", "bounds", "same", "LPR")
    for column in (*columns, "WPR") if words else columns:
        table.add_column(column, justify="right", overflow="fold")
    for row in stats["comparisons"]:
        controlled, bounds = row.get("lc_minimal_chars") or {}, row["bounds"]
        rates = [
            ", ".join(
                _figure(row.get(f"{kind}_pass_rate_{side}"), ".0f") or "none" for side in sides
            )
            for kind in (("line", "word") if words else ("line",))
        ]
        table.add_row(
            row["model"],
            row["language"],
            _figure((row.get("win_rate") or {}).get("rate"), ".1f"),
            _figure((row.get("in_language") or {}).get("rate"), ".1f"),
            _figure(controlled.get("rate"), ".1f") or str(controlled.get("flag") or ""),
            _figure(controlled.get("phi"), "+.2f"),
            f"{bounds['worst']:.1f} to {bounds['best']:.1f}",
            _figure((row.get("consistency") or {}).get("same_share"), ".0f"),
            *rates,
        )
    return table


_AUDIT = """\
spread: how far answers to one prompt lie apart, which is what pairs are made of
by length: rank correlation with length within a prompt; at 1 it measures nothing else
to English, times: how far off and how many times as wide; raw rewards are not comparable
as in English: whether prompts rank alike by mean reward, each language having other answers
pairs right: of those whose better answer is known; chance is half. Sentences are on the card."""


def audit_table(manifest: Manifest) -> Table:
    """What the score step found out about its reward model, language by language."""
    table = Table(
        title="Is the reward model blind here?",
        title_justify="left",
        caption=_AUDIT,
        caption_justify="left",
    )
    table.add_column("language")
    for column in ("spread", "by length", "to English", "times", "as in English", "pairs right"):
        table.add_column(column, justify="right")
    table.add_column("suspect", overflow="fold")
    for name, figures in manifest.stats["audit"]["by_language"].items():
        table.add_row(
            name,
            _figure(figures["spread"], ".3g"),
            _figure(figures["length_chars"], "+.2f"),
            _figure(figures.get("offset"), "+.3g"),
            _figure(figures.get("scale"), ".2f"),
            _figure(figures["agreement"].get("en"), "+.2f"),
            f"{figures['pairs_right']} of {figures['pairs']}" if figures["pairs"] else "",
            "; ".join(figures["blind"]),
        )
    return table


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def repos_table(steps: list[Step]) -> Table:
    """Where everything was published."""
    table = Table(title="Repos", title_justify="left")
    for column in ("repo", "kind", "tag"):
        table.add_column(column, overflow="fold")
    for step in steps:
        if step.found is not None:
            kind = step.found.manifest.kind
            table.add_row(step.repo, kind, step.found.tag or "not published")
    return table

"""Tables of a plan, a run and its results, and the same as records for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from factory.artifacts.manifest import Manifest
from factory.cli.bar import format_bytes
from factory.execution.log import duration
from factory.planning.estimate import Estimate
from factory.planning.lock import Lock
from factory.planning.plan import State, Step
from factory.reports.learning import behaviour
from factory.reports.win_rates import describe_blind
from factory.stage.readers import is_file

if TYPE_CHECKING:
    from factory.errors import Check
    from factory.execution.checks import Elsewhere
    from factory.hub.client import Hub
    from factory.slurm.costs import StepCost
    from factory.stage.inputs import ExternalInput


_FOLD = 26  # characters of a cell that may go on in the next line


class Fitted:
    """Lines of figures as one table, or as several where their columns do not fit the terminal.
    Each begins with the first `lead` columns. Title and caption go over the whole width."""

    def __init__(
        self,
        title: str,
        header: Sequence[str],
        lines: Sequence[Sequence[str]],
        lead: int = 1,
        caption: str = "",
    ) -> None:
        self._title, self._caption = title, caption
        self._header, self._lines, self._lead = header, lines, lead

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield console.render_str(self._title, style="table.title")
        columns = list(zip(self._header, *self._lines, strict=True))
        sizes = [min(max(map(len, column)), _FOLD) + 3 for column in columns]
        blocks: list[list[int]] = [[]]
        for number in range(self._lead, len(columns)):
            used = 1 + sum(sizes[: self._lead]) + sum(sizes[n] for n in blocks[-1])
            if blocks[-1] and used + sizes[number] > options.max_width:
                blocks.append([])
            blocks[-1].append(number)
        for block in blocks:
            table = Table()
            shown = (*range(self._lead), *block)
            for number in shown:
                words = number < self._lead or max(map(len, columns[number])) > _FOLD
                table.add_column(
                    self._header[number], overflow="fold", justify="left" if words else "right"
                )
            for line in self._lines:
                table.add_row(*(line[number] for number in shown))
            yield table
        if self._caption:
            yield console.render_str(self._caption, style="table.caption")


def titled(title: str, texts: Sequence[str], numbers: Sequence[str] = ()) -> Table:
    """Return an empty table with columns of text, which fold, and then of numbers."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    return table


_WIDE = 100  # columns that a plan takes with the names of repos, which follow from those of steps


def plan_table(steps: list[Step], estimates: Mapping[str, Estimate], width: int = _WIDE) -> Table:
    """Tabulate steps with state, reason, and work to do: rows, shards, time at the last rate. Repos
    are left out where they do not fit."""
    table = titled("Plan", ("step", "state", "reason"), ("rows", "shards", "time"))
    if width >= _WIDE:
        table.add_column("repo", overflow="fold")
    for step in steps:
        estimate, amounts = estimates[step.name], ("", "", "")
        if step.state is State.RUN and estimate.rows is not None:
            stand = f" (+{estimate.there:,} done)" if estimate.there else ""
            about = "" if estimate.seconds is None else duration(estimate.seconds)
            amounts = (
                f"{estimate.rows:,}{stand}",
                f"{estimate.shards:,}" if estimate.shards else "",
                about,
            )
        repo = [step.repo] if width >= _WIDE else []
        table.add_row(step.name, step.state.value, step.reason, *amounts, *repo)
    runs = [estimates[step.name] for step in steps if step.state is State.RUN]
    if any(run.seconds for run in runs):
        table.caption = _sum(
            duration(sum(run.seconds or 0.0 for run in runs)),
            [run.gpu_hours for run in runs],
            {run.device for run in runs if run.seconds},
            [s.name for s in steps if s.state is State.RUN and estimates[s.name].seconds is None],
        )
    return table


def absent_table(
    unmet: Sequence[Check],
    needs: Sequence[ExternalInput],
    hub: Hub,
    elsewhere: Elsewhere,
) -> Table:
    """Tabulate what a recipe names and this hub lacks, with its size and licence on another."""
    table = Table(title=f"Not in {hub.called}", title_justify="left", caption_justify="left")
    for column in ("place", "what", "licence", "size"):
        table.add_column(column, overflow="fold", justify="right" if column == "size" else "left")
    total = 0
    for finding, need in zip(unmet, needs, strict=True):
        size, license = elsewhere.sizes.get(need, ""), elsewhere.licenses.get(need)
        total += size if isinstance(size, int) else 0
        table.add_row(
            finding.name,
            f"{'file' if is_file(need.source) else need.kind} {need.source}",
            license.id if license else "none stated" if need in elsewhere.licenses else "",
            format_bytes(size) if isinstance(size, int) else size,
        )
    table.caption = f"Total: {format_bytes(total)}"
    if elsewhere.unknown:
        table.caption = f"Sizes and licences unknown: {elsewhere.unknown}"
    return table


def _sum(
    time: str, hours: Sequence[float | None], devices: set[str | None], unknown: Sequence[str]
) -> str:
    """Return the caption of a plan: total time, steps without an estimate, devices of the rates."""
    spent = sum(value or 0.0 for value in hours)
    gpu_hours = f", {spent:.3g} GPU-hours" if spent else ""
    by = ", ".join(sorted(value for value in devices if value))
    unestimated = f"\nWithout an estimate: {', '.join(unknown)}" if unknown else ""
    return f"Total: {time}{gpu_hours}, at the rate of the last runs ({by}){unestimated}"


def costs_table(site: str, costs: Sequence[StepCost]) -> Table:
    """Tabulate the estimated costs of each step on a cluster."""
    numbers = ("tasks", "nodes", "GPUs per node", "time", "GPU-hours", "node-hours")
    table = titled(f"On {site}", ("step",), numbers)
    for cost in costs:
        table.add_row(
            cost.step,
            str(cost.tasks),
            str(cost.tasks * cost.nodes),
            str(cost.gpus or ""),
            "" if cost.seconds is None else duration(cost.seconds),
            _figure(cost.gpu_hours or None, ".3g"),
            _figure(cost.node_hours, ".3g"),
        )
    timed = [cost for cost in costs if cost.seconds is not None]
    if timed:
        nodes = sum(cost.node_hours or 0.0 for cost in timed)
        table.caption = _sum(
            f"{duration(sum(cost.seconds or 0.0 for cost in timed))} without queueing, "
            f"{nodes:.3g} node-hours",
            [cost.gpu_hours for cost in timed],
            {cost.device for cost in timed if cost.seconds},
            [cost.step for cost in costs if cost.seconds is None],
        )
    return table


def lock_table(old: Lock | None, new: Lock) -> Table:
    """Tabulate pins, with their old digests if they changed."""
    table = titled("Lock", ("source", "commit", "content", ""))
    for source, pin in sorted(new.pins.items()):
        was = old.pins.get(source) if old else None
        change = (
            "new" if was is None else "" if was.digest == pin.digest else f"was {was.digest[:12]}"
        )
        table.add_row(source, (pin.revision or "a file")[:12], pin.digest[:12], change)
    return table


def plan_json(
    steps: list[Step], estimates: Mapping[str, Estimate], costs: Sequence[StepCost] | None = None
) -> list[dict[str, Any]]:
    """Return a plan as records; `site` is the cost of a step on a cluster, if one was named."""
    by_step = {cost.step: asdict(cost) for cost in costs or ()}
    return [
        {
            "step": step.name,
            "state": step.state.value,
            "reason": step.reason,
            "repo": step.repo,
            "fingerprint": step.fingerprint,
            "slices": {part.spec.name: part.fingerprint for part in step.slices},
            "tag": step.found.tag if step.found else None,
            **asdict(estimates[step.name]),
            **({} if costs is None else {"site": by_step.get(step.name)}),
        }
        for step in steps
    ]


def run_json(steps: list[Step]) -> list[dict[str, Any]]:
    """Return a run as records: each step's state and its rows by slice."""
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
            "alarms": _alarms(step.found.manifest) if step.found else [],
        }
        for step in steps
    ]


def alarms(steps: list[Step]) -> list[str]:
    """Return what to look at before a step's output is used."""
    return [
        f"look at {step.name}: {alarm}"
        for step in steps
        if step.found is not None
        for alarm in _alarms(step.found.manifest)
    ]


def _alarms(manifest: Manifest) -> list[str]:
    """Return the alarms of a training, and whether different engines made the rows of a step."""
    engines = manifest.stats.get("engines") or {}
    if len({name.partition(" ")[0] for name in engines}) < 2:
        return list(manifest.stats.get("alarms", []))
    shards = ", ".join(f"{name} {count}" for name, count in engines.items())
    return [f"different engines made its rows, in shards: {shards}; how.engine names one of them"]


def rows_table(steps: list[Step]) -> Table:
    """Tabulate rows in, out and dropped, by step; slices that dropped rows have a row of their
    own."""
    table = titled("Rows", ("step", "slices"), ("in", "out", "dropped"))
    table.add_column("drop reasons", overflow="fold")
    for step in steps:
        if step.state is State.BLOCKED or step.found is None:
            table.add_row(step.name, "", "", "", "", f"{step.state.value}: {step.reason}")
            continue
        slices = {name: record.rows for name, record in step.found.manifest.slices.items()}
        complete = [name for name, rows in slices.items() if not rows.dropped]
        if complete:
            into, out = (sum(getattr(slices[name], part) for name in complete) for part in _PARTS)
            table.add_row(step.name, ", ".join(complete), str(into), str(out), "0", "")
        for name, rows in slices.items():
            if rows.dropped:
                reasons = ", ".join(f"{reason} {n}" for reason, n in rows.dropped.items())
                dropped = sum(rows.dropped.values())
                table.add_row(step.name, name, str(rows.into), str(rows.out), str(dropped), reasons)
    return table


_PARTS = ("into", "out")


def comparison_table(manifest: Manifest) -> Fitted:
    """Tabulate wins, ties and losses by language, as judged."""
    stats = manifest.stats
    notes = "; ".join(stats["notes"])
    at = f" at {stats['judge_revision'][:15]}" if stats["judge_revision"] else ""
    at = ", served, not pinned" if "served" in stats else at
    rows = stats["comparisons"]
    extra: dict[str, list[str]] = {}
    if any(row["unparseable"] for row in rows):
        extra["unparsed"] = [str(row["unparseable"]) for row in rows]
    if any("mean_reward_model" in row for row in rows):
        for name, side in (("reward before", "reference"), ("after", "model")):
            extra[name] = [_figure(row.get(f"mean_reward_{side}"), ".2f") for row in rows]
    if any("ratings" in row for row in rows):
        for name, side in (("rating before", "reference"), ("after", "model")):
            extra[name] = [_figure(row.get("ratings", {}).get(side), ".2f") for row in rows]
        extra["difference"] = [row.get("ratings", {}).get("shown", "") for row in rows]
    lines = [
        [
            row["model"],
            row["language"],
            " / ".join(str(row[name]) for name in ("won", "tied", "lost")),
            "; ".join(
                (
                    row.get("shown", "no verdict"),
                    *describe_blind(row["language"], stats.get("judge_blind", {})),
                )
            ),
            *(column[number] for column in extra.values()),
        ]
        for number, row in enumerate(rows)
    ]
    return Fitted(
        f"Tuned against base, judged by {stats['judge']}{at}" + (f": {notes}" if notes else ""),
        ["adapter", "language", "won / tied / lost", "win rate, 95 % interval", *extra],
        lines,
        lead=2,
    )


def jury_tables(manifest: Manifest) -> list[Fitted]:
    """Tabulate the judges of a jury: their win rates, and their agreement. None for one judge."""
    stats = manifest.stats
    rows = [row for row in stats["comparisons"] if "judges" in row]
    judges = list(dict.fromkeys(judge for row in rows for judge in row["judges"]))
    if not rows:
        return []
    return [
        Fitted(
            "Win rates by each judge",
            ["adapter", "language", "mean of judges", *judges],
            [
                [
                    row["model"],
                    row["language"],
                    *(_rate(rate) for rate in (row["jury_mean"], *map(row["judges"].get, judges))),
                ]
                for row in rows
            ],
            lead=2,
        ),
        Fitted(
            "Agreement of the judges",
            ["judges", "language", "questions", "same verdict", "kappa"],
            [
                [
                    f"{row['first']}, {row['second']}",
                    row["language"],
                    str(row["compared"]),
                    _figure(row["share"], ".0f") + (" %" if row["compared"] else ""),
                    _figure(row["kappa"], ".2f") or "none",
                ]
                for row in stats["agreement"]
            ],
            lead=2,
            caption="kappa: agreement beyond chance; identical answers are left out",
        ),
    ]


def _rate(rate: Mapping[str, float] | None) -> str:
    return f"{rate['rate']:.1f} [{rate['low']:.1f}, {rate['high']:.1f}]" if rate else ""


_FINISHED = """\
finish rate: % of answers that end before the token limit; no reward has a part in it
difference: tuned less base, in points, on the same questions"""


def finish_table(manifest: Manifest) -> Fitted | None:
    """Tabulate finish rates of base and tuned models; None where no answer says how it ended."""
    rows = [row for row in manifest.stats["comparisons"] if "finish_rates" in row]
    if not rows:
        return None
    lines = []
    for row in rows:
        rates = row["finish_rates"]
        sides = (f"{rates[side]:.1f} %" for side in ("reference", "model"))
        lines.append([row["model"], row["language"], str(rates["answers"]), *sides, rates["shown"]])
    header = ["adapter", "language", "answers", "base", "tuned", "difference, 95 % interval"]
    return Fitted("Finish rate", header, lines, 2, _FINISHED)


_DOUBTS = {
    "in language": "win rate with answers in the wrong language counted as losses",
    "equal length": "win rate at equal length; phi: the judge's length preference",
    "equal style": "win rate at equal length and equal markdown",
    "bounds": "win rate if all unparsed verdicts were losses, or wins",
    "consistency": "% of questions with the same verdict in both orders",
    "LPR": "line pass rate (% of answers without a line in another language), base and tuned",
    "WPR": "word pass rate (% of those without an English word; non-Latin scripts)",
}


def doubts_table(manifest: Manifest) -> Fitted:
    """Tabulate other explanations of a win rate: length, style, language, unparsed verdicts, order
    of the answers, questions that were in training. Columns without a figure are left out."""
    stats = manifest.stats
    n_seen = sum(counts["seen"] for counts in stats["seen_in_training"].values())
    columns: dict[str, list[str]] = {}
    for row in stats["comparisons"]:
        controlled, bounds = row.get("lc_minimal_chars") or {}, row["bounds"]
        style = row.get("style_controlled") or {}
        unparsed = bounds["worst"] != bounds["best"]
        figures = {
            "in language": _figure((row.get("in_language") or {}).get("rate"), ".1f"),
            "equal length": _figure(controlled.get("rate"), ".1f")
            or str(controlled.get("flag") or ""),
            "phi": _figure(controlled.get("phi"), "+.2f"),
            "equal style": _figure(style.get("rate"), ".1f") or str(style.get("flag") or ""),
            "bounds": f"{bounds['worst']:.1f} to {bounds['best']:.1f}" if unparsed else "",
            "consistency": _figure((row.get("consistency") or {}).get("same_share"), ".0f"),
        }
        for name, kind in (("LPR", "line"), ("WPR", "word")):
            rates = [row.get(f"{kind}_pass_rate_{side}") for side in ("reference", "model")]
            any_rate = any(rate is not None for rate in rates)
            figures[name] = (
                ", ".join(_figure(r, ".0f") or "none" for r in rates) if any_rate else ""
            )
        for name, text in figures.items():
            columns.setdefault(name, []).append(text)
    columns = {name: texts for name, texts in columns.items() if any(texts)}
    captions = [f"{name}: {text}" for name, text in _DOUBTS.items() if name in columns]
    if n_seen:
        captions.append(f"{n_seen} questions are among the training prompts: see the card")
    lines = [
        [row["model"], row["language"], *(texts[number] for texts in columns.values())]
        for number, row in enumerate(stats["comparisons"])
    ]
    header = ["adapter", "language", *columns]
    return Fitted("Win rate controls", header, lines, 2, "\n".join(captions))


_AUDIT = """\
spread: mean standard deviation of rewards within a prompt
length corr.: rank correlation of reward and length within a prompt; at 1 it measures only length
offset, std ratio: mean and standard deviation against English; raw rewards are not comparable
rank corr. with en: rank correlation with English of prompts' mean rewards
accuracy: preference pairs with a known better answer that it ranks right; chance is half"""


def behaviour_table(steps: list[Step]) -> Table | None:
    """Tabulate what tuned models draw beside their bases; None without any."""
    drawn = [
        (step.name, probed)
        for step in steps
        if step.found and (probed := behaviour(step.found.manifest.stats))
    ]
    if not drawn:
        return None
    table = titled("Answers drawn after training", ("adapter", "measure"), ("base", "tuned"))
    table.caption = "\n".join(dict.fromkeys(probed.about for _, probed in drawn))
    for name, probed in drawn:
        for number, row in enumerate(probed.rows):
            table.add_row("" if number else name, *row, end_section=row == probed.rows[-1])
    return table


_AUDIT_COLUMNS = (
    "spread", "length corr.", "offset to en", "std ratio", "rank corr. with en", "accuracy",
)  # fmt: skip


def audit_table(manifest: Manifest) -> Fitted:
    """Tabulate the audit of a reward model by language."""
    lines = [
        [
            name,
            _figure(figures["spread"], ".3g"),
            _figure(figures["length_chars"], "+.2f"),
            _figure(figures.get("offset"), "+.3g"),
            _figure(figures.get("scale"), ".2f"),
            _figure(figures["agreement"].get("en"), "+.2f"),
            f"{figures['pairs_right']} of {figures['pairs']}" if figures["pairs"] else "",
            "; ".join(figures["blind"]),
        ]
        for name, figures in manifest.stats["audit"]["by_language"].items()
    ]
    header = ["language", *_AUDIT_COLUMNS, "warnings"]
    return Fitted("Reward model audit", header, lines, 1, _AUDIT)


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def repos_table(steps: list[Step]) -> Table:
    """Tabulate repos, with their tags."""
    table = titled("Repos", ("repo", "kind", "tag"))
    for step in steps:
        if step.found is not None:
            kind = step.found.manifest.kind
            table.add_row(step.repo, kind, step.found.tag or "not published")
    return table

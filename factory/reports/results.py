"""One tidy table over all evaluations of a collection: a row for each number. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from factory.artifacts.manifest import Manifest
from factory.reports import values
from factory.reports.benchmarks import deltas, scores
from factory.reports.win_rates import Rate, win_rates

ACCURACY = "pair accuracy"  # of a reward model


@dataclass(frozen=True)
class Result:
    """One number of `model` in `language` (`all`: over all of them).

    `evaluation` is the benchmark, or the repo of the answers; `against` the model that `value` is
    compared with, "" for a score alone; `by` the tool or judge that measured it. Numbers by
    different measurers are not comparable. `value` is None where there is none, and `note` says
    why. `fingerprint` and `repo` are of the artifact that holds it."""

    model: str
    language: str
    evaluation: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    against: str
    by: str
    significant: bool | None
    note: str
    repo: str
    fingerprint: str


def tidy(manifests: Iterable[Manifest]) -> list[Result]:
    """Return every score, delta, win rate and pair accuracy of these manifests, artifact by
    artifact."""
    rows: list[Result] = []
    for manifest in manifests:
        if manifest.kind == "results":
            rows += [*_scores(manifest), *_deltas(manifest)]
        elif manifest.kind == "verdicts":
            rows += _win_rates(manifest)
        elif manifest.kind == "rankings":
            rows += _accuracies(manifest)
    return rows


def _scores(manifest: Manifest) -> Iterator[Result]:
    by = _tool(manifest)
    for row in scores(manifest):
        note = "" if row.status == "ok" else row.status
        yield Result(row.model, row.language, row.dataset, row.metric, row.value, row.low, row.high,
                     "", by, None, note, manifest.repo, manifest.fingerprint)  # fmt: skip


def _deltas(manifest: Manifest) -> Iterator[Result]:
    by = _tool(manifest)
    for row in deltas(manifest):
        yield Result(row.model, row.language, row.dataset, f"{row.metric} delta", row.change,
                     row.low, row.high, row.reference, by, row.significant, row.why,
                     manifest.repo, manifest.fingerprint)  # fmt: skip


def _win_rates(manifest: Manifest) -> Iterator[Result]:
    """Yield every rate of every comparison: plain, in language, of equal length, …"""
    answers, judge = _answers(manifest), str(manifest.stats.get("judge", ""))
    for row in win_rates(manifest):
        for metric, rate in (row.rates or {"win_rate": Rate()}).items():
            low, high = rate.low, rate.high
            decided = None if low is None or high is None else low > 50 or high < 50
            unread = () if rate.rate is not None else ("no verdict could be read",)
            note = "; ".join((*unread, *row.blind))
            yield Result(row.model, row.language, answers, metric, rate.rate, low, high,
                         row.reference, judge, decided, note, manifest.repo,
                         manifest.fingerprint)  # fmt: skip


def _accuracies(manifest: Manifest) -> Iterator[Result]:
    """Yield the share of pairs that each reward model ranks right in each language, in percent."""
    for cell in values.mappings(manifest.stats.get("matrix")):
        share, low, high = (
            None if (value := values.number(cell.get(name))) is None else 100 * value
            for name in ("share", "low", "high")
        )
        decided = None if low is None or high is None else low > 50 or high < 50
        note = "" if share is not None else str(cell.get("shown", "no pair has rewards"))
        yield Result(str(cell.get("reward_model")), str(cell.get("language")),
                     _read(manifest, "pairs", "pairs"), ACCURACY, share, low, high, "", "", decided,
                     note, manifest.repo, manifest.fingerprint)  # fmt: skip


def _answers(manifest: Manifest) -> str:
    """Return the repo of the answers that were judged."""
    return _read(manifest, "answers", "arena")


def _read(manifest: Manifest, role: str, default: str) -> str:
    """Return the repo, source or step of what is read as `role`."""
    read = [r for s in manifest.slices.values() for r in s.inputs if r.role == role]
    return str(read[0].repo or read[0].source or read[0].step) if read else default


def _tool(manifest: Manifest) -> str:
    stats = manifest.stats
    shots = "few-shot" if stats.get("few_shot") else "zero-shot"
    return f"EuroEval {stats.get('tool_version')}, {stats.get('backend')}, {shots}"

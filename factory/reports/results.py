"""One tidy table over all evaluations of a collection: a row for each number. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from factory.artifacts.manifest import Manifest

ALL = "all"  # over all languages


@dataclass(frozen=True)
class Result:
    """One number: what was found of `model` in `language` (`all`: over all of them).

    `evaluation` is the benchmark, or the questions that were answered; `against` what `value` is
    compared with, "" for a score that stands alone; `by` who measured: EuroEval's backend, or the
    judge. Numbers by different measurers are not comparable. `value` is null where there is none,
    and `note` says why. `fingerprint` and `repo` are of the artifact it stands in."""

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
    """Every score, delta and win rate that these manifests hold, artifact by artifact."""
    found: list[Result] = []
    for manifest in manifests:
        if manifest.kind == "results":
            found += _scores(manifest)
            found += _deltas(manifest)
        elif manifest.kind == "verdicts":
            found += _win_rates(manifest)
    return found


def _scores(manifest: Manifest) -> Iterator[Result]:
    for row in manifest.stats.get("scores", []):
        yield Result(
            model=row["model"],
            language=row["language"],
            evaluation=row["dataset"],
            metric=row["metric"],
            value=row["value"],
            ci_low=row["ci_low"],
            ci_high=row["ci_high"],
            against="",
            by=_tool(manifest),
            significant=None,
            note="" if row["status"] == "ok" else row["status"],
            repo=manifest.repo,
            fingerprint=manifest.fingerprint,
        )


def _deltas(manifest: Manifest) -> Iterator[Result]:
    for row in manifest.stats.get("deltas", []):
        yield Result(
            model=row["model"],
            language=row["language"],
            evaluation=row["dataset"],
            metric=f"{row['metric']} delta",
            value=row["delta"],
            ci_low=row["low"],
            ci_high=row["high"],
            against=row["reference"],
            by=_tool(manifest),
            significant=row["significant"],
            note=row["why"],
            repo=manifest.repo,
            fingerprint=manifest.fingerprint,
        )


def _win_rates(manifest: Manifest) -> Iterator[Result]:
    """Every rate of a comparison, whatever it is called: it has rate, low and high, in percent."""
    questions = _questions(manifest)
    for row in manifest.stats.get("comparisons", []):
        rates = {key: rate for key, rate in row.items() if _is_rate(rate)}
        for metric, rate in (rates or {"win_rate": {}}).items():
            low, high = rate.get("low"), rate.get("high")
            apart = None if low is None or high is None else low > 50 or high < 50
            yield Result(
                model=row["model"],
                language=row.get("language", ALL),
                evaluation=questions,
                metric=metric,
                value=rate.get("rate"),
                ci_low=low,
                ci_high=high,
                against=row["reference"],
                by=str(manifest.stats.get("judge", "")),
                significant=apart,
                note="" if rate.get("rate") is not None else "no verdict could be read",
                repo=manifest.repo,
                fingerprint=manifest.fingerprint,
            )


def _is_rate(value: Any) -> bool:
    return isinstance(value, Mapping) and {"rate", "low", "high"} <= value.keys()


def _questions(manifest: Manifest) -> str:
    """What the answers were to: the arena, by the repo it stands in."""
    read = [r for s in manifest.slices.values() for r in s.inputs if r.role == "answers"]
    return str(read[0].repo or read[0].step) if read else "arena"


def _tool(manifest: Manifest) -> str:
    stats = manifest.stats
    shots = "few-shot" if stats.get("few_shot") else "zero-shot"
    return f"EuroEval {stats.get('tool_version')}, {stats.get('backend')}, {shots}"

"""Benchmarks that EuroEval has for a language, by version. Pure: read from registry.json for the
default version, from registry-<version>.json for another: what each version says of itself
(inside/list_benchmarks.py)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from factory.errors import nearest

Choice = Literal["paper", "official"]
Version = Literal["17.0.0", "18.0.0"]
DEFAULT: Version = "17.0.0"
VERSIONS: tuple[Version, ...] = (DEFAULT, "18.0.0")

# What CroCo evaluates on (its script 5_run_euroeval.sh), with two entries corrected.
PAPER: dict[str, tuple[str, ...]] = {
    "da": ("dala", "danish-entailment", "danish-lexical-inference", "danwic", "multi-wiki-qa-da",
           "danske-talemaader", "danish-citizen-tests", "ifeval-da"),
    "nl": ("scala-nl", "squad-nl", "include-nl", "copa-nl", "multiloko-nl"),
    "en": ("scala-en", "wic", "squad", "life-in-the-uk", "mmlu-pro", "ifeval", "multiloko-en"),
    "fr": ("scala-fr", "fquad", "mmlu-fr", "include-fr", "multinrc-fr", "ifeval-fr",
           "multiloko-fr"),
    "de": ("scala-de", "germanquad", "mmlu-de", "include-de", "ifeval-de", "multiloko-de"),
    "it": ("scala-it", "wic-ita", "mmlu-it", "include-it", "ifeval-it"),
    "es": ("scala-es", "mlqa-es", "include-es", "multinrc-es", "ifeval-es", "multiloko-es"),
    "no": ("norquad", "nrk-quiz-qa", "idioms-no", "mmlu-no", "nor-common-sense-qa"),
    "sv": ("multi-wiki-qa-sv", "mmlu-sv", "skolprov", "multiloko-sv", "hellaswag-sv"),
    # there it is multi-wiki-qa-sv, which is Swedish
    "pt": ("multi-wiki-qa-pt", "mmlu-pt", "multiloko-pt", "goldenswag-pt"),
    # there it is tidyqa-fi, which no version of EuroEval has
    "fi": ("tydiqa-fi", "include-fi", "hellaswag-fi"),
}  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: its task, the languages it is in, the Hub dataset it reads, its metrics with
    the script that each needs (None for one that is built in; the first metric is the one the
    leaderboards show), whether it is in the official suites, and whether every iteration draws
    its rows anew."""

    name: str
    task: str
    languages: tuple[str, ...]
    source: str
    metrics: Mapping[str, str | None]
    official: bool
    drawn_anew: bool


def parsed(listing: Mapping[str, Any]) -> dict[str, Benchmark]:
    """Return benchmarks by name, from what list_benchmarks.py prints. Those that measure no quality
    (speed) or read no dataset of the Hub are left out."""
    return {
        name: Benchmark(
            name=name,
            task=entry["task"],
            languages=tuple(entry["languages"]),
            source=entry["source"],
            metrics=entry["metrics"],
            official=entry["official"],
            drawn_anew=entry["drawn_anew"],
        )
        for name, entry in listing["benchmarks"].items()
        if entry["source"] and entry["task"] != "speed"
    }


@cache
def registry(version: Version = DEFAULT) -> dict[str, Benchmark]:
    """Return every benchmark of a version by name."""
    name = "registry.json" if version == DEFAULT else f"registry-{version}.json"
    text = resources.files("factory.evaluation.euroeval").joinpath(name).read_text("utf-8")
    return parsed(json.loads(text))


def suite(language: str, choice: Choice, version: Version = DEFAULT) -> tuple[str, ...]:
    """Return the benchmarks of a language; none where EuroEval has no suite (gl ga cy mt and
    others). The paper's list where it has none for the language is the official suite."""
    official = tuple(
        name
        for name, benchmark in registry(version).items()
        if benchmark.official and language in benchmark.languages
    )
    return PAPER.get(language, official) if choice == "paper" else official


def complaint(name: str, language: str, version: Version = DEFAULT) -> str | None:
    """Return why a benchmark cannot be had in a language, with the nearest name that can; None if
    it can."""
    benchmarks = registry(version)
    if name not in benchmarks:
        return f"EuroEval {version} has no benchmark {name!r}{nearest(name, benchmarks)}"
    if language not in benchmarks[name].languages:
        stem = name.rpartition("-")[0]
        twin = f"{stem}-{language}"
        hint = f" (did you mean {twin!r}?)" if twin in benchmarks else ""
        return f"{name} is in {', '.join(benchmarks[name].languages)}, not in {language}{hint}"
    return None


def scripts(benchmarks: Iterable[Benchmark]) -> list[str]:
    """Return the metric scripts that these benchmarks need."""
    needed = [script for benchmark in benchmarks for script in benchmark.metrics.values() if script]
    return list(dict.fromkeys(needed))

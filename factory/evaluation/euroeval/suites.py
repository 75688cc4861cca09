"""Which benchmarks EuroEval has for a language. Pure: read from registry.json, which is what the
pinned version says of itself (inside/list_benchmarks.py)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from factory.errors import nearest

Choice = Literal["paper", "official"]

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
    """Benchmarks by name, of what list_benchmarks.py prints. Those that measure no quality
    (speed) or read no dataset of the Hub are left out."""
    return {
        name: Benchmark(
            name=name,
            task=said["task"],
            languages=tuple(said["languages"]),
            source=said["source"],
            metrics=said["metrics"],
            official=said["official"],
            drawn_anew=said["drawn_anew"],
        )
        for name, said in listing["benchmarks"].items()
        if said["source"] and said["task"] != "speed"
    }


@cache
def _listing() -> Any:
    text = (
        resources.files("factory.evaluation.euroeval").joinpath("registry.json").read_text("utf-8")
    )
    return json.loads(text)


def version() -> str:
    """The version of EuroEval that the registry is of."""
    return str(_listing()["version"])


@cache
def registry() -> dict[str, Benchmark]:
    """Every benchmark by name."""
    return parsed(_listing())


def suite(language: str, choice: Choice) -> tuple[str, ...]:
    """The benchmarks of a language; none where EuroEval has no suite (gl ga cy mt and others).
    The paper's list where it has none for the language is the official suite."""
    official = tuple(
        name for name, one in registry().items() if one.official and language in one.languages
    )
    return PAPER.get(language, official) if choice == "paper" else official


def complaint(name: str, language: str) -> str | None:
    """What is wrong with asking for a benchmark in a language, with the nearest right word."""
    known = registry()
    if name not in known:
        return f"EuroEval {version()} has no benchmark {name!r}{nearest(name, known)}"
    if language not in known[name].languages:
        stem = name.rpartition("-")[0]
        twin = f"{stem}-{language}"
        hint = f" (did you mean {twin!r}?)" if twin in known else ""
        return f"{name} is in {', '.join(known[name].languages)}, not in {language}{hint}"
    return None


def scripts(names: Iterable[str]) -> list[str]:
    """The metric scripts that these benchmarks need."""
    needed = [script for name in names for script in registry()[name].metrics.values() if script]
    return list(dict.fromkeys(needed))

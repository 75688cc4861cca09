"""Benchmarks of a recipe's own, for languages in which EuroEval has none: anybody's dataset, in the
form of one of EuroEval's tasks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from factory.artifacts.hashing import fingerprint
from factory.errors import InputError, nearest
from factory.evaluation.euroeval.suites import Benchmark, Version, registry
from factory.stage.readers import View
from factory.stage.row_files import BadRow

Split = Literal["train", "val", "test"]
# Columns that EuroEval reads for a task; for all others text and label.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "reading-comprehension": ("context", "question", "answers"),
    "named-entity-recognition": ("tokens", "labels"),
    **dict.fromkeys(("summarization", "translation", "simplification"), ("text", "target_text")),
}
# Tasks whose rows say more than text and label, or whose metric is of one language.
_NOT_OFFERED = ("instruction-following", "tool-calling", "european-values", "speed")
# Where a source has one split: at most so many rows, and at most this share, of each.
_CUT: tuple[tuple[Split, int, int], ...] = (("val", 256, 8), ("train", 1024, 4))
_TEST = 2048  # rows
FILE = "own.json"  # read by inside/custom_datasets.py


class OwnBenchmark(View):
    """A benchmark of one's own. `name`: that of its results. `task`: one of EuroEval's, which
    gives metrics and prompts. `source`: a Hub dataset, read as View has it; `columns` names the
    columns of the task (text and label, or context, question and answers, or text and target_text).
    `choices`: columns with answers to choose from, added to the text as a., b. and so on. `labels`:
    what stands in the label column, to EuroEval's label. `splits`: its own train, val and test; a
    source with one `split` is divided. `max_chars`: of text and context, longer rows are left out.
    `prompts`: the language of the instructions, English where EuroEval has none in the language."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    task: str
    source: str = Field(pattern=r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
    choices: tuple[str, ...] = ()
    labels: dict[str, str] = Field(default_factory=dict)
    splits: dict[Split, str] = Field(default_factory=dict)
    max_chars: int = Field(5000, ge=1)
    prompts: str | None = None

    @model_validator(mode="after")
    def _can_be_read(self) -> OwnBenchmark:
        if self.splits and "test" not in self.splits:
            raise ValueError(f"{self.name}: splits: names no test")
        if self.choices and self.needed() != ("text", "label"):
            raise ValueError(f"{self.name}: {self.task} has no choices")
        return self

    def needed(self) -> tuple[str, ...]:
        """Return the columns that its task reads."""
        return _COLUMNS.get(self.task, ("text", "label"))

    def complaint(self, language: str, version: Version) -> str | None:
        """Return why EuroEval cannot measure it; None if it can."""
        theirs = registry(version)
        tasks = {benchmark.task for benchmark in theirs.values()} - set(_NOT_OFFERED)
        if self.name in theirs:
            return f"{self.name} is a benchmark of EuroEval's: give yours another name"
        if self.task not in tasks:
            return (
                f"{self.name}: no task {self.task!r} for it{nearest(self.task, tasks)}; "
                f"there is {', '.join(sorted(tasks))}"
            )
        languages = self._prompt_languages(version)
        if self.prompts is not None and self.prompts not in languages:
            return (
                f"{self.name}: EuroEval {version} has no prompts for {self.task} in "
                f"{self.prompts}, only {', '.join(sorted(languages))}"
            )
        return None

    def _prompt_languages(self, version: Version) -> set[str]:
        same = (b for b in registry(version).values() if b.task == self.task)
        return {"en", *(code for b in same for code in b.languages)}

    def prompt_language(self, language: str, version: Version) -> str:
        """Return the language of its instructions."""
        has_own = language in self._prompt_languages(version)
        return self.prompts or (language if has_own else "en")

    def benchmark(self, language: str, version: Version) -> Benchmark:
        """Return it as an entry of the registry, with the metrics of its task."""
        twin = next(b for b in registry(version).values() if b.task == self.task)
        return Benchmark(self.name, self.task, (language,), self.source, twin.metrics, False, True)

    def meaning(self) -> dict[str, Any]:
        """Return what changes its rows or its prompts, beside the content of its source."""
        return self.model_dump(mode="json", exclude={"source", "bad_rows"}, exclude_defaults=True)

    def digest(self, content: str) -> str:
        """Return the digest of its rows, from that of its source's content."""
        return fingerprint({"content": content, "own": self.meaning()})

    def rows(
        self, source: Path, language: str
    ) -> tuple[dict[Split, list[dict[str, Any]]], Counter[str]]:
        """Read its rows by split, as EuroEval reads them, and count those left out by reason. A
        source with one split is divided by the hash of each row, so that the same rows fall into
        the same split wherever they lie. Raises InputError."""
        dropped: Counter[str] = Counter()
        if self.splits:
            return {
                ours: self._split(source, language, theirs, dropped)
                for ours, theirs in self.splits.items()
            }, dropped
        rest = sorted(self._split(source, language, self.split, dropped), key=_hash)
        by_split: dict[Split, list[dict[str, Any]]] = {}
        total = len(rest)
        for name, most, share in _CUT:
            count = min(most, total // share)
            by_split[name], rest = rest[:count], rest[count:]
        dropped["beyond_the_test_split"] += max(0, len(rest) - _TEST)
        by_split["test"] = rest[:_TEST]
        if not by_split["val"]:
            raise InputError(
                f"{self.name} has {total} rows, too few to divide", "name its splits as splits:"
            )
        return by_split, +dropped

    def _split(
        self, source: Path, language: str, split: str, dropped: Counter[str]
    ) -> list[dict[str, Any]]:
        view = self.model_copy(update={"split": split})
        name = f"{self.source.partition('@')[0]} ({split})"
        rows: dict[str, dict[str, Any]] = {}
        for row in view.converted_rows(source, language, self._row, dropped, name=name):
            if rows.setdefault(_hash(row), row) is not row:
                dropped["repeated"] += 1
        return list(rows.values())

    def _row(self, row: Mapping[str, Any], where: str) -> dict[str, Any] | str:
        """Return a row in EuroEval's form, or the reason to leave it out."""
        converted: dict[str, Any] = {}
        for column in self.needed():
            value = row.get(column)
            if value is None or value == "":
                raise BadRow(where, f"no {column}", f"name it: columns: {{{column}: theirs}}",
                             f"no_{column}")  # fmt: skip
            converted[column] = value
        if "label" in converted:
            label = str(converted["label"])
            if self.labels and label not in self.labels:
                raise BadRow(where, f"label {label!r}", "name it under labels:", "unknown_label")
            converted["label"] = self.labels.get(label, label)
        if self.choices:
            options = [" ".join(str(row.get(column) or "").split()) for column in self.choices]
            if not all(options):
                raise BadRow(where, "an empty choice", "leave that row out", "no_choice")
            listed = "\n".join(f"{'abcdefghijklmnopqrstuvwxyz'[n]}. {o}"
                               for n, o in enumerate(options))  # fmt: skip
            converted["text"] = f"{str(converted['text']).strip()}\nChoices:\n{listed}"
        if self.task == "reading-comprehension":
            if not (converted["answers"].get("text") or [""])[0]:
                return "no_answer"
            converted["id"] = str(row.get("id") or _hash(converted)[:16])
        size = max(len(str(converted.get(name, ""))) for name in ("text", "context"))
        return converted if size <= self.max_chars else "too_long"


def ready(name: str, language: str) -> OwnBenchmark | None:
    """Return the ready benchmark of a name like multi-wiki-qa-ga in its language, None for no such
    name. Their columns are those that EuroEval's own scripts read of the same datasets; whether
    there are rows in the language shows when they are read."""
    if name == f"multi-wiki-qa-{language}":
        return OwnBenchmark(
            name=name, task="reading-comprehension", source="alexandrainst/multi-wiki-qa"
        )
    if name == f"belebele-{language}":
        return OwnBenchmark(
            name=name,
            task="multiple-choice-reading-comprehension",
            source="facebook/belebele",
            split="test",
            columns={"text": ("flores_passage", "question"), "label": "correct_answer_num"},
            choices=("mc_answer1", "mc_answer2", "mc_answer3", "mc_answer4"),
            labels={"1": "a", "2": "b", "3": "c", "4": "d"},
        )
    return None


def place(
    own: OwnBenchmark, source: Path, to: Path, language: str, version: Version
) -> dict[str, Any]:
    """Write its rows to the new directory `to`, with a README that names its splits. Returns what
    inside/custom_datasets.py makes a benchmark of, with the counts of its rows. Raises InputError.
    """
    by_split, dropped = own.rows(source, language)
    to.mkdir(parents=True)
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, rows in by_split.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (to / f"{split}.jsonl").write_text(text, encoding="utf-8")
        lines += [f"  - split: {split}", f"    path: {split}.jsonl"]
    (to / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
    return {
        "name": own.name,
        "task": own.task,
        "language": language,
        "prompts": own.prompt_language(language, version),
        "labels": _labels(row for rows in by_split.values() for row in rows),
        "rows": {split: len(rows) for split, rows in by_split.items()},
        "dropped": dict(dropped),
    }


def _labels(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({row["label"] for row in rows if "label" in row})


def _hash(row: Mapping[str, Any]) -> str:
    content = {key: value for key, value in row.items() if key != "id"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

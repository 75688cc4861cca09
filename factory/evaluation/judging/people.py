"""People as judges: pairs of answers to annotate, without the names of the models, and what people
said of them.

A row's id is the hash of what is shown and in which order. It names no model, and verdicts are read
back by it without a file of keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from factory.artifacts.hashing import fingerprint
from factory.errors import InputError
from factory.evaluation.judging.match import Match
from factory.evaluation.judging.verdicts import MODEL_FIRST, REFERENCE_FIRST, Rows, meant, row_of
from factory.stage.row_files import BadRow, read_file

COLUMNS = ("id", "language", "category", "question", "answer_a", "answer_b", "verdict", "comment")
RUBRIC = """\
Two assistants answered the same request. Write into the column verdict which answer serves the
person who asked better: A, B, or tie if neither does.

Weigh whether each answer is right, does what was asked, leaves out nothing that matters and reads
well in the language of the request. Being longer is no merit, and neither is standing first. An
answer in a language that was not asked for is worse than one that keeps to it.

Leave verdict empty where you cannot tell. Decide alone, and look nothing up about the assistants.
"""


def row_id(pair: Match, order: str) -> str:
    """Return the id of two answers to a question in an order."""
    return fingerprint({**pair.address(), "model": pair.model["model"], "order": order})


def to_annotate(
    pairs: Mapping[str, Sequence[Match]], number: int | None = None
) -> list[dict[str, str]]:
    """Return the rows for annotators: `number` pairs of each slice (all by default), of which the
    model's answer stands first in half. Which pairs, and the order of all rows, follow from hashes
    of the texts. Identical answers are left out."""
    rows = []
    for matched in pairs.values():
        distinct = {row_id(pair, MODEL_FIRST): pair for pair in matched if not pair.identical}
        for place, key in enumerate(sorted(distinct)[:number]):
            pair = distinct[key]
            order = (MODEL_FIRST, REFERENCE_FIRST)[place % 2]
            sides = [pair.model["answer"], pair.reference["answer"]]
            first, second = sides if order == MODEL_FIRST else sides[::-1]
            question = "\n\n".join(message["content"] for message in pair.model["prompt"])
            texts = (question, first, second)
            head = (row_id(pair, order), pair.model["language"], pair.model["category"] or "")
            rows.append(dict(zip(COLUMNS, (*head, *texts, "", ""), strict=True)))
    return sorted(rows, key=lambda row: row["id"])


def read(path: Path, name: str) -> dict[str, list[str]]:
    """Read what people said: `A`, `B` or `TIE`, by id; several where several people annotated a
    pair. A row without a verdict is left out. Raises InputError for any other verdict."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*.csv"))
    if not files:
        raise InputError(f"{name} has no CSV file", "name the file that was annotated")
    verdicts: dict[str, list[str]] = {}
    for file in files:
        for where, row in read_file(file, name):
            if isinstance(row, BadRow):
                raise row
            if "id" not in row or "verdict" not in row:
                raise InputError(
                    f"{where}: no column {'id' if 'id' not in row else 'verdict'}",
                    "keep the columns that factory export annotations wrote",
                )
            verdict = str(row["verdict"] or "").strip().upper()
            if verdict not in ("A", "B", "TIE", ""):
                raise InputError(
                    f"{where}: the verdict {row['verdict']!r} is none of A, B and tie",
                    "correct it, or leave it empty",
                )
            if verdict:
                verdicts.setdefault(str(row["id"]), []).append(verdict)
    return verdicts


def by_people(pairs: Iterable[Match], annotated: Mapping[str, Sequence[str]], judge: str) -> Rows:
    """Return the verdicts of people, one for every two texts that were annotated: what most of them
    said, a tie where as many said something else."""
    rows = {}
    for pair in pairs:
        for order in (MODEL_FIRST, REFERENCE_FIRST):
            verdicts = annotated.get(row_id(pair, order))
            if not verdicts:
                continue
            (most, count), *rest = Counter(verdicts).most_common()
            verdict = "TIE" if rest and rest[0][1] == count else most
            row = row_of(pair, judge, order, meant(verdict, order), None)
            output: dict[str, Any] = {"judge_output": ", ".join(verdicts)}
            rows[tuple(pair.address().values())] = row | output
    return list(rows.values())

"""Which answers are compared, and which questions were already there to learn from. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factory.artifacts.hashing import text_hash
from factory.errors import InputError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Match:
    """Both answers to one question."""

    model: Row
    reference: Row

    @property
    def identical(self) -> bool:
        """Whether both are the same text: a tie that no judge need be asked about."""
        same: bool = self.model["answer"] == self.reference["answer"]
        return same

    def address(self) -> dict[str, str]:
        """What a verdict on it is a verdict on."""
        return {
            "question_id": self.model["question_id"],
            "prompt_hash": _hash(self.model),
            "answer_hash": text_hash(self.model["answer"]),
            "reference_hash": text_hash(self.reference["answer"]),
        }


def match(ours: Sequence[Row], theirs: Sequence[Row], where: str) -> tuple[list[Match], list[str]]:
    """Answers to the same questions, by id and in the order of `ours`; and for every question that
    one side alone answered a reason, `unanswered_by_model` or `unanswered_by_reference`.

    Raises InputError where one id stands for two questions, or nothing can be compared.
    """
    mine, other = _by_id(ours, where), _by_id(theirs, where)
    found = []
    for name, row in mine.items():
        if name not in other:
            continue
        if _hash(row) != _hash(other[name]):
            raise InputError(
                f"{where}: the two models were asked different things under {name!r}",
                "answer again, from the same questions",
            )
        found.append(Match(row, other[name]))
    if not found:
        raise InputError(
            f"{where}: the two models answered no question both",
            "answer again, from the same questions",
        )
    left = ["unanswered_by_reference"] * len(mine.keys() - other.keys())
    return found, left + ["unanswered_by_model"] * len(other.keys() - mine.keys())


def seen(questions: Iterable[Row], training: Iterable[Row]) -> set[str]:
    """The ids of questions whose text is among the prompts of training, whatever their case, their
    spacing or their way to write a character."""
    learned = {normal(row["messages"]) for row in training}
    return {row["question_id"] for row in questions if normal(row["prompt"]) in learned}


def normal(messages: Sequence[Mapping[str, str]]) -> str:
    """What the user says in a conversation, without what makes no difference."""
    said = " ".join(message["content"] for message in messages if message["role"] == "user")
    return " ".join(unicodedata.normalize("NFKC", said).casefold().split())


def _by_id(rows: Sequence[Row], where: str) -> dict[str, Row]:
    found = {row["question_id"]: row for row in rows}
    if len(found) < len(rows):
        raise InputError(f"{where}: a question is answered twice", "answer again")
    return found


def _hash(row: Row) -> str:
    return row["prompt_hash"] or text_hash(repr(row["prompt"]))

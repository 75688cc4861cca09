"""Match answers to the same question, and questions with prompts of training. Pure."""

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
    """Both answers to one question; of several that were drawn, those of the same draw."""

    model: Row
    reference: Row

    @property
    def identical(self) -> bool:
        """Return whether both are the same text: a tie without asking a judge."""
        same: bool = self.model["answer"] == self.reference["answer"]
        return same

    def address(self) -> dict[str, str]:
        """Return the columns that identify a verdict: question and hashes of what was read."""
        return {
            "question_id": self.model["question_id"],
            "prompt_hash": _hash(self.model),
            "answer_hash": text_hash(self.model["answer"]),
            "reference_hash": text_hash(self.reference["answer"]),
        }


def match(ours: Sequence[Row], theirs: Sequence[Row], where: str) -> tuple[list[Match], list[str]]:
    """Match answers by question id and draw, in the order of `ours`; return also, for each that one
    side alone has, a reason, `unanswered_by_model` or `unanswered_by_reference`.

    Raises InputError where one id stands for two questions, or nothing can be compared.
    """
    by_id, other_by_id = _by_id(ours, where), _by_id(theirs, where)
    matches = []
    for key, row in by_id.items():
        if key not in other_by_id:
            continue
        if _hash(row) != _hash(other_by_id[key]):
            raise InputError(
                f"{where}: the two models were asked different things under {key[0]!r}",
                "answer again, from the same questions",
            )
        matches.append(Match(row, other_by_id[key]))
    if not matches:
        raise InputError(
            f"{where}: the two models answered no question both",
            "answer again, from the same questions",
        )
    reasons = ["unanswered_by_reference"] * len(by_id.keys() - other_by_id.keys())
    return matches, reasons + ["unanswered_by_model"] * len(other_by_id.keys() - by_id.keys())


def trained_on(questions: Iterable[Row], training: Iterable[Row]) -> set[str]:
    """Return the ids of questions whose text is among the prompts of training, whatever their case,
    their spacing or their way to write a character."""
    learned = {normal(row["messages"]) for row in training}
    return {row["question_id"] for row in questions if normal(row["prompt"]) in learned}


def normal(messages: Sequence[Mapping[str, str]]) -> str:
    """Return the user's text in a conversation, without case, spacing and variants of
    characters."""
    text = " ".join(message["content"] for message in messages if message["role"] == "user")
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _by_id(rows: Sequence[Row], where: str) -> dict[tuple[str, int | None], Row]:
    by_id = {(row["question_id"], row.get("draw")): row for row in rows}
    if len(by_id) < len(rows):
        raise InputError(f"{where}: a question is answered twice", "answer again")
    return by_id


def _hash(row: Row) -> str:
    return row["prompt_hash"] or text_hash(repr(row["prompt"]))

"""Answers that somebody else drew: as rows, and beside those of a pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator

from factory.artifacts.hashing import text_hash
from factory.artifacts.schemas import OTHERS
from factory.errors import InputError
from factory.language.detect import detect
from factory.stage.job import Place
from factory.stage.readers import Row, address, answer, given_id, messages, numeric
from factory.stage.stage import From

_ENDED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")
_CUT_OFF = ("length", "max_tokens", "max_length", "max_output_tokens")


def sample(row: Mapping[str, Any], where: str, source: str, language: str) -> Row | str:
    prompt, response = conversation_of(row, where)
    text = response.strip()
    if not text:
        return "empty"
    return {
        **address(row, prompt, source),
        "response": text,
        "response_hash": text_hash(text),
        "n_tokens": numeric(row.get("n_tokens")),
        "n_chars": len(text),
        "finish_reason": _finish_reason(row.get("finish_reason")),
        "detected_language": row.get("detected_language") or detect(text, language),
    }


def _finish_reason(value: Any) -> str:
    """Return why an answer ended, in the words of our own samples where they mean the same."""
    words = {"stop": _ENDED, "length": _CUT_OFF}
    reason = str(value or "unknown").lower()
    return next((word for word, same in words.items() if reason in same), reason)


def conversation_of(row: Mapping[str, Any], where: str) -> tuple[list[dict[str, str]], str]:
    """Return prompt and answer of a row that holds both, in either of two formats."""
    for name in ("response", "completion", "answer"):
        if name in row and row.get("prompt"):
            value = row[name]
            content = value if isinstance(value, str) else answer(value, where)[-1]["content"]
            return messages({"prompt": row["prompt"]}, where), content
    turns = messages({"messages": row.get("messages")}, where)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise InputError(
            f"{where}: no answer: the last of its messages is not the assistant's",
            "give messages that end with the answer, or prompt and response",
        )
    return turns[:-1], turns[-1]["content"]


class Answers(From):
    """Answers of somebody else to the prompts of a recipe, in rows of prompt and answer. One is
    taken where its prompt is one of ours, word by word; of each prompt the first so many."""

    most: int | None = Field(None, ge=1)  # answers to a prompt

    @field_validator("base")
    @classmethod
    def _no_base(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("base is for adapters: answers have no base")
        return value

    def rows_of(
        self, place: Place, language: str, prompts: Sequence[Mapping[str, Any]], number: int
    ) -> tuple[list[Row], Counter[str]]:
        """Return the answers in a language as samples, and how many rows are left out, by reason.

        prompts: id and hash of each prompt of ours. number: of the source, 1 for the first that is
        not the policy; its answers begin at that many times OTHERS. Raises InputError."""
        name = place.name or place.path.name
        ids: dict[str, list[str]] = {}
        for prompt in prompts:
            ids.setdefault(prompt["prompt_hash"], []).append(prompt["prompt_id"])
        draws: Counter[str] = Counter()

        def convert(row: Row, where: str) -> Row | str:
            taken = sample(row, where, name, language)
            if isinstance(taken, str):
                return taken
            ours = ids.get(taken["prompt_hash"])
            if ours is None:
                return "another_prompt"
            at = given_id(row) if given_id(row) in ours else ours[0]
            if draws[at] == self.most:
                return "more_than_most"
            draws[at] += 1
            of_pool = {"k": number * OTHERS + draws[at] - 1, "source": name, "language": language}
            return {**taken, "prompt_id": at, "seed": None, **of_pool}

        dropped: Counter[str] = Counter()
        rows = self.converted_rows(place.path, language, convert, dropped, name=name)
        return list(rows), dropped

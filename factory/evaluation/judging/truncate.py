"""Truncate two answers evenly to fit a judge's context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from factory.engines import chat_template
from factory.engines.chat_template import Message

MARK = " […]"  # at the end of an answer that was cut, so that nobody takes it for the model's doing

Ask = Callable[[str, str], Sequence[Message]]


class LengthMeasure(Protocol):
    """Unit in which a text is measured and cut."""

    name: str

    def as_request(self, messages: Sequence[Message]) -> tuple[Any, int]:
        """Return a conversation as it is handed to the judge, and its length."""
        ...

    def parts(self, text: str) -> Sequence[Any]:
        """Split a text into its units."""
        ...

    def text(self, parts: Sequence[Any]) -> str:
        """Return the text of these units."""
        ...


class Tokens:
    """The judge's own tokens. A conversation is handed over as token ids."""

    name = "tokens"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def as_request(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        ids = chat_template.prompt_ids(self._tokenizer, messages)
        return ids, len(ids)

    def parts(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, parts: Sequence[int]) -> str:
        # half a character at the end decodes to a replacement character
        text: str = self._tokenizer.decode(list(parts), skip_special_tokens=True)
        return text.rstrip("\ufffd")


class Characters:
    """Characters, each counted as a token, where a judge's tokenizer is not known: more tokens
    than tokenizers make of nearly all text (of English about four times as many), so that what
    fits by them fits. A conversation is handed over as it is."""

    name = "characters"

    def as_request(self, messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
        return messages, sum(len(message["content"]) for message in messages)

    def parts(self, text: str) -> str:
        return text

    def text(self, parts: Sequence[Any]) -> str:
        return "".join(parts)


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how much of two lengths fits into `room`: the longer gives way first, until both are
    of one length, and then both alike. Nothing is taken from the shorter while the longer is
    longer."""
    if first + second <= room:
        return first, second
    room = max(room, 0)
    shorter = min(first, second)
    if 2 * shorter <= room:
        return (first, room - first) if first <= second else (room - second, second)
    return (room + 1) // 2, room // 2


def fit(measure: LengthMeasure, ask: Ask, first: str, second: str, limit: int) -> tuple[Any, int]:
    """Return the request to the judge, at most `limit` long, and how much of both answers was left
    out for it. None where the request alone is too long."""
    request, length = measure.as_request(ask(first, second))
    if length <= limit:
        return request, 0
    sides = [measure.parts(text) for text in (first, second)]
    total = len(sides[0]) + len(sides[1])
    room = limit - measure.as_request(ask(MARK, MARK))[1]
    while room > 0:
        sizes = shares(len(sides[0]), len(sides[1]), room)
        texts = [
            text if size == len(side) else measure.text(side[:size]) + MARK
            for text, side, size in zip((first, second), sides, sizes, strict=True)
        ]
        request, length = measure.as_request(ask(*texts))
        if length <= limit:
            return request, total - sum(sizes)
        # cut text may come back as more tokens than were kept of it
        room = min(room, sum(sizes)) - (length - limit)
    return None, total

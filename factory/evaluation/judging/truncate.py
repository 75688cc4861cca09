"""Two answers and their request into a judge's context: both answers give way evenly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from factory.engines import chat_template
from factory.engines.chat_template import Message

MARK = " […]"  # at the end of an answer that was cut, so that nobody takes it for the model's doing

Ask = Callable[[str, str], Sequence[Message]]


class LengthMeasure(Protocol):
    """What a text is measured in, and so cut by."""

    name: str

    def asked(self, messages: Sequence[Message]) -> tuple[Any, int]:
        """A conversation as it is handed to the judge, and its length."""
        ...

    def parts(self, text: str) -> Sequence[Any]:
        """A text in what it is measured in, one each."""
        ...

    def text(self, parts: Sequence[Any]) -> str:
        """The text of these parts."""
        ...


class Tokens:
    """The judge's own tokens. A conversation is handed over as token ids."""

    name = "tokens"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def asked(self, messages: Sequence[Message]) -> tuple[list[int], int]:
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

    def asked(self, messages: Sequence[Message]) -> tuple[Sequence[Message], int]:
        return messages, sum(len(message["content"]) for message in messages)

    def parts(self, text: str) -> str:
        return text

    def text(self, parts: Sequence[Any]) -> str:
        return "".join(parts)


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How much of two lengths fits into `room`: the longer gives way first, until both are of one
    length, and then both alike. Nothing is taken from the shorter while the longer is longer."""
    if first + second <= room:
        return first, second
    room = max(room, 0)
    shorter = min(first, second)
    if 2 * shorter <= room:
        return (first, room - first) if first <= second else (room - second, second)
    return (room + 1) // 2, room // 2


def fit(measure: LengthMeasure, ask: Ask, first: str, second: str, limit: int) -> tuple[Any, int]:
    """What a judge is asked, as it is handed to it, in at most `limit`, and how much of both
    answers was left out for it. None where the request alone is too long."""
    asked, length = measure.asked(ask(first, second))
    if length <= limit:
        return asked, 0
    sides = [measure.parts(text) for text in (first, second)]
    whole = len(sides[0]) + len(sides[1])
    room = limit - measure.asked(ask(MARK, MARK))[1]
    while room > 0:
        kept = shares(len(sides[0]), len(sides[1]), room)
        texts = [
            text if size == len(side) else measure.text(side[:size]) + MARK
            for text, side, size in zip((first, second), sides, kept, strict=True)
        ]
        asked, length = measure.asked(ask(*texts))
        if length <= limit:
            return asked, whole - sum(kept)
        # cut text may come back as more tokens than were kept of it
        room = min(room, sum(kept)) - (length - limit)
    return None, whole

"""Two answers and their request into a judge's context: both answers give way evenly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from factory import chat
from factory.chat import Message

MARK = " […]"  # at the end of an answer that was cut, so that nobody takes it for the model's doing

Ask = Callable[[str, str], Sequence[Message]]


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


def fit(
    tokenizer: Any, ask: Ask, first: str, second: str, limit: int
) -> tuple[list[int] | None, int]:
    """The token ids of what a judge is asked, in at most `limit` tokens, and how many tokens (the
    judge's) of both answers were left out for it. None where the request alone is too long."""
    ids = chat.prompt_ids(tokenizer, ask(first, second))
    if len(ids) <= limit:
        return ids, 0
    sides = [_ids(tokenizer, text) for text in (first, second)]
    whole = len(sides[0]) + len(sides[1])
    room = limit - len(chat.prompt_ids(tokenizer, ask(MARK, MARK)))
    while room > 0:
        kept = shares(len(sides[0]), len(sides[1]), room)
        texts = [
            text if size == len(side) else _cut(tokenizer, side, size)
            for text, side, size in zip((first, second), sides, kept, strict=True)
        ]
        ids = chat.prompt_ids(tokenizer, ask(*texts))
        if len(ids) <= limit:
            return ids, whole - sum(kept)
        # cut text may come back as more tokens than were kept of it
        room = min(room, sum(kept)) - (len(ids) - limit)
    return None, whole


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _cut(tokenizer: Any, ids: Sequence[int], size: int) -> str:
    # half a character at the end decodes to a replacement character
    text: str = tokenizer.decode(list(ids[:size]), skip_special_tokens=True)
    return text.rstrip("\ufffd") + MARK

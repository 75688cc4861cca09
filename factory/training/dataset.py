"""Training rows: their lengths, the held-out split, and their files on disk."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factory.engines import chat_template
from factory.errors import StageError

SIDES = ("chosen", "rejected", "completion")  # the columns that a prompt may be answered in
PARTS = ("train", "held_out")


def lengths(tokenizer: Any, row: Any) -> list[int]:
    """Return the tokens of each answer of a row, prompt included; those of the prompt alone if
    it has no answer."""
    return [
        len(chat_template.conversation_ids(tokenizer, [*row["prompt"], *row[side]]))
        for side in SIDES
        if side in row
    ] or [len(chat_template.prompt_ids(tokenizer, row["prompt"]))]


def as_text(tokenizer: Any, row: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return a row whose messages hold no control tokens of the model (see chat_template.as_text),
    and whether any did: the trainer renders the messages by itself."""
    names = [name for name in ("prompt", *SIDES) if name in row]
    if not any(chat_template.control_tokens(tokenizer, row[name]) for name in names):
        return row, False
    return row | {name: chat_template.as_text(tokenizer, row[name]) for name in names}, True


def conversation(row: Any) -> list[Any]:
    """Return the messages of a row: its prompt and its first answer, if it has one."""
    return [*row["prompt"], *next((row[side] for side in SIDES if side in row), [])]


def check_stops(tokenizer: Any, row: Any, stops: Sequence[int], step: str) -> None:
    """Check that an answer is rendered with a stop token at its end. Raises StageError if not: a
    model trained on such rows never stops."""
    side = next(side for side in SIDES if side in row)
    ids = chat_template.conversation_ids(tokenizer, [*row["prompt"], *row[side]])
    if not set(ids[-3:]) & set(stops):
        raise StageError(
            f"{step}: the chat template ends an answer with "
            f"{tokenizer.decode(ids[-3:])!r}, where no stop token is",
            "use a template that closes the assistant's turn with a stop token",
        )


def split(rows: list[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Split rows into (train, held out) by prompt, the same prompts in every language.

    Prompts are drawn by a hash of seed and prompt id: every process draws the same split, and
    more rows move no old one. At least one prompt is held out if `share` is not 0, and at least
    one is trained on."""

    def draw(prompt_id: str) -> float:
        digest = hashlib.sha256(f"{seed}\0{prompt_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    draws = {prompt_id: draw(prompt_id) for prompt_id in {row["prompt_id"] for row in rows}}
    held_out_ids = {prompt_id for prompt_id, value in draws.items() if value < share}
    if share and not held_out_ids:
        held_out_ids = {min(draws, key=draws.__getitem__)}
    if len(held_out_ids) == len(draws):
        held_out_ids.remove(max(draws, key=draws.__getitem__))
    return (
        [row for row in rows if row["prompt_id"] not in held_out_ids],
        [row for row in rows if row["prompt_id"] in held_out_ids],
    )


def write(directory: Path, train: list[Any], held_out: list[Any]) -> None:
    """Write both parts, unless they exist. Every process reads the same files, and TRL's cache
    beside them (tokens, reference log-probabilities) survives a kill."""
    from datasets import Dataset

    for name, part in zip(PARTS, (train, held_out), strict=True):
        if part and not (directory / name).exists():
            unfinished = directory / f".{name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            Dataset.from_list(part).save_to_disk(str(unfinished))
            unfinished.rename(directory / name)


def read(directory: Path) -> tuple[Any, Any]:
    """Read both parts as datasets; None for a held-out part that does not exist."""
    from datasets import load_from_disk

    train, held_out = (
        load_from_disk(str(directory / name)) if (directory / name).exists() else None
        for name in PARTS
    )
    return train, held_out

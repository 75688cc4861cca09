"""The rows of a training: which fit, which are held out, and how they lie on disk."""

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
    """Tokens of every answer of a row, each with its prompt; of a prompt alone where there are
    none."""
    return [
        len(chat_template.conversation_ids(tokenizer, [*row["prompt"], *row[side]]))
        for side in SIDES
        if side in row
    ] or [len(chat_template.prompt_ids(tokenizer, row["prompt"]))]


def talk(row: Any) -> list[Any]:
    """A row's prompt with its first answer, if it has one."""
    return [*row["prompt"], *next((row[side] for side in SIDES if side in row), [])]


def check_stops(tokenizer: Any, row: Any, stops: Sequence[int], step: str) -> None:
    """Raises StageError when an answer is rendered without a stop token at its end: what was
    trained on it would never stop."""
    side = next(side for side in SIDES if side in row)
    ids = chat_template.conversation_ids(tokenizer, [*row["prompt"], *row[side]])
    if not set(ids[-3:]) & set(stops):
        raise StageError(
            f"{step}: the chat template ends an answer with "
            f"{tokenizer.decode(ids[-3:])!r}, where no stop token is",
            "use a template that closes the assistant's turn with a stop token",
        )


def split(rows: list[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """(train, held out). Whole prompts are held out, in every language at once, chosen by a hash
    of seed and prompt id: every process draws the same split, and more rows move no old one.
    At least one prompt is held out if `share` is not 0, and at least one trained on."""

    def draw(prompt_id: str) -> float:
        digest = hashlib.sha256(f"{seed}\0{prompt_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    drawn = {prompt_id: draw(prompt_id) for prompt_id in {row["prompt_id"] for row in rows}}
    held = {prompt_id for prompt_id, value in drawn.items() if value < share}
    if share and not held:
        held = {min(drawn, key=drawn.__getitem__)}
    if len(held) == len(drawn):
        held.remove(max(drawn, key=drawn.__getitem__))
    return (
        [row for row in rows if row["prompt_id"] not in held],
        [row for row in rows if row["prompt_id"] in held],
    )


def put(directory: Path, train: list[Any], held_out: list[Any]) -> None:
    """Write both parts, unless they are there: every process reads the same files, and what TRL
    caches beside them (tokens, reference log-probabilities) survives a kill."""
    from datasets import Dataset

    for name, part in zip(PARTS, (train, held_out), strict=True):
        if part and not (directory / name).exists():
            unfinished = directory / f".{name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            Dataset.from_list(part).save_to_disk(str(unfinished))
            unfinished.rename(directory / name)


def get(directory: Path) -> tuple[Any, Any]:
    """Both parts as datasets; None for a held-out part that is not there."""
    from datasets import load_from_disk

    train, held_out = (
        load_from_disk(str(directory / name)) if (directory / name).exists() else None
        for name in PARTS
    )
    return train, held_out

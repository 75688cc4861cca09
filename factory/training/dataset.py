"""Training rows: their lengths, the held-out split, and their files on disk."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from factory.engines import chat_template
from factory.errors import StageError
from factory.language.detect import differs
from factory.stage.inputs import SliceSpec, StepInput
from factory.stage.job import Job

# the columns that a prompt may be answered in
SIDES = ("chosen", "rejected", "completion", "reference")
PARTS = ("train", "held_out")
_OTHER_SIDE = {
    "chosen": "rejected", "rejected": "chosen",
    "chosen_ids": "rejected_ids", "rejected_ids": "chosen_ids",
}  # fmt: skip
# what labelled rows are made of
_ANSWERS = {
    "scores": ("prompt_id", "k", "response_hash", "reward"),
    "samples": ("prompt_id", "k", "response_hash", "response", "finish_reason",
                "detected_language"),
    "prompts": ("prompt_id", "messages"),
}  # fmt: skip


def encode(tokenizer: Any, row: Any, apart: bool = False) -> tuple[list[int], dict[str, Any]]:
    """Return the tokens of each answer of a row, prompt included, or of the prompt alone if it has
    no answer; and the row's token ids in the columns in which TRL's trainers of SFT, of reward
    models and DPO take them.

    apart: the prompt of a pair has a column of its own, as for DPO; else each side begins with it.
    The answers begin where the tokens of the prompt, and of it with either answer, part."""
    ids = {
        side: chat_template.conversation_ids(tokenizer, [*row["prompt"], *row[side]])
        for side in SIDES
        if side in row
    }
    if not ids:
        return [len(chat_template.prompt_ids(tokenizer, row["prompt"]))], {}
    columns = {f"{side}_ids": tokens for side, tokens in ids.items()}
    if apart or ids.keys() == {"completion"}:
        prompt = chat_template.prompt_ids(tokenizer, row["prompt"])
        start = min(_common(prompt, tokens) for tokens in ids.values())
        if apart:
            columns = {name: tokens[start:] for name, tokens in columns.items()}
            columns["prompt_ids"] = prompt[:start]
        else:
            tokens = ids["completion"]
            columns = {"input_ids": tokens, "labels": [-100] * start + tokens[start:]}
    return [len(tokens) for tokens in ids.values()], {
        name: np.asarray(tokens, np.int32) for name, tokens in columns.items()
    }


def _common(prompt: Sequence[int], tokens: Sequence[int]) -> int:
    """Return how many tokens both sequences begin with."""
    both = zip(prompt, tokens, strict=False)
    return next((n for n, (a, b) in enumerate(both) if a != b), min(len(prompt), len(tokens)))


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


def draw(seed: int, name: str) -> float:
    """Return a number from 0 to 1 that is drawn for this name."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def labelled(
    job: Job, spec: SliceSpec, over: str | float
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return scored answers as rows of their own with a label, and how many are left out, by
    reason. The slice reads scores, samples and prompts of each language.

    over: an answer is desirable with a reward over this number, or over the `mean` of its
    prompt's; where all of a prompt's are equal, they say nothing. One that was cut off, is empty
    or is in another language is not desirable. Raises StageError where all have one label."""
    import polars as pl

    reads = [need for need in spec.needs if isinstance(need, StepInput) and need.role in _ANSWERS]
    rows: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    for code in dict.fromkeys(need.slice for need in reads):
        frames = {
            need.role: pl.DataFrame(job.rows(need, need.role, _ANSWERS[need.role]))
            for need in reads
            if need.slice == code
        }
        keys = ("prompt_id", "k", "response_hash")
        answers = frames["scores"].join(frames["samples"], on=keys, how="left")
        answers = answers.join(frames["prompts"], on="prompt_id", how="left")
        reward, at = pl.col("reward"), pl.col("reward").mean().over("prompt_id")
        alike = (reward.max() == reward.min()).over("prompt_id")
        answers = answers.with_columns(
            label=reward > (at if over == "mean" else over), alike=alike & (over == "mean")
        )
        for row in answers.iter_rows(named=True):
            if reason := _unfit(row, code):
                dropped[reason] += 1
                continue
            answer = [{"role": "assistant", "content": row["response"]}]
            labelled_row = {
                "prompt_id": row["prompt_id"],
                "prompt": row["messages"],
                "language": code,
            }
            rows.append(labelled_row | {"completion": answer, "label": row["label"]})
    if len({row["label"] for row in rows}) < 2:
        left_out = ", ".join(f"{reason} {n}" for reason, n in dropped.items())
        raise StageError(
            f"{job.step}: of {len(rows)} scored answers none is "
            f"{'undesirable' if rows and rows[0]['label'] else 'desirable'}"
            + (f"; left out: {left_out}" if left_out else ""),
            "change unpaired, or raise generate.max_tokens where answers are cut off",
        )
    return rows, dict(dropped)


def _unfit(row: Mapping[str, Any], code: str) -> str | None:
    """Return why a scored answer is not learned from, or None."""
    if row["reward"] is None:
        return "no_reward"
    if row["response"] is None or row["messages"] is None:
        return "absent"
    if row["alike"]:
        return "all_alike"
    if not row["label"]:
        return None
    if not row["response"].strip():
        return "empty"
    if row["finish_reason"] == "length":
        return "unfinished"
    return "wrong_language" if differs(row["detected_language"], code) else None


def with_references(
    job: Job, spec: SliceSpec, rows: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the pairs of a slice with the best answer to their prompt, of the slice of the same
    name, as `reference`, and how many have none."""
    reads = [need for need in spec.needs if isinstance(need, StepInput)]
    best: dict[tuple[str, str], Any] = {}
    places: list[str] = []
    for need in reads:
        if need.role == "reference":
            read = job.rows(need, "sft", ("prompt_id", "completion")).to_pylist()
            best |= {(need.slice, row["prompt_id"]): row["completion"] for row in read}
        elif need.role == "pairs":
            places += [need.slice] * len(job.rows(need, "pairs", ("prompt_id",)))
    kept = [
        row | {"reference": best[place, row["prompt_id"]]}
        for place, row in zip(places, rows, strict=True)
        if (place, row["prompt_id"]) in best
    ]
    without = len(rows) - len(kept)
    return kept, {"no_reference": without} if without else {}


def swapped(
    rows: Sequence[dict[str, Any]], scale: float, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the pairs, some with their sides swapped: each with the probability that its rejected
    answer is the better one, sigmoid(-margin / scale); and how many those are."""

    def wrong(row: Mapping[str, Any]) -> float:
        return 1 / (1 + math.exp(min(max(row["reward_margin"] / scale, -700), 700)))

    swaps = [
        draw(seed, f"swap {number} {row['prompt_id']}") < wrong(row)
        for number, row in enumerate(rows)
    ]
    done = [
        row | {name: row[other] for name, other in _OTHER_SIDE.items() if name in row}
        if swap
        else row
        for row, swap in zip(rows, swaps, strict=True)
    ]
    return done, {"swapped": sum(swaps)}


def weighted(rows: list[Any], seed: int) -> tuple[list[Any], dict[str, Any]]:
    """Return the rows of several sets as often as the weight of each says, a part of a time drawn
    at random; and, by set, how many there are and how often they stand here."""
    if not any("weight" in row for row in rows):
        return rows, {}
    taken: list[Any] = []
    sets: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        whole, part = divmod(row["weight"], 1)
        times = int(whole) + (draw(seed, f"weight {number} {row['prompt_id']}") < part)
        taken += [row] * times
        none = {"weight": row["weight"], "rows": 0, "trained_on": 0}
        figures = sets.setdefault(row["source"], none)
        figures["rows"] += 1
        figures["trained_on"] += times
    return taken, {"sets": sets}


def split(rows: list[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Split rows into (train, held out) by prompt, the same prompts in every language.

    Prompts are drawn by a hash of seed and prompt id: every process draws the same split, and
    more rows move no old one. At least one prompt is held out if `share` is not 0, and at least
    one is trained on."""
    draws = {prompt_id: draw(seed, prompt_id) for prompt_id in {row["prompt_id"] for row in rows}}
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

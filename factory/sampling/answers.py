"""Answers as rows: sampled here, written by people, or drawn by somebody else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from factory.artifacts.hashing import text_hash
from factory.artifacts.schemas import GOLD, OTHERS
from factory.artifacts.tables import read_slice
from factory.engines import Completion
from factory.errors import InputError
from factory.language.detect import detect, right_labels
from factory.stage.job import Place
from factory.stage.readers import Row, address, answer, given_id, messages, numeric
from factory.stage.rows_from import RowsFrom

if TYPE_CHECKING:
    import polars as pl

_ENDED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")
_CUT_OFF = ("length", "max_tokens", "max_length", "max_output_tokens")


def sample(row: Mapping[str, Any], where: str, source: str, language: str) -> Row | str:
    """Return a row of prompt and answer as a sample, or the reason to leave it out."""
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


class Answers(RowsFrom):
    """Answers of somebody else to the prompts of a recipe, in rows of prompt and answer. One is
    taken where its prompt is one of ours, word by word; of each prompt the first so many."""

    most: int | None = Field(None, ge=1)  # answers to a prompt

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


def sampled_row(
    prompt: Mapping[str, Any], k: int, sample: Completion, tokenizer: Any
) -> dict[str, object]:
    """Return an answer that was drawn here as a sample."""
    text = tokenizer.decode(list(sample.token_ids), skip_special_tokens=True).strip()
    return _row(prompt, k, text, len(sample.token_ids), sample.finish_reason, sample.seed)


def gold_row(prompt: Mapping[str, Any], tokenizer: Any) -> dict[str, object]:
    """Return the answer that a person wrote to a prompt as one more sample, which was not drawn."""
    text = prompt["gold"]
    n_tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return _row(prompt, GOLD, text, n_tokens, "stop", None)


def _row(
    prompt: Mapping[str, Any],
    k: int,
    text: str,
    n_tokens: int,
    finish_reason: str,
    seed: int | None,
) -> dict[str, object]:
    return {
        "prompt_id": prompt["prompt_id"],
        "language": prompt["language"],
        "k": k,
        "prompt_hash": prompt["prompt_hash"],
        "response": text,
        "response_hash": text_hash(text),
        "n_tokens": n_tokens,
        "n_chars": len(text),
        "finish_reason": finish_reason,
        "seed": seed,
        "detected_language": detect(text, prompt["language"]),
    }


def describe(out: Path, name: str, models: int) -> dict[str, Any]:
    """Return the counts of one slice for the card, without answers that were taken in; of several
    sources, those of each as well. `models` draw here."""
    import polars as pl

    columns = ["finish_reason", "detected_language", "language", "n_tokens", "k", "source"]
    every = pl.DataFrame(read_slice(out, name, "samples", columns))
    frame = every.filter(pl.col("k") != GOLD)
    gold = len(every) - len(frame)
    by_source = {}
    if "source" in frame.columns:
        parts = frame.partition_by("source", as_dict=True, maintain_order=True)
        by_source = {str(source): _counts(part, name) for (source,), part in parts.items()}
    others = frame.filter(pl.col("k") >= models * OTHERS)
    taken_in = dict(others.group_by("source").len().sort("source").rows()) if len(others) else {}
    return {
        **_counts(frame.filter(pl.col("k") < models * OTHERS), name),
        **({"gold": gold} if gold else {}),
        **({"taken_in": taken_in} if taken_in else {}),
        **({"by_source": by_source} if by_source else {}),
    }


def _counts(frame: pl.DataFrame, name: str) -> dict[str, int | None]:
    ended, right = frame["finish_reason"], list(right_labels(name))
    return {
        "samples": len(frame),
        "tokens": int(frame["n_tokens"].sum()),
        "finished": int((ended == "stop").sum()),
        "cut_off": int((ended == "length").sum()),
        "in_language": int(frame["detected_language"].is_in(right).sum()) if right else None,
    }

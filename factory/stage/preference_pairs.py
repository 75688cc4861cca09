"""The one reader of preference pairs: a row of anybody's preference data to a prompt, its better
and its worse answer.

A row says which answer is better in one of four ways: `chosen` and `rejected`; two responses and a
signed `preference` (HelpSteer); several responses with the name of the `preferred` one (Community
Alignment), or each with a score (MENLO); a list of `answers` with ranks or scores (Nectar,
UltraFeedback).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from factory.artifacts.hashing import text_hash
from factory.errors import InputError, nearest
from factory.stage.readers import decoded, messages, numeric, transcript

SIDES = ("chosen", "rejected")
Talk = list[dict[str, str]]

# Columns of well-known datasets, ours first: `columns:` maps any other name to one of ours.
_PROMPTS = ("prompt", "messages", "context")
_RESPONSE = re.compile(r"response_?([0-9a-h])")
_NAMED = re.compile(r"(?:(?:response|model|answer|assistant|completion|option)[ _-]?)?([0-9a-h])")
_PREFERENCES = ("preference", "overall_preference", "preference_strength")
_LISTS = ("answers", "completions", "responses")
_TEXTS = ("answer", "response", "text", "content")
_TIES = ("neither", "equal", "same", "draw")
_RANKS = ("rank", "ranks")  # 1 is the best
_SCORES = ("score", "scores", "overall_score", "rating", "ratings", "reward")

# What `columns:` may map to, beside the columns of every kind of row.
COLUMNS = (
    "context", "response1", "response2", "preference", "preferred", "answers", "scores",
    *(f"{column}_{letter}" for column in ("response", "score") for letter in "012abcdefgh"),
)  # fmt: skip


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a better and a worse answer; `margin` by how much it is better and `scores` of
    both answers, where the row says them."""

    prompt: Talk
    chosen: str
    rejected: str
    margin: float | None = None
    scores: tuple[float, float] | None = None


def read_pair(row: Mapping[str, Any], where: str) -> PreferencePair | str:
    """Return the preference pair of a row, or the reason why it is dropped: `empty`, `no_answer` (a
    side does not end with the assistant), `no_question` (the prompt does), `several_turns` (the
    sides part before their last answer), `prompt_differs` (what the sides share is not the row's
    prompt), `no_preference`, `tie`, `same_text`.

    Raises InputError that names the row for columns that hold no preference pair."""
    stored = _sides(row, where)
    if isinstance(stored, str):
        return stored
    values, margin, scores = stored
    if any(_blank(value) for value in values):
        return "empty"
    sides = [_side(value, f"{where}: {side}") for value, side in zip(values, SIDES, strict=True)]
    if any(side[-1]["role"] != "assistant" for side in sides):
        return "no_answer"
    prompt = _prompt(row, sides, where)
    if isinstance(prompt, str):
        return prompt
    chosen, rejected = (side[-1]["content"] for side in sides)
    if not (chosen.strip() and rejected.strip() and prompt[-1]["content"].strip()):
        return "empty"
    if chosen.strip() == rejected.strip():
        return "same_text"
    return PreferencePair(prompt, chosen, rejected, margin, scores)


def read_number(row: Mapping[str, Any], name: str, where: str) -> float | None:
    """Return a number of a row, None where it is absent, null or not a number as pandas writes it.
    Raises InputError for anything else."""
    value = numeric(row.get(name))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
        raise InputError(f"{where}: {name} {row[name]!r} is not a number", "fix that row")
    return float(value)


_Sides = tuple[Sequence[Any], float | None, tuple[float, float] | None]


def _sides(row: Mapping[str, Any], where: str) -> _Sides | str:
    """Return the better and the worse side as they are stored, with margin and scores, or the
    reason why there are none."""
    if any(side in row for side in SIDES):
        for side in SIDES:
            if side not in row:
                raise InputError(
                    f"{where}: no column {side!r}{nearest(side, row)}",
                    f"set columns: {{{side}: theirs}}; it has {', '.join(row)}",
                )
        return [row[side] for side in SIDES], read_number(row, "margin", where), None
    by_letter = {match[1]: name for name in row if (match := _RESPONSE.fullmatch(name))}
    responses = dict(sorted(by_letter.items()))
    preference = next((name for name in _PREFERENCES if name in row), None)
    if len(responses) == 2 and preference:
        value = read_number(row, preference, where)
        if not value:
            return "no_preference" if value is None else "tie"
        margin = read_number(row, "margin", where)
        first, second = (row[name] for name in responses.values())
        sides = [second, first] if value > 0 else [first, second]
        return sides, None if margin is None else abs(margin), None
    if len(responses) > 1 and "preferred" in row:
        return _preferred(row, responses, where)
    if len(responses) > 1 and all(f"score_{letter}" in row for letter in responses):
        scored = [
            (score, row[name])
            for letter, name in responses.items()
            if (score := read_number(row, f"score_{letter}", where)) is not None
        ]
        return _extremes(scored, read_number(row, "margin", where))
    for name in _LISTS:
        if isinstance(row.get(name), list) or _is_struct_of_lists(row.get(name)):
            return _ranked(row, name, where)
    raise InputError(
        f"{where}: no columns 'chosen' and 'rejected'{nearest('chosen', row)}",
        "set columns: {chosen: theirs, rejected: theirs}, or response1, response2 and preference "
        "(below 0: the first is better), or response_a, response_b, … with preferred or score_a, "
        f"score_b, …, or answers with rank or score; it has {', '.join(row)}",
    )


def _preferred(row: Mapping[str, Any], responses: Mapping[str, str], where: str) -> _Sides | str:
    """Return the response that a row names as the preferred one, and one of the others: which, the
    hash of the better one's text decides."""
    named = "" if row["preferred"] is None else str(numeric(row["preferred"])).strip().lower()
    if named in ("", "nan", "none", "null"):
        return "no_preference"
    if named.startswith(("tie", "both")) or named in _TIES:
        return "tie"
    match = _NAMED.fullmatch(named)
    best = match[1] if match and match[1] in responses else ""
    if not best:
        fix = f"name one of {', '.join(responses.values())}"
        raise InputError(f"{where}: preferred {str(row['preferred'])[:40]!r} is no response", fix)
    better = row[responses[best]]
    worse = [row[name] for letter, name in responses.items() if letter != best]
    worse = [text for text in worse if not _blank(text)] or [None]
    number = int(text_hash(repr(better))[:8], 16) % len(worse)
    return [better, worse[number]], read_number(row, "margin", where), None


def _extremes(
    rated: Sequence[tuple[float, Any]], margin: float | None, ranks: bool = False
) -> _Sides | str:
    """Return the best and the worst of rated answers; ranks are negative, and no scores."""
    if len(rated) < 2:
        return "no_preference"
    best, worst = max(rated, key=lambda item: item[0]), min(rated, key=lambda item: item[0])
    if best[0] == worst[0]:
        return "tie"
    return [best[1], worst[1]], margin, None if ranks else (best[0], worst[0])


def _ranked(row: Mapping[str, Any], name: str, where: str) -> _Sides | str:
    """Return the best and the worst of a list of ranked or scored answers."""
    answers = row[name]
    if isinstance(answers, Mapping):
        answers = [dict(zip(answers, each, strict=True)) for each in zip_longest(*answers.values())]
    inside = all(isinstance(answer, Mapping) for answer in answers)
    holder = answers[0] if inside and answers else row
    key = next((key for key in (*_RANKS, *_SCORES) if key in holder), None)
    text = next((text for text in _TEXTS if text in holder), None) if inside else None
    if answers and (key is None or (inside and text is None)):
        raise InputError(
            f"{where}: {name} have no {'text' if key else 'rank or score'} that is known",
            f"each needs {_TEXTS[0]} and rank or score; it has {', '.join(map(str, holder))}",
        )
    if not inside and len(row[str(key)] or ()) != len(answers):
        raise InputError(
            f"{where}: {len(answers)} {name} and {len(row[str(key)] or ())} {key}", "fix that row"
        )
    rated = []
    for place, answer in enumerate(answers):
        holder = answer if inside else {str(key): row[str(key)][place]}
        value = read_number(holder, str(key), f"{where}: {name}.{place}")
        if value is not None:
            rated.append((-value if key in _RANKS else value, answer[text] if inside else answer))
    return _extremes(rated, read_number(row, "margin", where), ranks=key in _RANKS)


def _prompt(row: Mapping[str, Any], sides: Sequence[Talk], where: str) -> Talk | str:
    """Return the prompt of both sides, or the reason why there is none."""
    column = next((name for name in _PROMPTS if not _blank(row.get(name))), None)
    stated = None if column is None else _talk(row[column], "user", where)
    if stated and column == "messages" and stated[-1]["role"] == "assistant":
        stated = stated[:-1] or None  # with the better answer beside it, as UltraFeedback has it
    contexts = [side[:-1] for side in sides if len(side) > 1]
    if stated is None and len(contexts) < 2:
        if any(name in row for name in _PROMPTS):
            return "empty"
        raise InputError(
            f"{where}: no column 'prompt'{nearest('prompt', row)}, and chosen and rejected do not "
            "both hold the conversation",
            f"set columns: {{prompt: theirs}}; it has {', '.join(row)}",
        )
    if len(contexts) == 2 and _plain(contexts[0]) != _plain(contexts[1]):
        return "several_turns"
    if contexts and stated is not None:
        shared = contexts[0]
        if _ends(stated, shared):
            prompt = stated  # all that was said; the sides repeat the end of it
        elif _part_of(stated, shared):
            prompt = shared
        elif stated[-1]["role"] != "user" and shared[0]["role"] == "user":
            prompt = [*stated, *shared]  # a system prompt, or earlier turns, that the sides go on
        else:
            return "prompt_differs"
    else:
        prompt = stated or contexts[0]
    return "no_question" if prompt[-1]["role"] == "assistant" else prompt


def _part_of(stated: Talk, shared: Talk) -> bool:
    """Whether a prompt is what a conversation begins or ends with, but for its system prompt, or
    one of its ends alone: its first or its last user turn."""
    part, whole = _plain(stated, system=False), _plain(shared, system=False)
    return bool(part) and (whole[: len(part)] == part or whole[-len(part) :] == part)


def _ends(stated: Talk, shared: Talk) -> bool:
    """Whether a prompt ends with all of a conversation."""
    return _plain(stated)[-len(shared) :] == _plain(shared)


def _plain(talk: Talk, system: bool = True) -> list[tuple[str, str]]:
    return [
        (turn["role"], turn["content"].strip())
        for turn in talk
        if system or turn["role"] != "system"
    ]


def _side(value: Any, where: str) -> Talk:
    """Return one side as messages: an answer alone, or a conversation."""
    if isinstance(value, Mapping) and not _is_struct_of_lists(value):
        value = [value]
    return _talk(value, "assistant", where)


def _talk(value: Any, speaker: str, where: str) -> Talk:
    """Return messages of a conversation, of a transcript, or of a text that `speaker` wrote."""
    value = decoded(value)
    if not isinstance(value, str):
        return messages({"messages": value}, where)
    return transcript(value) or [{"role": speaker, "content": value}]


def _is_struct_of_lists(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(part, list) for part in value.values())


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value == []

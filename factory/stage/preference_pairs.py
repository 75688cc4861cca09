"""The one reader of preference pairs: a row of anybody's preference data to a prompt, its better
and its worse answer.

A row says which answer is better in one of three ways: `chosen` and `rejected`; two responses and
a signed `preference` (HelpSteer); a list of `answers` with ranks or scores (Nectar, UltraFeedback).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factory.errors import InputError, nearest
from factory.stage.readers import messages

SIDES = ("chosen", "rejected")
Talk = list[dict[str, str]]

# Columns of well-known datasets, ours first: `columns:` maps any other name to one of ours.
_PROMPTS = ("prompt", "messages", "context")
_RESPONSES = (("response1", "response2"), ("response_1", "response_2"))
_PREFERENCES = ("preference", "overall_preference", "preference_strength")
_LISTS = ("answers", "completions", "responses")
_TEXTS = ("answer", "response", "text", "content")
_RANKS = ("rank", "ranks")  # 1 is the best
_SCORES = ("score", "scores", "overall_score", "rating", "ratings", "reward")

_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_TURNS = tuple(re.compile(rf"(?:^\s*|{gap}[ \t]*)(Human|Assistant):") for gap in (r"\n\n", r"\n"))


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
    found = _sides(row, where)
    if isinstance(found, str):
        return found
    values, margin, scores = found
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
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
        raise InputError(f"{where}: {name} {value!r} is not a number", "fix that row")
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
    responses = next((pair for pair in _RESPONSES if all(name in row for name in pair)), None)
    preference = next((name for name in _PREFERENCES if name in row), None)
    if responses and preference:
        value = read_number(row, preference, where)
        if not value:
            return "no_preference" if value is None else "tie"
        margin = read_number(row, "margin", where)
        first, second = (row[name] for name in responses)
        sides = [second, first] if value > 0 else [first, second]
        return sides, None if margin is None else abs(margin), None
    for name in _LISTS:
        if isinstance(row.get(name), Sequence) and not isinstance(row[name], str):
            return _ranked(row, name, where)
    raise InputError(
        f"{where}: no columns 'chosen' and 'rejected'{nearest('chosen', row)}",
        "set columns: {chosen: theirs, rejected: theirs}, or response1, response2 and preference "
        f"(below 0: the first is better), or answers with rank or score; it has {', '.join(row)}",
    )


def _ranked(row: Mapping[str, Any], name: str, where: str) -> _Sides | str:
    """Return the best and the worst of a list of ranked or scored answers."""
    answers = row[name]
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
    if len(rated) < 2:
        return "no_preference"
    best, worst = max(rated, key=lambda item: item[0]), min(rated, key=lambda item: item[0])
    if best[0] == worst[0]:
        return "tie"
    scores = None if key in _RANKS else (best[0], worst[0])
    return [best[1], worst[1]], read_number(row, "margin", where), scores


def _prompt(row: Mapping[str, Any], sides: Sequence[Talk], where: str) -> Talk | str:
    """Return the prompt of both sides, or the reason why there is none."""
    column = next((name for name in _PROMPTS if not _blank(row.get(name))), None)
    given = None if column is None else _talk(row[column], "user", where)
    if given and column == "messages" and given[-1]["role"] == "assistant":
        given = given[:-1] or None  # with the better answer beside it, as UltraFeedback has it
    contexts = [side[:-1] for side in sides if len(side) > 1]
    if given is None and len(contexts) < 2:
        if any(name in row for name in _PROMPTS):
            return "empty"
        raise InputError(
            f"{where}: no column 'prompt'{nearest('prompt', row)}, and chosen and rejected do not "
            "both hold the conversation",
            f"set columns: {{prompt: theirs}}; it has {', '.join(row)}",
        )
    if len(contexts) == 2 and _plain(contexts[0]) != _plain(contexts[1]):
        return "several_turns"
    if contexts and given is not None:
        shared = contexts[0]
        if _ends(given, shared):
            prompt = given  # all that was said; the sides repeat the end of it
        elif _part_of(given, shared):
            prompt = shared
        else:
            return "prompt_differs"
    else:
        prompt = given or contexts[0]
    return "no_question" if prompt[-1]["role"] == "assistant" else prompt


def _part_of(given: Talk, shared: Talk) -> bool:
    """Whether a prompt is what a conversation begins or ends with, but for its system prompt, or
    one of its ends alone: its first or its last user turn."""
    part, whole = _plain(given, system=False), _plain(shared, system=False)
    return bool(part) and (whole[: len(part)] == part or whole[-len(part) :] == part)


def _ends(given: Talk, shared: Talk) -> bool:
    """Whether a prompt ends with all of a conversation."""
    return _plain(given)[-len(shared) :] == _plain(shared)


def _plain(talk: Talk, system: bool = True) -> list[tuple[str, str]]:
    return [
        (turn["role"], turn["content"].strip())
        for turn in talk
        if system or turn["role"] != "system"
    ]


def _side(value: Any, where: str) -> Talk:
    """Return one side as messages: an answer alone, or a conversation."""
    if isinstance(value, Mapping):
        value = [value]
    return _talk(value, "assistant", where)


def _talk(value: Any, speaker: str, where: str) -> Talk:
    """Return messages of a conversation, of a transcript, or of a text that `speaker` wrote."""
    if not isinstance(value, str):
        return messages({"messages": value}, where)
    return _transcript(value) or [{"role": speaker, "content": value}]


def _transcript(text: str) -> Talk | None:
    """Return the turns of a transcript, "\\n\\nHuman: …\\n\\nAssistant: …", without an opening for
    the next answer at its end; None for any other text."""
    for turn in _TURNS:
        starts = list(turn.finditer(text))
        if not starts or starts[0].start():
            return None
        if text.startswith("\n\n") or {start[1] for start in starts} == _SPEAKERS.keys():
            ends = [*(start.start() for start in starts[1:]), len(text)]
            turns = [
                {"role": _SPEAKERS[start[1]], "content": text[start.end() : end].strip()}
                for start, end in zip(starts, ends, strict=True)
            ]
            return turns if turns[-1] != {"role": "assistant", "content": ""} else turns[:-1]
    return None


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value == []

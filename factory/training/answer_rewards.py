"""Rewards of answers that a model in training samples, other than a reward model's. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from factory.language.detect import detect, matches
from factory.training.settings import Task

Rewards = list[float | None]
Function = Callable[..., Rewards]  # as TRL calls it: of all answers of a batch, by keywords


def functions(task: Task) -> dict[str, Function]:
    """Return the reward functions of a task by name. TRL logs each under that name."""
    pattern = re.compile(task.format or "", re.DOTALL)

    def language(completions: Sequence[Any], language: Sequence[str], **_: Any) -> Rewards:
        texts = [answer[0]["content"] for answer in completions]
        return [
            float(matches(detect(text), code)) for text, code in zip(texts, language, strict=True)
        ]

    def length(completion_ids: Sequence[Sequence[int]], **_: Any) -> Rewards:
        most = task.length or 0
        over = [max(0, len(ids) - most) / (task.max_tokens - most) for ids in completion_ids]
        return [1 - min(1.0, share) for share in over]

    def format(completions: Sequence[Any], **_: Any) -> Rewards:
        return [float(bool(pattern.fullmatch(answer[0]["content"]))) for answer in completions]

    def exact(completions: Sequence[Any], gold: Sequence[str | None], **_: Any) -> Rewards:
        texts = [answer[0]["content"] for answer in completions]
        if task.format is not None and pattern.groups:
            matched = [pattern.fullmatch(text) for text in texts]
            texts = [(match.group(1) or "") if match else "" for match in matched]
        return [
            None if right is None else float(_plain(text) == _plain(right))
            for text, right in zip(texts, gold, strict=True)
        ]

    return {function.__name__: function for function in (language, length, format, exact)}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())

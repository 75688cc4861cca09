"""Reward backends: a prompt and an answer in, one number out, or a reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from factory import chat
from factory.chat import Message
from factory.engines import Scorer


@dataclass(frozen=True)
class Reward:
    """A reward (None when there is none), the tokens read, and `ok`, `too_long` or
    `not_finite`."""

    value: float | None
    n_tokens: int
    status: str


class Classifier:
    """A sequence classifier's raw logit on the whole conversation, under its own chat template
    (Skywork-Reward-V2's use: no system prompt added, at most one BOS)."""

    def __init__(self, scorer: Scorer, max_tokens: int) -> None:
        self._scorer = scorer
        self._limit = min(max_tokens, scorer.max_context)

    @property
    def tokenizer(self) -> Any:
        """The reward model's own tokenizer."""
        return self._scorer.tokenizer

    def __call__(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[Reward]:
        """Rewards of (prompt messages, answer) pairs, in order."""
        ids = [
            chat.conversation_ids(
                self.tokenizer, [*prompt, {"role": "assistant", "content": answer}]
            )
            for prompt, answer in items
        ]
        fits = [i for i, tokens in enumerate(ids) if len(tokens) <= self._limit]
        scores = dict(zip(fits, self._scorer.score([ids[i] for i in fits]), strict=True))
        return [self._reward(scores.get(i), len(tokens)) for i, tokens in enumerate(ids)]

    @staticmethod
    def _reward(score: float | None, n_tokens: int) -> Reward:
        if score is None:
            return Reward(None, n_tokens, "too_long")
        if not math.isfinite(score):
            return Reward(None, n_tokens, "not_finite")
        return Reward(score, n_tokens, "ok")

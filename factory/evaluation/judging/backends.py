"""Models that judge: one that is loaded here, asked in token ids, or a served one, in messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from factory.engines import Sampler, Sampling
from factory.engines.openai import REFUSED, TOO_LONG, OpenAIChat
from factory.evaluation.judging.truncate import Characters, LengthMeasure, Tokens


@dataclass(frozen=True)
class Reply:
    """A judge's reply, why it may not be read (`cut_off`, `too_long`, `refused`), and the tokens
    read and written, where they were counted."""

    text: str
    unread: str | None
    n_tokens: int


class JudgeBackend(Protocol):
    """A judge that answers. `max_context`: of question and answer together, in its `measure`;
    None where nobody here knows."""

    measure: LengthMeasure
    max_context: int | None

    def say(self, requests: Sequence[Any], sampling: Sampling, seed: int) -> list[Reply]:
        """Return a reply to each request of `measure.as_request`, in order."""
        ...


class LocalJudge:
    """A model whose engine takes token ids."""

    def __init__(self, sampler: Sampler) -> None:
        self.measure: LengthMeasure = Tokens(sampler.tokenizer)
        self.max_context: int | None = sampler.max_context
        self._sampler = sampler

    def say(self, requests: Sequence[Any], sampling: Sampling, seed: int) -> list[Reply]:
        replies = []
        answers = self._sampler.sample(requests, sampling, seed) if requests else []
        for ids, answer in zip(requests, answers, strict=True):
            written = list(answer.token_ids)
            text = self._sampler.tokenizer.decode(written, skip_special_tokens=True).strip()
            unread = "cut_off" if answer.finish_reason == "length" else None
            replies.append(Reply(text, unread, len(ids) + len(written)))
        return replies


class ServedJudge:
    """A served model, known here by its name alone."""

    max_context: int | None = None

    def __init__(self, chat: OpenAIChat) -> None:
        self.measure: LengthMeasure = Characters()
        self._chat = chat

    def say(self, requests: Sequence[Any], sampling: Sampling, seed: int) -> list[Reply]:
        unread = {"length": "cut_off", TOO_LONG: TOO_LONG, REFUSED: REFUSED}
        answers = self._chat.answer(requests, sampling, seed) if requests else []
        return [
            Reply(
                answer.text.strip(),
                unread.get(answer.finish_reason),
                answer.n_all or answer.n_tokens or 0,
            )
            for answer in answers
        ]

"""Who is asked: a model that is loaded here, in token ids, or one that is served, in messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from factory.engines import Sampler, Sampling
from factory.engines.openai import REFUSED, TOO_LONG, OpenAIChat
from factory.evaluation.judging.truncate import Characters, LengthMeasure, Tokens


@dataclass(frozen=True)
class Reply:
    """What was said, and why it may not be read: `cut_off`, `too_long` or `refused`; and the
    tokens read and written, as far as anybody counted them."""

    text: str
    unread: str | None
    n_tokens: int


class JudgeBackend(Protocol):
    """A judge that answers. `max_context`: of question and answer together, in its `measure`;
    None where nobody here knows."""

    measure: LengthMeasure
    max_context: int | None

    def say(self, asked: Sequence[Any], sampling: Sampling, seed: int) -> list[Reply]:
        """A reply to each, as `measure.asked` made it, in order."""
        ...


class LocalJudge:
    """A model whose engine takes token ids."""

    def __init__(self, sampler: Sampler) -> None:
        self.measure: LengthMeasure = Tokens(sampler.tokenizer)
        self.max_context: int | None = sampler.max_context
        self._sampler = sampler

    def say(self, asked: Sequence[Any], sampling: Sampling, seed: int) -> list[Reply]:
        found = []
        answers = self._sampler.sample(asked, sampling, seed) if asked else []
        for ids, answer in zip(asked, answers, strict=True):
            said = list(answer.token_ids)
            text = self._sampler.tokenizer.decode(said, skip_special_tokens=True).strip()
            unread = "cut_off" if answer.finish_reason == "length" else None
            found.append(Reply(text, unread, len(ids) + len(said)))
        return found


class ServedJudge:
    """A served model, of which nothing is here but its name."""

    max_context: int | None = None

    def __init__(self, chat: OpenAIChat) -> None:
        self.measure: LengthMeasure = Characters()
        self._chat = chat

    def say(self, asked: Sequence[Any], sampling: Sampling, seed: int) -> list[Reply]:
        unread = {"length": "cut_off", TOO_LONG: TOO_LONG, REFUSED: REFUSED}
        answers = self._chat.answer(asked, sampling, seed) if asked else []
        return [
            Reply(one.text.strip(), unread.get(one.finish_reason), one.n_all or one.n_tokens or 0)
            for one in answers
        ]

"""Generative reward: a chat model is asked yes or no."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from factory.engines import Likelihood, chat_template, choose
from factory.engines.chat_template import Message
from factory.rewards.backends.backend import (
    Backend,
    Item,
    OpenReward,
    RewardSettings,
    RewardValue,
)
from factory.stage.inputs import Need
from factory.stage.stage import StageContext

# Another default is another meaning: raise GenerativeBackend.version then.
QUESTION = """\
Below is a request and an answer to it.

[Request]
{prompt}

[Answer]
{answer}

Is this a good answer: correct, helpful, complete, and in the language that was asked for? \
Reply with one word, Yes or No."""


class GenerativeBackend(Backend):
    """The probability that a chat model, asked whether this is a good answer, says Yes and not
    No."""

    identified_by_roles: ClassVar[bool] = True
    score_knobs: ClassVar[tuple[str, ...]] = ("question",)

    kind: Literal["generative"]

    def needs(self, context: StageContext, name: str, asked_by: str) -> tuple[Need, ...]:
        """Return the model that is asked, with the adapter on it."""
        return self.causal_needs(context, name, "generative", asked_by)

    def open(self, paths: Mapping[str, Path], settings: RewardSettings) -> OpenReward:
        """Open the model that is asked."""
        model = choose.likelihood(
            settings.how, paths["generative"], settings.dtype, paths.get("adapter")
        )
        question = settings.question or QUESTION
        return OpenReward(Generative(model, settings.max_tokens, question), model)


class Generative:
    """The probability that a chat model, asked `question` about a request and its answer, says Yes
    and not No: both words' probabilities, divided by their sum."""

    def __init__(self, model: Likelihood, max_tokens: int, question: str = QUESTION) -> None:
        self._model, self._question = model, question
        self._limit = min(max_tokens, model.max_context)

    def __call__(self, items: Sequence[Item]) -> list[RewardValue]:
        """Return the rewards of (prompt messages, answer) pairs, in order."""
        requests = [[{"role": "user", "content": self._ask(*item)}] for item in items]
        replies = [(messages, word) for messages in requests for word in ("Yes", "No")]
        # without the stop token: a model may have more to say after its word
        read = [
            (ids[:-1], start)
            for ids, start in chat_template.answered_ids(self._model.tokenizer, replies)
        ]
        sizes = [max(len(read[n][0]), len(read[n + 1][0])) for n in range(0, len(read), 2)]
        fits = [i for i, size in enumerate(sizes) if size <= self._limit]
        both = [read[2 * i + side] for i in fits for side in (0, 1)]
        log_probs = self._model.log_probs([ids for ids, _ in both], [start for _, start in both])
        sums = [math.fsum(values) for values in log_probs]
        chances = [_share(yes, no) for yes, no in zip(sums[::2], sums[1::2], strict=True)]
        scores = dict(zip(fits, chances, strict=True))
        return [RewardValue.from_score(scores.get(i), size) for i, size in enumerate(sizes)]

    def _ask(self, prompt: Sequence[Message], answer: str) -> str:
        request = prompt[0]["content"] if len(prompt) == 1 else _transcript(prompt)
        parts = {"prompt": request, "answer": answer}
        # in one pass: an answer may hold "{prompt}" as its own text
        return re.sub(r"\{(prompt|answer)\}", lambda match: parts[match[1]], self._question)


def _transcript(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)


def _share(yes: float, no: float) -> float:
    """Return exp(yes) / (exp(yes) + exp(no)), whatever their size."""
    less = math.exp(-abs(yes - no))
    return 1 / (1 + less) if yes >= no else less / (1 + less)

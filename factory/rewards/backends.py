"""Reward backends: a prompt and an answer in, one number out, or a reason why there is none.

Each is called with (prompt messages, answer) pairs and returns a `Reward` each, in order; what one
gets does not depend on what else is asked. Rendering is
engines/chat_template.py's, running a model an engine's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from factory.engines import Likelihood, Scorer, chat_template
from factory.engines.chat_template import Message
from factory.errors import InputError
from factory.language.languages import language

Item = tuple[Sequence[Message], str]

# ICR (arXiv 2503.04647) puts this before the English instruction for every other language.
_ONLY_IN = (
    "Please answer the following instruction using only {name}, unless explicitly instructed to "
    "respond in a different language.\n\n"
)
# What the generative backend asks. Another default is another meaning: raise Score.version then.
QUESTION = """\
Below is a request and an answer to it.

[Request]
{prompt}

[Answer]
{answer}

Is this a good answer: correct, helpful, complete, and in the language that was asked for? \
Reply with one word, Yes or No."""


@dataclass(frozen=True)
class RewardValue:
    """A reward (None when there is none), the tokens read, and `ok`, `too_long` or
    `not_finite`."""

    value: float | None
    n_tokens: int
    status: str


class Backend(Protocol):
    """What every class below is."""

    def __call__(self, items: Sequence[Item]) -> list[RewardValue]:
        """Rewards of (prompt messages, answer) pairs, in order."""
        ...


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

    def __call__(self, items: Sequence[Item]) -> list[RewardValue]:
        """Rewards of (prompt messages, answer) pairs, in order."""
        ids = [
            chat_template.conversation_ids(
                self.tokenizer, [*prompt, {"role": "assistant", "content": answer}]
            )
            for prompt, answer in items
        ]
        fits = [i for i, tokens in enumerate(ids) if len(tokens) <= self._limit]
        scores = dict(zip(fits, self._scorer.score([ids[i] for i in fits]), strict=True))
        return [_reward(scores.get(i), len(tokens)) for i, tokens in enumerate(ids)]


class Implicit:
    """ICR's reward: by how much a tuned model finds an answer likelier than the model it was tuned
    from: the sum over the answer's tokens and its stop token of log policy - log reference, in
    nats. No beta, no division by length. Both models read the very same tokens."""

    def __init__(self, policy: Likelihood, reference: Likelihood, max_tokens: int) -> None:
        if policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
            raise InputError(
                "the two models of an implicit reward have different vocabularies",
                "the reference is the model that the policy was tuned from",
            )
        self._policy, self._reference = policy, reference
        self._limit = min(max_tokens, policy.max_context, reference.max_context)

    def __call__(self, items: Sequence[Item]) -> list[RewardValue]:
        """Rewards of (prompt messages, answer) pairs, in order."""
        read = chat_template.answered_ids(self._policy.tokenizer, items)
        fits = [i for i, (ids, _) in enumerate(read) if len(ids) <= self._limit]
        sequences, starts = [read[i][0] for i in fits], [read[i][1] for i in fits]
        likelier = [
            math.fsum(ours) - math.fsum(theirs)
            for ours, theirs in zip(
                self._policy.log_probs(sequences, starts),
                self._reference.log_probs(sequences, starts),
                strict=True,
            )
        ]
        scores = dict(zip(fits, likelier, strict=True))
        return [_reward(scores.get(i), len(ids)) for i, (ids, _) in enumerate(read)]


class Generative:
    """The probability that a chat model, asked `question` about a request and its answer, says Yes
    and not No: both words' probabilities, divided by their sum."""

    def __init__(self, model: Likelihood, max_tokens: int, question: str = QUESTION) -> None:
        self._model, self._question = model, question
        self._limit = min(max_tokens, model.max_context)

    def __call__(self, items: Sequence[Item]) -> list[RewardValue]:
        """Rewards of (prompt messages, answer) pairs, in order."""
        asked = [[{"role": "user", "content": self._ask(*item)}] for item in items]
        words = [(messages, word) for messages in asked for word in ("Yes", "No")]
        # without the stop token: a model may have more to say after its word
        read = [
            (ids[:-1], at) for ids, at in chat_template.answered_ids(self._model.tokenizer, words)
        ]
        sizes = [max(len(read[n][0]), len(read[n + 1][0])) for n in range(0, len(read), 2)]
        fits = [i for i, size in enumerate(sizes) if size <= self._limit]
        both = [read[2 * i + side] for i in fits for side in (0, 1)]
        found = self._model.log_probs([ids for ids, _ in both], [start for _, start in both])
        sums = [math.fsum(values) for values in found]
        chances = [_share(yes, no) for yes, no in zip(sums[::2], sums[1::2], strict=True)]
        scores = dict(zip(fits, chances, strict=True))
        return [_reward(scores.get(i), size) for i, size in enumerate(sizes)]

    def _ask(self, prompt: Sequence[Message], answer: str) -> str:
        told = prompt[0]["content"] if len(prompt) == 1 else _transcript(prompt)
        parts = {"prompt": told, "answer": answer}
        # in one pass: an answer may hold "{prompt}" as its own text
        return re.sub(r"\{(prompt|answer)\}", lambda found: parts[found[1]], self._question)


def crosslingual(english: Sequence[Message], code: str) -> list[Message]:
    """The English prompt under which ICR reads an answer in language `code`: with an instruction
    to answer in that language before the last user turn, unless it is English."""
    if code == "en":
        return list(english)
    last = english[-1]
    asked = _ONLY_IN.format(name=language(code).name) + last["content"]
    return [*english[:-1], {**last, "content": asked}]


def _transcript(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)


def _share(yes: float, no: float) -> float:
    """exp(yes) / (exp(yes) + exp(no)), whatever their size."""
    less = math.exp(-abs(yes - no))
    return 1 / (1 + less) if yes >= no else less / (1 + less)


def _reward(score: float | None, n_tokens: int) -> RewardValue:
    if score is None:
        return RewardValue(None, n_tokens, "too_long")
    if not math.isfinite(score):
        return RewardValue(None, n_tokens, "not_finite")
    return RewardValue(score, n_tokens, "ok")

"""Generative reward: a chat model is asked yes or no, or for a number from 1 to 10."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from factory.engines import Likelihood, Sampling, chat_template, choose
from factory.engines.chat_template import Message
from factory.engines.openai import REFUSED, TOO_LONG, Answer, OpenAIChat
from factory.errors import RecipeError
from factory.rewards.backends.backend import (
    Backend,
    Item,
    OpenReward,
    RewardSettings,
    RewardValue,
)
from factory.stage.inputs import Need, ServedModel
from factory.stage.stage import StageContext

# Another default is another meaning: raise GenerativeBackend.version then.
_ABOUT = """\
Below is a request and an answer to it.

[Request]
{prompt}

[Answer]
{answer}

"""
QUESTION = (
    _ABOUT + "Is this a good answer: correct, helpful, complete, and in the language that was "
    "asked for? Reply with one word, Yes or No."
)
RUBRIC = (
    _ABOUT + "How good is this answer: correct, helpful, complete, and in the language that was "
    "asked for? Reply with one whole number, from 1 (worthless) to 10 (could not be better)."
)

REFERENCE_ROLE = "reference"  # of a last message of a prompt: an answer that is known to be good
_WORDS: dict[str, dict[str, float]] = {
    "yes_no": {"Yes": 1.0, "No": 0.0},
    "1-10": {str(number): float(number) for number in range(1, 11)},
}
_REPLY = 16  # tokens of a served model's reply, of which the first decide


class GenerativeBackend(Backend):
    """Opinion of a chat model on an answer. `scale: yes_no`: the probability that, asked whether it
    is good, it says Yes and not No. `1-10`: the mean of the numbers 1 to 10, weighted by the
    probability that it says each. A served model (`served:`) is read by the probabilities that its
    server gives, or by its words; `request` is added to every request."""

    identified_by_roles: ClassVar[bool] = True
    score_knobs: ClassVar[tuple[str, ...]] = ("question",)
    may_be_served: ClassVar[bool] = True

    kind: Literal["generative"]
    scale: Literal["yes_no", "1-10"] = "yes_no"
    request: dict[str, Any] = Field(default_factory=dict)  # of a served model: more of each request

    def question(self, own: str | None) -> str:
        """Return what is asked: the recipe's own question, or that of the scale."""
        return own or (RUBRIC if self.scale == "1-10" else QUESTION)

    def needs(self, context: StageContext, name: str, asked_by: str) -> tuple[Need, ...]:
        """Return the model that is asked, with the adapter on it."""
        if self.request and self.served is None:
            raise RecipeError(
                f"models.{name}.request is for a served model, and this is none", "take it out"
            )
        if self.served is None:
            return self.causal_needs(context, name, "generative", asked_by)
        if asked_by == "judge":
            raise RecipeError(
                f"stages.judge reads the reward {name!r}, which is served",
                f"a served model judges itself: models.{name} as {{served: {self.served}}}",
            )
        return (ServedModel("generative", self.served),)

    def open(self, paths: Mapping[str, Path], settings: RewardSettings) -> OpenReward:
        """Open the model that is asked."""
        words, question = _WORDS[self.scale], self.question(settings.question)
        if self.served is not None:
            options = {"logprobs": True, "top_logprobs": 20, **self.request}
            chat = choose.chat(settings.how, self.served, options)
            return OpenReward(Served(chat, question, words), chat)  # type: ignore[arg-type]
        model = choose.likelihood(
            settings.how, paths["generative"], settings.dtype, paths.get("adapter")
        )
        return OpenReward(Generative(model, settings.max_tokens, question, words), model)


class Generative:
    """The values of `words` (text to value) in the mean, weighted by the probabilities that a chat
    model, asked `question` about a request and its answer, replies each of them."""

    def __init__(
        self,
        model: Likelihood,
        max_tokens: int,
        question: str = QUESTION,
        words: Mapping[str, float] = _WORDS["yes_no"],
    ) -> None:
        self._model, self._question, self._words = model, question, words
        self._limit = min(max_tokens, model.max_context)

    def __call__(self, items: Sequence[Item]) -> list[RewardValue]:
        """Return the rewards of (prompt messages, answer) pairs, in order."""
        n = len(self._words)
        requests = [[{"role": "user", "content": asked(self._question, *item)}] for item in items]
        replies = [(messages, word) for messages in requests for word in self._words]
        # without the stop token: a model may have more to say after its word
        read = [
            (ids[:-1], start)
            for ids, start in chat_template.answered_ids(self._model.tokenizer, replies)
        ]
        sizes = [max(len(ids) for ids, _ in read[at : at + n]) for at in range(0, len(read), n)]
        fits = [i for i, size in enumerate(sizes) if size <= self._limit]
        every = [reading for i in fits for reading in read[n * i : n * i + n]]
        log_probs = self._model.log_probs([ids for ids, _ in every], [start for _, start in every])
        sums, values = [math.fsum(each) for each in log_probs], list(self._words.values())
        scores = {
            i: expected_value(
                sums[n * at : n * at + n], [ids for ids, _ in read[n * i : n * i + n]], values
            )
            for at, i in enumerate(fits)
        }
        return [RewardValue.from_score(scores.get(i), size) for i, size in enumerate(sizes)]


def expected_value(
    sums: Sequence[float], ids: Sequence[Sequence[int]], values: Sequence[float]
) -> float:
    """Return the mean of the values of replies, weighted by their probabilities. `sums`: the
    log-probability of each reply; `ids`: its tokens. What belongs to a longer reply is taken off
    the one that it begins with: to begin 10 is not to say 1."""
    top = max(sums)
    weights = [math.exp(value - top) for value in sums]
    for at, long in enumerate(ids):
        for other, short in enumerate(ids):
            if len(short) < len(long) and list(long[: len(short)]) == list(short):
                weights[other] = max(0.0, weights[other] - weights[at])
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)


class Served:
    """The same of a served model: by the probabilities of the first token of its reply, where the
    server gives any, or else by the word itself. No word of the scale is `unparseable`."""

    def __init__(self, chat: OpenAIChat, question: str, words: Mapping[str, float]) -> None:
        self._chat, self._question = chat, question
        self._words = {word.casefold(): value for word, value in words.items()}
        listed = "|".join(sorted(self._words, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<![\w.-])({listed})(?!\w|[.,]\d)", re.IGNORECASE)

    def __call__(self, items: Sequence[Item]) -> list[RewardValue]:
        """Return the rewards of (prompt messages, answer) pairs, in order."""
        requests: list[list[Message]] = [
            [{"role": "user", "content": asked(self._question, *item)}] for item in items
        ]
        replies = self._chat.answer(requests, Sampling(0.0, 1.0, _REPLY), seed=0) if items else []
        return [self._read(reply) for reply in replies]

    def _read(self, reply: Answer) -> RewardValue:
        size = reply.n_all or reply.n_tokens or 0
        if reply.finish_reason in (TOO_LONG, REFUSED):
            return RewardValue(None, size, reply.finish_reason)
        weights: dict[str, float] = {}
        for token, log_prob in reply.top[0].items() if reply.top else ():
            if (word := token.strip().casefold()) in self._words:
                weights[word] = weights.get(word, 0.0) + math.exp(log_prob)
        second = reply.top[1] if len(reply.top) > 1 else {}
        ten = {token.strip(): log_prob for token, log_prob in second.items()}
        if "10" in self._words and "10" not in weights and "0" in ten and "1" in weights:
            share = math.exp(ten["0"])  # of what follows a 1
            weights["10"], weights["1"] = weights["1"] * share, weights["1"] * (1 - share)
        if total := math.fsum(weights.values()):
            mean = math.fsum(self._words[word] * weight for word, weight in weights.items()) / total
            return RewardValue(mean, size, "ok")
        words = {match.casefold() for match in self._pattern.findall(reply.text)}
        if len(words) != 1:  # none, or several
            return RewardValue(None, size, "unparseable")
        return RewardValue(self._words[words.pop()], size, "ok")


def asked(question: str, prompt: Sequence[Message], answer: str) -> str:
    """Return a question about a request and its answer; a reference is the prompt's last
    message."""
    turns = [message for message in prompt if message["role"] != REFERENCE_ROLE]
    request = turns[0]["content"] if len(turns) == 1 else _transcript(turns)
    parts = {"prompt": request, "answer": answer}
    if len(turns) < len(prompt):
        parts["reference"] = prompt[-1]["content"]
    # in one pass: an answer may hold "{prompt}" as its own text
    return re.sub(r"\{(prompt|answer|reference)\}", lambda m: parts.get(m[1], m[0]), question)


def _transcript(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)

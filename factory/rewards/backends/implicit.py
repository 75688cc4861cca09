"""Implicit reward of ICR: a tuned model compared with the model it was tuned from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from factory.config import REFERENCE
from factory.engines import Likelihood, chat_template, choose
from factory.engines.chat_template import Message
from factory.errors import InputError, RecipeError
from factory.language.languages import language
from factory.rewards.backends.backend import (
    Backend,
    Item,
    OpenReward,
    RewardSettings,
    RewardValue,
)
from factory.stage.inputs import Need
from factory.stage.stage import StageContext

# ICR (arXiv 2503.04647) puts this before the English instruction for every other language.
_ONLY_IN = (
    "Please answer the following instruction using only {name}, unless explicitly instructed to "
    "respond in a different language.\n\n"
)


class ImplicitBackend(Backend):
    """By how much a tuned model finds an answer likelier than `reference`, the model under models:
    that it was tuned from: the sum of log-ratios over the answer's tokens, in nats (ICR)."""

    identified_by_roles: ClassVar[bool] = True
    score_knobs: ClassVar[tuple[str, ...]] = ("prompt",)

    kind: Literal["implicit"]
    reference: Annotated[str, REFERENCE]  # the model, under models:, that it was tuned from

    def needs(self, context: StageContext, name: str, asked_by: str) -> tuple[Need, ...]:
        """Return the tuned model as `policy`, with the adapter on it, and its reference."""
        policy = self.causal_needs(context, name, "policy", asked_by)
        reference = context.model(self.reference, "reference", asked_by)
        if context.models[self.reference].kind != "causal":
            raise RecipeError(
                f"models.{name}: its reference {self.reference!r} is not a causal model",
                f"name the model that {name} was tuned from",
            )
        return (*policy, reference)

    def open(self, paths: Mapping[str, Path], settings: RewardSettings) -> OpenReward:
        """Open both models on one device, each with half of the memory that one might take."""
        half = settings.how.gpu_memory_utilization / 2
        how = settings.how.model_copy(update={"gpu_memory_utilization": half})
        policy, reference = (
            choose.likelihood(how, paths[role], settings.dtype, adapter)
            for role, adapter in (("policy", paths.get("adapter")), ("reference", None))
        )
        return OpenReward(Implicit(policy, reference, settings.max_tokens), policy, reference)


class LogProbability:
    """How likely a model finds an answer: the sum over the answer's tokens and its stop token of
    their log-probabilities, in nats."""

    def __init__(self, model: Likelihood, max_tokens: int) -> None:
        self._model, self._limit = model, min(max_tokens, model.max_context)

    def __call__(self, items: Sequence[Item]) -> list[RewardValue]:
        """Return the log-probabilities of (prompt messages, answer) pairs, in order."""
        return _summed([self._model], [1.0], self._limit, items)


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
        self._models = [policy, reference]
        self._limit = min(max_tokens, policy.max_context, reference.max_context)

    def __call__(self, items: Sequence[Item]) -> list[RewardValue]:
        """Return the rewards of (prompt messages, answer) pairs, in order."""
        return _summed(self._models, [1.0, -1.0], self._limit, items)


def _summed(
    models: Sequence[Likelihood], weights: Sequence[float], limit: int, items: Sequence[Item]
) -> list[RewardValue]:
    """Return, for each (prompt messages, answer) pair, the weighted sum over the models of the
    log-probability of the answer, in nats; none of one of over `limit` tokens."""
    read = chat_template.answered_ids(models[0].tokenizer, items)
    fits = [i for i, (ids, _) in enumerate(read) if len(ids) <= limit]
    sequences, starts = [read[i][0] for i in fits], [read[i][1] for i in fits]
    each = [model.log_probs(sequences, starts) for model in models]
    sums = [
        sum(weight * math.fsum(ratios) for weight, ratios in zip(weights, of_answer, strict=True))
        for of_answer in zip(*each, strict=True)
    ]
    scores = dict(zip(fits, sums, strict=True))
    return [RewardValue.from_score(scores.get(i), len(ids)) for i, (ids, _) in enumerate(read)]


def crosslingual(english: Sequence[Message], code: str) -> list[Message]:
    """Return the English prompt under which ICR reads an answer in language `code`: with an
    instruction to answer in that language before the last user turn, unless it is English."""
    if code == "en":
        return list(english)
    last = english[-1]
    content = _ONLY_IN.format(name=language(code).name) + last["content"]
    return [*english[:-1], {**last, "content": content}]

"""Reward of a sequence classifier with one label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from factory.engines import Scorer, chat_template, choose
from factory.rewards.backends.backend import (
    Backend,
    Item,
    OpenReward,
    RewardSettings,
    RewardValue,
)
from factory.stage.inputs import Need
from factory.stage.stage import StageContext


class ClassifierBackend(Backend):
    """The raw logit of a sequence classifier with one label on the conversation, in its own chat
    template."""

    identified_by_roles: ClassVar[bool] = True
    conversation_roles: ClassVar[frozenset[str]] = frozenset({"reward"})
    is_plain_classifier: ClassVar[bool] = True

    kind: Literal["classifier"]

    def needs(self, context: StageContext, name: str, asked_by: str) -> tuple[Need, ...]:
        """Return the classifier."""
        return (context.model(name, "reward", asked_by),)

    def open(self, paths: Mapping[str, Path], settings: RewardSettings) -> OpenReward:
        """Open the classifier."""
        scorer = choose.scorer(settings.how, paths["reward"], settings.dtype, settings.max_tokens)
        return OpenReward(Classifier(scorer, settings.max_tokens), scorer)


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
        """Return the rewards of (prompt messages, answer) pairs, in order."""
        ids = [
            chat_template.conversation_ids(
                self.tokenizer, [*prompt, {"role": "assistant", "content": answer}]
            )
            for prompt, answer in items
        ]
        fits = [i for i, tokens in enumerate(ids) if len(tokens) <= self._limit]
        scores = dict(zip(fits, self._scorer.score([ids[i] for i in fits]), strict=True))
        return [RewardValue.from_score(scores.get(i), len(read)) for i, read in enumerate(ids)]

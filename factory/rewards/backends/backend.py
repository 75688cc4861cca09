"""Contract of a reward backend: one kind of reward that a recipe may name under models:.

A backend is a pydantic model, as a stage is: its fields are keys of the model's entry, and its
knobs are hashed. It says which models it reads (`needs`) and opens them (`open`). Its rewards are
a function of (prompt messages, answer) pairs; the reward of one pair does not depend on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from factory.engines import Engine
from factory.engines.chat_template import REFUSED, Message, TemplateRefusal
from factory.engines.choose import EngineKnobs
from factory.errors import RecipeError
from factory.stage.inputs import Need
from factory.stage.models import RewardModel
from factory.stage.stage import StageContext

Item = tuple[Sequence[Message], str]  # prompt and answer


@dataclass(frozen=True)
class RewardValue:
    """A reward (None when there is none), the tokens read, and `ok`, `too_long`, `not_finite` or
    `refused_by_template`."""

    value: float | None
    n_tokens: int
    status: str

    @classmethod
    def from_score(cls, score: float | None, n_tokens: int) -> RewardValue:
        """Return the reward for a score; None stands for what was too long to read."""
        if score is None:
            return cls(None, n_tokens, "too_long")
        if not math.isfinite(score):
            return cls(None, n_tokens, "not_finite")
        return cls(score, n_tokens, "ok")


RewardFunction = Callable[[Sequence[Item]], list[RewardValue]]  # rewards in the order of the items


@dataclass(frozen=True)
class RewardSettings:
    """Settings of a stage that its reward is opened with. `max_tokens`: of prompt and answer;
    `question`: what a reward that asks one asks instead of its own."""

    how: EngineKnobs
    dtype: str
    max_tokens: int
    question: str | None = None


class OpenReward:
    """A reward with the engines that it runs on, the first of which names it."""

    def __init__(self, reward: RewardFunction, *runs_on: Engine) -> None:
        self._reward, self._engines = reward, runs_on
        self.name = runs_on[0].name
        self.lanes = min(engine.lanes for engine in runs_on)

    def reward(self, items: Sequence[Item]) -> list[RewardValue]:
        """Return the rewards of the items, in order; one that the chat template refuses has
        none."""
        try:
            return self._reward(items)
        except TemplateRefusal:  # before any was read: which it is, halves show
            if len(items) == 1:
                return [RewardValue(None, 0, REFUSED)]
            middle = len(items) // 2
            return self.reward(items[:middle]) + self.reward(items[middle:])

    @property
    def tokens(self) -> int:
        """Tokens read by all engines so far."""
        return sum(engine.tokens for engine in self._engines)

    def close(self) -> None:
        """Close the engines."""
        for engine in self._engines:
            engine.close()


class Backend(RewardModel):
    """Base of the reward backends; see RewardModel for what else one declares."""

    # Knobs of the stage score that this kind reads: `prompt`, when it can read an answer under the
    # English prompt, and does unless the recipe says own; `question`, when it asks one.
    score_knobs: ClassVar[tuple[str, ...]] = ()
    # Meaning of a reward in half a sentence, for the card of score.
    about: ClassVar[str] = ""

    def open(self, paths: Mapping[str, Path], settings: RewardSettings) -> OpenReward:
        """Open the models in `paths`, by role. Raises FactoryError."""
        raise NotImplementedError

    def causal_needs(
        self, context: StageContext, name: str, role: str, asked_by: str
    ) -> tuple[Need, ...]:
        """Return the needs of a causal model, read as `role`, and of the adapter on it. Raises
        RecipeError for a classifier that is trained here."""
        trained = self.step and context.stage(self.step.partition("[")[0], asked_by).kind
        if trained == "model":
            raise RecipeError(
                f"models.{name}: {self.step} trains a classifier, which answers nothing",
                f"write kind: classifier, or name a chat model for kind: {self.kind}",
            )
        return context.policy(name, role, asked_by)

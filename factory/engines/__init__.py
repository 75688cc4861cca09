"""Engines: token ids in, samples or scores out. The stages know this protocol and no library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Sampling:
    """How to draw an answer; `temperature` 0 is greedy. Nothing else is ever applied: no top-k,
    no repetition penalty, no default hidden in a model's generation config."""

    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True)
class Sample:
    """One answer: its token ids without the stop token, and whether it ended by itself
    (`stop`) or was cut (`length`)."""

    token_ids: tuple[int, ...]
    finish_reason: str


class Sampler(Protocol):
    """A causal model that continues prompts."""

    tokenizer: Any
    stop_ids: list[int]
    max_context: int

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[Sample]:
        """One answer to each prompt, in order. The same call gives the same answers on the same
        machine; in another batch a prompt may be answered otherwise."""
        ...


class Scorer(Protocol):
    """A classifier with one output that reads whole conversations."""

    tokenizer: Any
    max_context: int

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The raw logit of each sequence, in order, whatever else is in the batch."""
        ...


class Likelihood(Protocol):
    """A causal model that says how likely it finds given text."""

    tokenizer: Any
    max_context: int

    def log_probs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[list[float]]:
        """For each sequence the natural-log probability of every token from its `start` on,
        given all before it (a start is at least 1), in order, whatever else is in the batch."""
        ...

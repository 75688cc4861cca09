"""Engines: token ids in, samples or scores out. The stages know this protocol and no library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from factory.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How to draw an answer; `temperature` 0 is greedy. Nothing else is ever applied: no top-k,
    no repetition penalty, no default hidden in a model's generation config."""

    temperature: float
    top_p: float
    max_tokens: int

    def room(self, prompt: int, context: int) -> int:
        """How many tokens an answer to a prompt of so many may have in a context of so many; 0
        when the prompt is too long. An answer gets `max_tokens`, or whatever the prompt leaves
        if that is at least half of the context: models whose context is no longer than
        `max_tokens` (8,192 both, for one) could otherwise answer nothing."""
        remaining = context - prompt
        return (
            min(remaining, self.max_tokens)
            if remaining >= min(self.max_tokens, context // 2)
            else 0
        )


@dataclass(frozen=True)
class Completion:
    """One answer: its token ids without the stop token, whether it ended by itself (`stop`) or
    was cut (`length`), and the seed of the stream of random numbers it was drawn from."""

    token_ids: tuple[int, ...]
    finish_reason: str
    seed: int = 0

    @classmethod
    def cut(cls, tokens: Sequence[int], stops: frozenset[int], seed: int) -> Completion:
        """The answer in what a model went on with: up to its first stop token, if it has one."""
        end = next((i for i, token in enumerate(tokens) if token in stops), None)
        if end is None:
            return cls(tuple(tokens), "length", seed)
        return cls(tuple(tokens[:end]), "stop", seed)


class Engine(Protocol):
    """A model that is loaded when it is first asked. `tokenizer` and `max_context` (tokens) are
    known before; `name` says what runs it, with its version; `lanes` is how many callers it
    serves at once (see factory/engines/pipelining.py); `tokens` have been drawn or read so far."""

    name: str
    lanes: int
    tokenizer: Any
    max_context: int

    @property
    def tokens(self) -> int: ...

    def close(self) -> None:
        """Let go of the model and of every process that was started for it."""
        ...


class Sampler(Engine, Protocol):
    """A causal model that continues prompts, with an adapter on it or bare."""

    stop_ids: list[int]

    def set_adapter(self, adapter: Path | None) -> None:
        """Go on with another of the adapters that it was opened with, or bare (None). Not while
        answers are drawn. Greedy answers are then those of an engine with this adapter alone, as
        far as they are the same in another batch. Raises KeyError for any other adapter."""
        ...

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[Completion]:
        """One answer to each prompt, in order. Answers to one prompt are drawn by repeating it,
        one after another, which engines that keep prefixes profit from.

        The same call on a fresh engine gives the same answers on the same machine; in another
        batch a prompt may be answered otherwise. Each sample says which seed it goes back to: an
        engine that draws everything from one stream goes by the first seed it was ever given.
        Raises InputError for a prompt that leaves no room (see Sampling.room).
        """
        ...


class Scorer(Engine, Protocol):
    """A classifier with one output that reads whole conversations."""

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The raw logit of each sequence, in order, whatever else is in the batch."""
        ...


class Likelihood(Engine, Protocol):
    """A causal model that says how likely it finds given text."""

    def log_probs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[list[float]]:
        """For each sequence the natural-log probability of every token from its `start` on,
        given all before it (a start is at least 1), in order, whatever else is in the batch."""
        ...


def rooms_of(prompts: Sequence[Sequence[int]], sampling: Sampling, max_context: int) -> list[int]:
    """How many tokens each answer may have. Raises InputError for a prompt without room."""
    rooms = [sampling.room(len(prompt), max_context) for prompt in prompts]
    if 0 in rooms:
        longest = max(map(len, prompts))
        raise InputError(
            f"a prompt of {longest} tokens leaves no room for an answer in {max_context}",
            "drop it before it is asked (see Sampling.room)",
        )
    return rooms


def loaded_adapter(adapter: Path | None, other_adapters: Sequence[Path]) -> dict[Path, int]:
    """The adapters that a sampler is opened with, each once, numbered from 0."""
    paths = dict.fromkeys(([] if adapter is None else [adapter]) + list(other_adapters))
    return {path: number for number, path in enumerate(paths)}

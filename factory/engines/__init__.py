"""Engines: token ids in, samples or scores out. The stages know this protocol and no library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from factory.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters; `temperature` 0 is greedy. Nothing else is ever applied: no top-k, no
    repetition penalty, no default hidden in a model's generation config."""

    temperature: float
    top_p: float
    max_tokens: int

    def room(self, prompt: int, context: int) -> int:
        """Return the most tokens that an answer may have after a prompt of `prompt` tokens in a
        context of `context`; 0 when the prompt is too long. An answer gets `max_tokens`, or
        whatever the prompt leaves if that is at least half of the context: models whose context is
        no longer than `max_tokens` (8,192 both, for one) could otherwise answer nothing."""
        remaining = context - prompt
        return (
            min(remaining, self.max_tokens)
            if remaining >= min(self.max_tokens, context // 2)
            else 0
        )


@dataclass(frozen=True)
class Completion:
    """One answer: its token ids without the stop token, its finish reason (`stop`, or `length` if
    it was cut), and the seed of the random stream it was drawn from."""

    token_ids: tuple[int, ...]
    finish_reason: str
    seed: int = 0

    @classmethod
    def cut(cls, tokens: Sequence[int], stops: frozenset[int], seed: int) -> Completion:
        """Build the answer from generated tokens: up to the first stop token, if there is one."""
        end = next((i for i, token in enumerate(tokens) if token in stops), None)
        if end is None:
            return cls(tuple(tokens), "length", seed)
        return cls(tuple(tokens[:end]), "stop", seed)


class Engine(Protocol):
    """A model that is loaded on first use. `tokenizer` and `max_context` (tokens) are known before;
    `name` is that of the engine, with its version; `lanes` is how many callers it serves at once
    (see factory/engines/pipelining.py); `tokens` have been drawn or read so far."""

    name: str
    lanes: int
    tokenizer: Any
    max_context: int

    @property
    def tokens(self) -> int: ...

    def close(self) -> None:
        """Release the model and end every process that was started for it."""
        ...


class Sampler(Engine, Protocol):
    """A causal model that continues prompts, with an adapter on it or bare."""

    stop_ids: list[int]

    def set_adapter(self, adapter: Path | None) -> None:
        """Activate one of the loaded adapters, or the base model if None. Must not be called while
        sampling. Greedy answers are then those of an engine with this adapter alone, as far as they
        are the same in another batch. Raises KeyError for any other adapter."""
        ...

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[Completion]:
        """Return one answer to each prompt, in order. Several answers to one prompt are drawn by
        repeating it, one after another, so that engines can reuse its prefix.

        The same call on a fresh engine gives the same answers on the same machine; in another batch
        a prompt may be answered otherwise. Each answer has the seed of its random stream: an engine
        that draws everything from one stream uses the seed of its first call. Raises InputError for
        a prompt that leaves no room (see Sampling.room).
        """
        ...


class Scorer(Engine, Protocol):
    """A classifier with one output that reads whole conversations."""

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Return the raw logit of each sequence, in order, whatever else is in the batch."""
        ...


class Likelihood(Engine, Protocol):
    """A causal model that computes log-probabilities of texts."""

    def log_probs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[list[float]]:
        """Return, for each sequence, the natural-log probability of every token from its `start`
        on, given all before it (a start is at least 1), in order, whatever else is in the batch.
        """
        ...


def rooms_of(prompts: Sequence[Sequence[int]], sampling: Sampling, max_context: int) -> list[int]:
    """Return the most tokens of each answer. Raises InputError for a prompt without room."""
    rooms = [sampling.room(len(prompt), max_context) for prompt in prompts]
    if 0 in rooms:
        longest = max(map(len, prompts))
        raise InputError(
            f"a prompt of {longest} tokens leaves no room for an answer in {max_context}",
            "drop it before sampling (see Sampling.room)",
        )
    return rooms


def loaded_adapter(adapter: Path | None, other_adapters: Sequence[Path]) -> dict[Path, int]:
    """Number the adapters that a sampler is opened with, each once, from 0."""
    paths = dict.fromkeys(([] if adapter is None else [adapter]) + list(other_adapters))
    return {path: number for number, path in enumerate(paths)}

"""Slices and their inputs: slices of other steps, files and Hub repos, served models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from factory.artifacts.hashing import fingerprint
from factory.stage.models import RewardModel


@dataclass(frozen=True)
class StepInput:
    """One slice of another step's artifact, read as `role`. Of an adapter it may be the
    `checkpoint` after that share of its training (see factory/artifacts/checkpoints.py)."""

    role: str
    step: str
    slice: str
    checkpoint: str | None = None


@dataclass(frozen=True)
class ExternalInput:
    """A file or Hub repo from outside, as the recipe names it, read as `role`.

    `extent` marks data whose content only says how many rows there are (a list of prompts)."""

    role: str
    source: str
    kind: Literal["model", "dataset"]
    extent: bool = False


@dataclass(frozen=True)
class ServedModel:
    """A model behind an API, called `model` there, read as `role`. Its weights are not here, so it
    is identified by its name alone and cannot be pinned."""

    role: str
    model: str

    @property
    def digest(self) -> str:
        """Return the digest of its name."""
        return fingerprint({"served": self.model})


Need = StepInput | ExternalInput | ServedModel


def model_of(name: str) -> str:
    """Return the model of a slice called `language/model`: answers, benchmark scores, rankings."""
    return name.partition("/")[2]


@dataclass(frozen=True)
class RewardInput:
    """A reward that a slice is scored with: its entry under models:, and what it reads, by the
    role that its kind gives it. The needs themselves may have other roles in the slice. `others`:
    further rewards that read the same answers."""

    model: RewardModel
    by_role: tuple[tuple[str, Need], ...]
    others: tuple[RewardInput, ...] = ()

    @property
    def each(self) -> tuple[RewardInput, ...]:
        """This reward and the others."""
        return (self, *self.others)

    @property
    def needs(self) -> tuple[Need, ...]:
        """All that they read."""
        return tuple(need for one in self.each for _, need in one.by_role)

    @property
    def speakers(self) -> tuple[Need, ...]:
        """Models whose opinion it is: all but one that it is only compared with."""
        return tuple(need for one in self.each for role, need in one.by_role if role != "reference")

    def prints_conversations(self, need: Need) -> bool:
        """Return whether `need` is a model of it whose tokenizer prints whole conversations."""
        return any(
            role in one.model.conversation_roles
            for one in self.each
            for role, other in one.by_role
            if other == need
        )


@dataclass(frozen=True)
class SliceSpec:
    """One planned slice: its step, its name (also its folder under `data/`), its language (None
    if it mixes several) and its inputs."""

    step: str
    name: str
    language: str | None
    needs: tuple[Need, ...]
    notes: tuple[str, ...] = ()  # for the card; never hashed
    reward: RewardInput | None = None  # among what it reads; its knobs are hashed
    # Groups of models that a judge must not be: see Judge. Never hashed.
    rivals: tuple[tuple[str, tuple[Need, ...]], ...] = ()

    def as_input(self, role: str) -> StepInput:
        """Return the input of a later step that reads all rows of this slice."""
        return StepInput(role, self.step, self.name)

    def need(self, role: str) -> Need | None:
        """Return the one input of `role`, or None."""
        return next((need for need in self.needs if need.role == role), None)

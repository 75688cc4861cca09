"""What a slice is, and what it needs: of other steps, from outside, or of a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from factory.artifacts.hashing import fingerprint


@dataclass(frozen=True)
class StepInput:
    """One slice of another step's artifact, read under the name `role`; or of an adapter the
    `checkpoint` after that share of its training (see factory/artifacts/checkpoints.py)."""

    role: str
    step: str
    slice: str
    checkpoint: str | None = None


@dataclass(frozen=True)
class ExternalInput:
    """A file or Hub repo from outside, as the recipe names it, read under the name `role`.

    `extent` marks data whose content only says how much there is (a list of prompts)."""

    role: str
    source: str
    kind: Literal["model", "dataset"]
    extent: bool = False


@dataclass(frozen=True)
class ServedModel:
    """A model that somebody serves, asked under the name `model` in the role `role`. Nothing of it
    lies here, so its name is all that there is to tell it by: it cannot be pinned."""

    role: str
    model: str

    @property
    def digest(self) -> str:
        """Of its name."""
        return fingerprint({"served": self.model})


Need = StepInput | ExternalInput | ServedModel


def model_of(name: str) -> str:
    """The model of a slice called `language/model`, as those of answers, scores of benchmarks and
    rankings are."""
    return name.partition("/")[2]


@dataclass(frozen=True)
class SliceSpec:
    """One slice to be made: the step it belongs to, its name (also its folder under `data/`),
    its language (None when it mixes several) and what it reads."""

    step: str
    name: str
    language: str | None
    needs: tuple[Need, ...]
    notes: tuple[str, ...] = ()  # what the card should say of it; never hashed

    def as_input(self, role: str) -> StepInput:
        """Return the input of a later step that reads all rows of this slice."""
        return StepInput(role, self.step, self.name)

    def need(self, role: str) -> Need | None:
        """The one need of `role`, if it has one."""
        return next((need for need in self.needs if need.role == role), None)

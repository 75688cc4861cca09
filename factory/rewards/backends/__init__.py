"""Kinds of reward that a recipe may name under models:. Adding one takes a file here and a line in
BACKENDS; keys, checks, stages, docs and cards follow from what the class declares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from factory.engines.openai import address
from factory.errors import FactoryError, nearest
from factory.rewards.backends.backend import Backend, OpenReward, RewardSettings
from factory.rewards.backends.classifier import ClassifierBackend
from factory.rewards.backends.embedding import EmbeddingBackend
from factory.rewards.backends.generative import GenerativeBackend
from factory.rewards.backends.implicit import ImplicitBackend
from factory.stage.inputs import ServedModel, SliceSpec
from factory.stage.job import Job
from factory.stage.models import ModelRef

BACKENDS: tuple[type[Backend], ...] = (
    ClassifierBackend,
    ImplicitBackend,
    GenerativeBackend,
    EmbeddingBackend,
)


def kind_of(backend: type[Backend]) -> str:
    """Return the `kind` that recipes give a model for this backend."""
    [kind] = get_args(backend.model_fields["kind"].annotation)
    return str(kind)


def model_class(kind: Any) -> type[ModelRef]:
    """Return the class that a model of this kind is read by. Raises ValueError."""
    classes: dict[str, type[ModelRef]] = {"causal": ModelRef}
    classes |= {kind_of(backend): backend for backend in BACKENDS}
    if str(kind) not in classes:
        kinds = ", ".join(classes)
        raise ValueError(f"kind {kind!r} is none of {kinds}{nearest(str(kind), classes)}")
    return classes[str(kind)]


def open_reward(job: Job, spec: SliceSpec, settings: RewardSettings) -> OpenReward:
    """Open the reward of a slice where its models lie. Raises FactoryError."""
    assert spec.reward is not None and isinstance(spec.reward.model, Backend)
    paths = {
        role: job.places[need].path
        for role, need in spec.reward.by_role
        if not isinstance(need, ServedModel)
    }
    return spec.reward.model.open(paths, settings)


def missing_server(specs: Sequence[SliceSpec]) -> list[FactoryError]:
    """Return what a reward that is served lacks on this machine: the address of its server."""
    if any(isinstance(need, ServedModel) for spec in specs for need in spec.needs):
        try:
            address()
        except FactoryError as error:
            return [error]
    return []

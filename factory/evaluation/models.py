"""Who is compared: models, adapters, and adapters on the way to what they became."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from factory.artifacts import checkpoints
from factory.errors import RecipeError, nearest
from factory.stage.inputs import Need, StepInput
from factory.stage.stage import Scope, Stage


@dataclass(frozen=True)
class Contestant:
    """One model that answers: what it is called, what using it reads, the languages it is for."""

    label: str
    needs: tuple[Need, ...]
    languages: tuple[str, ...]


def contestants(scope: Scope, names: Iterable[str], asked_by: str) -> list[Contestant]:
    """Everybody whom these names stand for, each once: a model under models: in every language, or
    the adapters of a training stage in the languages that they were trained on. `dpo@0.5` are
    those after half of the steps, `dpo@*` all that the stage keeps and the end. Raises
    RecipeError."""
    found = {one.label: one for name in names for one in _named(scope, name, asked_by)}
    return list(found.values())


def _named(scope: Scope, name: str, asked_by: str) -> list[Contestant]:
    if name in scope.models:
        return [Contestant(name, scope.policy(name, "model", asked_by), scope.languages)]
    trained, _, at = name.partition("@")
    stage = scope.stage(trained, asked_by)
    base = scope.base(getattr(stage, "base", "policy"), "model", asked_by)
    return [
        Contestant(
            checkpoints.label(f"{trained}-{spec.name}", share),
            (base, StepInput("adapter", spec.step, spec.name, share)),
            (spec.language,) if spec.language else scope.languages,
        )
        for spec in stage.checked_slices(scope)
        for share in _shares(stage, at, asked_by)
    ]


def _shares(stage: Stage, at: str, asked_by: str) -> list[str | None]:
    """The checkpoints that are meant, None for the end."""
    if not at:
        return [None]
    there = [checkpoints.format_share(share) for share in getattr(stage, "checkpoints", ())]
    if not there:
        raise RecipeError(
            f"stages.{asked_by} names {stage.name}@{at}, and stages.{stage.name} keeps no "
            "checkpoints",
            f"say which: stages.{stage.name}.checkpoints: [0.25, 0.5, 0.75]",
        )
    if at == checkpoints.EVERY:
        return [*there, None]
    if at not in there:
        raise RecipeError(
            f"stages.{asked_by} names {stage.name}@{at}{nearest(at, there)}",
            f"stages.{stage.name}.checkpoints has {', '.join(there)}",
        )
    return [at]

"""Models that are compared: models, adapters, and checkpoints of adapters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from factory.artifacts import checkpoints
from factory.errors import RecipeError, nearest
from factory.stage.inputs import Need, StepInput
from factory.stage.stage import Stage, StageContext


@dataclass(frozen=True)
class Contestant:
    """One model that answers: its label, what it reads, its languages."""

    label: str
    needs: tuple[Need, ...]
    languages: tuple[str, ...]


def contestants(context: StageContext, names: Iterable[str], asked_by: str) -> list[Contestant]:
    """Return the models that these names stand for, each once: a model under models: in every
    language, or the adapters of a training stage in the languages that they were trained on.
    `dpo@0.5` are those after half of the steps, `dpo@*` all that the stage keeps and the end.
    Raises RecipeError."""
    by_label = {
        contestant.label: contestant
        for name in names
        for contestant in _named(context, name, asked_by)
    }
    return list(by_label.values())


def _named(context: StageContext, name: str, asked_by: str) -> list[Contestant]:
    if name in context.models:
        return [Contestant(name, context.policy(name, "model", asked_by), context.languages)]
    trained, _, at = name.partition("@")
    stage = context.stage(trained, asked_by)
    base = context.base(getattr(stage, "base", "policy"), "model", asked_by)
    return [
        Contestant(
            checkpoints.label(f"{trained}-{spec.name}", share),
            (base, StepInput("adapter", spec.step, spec.name, share)),
            (spec.language,) if spec.language else context.languages,
        )
        for spec in stage.checked_slices(context)
        for share in _shares(stage, at, asked_by)
    ]


def _shares(stage: Stage, at: str, asked_by: str) -> list[str | None]:
    """Return the shares of the checkpoints that are meant, None for the end."""
    if not at:
        return [None]
    stored = [checkpoints.format_share(share) for share in getattr(stage, "checkpoints", ())]
    if not stored:
        raise RecipeError(
            f"stages.{asked_by} names {stage.name}@{at}, and stages.{stage.name} keeps no "
            "checkpoints",
            f"say which: stages.{stage.name}.checkpoints: [0.25, 0.5, 0.75]",
        )
    if at == checkpoints.EVERY:
        return [*stored, None]
    if at not in stored:
        raise RecipeError(
            f"stages.{asked_by} names {stage.name}@{at}{nearest(at, stored)}",
            f"stages.{stage.name}.checkpoints has {', '.join(stored)}",
        )
    return [at]

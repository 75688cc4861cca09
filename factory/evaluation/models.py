"""Models that are compared: models, adapters, and checkpoints of adapters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator

from factory.artifacts import checkpoints
from factory.config import REFERENCE
from factory.errors import RecipeError, nearest
from factory.language.languages import language as known_language
from factory.stage.inputs import Need, StepInput
from factory.stage.stage import Stage, StageContext, stage_of


def check_languages(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Return a choice of languages, each once. Raises ValueError for one that is unknown."""
    if isinstance(value, str):
        return value
    if not value:
        raise ValueError("names no language: own, all, or a list of languages")
    for code in value:
        try:
            known_language(code)
        except RecipeError as error:
            raise ValueError(f"{error.what}; {error.fix}") from None
    return tuple(dict.fromkeys(value))


# The languages that each model is evaluated in: those that it was trained on, all, or these.
Choice = Literal["own", "all"] | tuple[str, ...]
Languages = Annotated[Choice, REFERENCE, AfterValidator(check_languages)]


@dataclass(frozen=True)
class Contestant:
    """One model that answers: its label, what it reads, and its own languages: those that it was
    trained on, or for a model under models: all of the recipe."""

    label: str
    needs: tuple[Need, ...]
    own: tuple[str, ...]

    def languages(self, choice: Choice, context: StageContext) -> tuple[str, ...]:
        """Return the languages that it is evaluated in."""
        if choice == "own":
            return self.own
        return context.languages if choice == "all" else tuple(choice)


def contestants(context: StageContext, names: Iterable[str], asked_by: str) -> list[Contestant]:
    """Return the models that these names stand for, each once: a model under models:, or the
    adapters of a training stage, in all of its rounds (`dpo-2`: in the second alone). `dpo@0.5` are
    those after half of the steps, `dpo@*` all that the stage keeps and the end. Raises
    RecipeError."""
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
    context.stage(trained, asked_by)
    rounds = [s for n, s in context.stages.items() if trained in (n, stage_of(n))]
    return [
        Contestant(
            checkpoints.label(f"{stage.name}-{spec.name}", share),
            (
                context.base(getattr(stage, "base", "policy"), "model", asked_by),
                StepInput("adapter", spec.step, spec.name, share),
            ),
            (spec.language,) if spec.language else context.languages,
        )
        for stage in rounds
        for spec in context.slices(stage.name, asked_by)
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

"""What a stage may know of its recipe to lay out its slices: its models, and the other stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from factory.errors import RecipeError, nearest
from factory.knobs import Knobs
from factory.stages.needs import Need, Outside, Read, SliceSpec

if TYPE_CHECKING:
    from factory.stages.contract import Stage


class ModelRef(Knobs):
    """A model: a Hub repo by `name` (with `revision`), or `step`, a stage that trains it here.
    `served`: what its server calls a model whose weights are not here; a judge alone can be that.
    `adapter`: a Hub repo `org/name[@revision]` with a LoRA adapter that is put on it.

    `kind` says what is made of it. All but `causal` are rewards: of a `classifier`; `implicit`,
    in which a tuned model is compared with the one it was tuned from, `reference`, which is
    another model of the recipe; `generative`, in which a chat model is asked yes or no."""

    name: str | None = None
    revision: str = "main"
    adapter: str | None = None
    step: str | None = None
    served: str | None = Field(None, min_length=1)
    kind: Literal["causal", "classifier", "implicit", "generative"] = "causal"
    reference: str | None = None

    @model_validator(mode="after")
    def _names_one(self) -> ModelRef:
        if sum(one is not None for one in (self.name, self.step, self.served)) != 1:
            raise ValueError("needs one of name, step and served")
        if self.served is not None and (
            self.kind != "causal" or self.adapter is not None or self.revision != "main"
        ):
            raise ValueError(
                "a served model is told by its name alone: it has no kind, adapter or revision here"
            )
        if self.name is not None and self.name.count("/") != 1:
            raise ValueError(f"{self.name!r} is not of the form org/name")
        if self.kind == "implicit" and self.reference is None:
            raise ValueError("an implicit reward needs reference: the model that it was tuned from")
        if self.kind != "implicit" and self.reference is not None:
            raise ValueError(f"reference is for kind: implicit, not for {self.kind}")
        if self.adapter is not None and (
            self.adapter.partition("@")[0].count("/") != 1 or self.adapter.endswith("@")
        ):
            raise ValueError(f"{self.adapter!r} is not of the form org/name[@revision]")
        return self


@dataclass(frozen=True)
class Scope:
    """What a stage may know of its recipe to lay out its slices."""

    languages: tuple[str, ...]
    models: Mapping[str, ModelRef]
    stages: Mapping[str, Stage]

    def stage(self, name: str, asked_by: str) -> Stage:
        """The stage called `name`. Raises RecipeError when the recipe has none."""
        if name not in self.stages:
            raise RecipeError(
                f"stages.{asked_by} needs the stage {name!r}, which the recipe does not have"
                + nearest(name, self.stages),
                f"add {name!r} under stages:",
            )
        return self.stages[name]

    def slices(self, name: str, asked_by: str) -> list[SliceSpec]:
        """All slices of the stage called `name`."""
        return self.stage(name, asked_by).laid_out(self)

    def native(self) -> tuple[str, ...]:
        """The languages that prompts come in from outside in: the recipe's, less those that a
        stage makes, and those that it makes them from."""
        languages = self.languages
        for stage in self.stages.values():
            languages = stage.native(languages)
        return languages

    def prompts(self, asked_by: str) -> list[SliceSpec]:
        """Where the prompts of each language of the recipe come from: its translation, where there
        is one, or else as they came in."""
        found = {spec.name: spec for spec in self.slices("prompts", asked_by)}
        if "translate" in self.stages:
            found |= {spec.name: spec for spec in self.slices("translate", asked_by)}
        return [found[code] for code in self.languages]

    def model(self, name: str, role: str, asked_by: str) -> Need:
        """What reading the model called `name` under models: means. Raises RecipeError where it
        has an adapter: see `policy`."""
        found = self.base(name, role, asked_by)
        if self.models[name].adapter is not None:
            raise RecipeError(
                f"stages.{asked_by} cannot put an adapter on the model {name!r}",
                "name a model without one: generate and arena draw with it, dpo goes on with it",
            )
        return found

    def base(self, name: str, role: str, asked_by: str) -> Need:
        """The same without the adapter that may be on it: what adapters are trained for."""
        if name not in self.models:
            raise RecipeError(
                f"stages.{asked_by} names the model {name!r}{nearest(name, self.models)}",
                f"use one under models: ({', '.join(self.models)})",
            )
        ref = self.models[name]
        if ref.step is not None:
            made = self._trained(ref.step, asked_by)
            return Read(role, made.step, made.name)
        if ref.served is not None:
            raise RecipeError(
                f"stages.{asked_by} names the model {name!r}, which is only served ({ref.served})",
                "name one that is on a hub: judge alone can ask a model whose weights are not here",
            )
        return Outside(role, f"{ref.name}@{ref.revision}", "model")

    def policy(self, name: str, role: str, asked_by: str) -> tuple[Need, ...]:
        """What drawing from the model called `name` means: the model, read as `role`, and the
        adapter on it, if it has one, as `adapter`."""
        model = self.base(name, role, asked_by)
        adapter = self.adapter(name, "adapter")
        return (model,) if adapter is None else (model, adapter)

    def adapter(self, name: str, role: str) -> Outside | None:
        """The adapter on the model called `name`, read as `role`, if it has one."""
        found = self.models[name].adapter
        if found is None:
            return None
        repo, _, revision = found.partition("@")
        return Outside(role, f"{repo}@{revision or 'main'}", "model")

    def classifier(self, name: str, role: str, asked_by: str) -> Need:
        """The same for a model that gives rewards. Raises RecipeError for a causal one."""
        need = self.model(name, role, asked_by)
        if self.models[name].kind != "classifier":
            raise RecipeError(
                f"stages.{asked_by}: the model {name!r} is not a classifier",
                f"give models.{name} as {{kind: classifier, name: …}} or {{…, step: reward}}",
            )
        return need

    def reward(self, name: str, asked_by: str) -> tuple[Need, ...]:
        """What reading the reward called `name` means: the role `reward` for a classifier,
        `policy` and `reference` for an implicit one, `generative` for a model that is asked.
        Raises RecipeError for a model that gives none."""
        ref = self.models.get(name)
        if ref is None or ref.kind in ("causal", "classifier"):
            return (self.classifier(name, "reward", asked_by),)
        trained = ref.step and self.stage(ref.step.partition("[")[0], asked_by).kind
        if trained == "model":
            raise RecipeError(
                f"models.{name}: {ref.step} trains a classifier, which answers nothing",
                f"write kind: classifier, or name a chat model for kind: {ref.kind}",
            )
        if ref.kind == "generative":
            return self.policy(name, "generative", asked_by)
        assert ref.reference is not None
        reference = self.model(ref.reference, "reference", asked_by)
        if self.models[ref.reference].kind != "causal":
            raise RecipeError(
                f"models.{name}: its reference {ref.reference!r} is not a causal model",
                f"name the model that {name} was tuned from",
            )
        return (*self.policy(name, "policy", asked_by), reference)

    def _trained(self, step: str, asked_by: str) -> SliceSpec:
        """The one slice of a step that trains a model, before the stage `asked_by`."""
        stage = step.partition("[")[0]
        order = list(self.stages)
        if stage in order and asked_by in order and order.index(stage) >= order.index(asked_by):
            raise RecipeError(
                f"stages.{asked_by} reads a model that {step} trains, which comes after it",
                "train it in a recipe of its own, and name what that published",
            )
        made = [spec for spec in self.slices(stage, asked_by) if step in (stage, spec.step)]
        if len(made) != 1:
            steps = ", ".join(dict.fromkeys(spec.step for spec in self.slices(stage, asked_by)))
            raise RecipeError(
                f"stages.{asked_by} reads a model of the step {step!r}", f"name one of {steps}"
            )
        return made[0]

"""The contract of a stage, and what it may know of its recipe (`StageContext`).

A stage is a pydantic model. Its fields are its knobs (see factory/config.py); what lies under `how`
says how it is run and is never hashed. It answers three questions:

- What is there to make? `plan_slices` returns slices (mostly one a language) with their inputs.
- What makes two slices the same? Kind, version, hashed knobs, seed and inputs, as fingerprints.
- How is it made? `run` is given a job (see factory/stage/job.py) and writes rows or a model.

CONTRIBUTING.md adds one. Nothing here knows a hub, a queue or a card.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from factory.config import EXTENT, REFERENCE, Knobs, Mark
from factory.errors import FactoryError, RecipeError, nearest
from factory.stage import presets
from factory.stage.inputs import ExternalInput, Need, RewardInput, SliceSpec
from factory.stage.models import ModelRef, RewardModel
from factory.stage.readers import View, placeholders

if TYPE_CHECKING:
    from factory.artifacts.manifest import Rows
    from factory.stage.job import Job
    from factory.stage.outcome import Outcome


class From(View):
    """Somebody else's artifact in the place of a step: `org/name@revision`, or a file beside the
    recipe. `{language}` (da), `{Language}` (danish) and `{iso3}` (dan) are filled in, and `{group}`
    for what is trained. See readers.View."""

    source: Annotated[str, REFERENCE]
    # of an adapter: the model that its own name for its base, such as a path, stands for
    base: str | None = None

    @field_validator("source")
    @classmethod
    def _fills_in(cls, value: str) -> str:
        return filled(value, {"language": "en", "group": "all"}) and value


def filled(source: str, values: Mapping[str, str]) -> str:
    """Return `source` with its placeholders filled in, those of a language by its code. Raises
    ValueError for an unknown one."""
    text, values = source, {**values, **placeholders(values["language"])}
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    if set("{}") & set(text):
        known = " or ".join(f"{{{name}}}" for name in values)
        raise ValueError(f"{source!r} has a placeholder other than {known}")
    return text


def stage_of(step: str) -> str:
    """Return the stage of a step, whatever its round: dpo of `dpo-2[da]`."""
    return step.partition("[")[0].partition("-")[0]


def round_of(step: str) -> int:
    """Return the round of a step or stage: 2 of `dpo-2[da]`, 1 of `dpo`."""
    number = step.partition("[")[0].partition("-")[2]
    return int(number) if number.isdecimal() and number != "1" else 1


def round_name(name: str, number: int) -> str:
    """Return the name of a stage or model in a round."""
    return name if number == 1 else f"{name}-{number}"


class How(Knobs):
    """Settings of a run, never part of the identity of its rows."""


# Kinds of artifacts that `from:` can take in.
TAKEN_IN = frozenset({"samples", "scores", "pairs", "sft", "adapter"})


class Stage(Knobs):
    """Base of all stages. Subclasses set `name`, `kind`, `repo`, mostly `reads`, and implement
    `run`. They raise `version` when the meaning of their output changes."""

    name: ClassVar[str]
    kind: ClassVar[str]  # a kind of row in schemas.py, or "adapter" or "model"
    repo: ClassVar[str]  # `{org}/{recipe}-{repo}`
    version: ClassVar[int] = 1
    # Kinds of rows that it reads; its rows follow those of the first. Each kind comes from the
    # last stage before it in the line that makes such rows.
    reads: ClassVar[tuple[str, ...]] = ()
    instead_of_from: ClassVar[str] = "run it"  # advice where its kind is not in TAKEN_IN
    seeded: ClassVar[bool] = False  # whether the recipe's seed changes the output
    # Whether the content of a row depends on nothing but the input rows at its own address. Rows
    # that such a stage made earlier by the same rules are reused in a larger artifact.
    row_wise: ClassVar[bool] = False
    # Whether a row is left out because of other rows. Then only whole slices are reused.
    compares_rows: ClassVar[bool] = False

    from_: From | None = Field(None, alias="from", exclude_if=lambda value: value is None)
    how: How = How()

    @field_validator("from_", mode="before")
    @classmethod
    def _short_from(cls, value: Any) -> Any:
        """`from: org/name@revision` for `from: {source: org/name@revision}`."""
        if value is not None and cls.kind not in TAKEN_IN:
            raise ValueError(f"{cls.name} cannot be taken in: {cls.instead_of_from}")
        return {"source": value} if isinstance(value, str) else presets.expanded(value, cls.kind)

    @model_validator(mode="after")
    def _has_only_from(self) -> Stage:
        if self.from_ is not None and (fields := self._fields(lambda marks: not marks)):
            raise ValueError(
                f"with from:, {next(iter(fields))} has no meaning: these rows are made already"
            )
        if self.from_ is not None and self.from_.base is not None and self.kind != "adapter":
            raise ValueError("from.base is for adapters: rows have no base")
        return self

    def checked_slices(self, context: StageContext) -> list[SliceSpec]:
        """Return every slice of every step of this stage, in order: those that it makes or, with
        `from:`, takes in. Raises RecipeError."""
        if self.from_ is None:
            return self.plan_slices(context)
        if self.kind != "adapter":
            return [self._taken_in(language, language, ()) for language in context.languages]
        base = context.model(getattr(self, "base", "policy"), "base", self.name)
        stated = self.from_.base
        if stated and isinstance(base, ExternalInput) and base.source.partition("@")[0] != stated:
            raise RecipeError(
                f"stages.{self.name}.from.base is {stated}, the model it is put on {base.source}",
                "from.base says that the adapter's own name for its base is that model",
            )
        each = getattr(self, "each", "all")
        groups = context.languages if each == "language" else each
        groups = (groups,) if isinstance(groups, str) else groups
        return [
            self._taken_in(group, None if group == "all" else group, (base,)) for group in groups
        ]

    def _taken_in(self, name: str, language: str | None, needs: tuple[Need, ...]) -> SliceSpec:
        assert self.from_ is not None
        adapter = self.kind == "adapter"
        source = filled(self.from_.source, {"language": language or "", "group": name})
        step = f"{self.name}[{name}]" if adapter else self.name
        outside = ExternalInput("source", source, "model" if adapter else "dataset")
        return SliceSpec(step, name, language, (*needs, outside))

    @classmethod
    def output(cls) -> str:
        """Return the kind that later stages name in `reads` to get these rows."""
        return cls.kind

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        """Return the slices that this stage makes, in order. Raises RecipeError.

        By default there is one a language of the recipe. It reads the slice of that language of
        every kind in `reads`, each under the name of its kind.
        """
        if not self.reads:
            raise NotImplementedError
        inputs = {kind: context.rows(kind, self.name) for kind in self.reads}

        def needs(code: str) -> tuple[Need, ...]:
            return tuple(slices[code].as_input(kind) for kind, slices in inputs.items())

        codes = [code for code in context.languages if code in inputs[self.reads[0]]]
        return [SliceSpec(self.name, code, code, needs(code)) for code in codes]

    def native(self, languages: tuple[str, ...]) -> tuple[str, ...]:
        """Return the languages whose prompts have to come from outside, given those that would
        without this stage."""
        return languages

    def question_languages(self) -> tuple[str, ...]:
        """Return the languages that it names itself and reads questions in."""
        return ()

    def run(self, job: Job) -> Outcome:
        """Do the work of one step: write each slice below `job.out`, and return its row counts.
        A row is counted as in, and as out or dropped for a reason. Raises FactoryError."""
        raise NotImplementedError

    def min_rows(self) -> dict[str, int]:
        """Return the fewest rows that this stage can work with, by role."""
        return {}

    def shortage(self, rows: Rows, figures: Mapping[str, Any]) -> tuple[str, str]:
        """Return why a slice has few rows, and the knobs that change that; each `""` if unknown.

        rows: counts of the slice. figures: those that the stage reported of it."""
        return ", ".join(f"{reason} {n}" for reason, n in rows.dropped.items()), ""

    def missing_requirements(self, specs: Sequence[SliceSpec]) -> list[FactoryError]:
        """Return requirements of these slices that this machine lacks, such as a server's address.
        Checked before a run; never raises."""
        return []

    def outside_rows(self, spec: SliceSpec) -> tuple[ExternalInput, View] | None:
        """Return the outside source that a slice has its rows from, and how it is read; None for a
        slice whose rows follow those of other steps."""
        source, view = spec.need("source"), self.from_ or self
        reads = isinstance(view, View) and isinstance(source, ExternalInput)
        return (source, view) if reads and self.kind != "adapter" else None  # type: ignore[return-value]

    def fixed_rows(self, spec: SliceSpec) -> int | None:
        """Return the rows that a slice has whatever it reads, or None if that depends on it."""
        return None

    def expected_rows(self, rows: Mapping[str, int], spec: SliceSpec) -> int:
        """Return the rows that a slice is expected to have, from the rows that it reads by role.
        By default as many as it reads under the first role."""
        return next(iter(rows.values()), 0)

    def n_shards(self, rows: int, spec: SliceSpec) -> int:
        """Return the shards that `rows` rows of a slice are made in, 0 for a stage without any."""
        return 0

    def identity_fields(self, spec: SliceSpec) -> dict[str, Any]:
        """Return the fields that give the rows of a slice their meaning and are not at their
        default. They are hashed."""
        if self.from_ is not None:
            from_ = self.from_.model_dump(
                exclude={"source", "base", "bad_rows"}, exclude_defaults=True
            )
            return {"from": from_}
        fields = self._fields(lambda marks: not marks)
        if spec.reward is not None and (reward := spec.reward.model.identity_fields()):
            fields["reward_model"] = reward
        if spec.reward is not None and spec.reward.others:
            fields["reward_models"] = [o.model.identity_fields() for o in spec.reward.others]
        return fields

    def uses_seed(self, spec: SliceSpec) -> bool:
        """Return whether the recipe's seed changes the rows of a slice."""
        return self.seeded and self.from_ is None

    def extent(self) -> dict[str, Any]:
        """Return the fields that say how many rows there are and do not change any of them."""
        if self.from_ is not None:
            return {}
        return self._fields(lambda marks: EXTENT in marks)

    def _fields(self, selects: Callable[[list[Mark]], bool]) -> dict[str, Any]:
        names = {
            name
            for name, info in type(self).model_fields.items()
            if name not in ("how", "from_")
            and selects([m for m in info.metadata if isinstance(m, Mark)])
        }
        return self.model_dump(mode="json", include=names, exclude_defaults=True)


@dataclass(frozen=True)
class StageContext:
    """Parts of a recipe that a stage may use to plan its slices."""

    languages: tuple[str, ...]
    models: Mapping[str, ModelRef]
    stages: Mapping[str, Stage]  # those of the recipe, in the order of the line
    line: tuple[type[Stage], ...] = ()  # every stage that there is, in order
    # planned slices by stage: a round reads those before it, in several ways
    _planned: dict[str, list[SliceSpec]] = field(default_factory=dict, compare=False)

    def rows(self, kind: str, asked_by: str) -> dict[str, SliceSpec]:
        """Return the slices with rows of `kind`, by name. Each is of the last stage before
        `asked_by` in the line that makes it. Raises RecipeError where no stage before it does."""
        order = [stage.name for stage in self.line] or list(self.stages)
        before = order[: order.index(asked_by)] if asked_by in order else order
        slices: dict[str, SliceSpec] = {}
        for name in before:
            if name in self.stages and self.stages[name].output() == kind:
                slices |= {spec.name: spec for spec in self.slices(name, asked_by)}
        if not slices:
            makers = [stage.name for stage in self.line if stage.output() == kind] or [kind]
            raise RecipeError(
                f"stages.{asked_by} reads {kind}, and no stage before it makes any",
                f"add {makers[0]} under stages:",
            )
        return slices

    def stage(self, name: str, asked_by: str) -> Stage:
        """Return the stage called `name`. Raises RecipeError if the recipe has none."""
        if name not in self.stages:
            raise RecipeError(
                f"stages.{asked_by} needs the stage {name!r}, which the recipe does not have"
                + nearest(name, self.stages),
                f"add {name!r} under stages:",
            )
        return self.stages[name]

    def slices(self, name: str, asked_by: str) -> list[SliceSpec]:
        """Return all slices of the stage called `name`. Raises RecipeError."""
        if name not in self._planned:
            self._planned[name] = self.stage(name, asked_by).checked_slices(self)
        return self._planned[name]

    def native(self) -> tuple[str, ...]:
        """Return the languages of prompts from outside: the recipe's, without those that are
        translated into, and with those that are translated from."""
        languages = self.languages
        for stage in self.stages.values():
            languages = stage.native(languages)
        return languages

    def prompts(self, asked_by: str) -> list[SliceSpec]:
        """Return the slice of prompts of each language of the recipe, in their order."""
        prompts = self.rows("prompts", asked_by)
        return [prompts[code] for code in self.languages]

    def model(self, name: str, role: str, asked_by: str) -> Need:
        """Return the input for the model called `name` under models:, read as `role`. Raises
        RecipeError if it has an adapter: see `policy`."""
        need = self.base(name, role, asked_by)
        if self.models[name].adapter is not None:
            raise RecipeError(
                f"stages.{asked_by} cannot put an adapter on the model {name!r}",
                "name a model without one: generate and arena draw with it, dpo goes on with it",
            )
        return need

    def base(self, name: str, role: str, asked_by: str) -> Need:
        """Return the input for the model called `name` without the adapter that it may have: the
        base of adapters. Raises RecipeError."""
        if name not in self.models:
            raise RecipeError(
                f"stages.{asked_by} names the model {name!r}{nearest(name, self.models)}",
                f"use one under models: ({', '.join(self.models)})",
            )
        ref = self.models[name]
        if ref.step is not None:
            return self._trained(ref.step, asked_by).as_input(role)
        if ref.served is not None:
            raise RecipeError(
                f"stages.{asked_by} names the model {name!r}, which is only served ({ref.served})",
                "name one that is on a hub: judge alone can ask a model whose weights are not here",
            )
        return ExternalInput(role, f"{ref.name}@{ref.revision}", "model")

    def policy(
        self, name: str, role: str, asked_by: str, group: str | None = None
    ) -> tuple[Need, ...]:
        """Return the inputs for sampling from the model called `name`: the model, read as `role`,
        and its adapter, if it has one, as `adapter` (see `adapter`)."""
        model = self.base(name, role, asked_by)
        adapter = self.adapter(name, "adapter", asked_by, group)
        return (model,) if adapter is None else (model, adapter)

    def adapter(self, name: str, role: str, asked_by: str, group: str | None = None) -> Need | None:
        """Return the input for the adapter of the model called `name`, or None if it has none. Of a
        stage that trains several, the one of `group` (a language) is meant, or else of all.
        Raises RecipeError."""
        adapter = self.models[name].adapter
        if adapter is None:
            return None
        if "/" not in adapter:
            return self._trained(adapter, asked_by, group).as_input(role)
        repo, _, revision = adapter.partition("@")
        return ExternalInput(role, f"{repo}@{revision or 'main'}", "model")

    def reward(
        self, name: str, asked_by: str, roles: Mapping[str, str] | None = None
    ) -> RewardInput:
        """Return the reward called `name` under models:, with what it reads. `roles`: names of
        roles in the place of those that its kind gives. Raises RecipeError for another model."""
        reward = self.models.get(name)
        if not isinstance(reward, RewardModel):
            self.base(name, "reward", asked_by)  # unknown, or only served
            raise RecipeError(
                f"stages.{asked_by}: the model {name!r} gives no rewards",
                f"say its kind: models.{name} as {{kind: classifier, name: …}} or {{…, step: "
                "reward}, or another kind of reward",
            )
        needs = reward.needs(self, name, asked_by)
        renamed = roles or {}
        by_role = (
            (need.role, replace(need, role=renamed.get(need.role, need.role))) for need in needs
        )
        return RewardInput(reward, tuple(by_role))

    def _trained(self, step: str, asked_by: str, group: str | None = None) -> SliceSpec:
        """Return the one slice of a step that trains a model, before the stage `asked_by`; of
        several, that of `group` or else of all."""
        stage = step.partition("[")[0]
        order = list(self.stages)
        if stage in order and asked_by in order and order.index(stage) >= order.index(asked_by):
            raise RecipeError(
                f"stages.{asked_by} reads a model that {step} trains, which comes after it",
                "train it in a recipe of its own, and name what that published",
            )
        slices = [spec for spec in self.slices(stage, asked_by) if step in (stage, spec.step)]
        if len(slices) > 1 and group is not None:
            by_group = {spec.name: spec for spec in slices}
            slices = [by_group[name] for name in (group, "all") if name in by_group][:1]
        if len(slices) != 1:
            steps = ", ".join(dict.fromkeys(spec.step for spec in self.slices(stage, asked_by)))
            raise RecipeError(
                f"stages.{asked_by} reads a model of the step {step!r}", f"name one of {steps}"
            )
        return slices[0]

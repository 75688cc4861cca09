"""reward, sft, dpo, online and rl: LoRA trainings with TRL.

Checkpoints are saved to the work directory by steps: a kill loses the steps since the last one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from factory.artifacts import checkpoints
from factory.artifacts.manifest import Rows
from factory.config import GATE, REFERENCE
from factory.engines import chat_template, choose
from factory.errors import RecipeError, StageError, nearest
from factory.stage.inputs import Need, RewardInput, SliceSpec, StepInput
from factory.stage.job import Job
from factory.stage.outcome import Outcome, ResourceUse
from factory.stage.stage import How, Stage, StageContext, stage_of
from factory.training import dataset, losses, monitoring
from factory.training.settings import (
    Divergence,
    Dtype,
    Lora,
    ProbeKnobs,
    RewardName,
    Running,
    Task,
)

_REFERENCE = "reference_adapter"  # the role of an adapter that dpo is held against


class TrainHow(How, Running):
    """Settings of a training run that do not change its result: see settings.Running."""


class _Training(Stage):
    """Knobs and steps that all trainings share; defaults are CroCo's published ones."""

    seeded: ClassVar[bool] = True
    read: ClassVar[str]  # the role of its training rows
    rows_kind: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]  # those that TRL reads
    tokens: ClassVar[tuple[str, ...]] = ()  # those in which TRL takes token ids (dataset.encode)
    method: ClassVar[str]

    base: Annotated[str, REFERENCE] = "policy"  # a name under models
    lr: float = Field(gt=0)  # the highest, after warm-up; then down along a cosine
    epochs: float = Field(1.0, gt=0)
    batch: int = Field(64, ge=1)  # rows an optimizer step, whatever the devices
    warmup: float = Field(0.05, ge=0, lt=1)  # share of all steps
    weight_decay: float = Field(0.01, ge=0)
    max_length: int = Field(4096, ge=8)  # tokens of prompt and answer
    held_out: float = Field(0.01, ge=0, lt=1)  # share of rows that is evaluated, never trained on
    min_pairs: Annotated[int, GATE, Field(ge=2)] = 8  # fewer rows train nothing
    lora: Lora = Lora()
    dtype: Dtype = "bfloat16"
    how: TrainHow = TrainHow()

    @model_validator(mode="after")
    def _batches_fit(self) -> _Training:
        at_once = self.how.micro_batch * (self.how.processes or 1)
        if self.batch % at_once:
            raise ValueError(
                f"batch {self.batch} is not a multiple of {at_once}, how.micro_batch "
                f"{self.how.micro_batch} times how.processes {self.how.processes or 1}"
            )
        return self

    def min_rows(self) -> dict[str, int]:
        return {} if self.from_ else {self.read: self.min_pairs}

    def run(self, job: Job) -> Outcome:
        from factory.training import behaviour, launch, trainers

        choose.resolve_engine(self.how.engine)  # the probe after hours of training opens it
        [spec] = job.slices
        base = job.place(spec, "base")
        tokenizer = chat_template.load_tokenizer(str(base.path))
        all_rows, unusable = self._stored(job, spec)
        texts = [dataset.as_text(tokenizer, row) for row in all_rows]
        all_rows, controls = [row for row, _ in texts], sum(changed for _, changed in texts)
        read_as_text = [
            f"{controls} of {len(texts)} rows hold control tokens of the model, which are read as "
            "text"
        ] * (controls > 0)
        rows, counts, tokens = self._fitting(all_rows, tokenizer, job.step)
        counts = counts.model_copy(
            update={
                "into": counts.into + sum(unusable.values()),
                "dropped": counts.dropped | unusable,
            }
        )
        train, held_out = dataset.split(rows, self.held_out, job.seed)
        train, figures = self._prepared(train, job)
        checkpoints = job.work / "checkpoints"
        task = self._task(job, checkpoints)
        columns = {*self._columns(), *self.tokens}
        if task.group_by_length:
            columns.add("length")
        if any(row.get("margin") for row in rows):
            columns.add("margin")
        # what sampling hands to the template, training must: or it learns from other tokens
        arguments = chat_template.template_arguments(tokenizer)
        extra = {"chat_template_kwargs": arguments} if arguments else {}
        parts = [
            [{n: row[n] for n in columns} | extra for row in part] for part in (train, held_out)
        ]
        dataset.write(checkpoints / "rows", *parts)
        if slow := trainers.slow_drawing(task, tokenizer):
            logging.getLogger(__name__).warning("%s: %s", job.step, slow)
        result = launch.run(task, job.progress)
        history = result["history"]
        stopped = [
            f"stopped early, after step {result['steps']} of {result['planned_steps']}: {reason}"
            for reason in [result["collapsed"]]
            if reason
        ]
        stats: dict[str, Any] = {
            "trained_on": len(train),
            "held_out": len(held_out),
            **({"truncated": cut} if (cut := sum(row["cut"] for row in rows)) else {}),
            "steps": result["steps"],
            "seconds": round(result["seconds"], 1),
            "batching": {
                "micro_batch": self.how.micro_batch,
                "processes": task.processes,
                "accumulation": task.accumulation,
            },
            "alarms": [
                *([slow] if slow else []),
                *read_as_text,
                *stopped,
                *monitoring.alarms(history),
            ],
            "curve": monitoring.curve(history),
            "held_out_curve": monitoring.held_out(history),
            "final": result["final"],
            **figures,
            **({"checkpoints": result["kept"]} if result["kept"] else {}),
        }
        template = None
        if self.kind == "adapter":
            stats |= self._keep_best(job, train, held_out, tokenizer)
            probed = self._finish(job, [dataset.conversation(row) for row in parts[1] + parts[0]])
            behaved = self._behaviour(job, train, held_out, tokenizer)
            alarms = stats["alarms"] + probed["alarms"] + behaviour.alarms(behaved)
            stats |= probed | {"behaviour": behaved, "alarms": alarms}
            template = chat_template.contract(tokenizer, result["stops"])
        else:
            trainers.separate_padding(tokenizer, *parts)
        tokenizer.save_pretrained(str(job.out))
        return Outcome(
            {spec.name: counts},
            determinism="distribution",
            stats=stats,
            template=template,
            tokens=int(tokens * self.epochs),
            spent=None if result["working"] is None else ResourceUse(result["working"]),
        )

    def _stored(self, job: Job, spec: SliceSpec) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Return the rows of a slice with what training needs of them and their language, and how
        many cannot be trained on, by reason."""
        table = job.table(spec, self.read, self.rows_kind)
        return [
            {**self._row(row), "language": row.get("prompt_language") or row.get("language")}
            for row in table.to_pylist()
        ], {}

    def _columns(self) -> tuple[str, ...]:
        """Return the columns that TRL reads."""
        return self.columns

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the columns of a stored row that training needs: its prompt's id and those that
        TRL reads."""
        return {name: row[name] for name in ("prompt_id", *self.columns)}

    def _prepared(self, train: list[Any], job: Job) -> tuple[list[Any], dict[str, Any]]:
        """Return the rows to train on as the trainer gets them, and figures of what was changed."""
        return train, {}

    def _room(self) -> int:
        """Return the most tokens that a stored row may have."""
        return self.max_length

    def _fitting(
        self, all_rows: list[dict[str, Any]], tokenizer: Any, step: str
    ) -> tuple[list[dict[str, Any]], Rows, int]:
        """Return the rows that fit max_length, with the tokens of both sides and of the longer one,
        the counts, and their number of tokens."""
        rows, tokens, refused, most = [], 0, 0, self._room()
        truncate = getattr(self, "over", "drop") == "truncate"
        apart = "prompt_ids" in self._columns()
        for row in all_rows:
            try:
                sides, ids = dataset.encode(tokenizer, row, apart)
            except chat_template.TemplateRefusal:  # `check` says why
                refused += 1
                continue
            cut = max(sides) > most
            # TRL cuts at the end; of a prompt that long nothing of the answer would be left
            if cut and truncate and len(chat_template.prompt_ids(tokenizer, row["prompt"])) < most:
                sides = [min(side, most) for side in sides]
                ids = {name: tokens[:most] for name, tokens in ids.items()}
            elif cut:
                continue
            figures = {"length": sum(sides), "longest": max(sides), "cut": cut}
            rows.append({**row, **ids, **figures})
            tokens += sum(sides)
        n_dropped = len(all_rows) - len(rows)
        if len(rows) < self.min_pairs:
            raise StageError(
                f"{step}: only {len(rows)} of {len(all_rows)} rows fit max_length"
                + (f"; the chat template refuses {refused}" if refused else ""),
                f"raise stages.{self.name}.max_length over {self.max_length}",
            )
        counts = {chat_template.REFUSED: refused, "too_long": n_dropped - refused}
        dropped = {reason: count for reason, count in counts.items() if count}
        return rows, Rows(into=len(all_rows), out=len(rows), dropped=dropped), tokens

    def _task(self, job: Job, checkpoints: Any) -> Task:
        from factory.training import launch

        [spec] = job.slices
        knobs = self.model_dump(include=set(Task.model_fields) - {"base", "reward", "reference"})
        return Task.model_validate(
            {
                **knobs,
                "step": job.step,
                "method": self.method,
                "base": job.place(spec, "base").path,
                "start": job.place(spec, "start").path if spec.need("start") else None,
                "held_against": getattr(self, "reference", None) is not None,
                "reference": (job.place(spec, _REFERENCE).path if spec.need(_REFERENCE) else None),
                "reward": job.place(spec, "reward").path if spec.need("reward") else None,
                "rows": checkpoints / "rows",
                "work": checkpoints,
                "out": job.out,
                "seed": job.seed,
                "how": launch.spread(self.how, self.batch).model_dump(),
            }
        )

    def _finish(self, job: Job, talks: list[Any]) -> dict[str, Any]:
        """Write the base model's name into the adapter, and probe it. Raises StageError when it
        changes nothing."""
        from factory.training import adapters, probe

        [spec] = job.slices
        base = job.place(spec, "base")
        for directory in (job.out, *(job.out / checkpoints.FOLDER).glob("*")):
            adapters.name_base(directory, base.name, base.revision)
        job.progress(0, 0, "probing")
        probed = probe.probe(
            base.path, job.out, talks, self.dtype, self.max_length, self.how.engine
        )
        alarms = probe.check(probed, job.step)
        return {"chain": self._chain(job), "probe": probed, "alarms": alarms}

    def _keep_best(
        self, job: Job, train: list[Any], held_out: list[Any], tokenizer: Any
    ) -> dict[str, Any]:
        """Put the best checkpoint in the place of the last one, and return figures of all."""
        return {}

    def _questions(self, train: list[Any], held_out: list[Any]) -> list[Any]:
        """Return the prompts of all rows as questions, those held out first."""
        from factory.training import behaviour

        return [
            behaviour.Question(row["prompt"], row["language"], out)
            for part, out in ((held_out, True), (train, False))
            for row in part
        ]

    def _behaviour(
        self, job: Job, train: list[Any], held_out: list[Any], tokenizer: Any
    ) -> dict[str, Any] | None:
        """Return what the adapter draws beside its base (see behaviour.probe)."""
        from factory.training import behaviour

        [spec] = job.slices
        return behaviour.probe(
            job.place(spec, "base").path,
            job.out,
            self._questions(train, held_out),
            self._drawing([*held_out, *train], tokenizer),
            self.dtype,
            job.seed,
            self.how.engine,
            job.place(spec, "reward").path if spec.need("reward") else None,
        )

    def _drawing(self, rows: list[Any], tokenizer: Any) -> ProbeKnobs:
        """Return how the probe draws: answers no longer than the longest that was trained on."""
        longest = max(
            row["longest"] - len(chat_template.prompt_ids(tokenizer, row["prompt"])) for row in rows
        )
        return self.how.probe.model_copy(
            update={"max_tokens": max(1, min(longest, self.how.probe.max_tokens))}
        )

    def _chain(self, job: Job) -> dict[str, Any]:
        """Return the base model to load the adapter on, and the start and reference of the
        training."""
        [spec] = job.slices
        base = job.place(spec, "base")
        chain: dict[str, Any] = {"load_on": base.name, "revision": base.revision, "start": "policy"}
        if spec.need("start"):
            start = job.place(spec, "start")
            chain |= {"start": start.name, "start_revision": start.revision}
        return chain


class Reward(_Training):
    """A reward model from preferences, one for each of their languages (English by default): a
    classifier with one label, trained as LoRA and merged, so that every engine loads it. A
    `margin` of a pair is by how much the better answer must win."""

    name: ClassVar[str] = "reward"
    kind: ClassVar[str] = "model"
    repo: ClassVar[str] = "reward"
    instead_of_from: ClassVar[str] = "name the model under models: instead"
    read: ClassVar[str] = "preferences"
    rows_kind: ClassVar[str] = "preferences"
    columns: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")
    tokens: ClassVar[tuple[str, ...]] = ("chosen_ids", "rejected_ids")
    method: ClassVar[str] = "reward"

    lr: float = Field(1e-4, gt=0)  # TRL's default for reward models

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the columns that training needs, with the margin that the loss subtracts: by how
        much the better answer must win, 0 where nobody says."""
        set_of = {name: row[name] for name in ("source", "weight") if name in row}
        return super()._row(row) | {"margin": row["margin"] or 0.0} | set_of

    def _prepared(self, train: list[Any], job: Job) -> tuple[list[Any], dict[str, Any]]:
        taken, figures = dataset.weighted(train, job.seed)
        if len(taken) < self.min_pairs:
            raise StageError(
                f"{job.step}: by the weights of their sets only {len(taken)} of {len(train)} pairs "
                "are learned from",
                "raise the weights under stages.preferences",
            )
        return taken, figures

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        base = context.model(self.base, "base", self.name)
        taught = context.rows(self.rows_kind, self.name).values()
        return [
            SliceSpec(
                self.name if len(taught) == 1 else f"{self.name}[{spec.name}]",
                spec.name,
                None,
                (StepInput(self.read, spec.step, spec.name), base),
            )
            for spec in taught
        ]


class _Adapter(_Training):
    """Knobs that trainings of adapters share. `each: language` trains one a language, `all` one
    on the rows of all languages; a list names some of them. `checkpoints` are shares of the
    steps after which the adapter is saved as well, in the same repo, to be evaluated as
    `dpo@0.5`. `publish` is which of these and the last one becomes the adapter itself: `win_rate`,
    the one whose answers to the prompts of how.probe win most often against the base's by the
    reward model `reward`; `probe`, the one that behaves best by the alarms of the probe. The last
    one then lies beside them as `last`. `stop_early` ends a training that has collapsed, after at
    least 20 steps."""

    kind: ClassVar[str] = "adapter"

    each: Annotated[Literal["language", "all"] | tuple[str, ...], REFERENCE] = "language"
    checkpoints: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    publish: Literal["last", "win_rate", "probe"] = "last"
    reward: Annotated[str, REFERENCE] = "reward"
    stop_early: bool = False

    @model_validator(mode="after")
    def _has_a_choice(self) -> _Adapter:
        if self.publish != "last" and not self.checkpoints:
            raise ValueError(
                f"publish: {self.publish} is a choice among checkpoints: say which, as in "
                "checkpoints: [0.25, 0.5, 0.75]"
            )
        return self

    @field_validator("checkpoints")
    @classmethod
    def _in_order(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(round(share, 3) != share for share in value) or len(set(value)) < len(value):
            raise ValueError("shares of the steps, each once, like [0.25, 0.5, 0.75]")
        return tuple(sorted(value))

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        base = self._base(context)
        self._check_engines(context)
        specs = {spec.name: spec for spec in self._rows(context)}
        single = tuple(name for name, spec in specs.items() if spec.language)
        if isinstance(self.each, str) and not single:
            maker = next(iter(specs.values())).step
            raise RecipeError(
                f"stages.{self.name}.each: {self.each} is of single languages, which have no "
                f"{self.read} here",
                f"write each: [{', '.join(specs)}], or stages.{maker}.pool: both",
            )
        groups = (
            single
            if self.each == "language"
            else (self.each,)
            if isinstance(self.each, str)
            else self.each
        )
        reward = self._reward(context)
        needs = (base, *(reward.needs if reward else ()))
        return [
            replace(
                self._slice(context, group, specs, (*needs, *self._models(context, group))),
                reward=reward,
            )
            for group in groups
        ]

    def _reward(self, context: StageContext) -> RewardInput | None:
        """Return the reward model that reads sampled answers, if any."""
        if self.publish != "win_rate":
            return None
        return self._classifier(context)

    def _classifier(self, context: StageContext) -> RewardInput:
        reward = context.reward(self.reward, self.name)
        if not reward.model.is_plain_classifier:
            raise RecipeError(
                f"stages.{self.name}: the reward {self.reward!r} is of kind: {reward.model.kind}. "
                "Each training process holds one sequence classifier beside the model it trains, "
                "and compares answers by its logit; it loads no other kind of reward",
                "name a reward of kind: classifier, or generate, score and pair answers with "
                f"{self.reward!r} and train on the pairs with dpo",
            )
        return reward

    def _keep_best(
        self, job: Job, train: list[Any], held_out: list[Any], tokenizer: Any
    ) -> dict[str, Any]:
        from factory.training import adapters, behaviour

        folders = sorted((job.out / checkpoints.FOLDER).glob("*"))
        if self.publish == "last" or not folders:
            return {}
        [spec] = job.slices
        base = job.place(spec, "base").path
        paths: dict[str, Path | None] = {
            **{path.name: path for path in folders},
            "last": job.out,
        }
        job.progress(0, 0, "comparing checkpoints")
        knobs = self._drawing([*held_out, *train], tokenizer)
        drawn = behaviour.draw(
            base,
            {**paths, "base": None},
            self._questions(train, held_out),
            knobs,
            self.dtype,
            job.seed,
            self.how.engine,
        )
        if drawn is None:
            return {}
        read = None
        if self.publish == "win_rate":
            reward = job.place(spec, "reward").path
            read = behaviour.rewards(drawn, reward, self.dtype, self.how.engine)
        best, figures = behaviour.best(drawn, list(paths), knobs, read)
        if best != "last":
            adapters.put_in_place(job.out, best)
        n_held_out = sum(question.held_out for question in drawn.questions) // knobs.n
        return {
            "published": {"by": self.publish, "of": best, "held_out": n_held_out, "each": figures}
        }

    def _check_engines(self, context: StageContext) -> None:
        """Raise RecipeError where vLLM would load an adapter with DoRA, which it does not take."""
        if not self.lora.dora:
            return
        readers = [s for s in context.stages.values() if self.name in _stages_in(s)]
        for stage in (self, *readers):
            if stage.name == "merge":
                raise RecipeError(
                    f"stages.merge.of: {self.name} has DoRA, whose magnitudes do not add up",
                    f"leave stages.{self.name}.lora.dora out, or merge other adapters",
                )
            if getattr(stage.how, "engine", "transformers") != "transformers":
                raise RecipeError(
                    f"stages.{stage.name} may load adapters of {self.name} with vLLM, which does "
                    "not take DoRA",
                    f"set stages.{stage.name}.how.engine: transformers, or leave lora.dora out",
                )

    def _rows(self, context: StageContext) -> list[SliceSpec]:
        return list(context.rows(self.rows_kind, self.name).values())

    def _reads(self, context: StageContext, spec: SliceSpec) -> tuple[Need, ...]:
        """Return the rows that are read where those of `spec` are trained on."""
        return (spec.as_input(self.read),)

    def _base(self, context: StageContext) -> Need:
        return context.model(self.base, "base", self.name)

    def _models(self, context: StageContext, group: str) -> tuple[Need, ...]:
        """Return the models that a group needs beside its rows and the base."""
        return ()

    def _slice(
        self,
        context: StageContext,
        group: str,
        row_specs: dict[str, SliceSpec],
        models: tuple[Need, ...],
    ) -> SliceSpec:
        if group != "all" and group not in row_specs:
            raise RecipeError(
                f"stages.{self.name}.each names {group!r}, which the recipe has no {self.read} in"
                + nearest(group, ["all", *row_specs]),
                f"use all or one of {', '.join(row_specs)}",
            )
        # all: of every single language; cross-lingual rows go by their own name
        specs = [spec for spec in row_specs.values() if group == spec.name] or [
            spec for spec in row_specs.values() if spec.language
        ]
        reads = tuple(need for spec in specs for need in self._reads(context, spec))
        language = None if group == "all" else specs[0].language
        return SliceSpec(f"{self.name}[{group}]", group, language, (*reads, *models))


def probed_as_sampled(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Return the stages of a recipe; where the probe of a training has no temperature of its own,
    it has that of generate."""
    temperature = getattr(stages.get("generate"), "temperature", None) or None
    probed = dict(stages)
    for name, stage in stages.items():
        if not isinstance(stage, _Training) or isinstance(stage, _Sampling):
            continue
        if temperature is not None and stage.how.probe.temperature is None:
            probe = stage.how.probe.model_copy(update={"temperature": temperature})
            how = stage.how.model_copy(update={"probe": probe})
            probed[name] = stage.model_copy(update={"how": how})
    return probed


def _stages_in(stage: Stage) -> set[str]:
    """Return the stages whose models a stage names in `of`."""
    return {name.partition("[")[0].partition("@")[0] for name in getattr(stage, "of", ())}


class Sft(_Adapter):
    """LoRA adapters by SFT on the best answers, from the base model itself. The loss is over the
    completion alone, the stop token included. `loss: dft` weighs each token by its probability
    (dynamic fine-tuning, arXiv 2508.05629). `packing` puts several rows into one of max_length, so
    that `batch` counts those; rows do not see each other."""

    name: ClassVar[str] = "sft"
    repo: ClassVar[str] = "sft"
    read: ClassVar[str] = "completions"
    rows_kind: ClassVar[str] = "sft"
    columns: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    tokens: ClassVar[tuple[str, ...]] = ("input_ids", "labels")
    method: ClassVar[str] = "sft"

    lr: float = Field(2e-4, gt=0)
    over: Literal["drop", "truncate"] = "drop"  # rows over max_length; or, as published, cut them
    loss: Literal["nll", "dft"] = "nll"
    packing: bool = False
    group_by_length: bool = False  # rows of like length in one batch: less padding, another order

    @model_validator(mode="after")
    def _packed_rows_are_of_one_length(self) -> Sft:
        if self.packing and self.group_by_length:
            raise ValueError("packing leaves no rows of other lengths: leave group_by_length out")
        return self


class _Continuing(_Adapter):
    """Trainings that may go on with an adapter: that of the policy, or of the stage `start_from`.
    The start of training is also the reference."""

    start_from: Literal["policy", "sft", "dpo"] = "policy"

    def _base(self, context: StageContext) -> Need:
        return context.base(self.base, "base", self.name)

    def _models(self, context: StageContext, group: str) -> tuple[Need, ...]:
        """Return the adapter that training starts from, if any."""
        start = context.adapter(self.base, "start", self.name, group)
        if self.start_from == "policy":
            if isinstance(start, StepInput):
                self._check_lora(context.stage(start.step.partition("[")[0], self.name))
            return () if start is None else (start,)
        if start is not None:
            raise RecipeError(
                f"stages.{self.name} starts from {self.start_from}, and the model {self.base!r} "
                "has an adapter too",
                f"take start_from out, or give stages.{self.name}.base the model without its "
                "adapter",
            )
        names = [name for name in context.stages if stage_of(name) == self.start_from]
        name = names[-1] if names else self.start_from  # of the last round
        specs = {spec.name: spec for spec in context.slices(name, self.name)}
        first = specs.get(group) or specs.get("all")
        if first is None:
            raise RecipeError(
                f"stages.{self.name} starts {group} from {name}, which trains no adapter for it",
                f"add {group} or all to stages.{name}.each ({', '.join(specs)})",
            )
        stage = context.stage(name, self.name)
        if context.base(getattr(stage, "base", ""), "base", self.name) != self._base(context):
            raise RecipeError(
                f"stages.{self.name} and stages.{name} are of different base models",
                "give both the same base, or start_from: policy",
            )
        self._check_lora(stage)
        return (StepInput("start", first.step, first.name),)

    def _check_lora(self, start: Stage) -> None:
        """Raise RecipeError where training goes on with an adapter of another LoRA."""
        if start.from_ is None and getattr(start, "lora", None) != self.lora:
            raise RecipeError(
                f"stages.{self.name} goes on with the adapter of {start.name}, whose lora is "
                "another",
                f"give stages.{self.name}.lora and stages.{start.name}.lora the same values",
            )


class Dpo(_Continuing):
    """LoRA adapters by DPO or a related loss, from the base model or, with `start_from: sft`,
    from the SFT adapter. The start of training is also the reference, unless `reference` names
    another under models: the base without an adapter, or with another one. A policy that has an
    adapter already (a later round) is trained further. The result is always one adapter for
    the base model. `loss`: a name or a weighted sum; `{sigmoid: 1.0, sft: 0.2}` is ICR's DPO
    with an NLL term (arXiv 2503.04647). `disable_dropout` is TRL's default, as in the published
    job: LoRA's dropout then has no effect.

    `use_weighting` weighs a pair by how likely the policy finds it (WPO, arXiv 2406.11827).
    `ld_alpha` is the weight of the tokens of the longer answer beyond the length of the shorter
    (LD-DPO, arXiv 2409.06411). `f_divergence_type` is the divergence from the reference (f-DPO,
    arXiv 2309.16240), `f_alpha_divergence_coef` the alpha of alpha_divergence.

    `margin_smoothing` is label smoothing by each pair's own margin: with it, in units of the
    reward, the sides of a pair are swapped for training with the probability
    sigmoid(-margin / margin_smoothing) that the other answer is better (Bradley-Terry), which is
    that smoothing in the mean.

    `unpaired`, with the losses kto and apo_zero_unpaired, trains on scored answers in the place of
    pairs: an answer is desirable with a reward over this number, or over the `mean` of its prompt.
    One that was cut off or is in another language is never desirable, and left out.

    `tpo` and `tpo_l` (arXiv 2405.16681) learn a third answer as SFT does: the one of `best` to the
    same prompt."""

    name: ClassVar[str] = "dpo"
    repo: ClassVar[str] = "dpo"
    read: ClassVar[str] = "pairs"
    rows_kind: ClassVar[str] = "pairs"
    columns: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")
    method: ClassVar[str] = "preference"

    lr: float = Field(5e-6, gt=0)
    beta: float = Field(0.1, gt=0)
    loss: str | dict[str, float] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    simpo_gamma: float = Field(0.5, ge=0)
    use_weighting: bool = False
    ld_alpha: float | None = Field(None, ge=0, le=1)
    f_divergence_type: Divergence = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    margin_smoothing: float | None = Field(None, gt=0)
    unpaired: Literal["mean"] | float | None = None
    disable_dropout: bool = True
    group_by_length: bool = False  # as for sft; for the losses of TRL's DPOTrainer
    over: Literal["drop", "truncate"] = "drop"  # as for sft; for the losses of TRL's DPOTrainer
    start_from: Literal["policy", "sft"] = "policy"
    # a name under models, of the same base: what training is held against in the place of its start
    reference: Annotated[str | None, REFERENCE] = None

    @field_validator("loss", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        return losses.parse(value)

    @model_validator(mode="after")
    def _loss_has_what_it_needs(self) -> Dpo:
        names = set(losses.weights(self.loss))
        if self.label_smoothing and not names & losses.SMOOTHED:
            raise ValueError(f"label_smoothing is for {', '.join(sorted(losses.SMOOTHED))}")
        if "exo_pair" in names and not self.label_smoothing:
            raise ValueError("exo_pair needs label_smoothing over 0; its paper takes 0.001")
        if self.simpo_gamma != 0.5 and names != {"simpo"}:
            raise ValueError("simpo_gamma is for the loss simpo")
        if names & losses.ALONE.keys():
            if self.group_by_length:
                raise ValueError(f"group_by_length is not for {losses.describe(self.loss)}")
            if self.over == "truncate":
                raise ValueError(f"over: truncate is not for {losses.describe(self.loss)}")
        for knob, fitting in losses.FITTING.items():
            if getattr(self, knob) != type(self).model_fields[knob].default and names - fitting:
                raise ValueError(f"{knob} is not for {losses.describe(self.loss)}")
        if self.f_alpha_divergence_coef != 0.5 and self.f_divergence_type != "alpha_divergence":
            raise ValueError("f_alpha_divergence_coef is for f_divergence_type: alpha_divergence")
        if self.unpaired is not None and self.margin_smoothing is not None:
            raise ValueError("margin_smoothing is for pairs, and unpaired reads none")
        if self.reference is not None and names & losses.WITHOUT_REFERENCE:
            raise ValueError(f"reference: {losses.describe(self.loss)} has none")
        if names & losses.ACROSS_ROWS and self.how.micro_batch == 1:
            raise ValueError(
                f"{losses.describe(self.loss)} compares the rows of a micro batch: "
                "how.micro_batch must be 2 or more"
            )
        return self

    def identity_fields(self, spec: SliceSpec) -> dict[str, Any]:
        fields = super().identity_fields(spec)
        if self.from_ is None and set(losses.weights(self.loss)) & losses.BY_MICRO_BATCH:
            fields["micro_batch"] = self.how.micro_batch
        if self.reference is not None:
            fields["reference"] = "adapter" if spec.need(_REFERENCE) else "base"
        return fields

    def min_rows(self) -> dict[str, int]:
        unpaired = self.from_ is None and self.unpaired is not None
        return {"scores": self.min_pairs} if unpaired else super().min_rows()

    @property
    def _learns_best(self) -> bool:
        return bool(set(losses.weights(self.loss)) & losses.TRIPLE)

    def _rows(self, context: StageContext) -> list[SliceSpec]:
        if self.unpaired is None:
            return super()._rows(context)
        return list(context.rows("scores", self.name).values())

    def _reads(self, context: StageContext, spec: SliceSpec) -> tuple[Need, ...]:
        if self.unpaired is not None:
            kinds = ("scores", "samples", "prompts")
            return tuple(context.rows(kind, self.name)[spec.name].as_input(kind) for kind in kinds)
        if not self._learns_best:
            return super()._reads(context, spec)
        best = context.rows("sft", self.name)
        if spec.name not in best:
            raise RecipeError(
                f"stages.dpo.loss: {self.loss} learns the answers of best, which has none for "
                f"{spec.name}",
                "give best and pair the same pool",
            )
        return (*super()._reads(context, spec), best[spec.name].as_input("reference"))

    def _columns(self) -> tuple[str, ...]:
        if self.unpaired is not None:
            return ("prompt", "completion", "label")
        if set(losses.weights(self.loss)) <= set(losses.DPO):  # TRL's DPOTrainer reads them
            return (*self.columns, "prompt_ids", "chosen_ids", "rejected_ids")
        return (*self.columns, "reference") if self._learns_best else self.columns

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        better, worse = row.get("reward_chosen"), row.get("reward_rejected")
        margin = None if better is None or worse is None else better - worse
        return super()._row(row) | {"reward_margin": margin}

    def _stored(self, job: Job, spec: SliceSpec) -> tuple[list[dict[str, Any]], dict[str, int]]:
        if self.unpaired is not None:
            return dataset.labelled(job, spec, self.unpaired)
        rows, dropped = super()._stored(job, spec)
        return dataset.with_references(job, spec, rows) if self._learns_best else (rows, dropped)

    def _prepared(self, train: list[Any], job: Job) -> tuple[list[Any], dict[str, Any]]:
        if self.margin_smoothing is None:
            return train, {}
        if without := sum(row["reward_margin"] is None for row in train):
            raise StageError(
                f"{job.step}: {without} of {len(train)} pairs have no rewards, and "
                "margin_smoothing goes by their margin",
                "leave margin_smoothing out, or score the answers",
            )
        return dataset.swapped(train, self.margin_smoothing, job.seed)

    def _models(self, context: StageContext, group: str) -> tuple[Need, ...]:
        """Return the adapter that training starts from, if any, and that of the reference."""
        start = super()._models(context, group)
        if self.reference is None:
            return start
        base = context.base(self.reference, "base", self.name)
        if not start or base != self._base(context):
            why = "starts from no adapter" if not start else "has another base"
            raise RecipeError(
                f"stages.{self.name}.reference: {self.reference}, and training {why}",
                "leave it out: what training starts from is the reference",
            )
        held = context.adapter(self.reference, _REFERENCE, self.name, group)
        return start if held is None else (*start, held)

    def _chain(self, job: Job) -> dict[str, Any]:
        chain = super()._chain(job)
        if set(losses.weights(self.loss)) & losses.WITHOUT_REFERENCE:
            return chain | {"reference": None}
        reference = chain["start"]
        if self.reference is not None:
            [spec] = job.slices
            reference = job.place(spec, _REFERENCE).name if spec.need(_REFERENCE) else "policy"
        return chain | {"reference": reference, "loss": losses.describe(self.loss)}


class _Sampling(_Continuing):
    """Knobs and steps of trainings on answers that the model in training samples. Rows are prompts;
    none is held out, since answers are sampled anew each time."""

    read: ClassVar[str] = "prompts"
    rows_kind: ClassVar[str] = "prompts"

    lr: float = Field(5e-6, gt=0)  # as for dpo: what is compared is where answers come from
    temperature: float = Field(1.0, gt=0)
    max_tokens: int = Field(1024, ge=1)
    held_out: float = Field(0.0, ge=0, le=0)
    disable_dropout: bool = True

    @model_validator(mode="after")
    def _answers_have_room(self) -> _Sampling:
        if self.max_tokens >= self.max_length:
            raise ValueError(f"max_tokens {self.max_tokens} leaves no room for prompts")
        return self

    def _rows(self, context: StageContext) -> list[SliceSpec]:
        return context.prompts(self.name)  # translations where there are any

    def _reward(self, context: StageContext) -> RewardInput | None:
        return self._classifier(context)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_id": row["prompt_id"], "prompt": row["messages"]}

    def _room(self) -> int:
        return self.max_length - self.max_tokens

    def _drawing(self, rows: list[Any], tokenizer: Any) -> ProbeKnobs:
        most = min(self.max_tokens, self.how.probe.max_tokens)
        at = self.how.probe.temperature or self.temperature
        return self.how.probe.model_copy(update={"max_tokens": most, "temperature": at})


class Online(_Sampling):
    """The paper's online control: DPO on two answers that the model in training samples for each
    prompt, compared by the reward model, with TRL's OnlineDPOTrainer."""

    name: ClassVar[str] = "online"
    repo: ClassVar[str] = "online"
    columns: ClassVar[tuple[str, ...]] = ("prompt",)
    method: ClassVar[str] = "online"

    beta: float = Field(0.1, gt=0)

    def _chain(self, job: Job) -> dict[str, Any]:
        chain = super()._chain(job)
        return chain | {"reference": chain["start"], "loss": "sigmoid"}


class Rl(_Sampling):
    """Reinforcement learning on `n` answers to each prompt that the model in training samples, with
    TRL's GRPOTrainer (arXiv 2402.03300) or RLOOTrainer (arXiv 2402.14740). `batch` counts answers.
    `rewards` are weights by name, of the sum that is learned from: `model` is the logit of the
    reward model `reward`; `language` is 1 for an answer in the language of its prompt; `length` is
    1 for up to `length` tokens, and falls to 0 at max_tokens; `format` is 1 for an answer that the
    regular expression `format` matches as a whole; `exact` is 1 for one that equals the prompt's
    gold answer but for case and space, or whose first group of `format` does. A prompt without a
    gold answer has no reward of that name. `beta` weighs the divergence from the base; `loss` and
    `scale` are GRPO's alone."""

    name: ClassVar[str] = "rl"
    repo: ClassVar[str] = "rl"
    columns: ClassVar[tuple[str, ...]] = ("prompt", "language", "gold")
    method: ClassVar[str] = "rl"

    algorithm: Literal["grpo", "rloo"] = "grpo"
    rewards: dict[RewardName, float] = Field(default={"model": 1.0}, min_length=1)
    length: int | None = Field(None, ge=1)
    format: str | None = None
    n: int = Field(8, ge=2)
    beta: float = Field(0.05, ge=0)
    loss: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = "dapo"
    scale: Literal["group", "batch", "none"] = "group"

    @model_validator(mode="after")
    def _rewards_have_what_they_need(self) -> Rl:
        if self.batch % self.n:
            raise ValueError(
                f"batch {self.batch} is not a multiple of n {self.n}: all answers to a prompt are "
                "in one batch"
            )
        if "length" in self.rewards and not (self.length or 0) < self.max_tokens:
            raise ValueError("length must be less than max_tokens")
        for name in ("length", "format"):
            if (name in self.rewards) != (getattr(self, name) is not None) and not (
                name == "format" and "exact" in self.rewards
            ):
                raise ValueError(f"{name} and a weight in rewards.{name} go together")
        if self.format is not None:
            try:
                re.compile(self.format)
            except re.error as error:
                raise ValueError(f"format is no regular expression: {error}") from None
        if self.algorithm == "rloo" and (self.loss, self.scale) != ("dapo", "group"):
            raise ValueError("loss and scale are for algorithm: grpo")
        return self

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        prompts = context.stages.get("prompts")
        if "exact" in self.rewards and "gold" not in getattr(prompts, "columns", {}):
            raise RecipeError(
                "stages.rl.rewards.exact: no prompt has a gold answer",
                "name the column of answers: prompts: {columns: {gold: theirs}}",
            )
        return super().plan_slices(context)

    def _reward(self, context: StageContext) -> RewardInput | None:
        read = "model" in self.rewards or self.publish == "win_rate"
        return super()._reward(context) if read else None

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        return super()._row(row) | {"gold": row.get("gold")}

    def _chain(self, job: Job) -> dict[str, Any]:
        chain = super()._chain(job)
        reference = chain["start"] if self.beta else None
        return chain | {"reference": reference, "loss": self.algorithm}

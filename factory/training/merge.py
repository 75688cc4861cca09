"""merge: combine adapters of several languages or objectives by PEFT's arithmetic."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from factory.artifacts.manifest import Rows
from factory.config import REFERENCE, Knobs
from factory.engines import chat_template
from factory.errors import RecipeError, StageError, nearest
from factory.stage.inputs import ExternalInput, Need, ServedModel, SliceSpec, StepInput
from factory.stage.job import Job
from factory.stage.outcome import Outcome
from factory.stage.stage import How, Stage, StageContext, filled
from factory.training import dataset
from factory.training.settings import Dtype, ProbeKnobs

_SPARSE = ("ties", "dare_linear", "dare_ties", "ties_svd", "dare_linear_svd", "dare_ties_svd")


def _source(name: str, language: str | None) -> str:
    """Return an adapter's repo with its revision, main if none is named."""
    filled_in = filled(name, {"language": language}) if language else name
    repo, _, revision = filled_in.partition("@")
    return f"{repo}@{revision or 'main'}"


class MergeHow(How):
    """`engine`: the engine that the probe compares with PEFT."""

    engine: Literal["auto", "vllm", "transformers"] = "auto"


class Search(Knobs):
    """Search of the weights of a merge: those given (or equal ones), each adapter alone, and
    `tries` random ones that add up to 1. The one with the highest mean reward is taken, over greedy
    answers to at most `prompts` prompts that no training saw: the share `held_out` that trainings
    here hold out. `reward` is a classifier under models:."""

    reward: Annotated[str, REFERENCE] = "reward"
    tries: int = Field(8, ge=0)
    prompts: int = Field(64, ge=1)
    held_out: float = Field(0.01, gt=0, lt=1)
    max_tokens: int = Field(512, ge=1)


class Merge(Stage):
    """One adapter from those named in `of`: a training stage (all its adapters), single steps like
    `dpo[es]`, or repos like `org/adapter@revision`, any number of each. `each: language` makes one
    for each language instead, from the adapters of its own: of a stage that of the language, or
    else of all; {language} in a repo is filled in. `weights` by the names in `of`; a stage's is
    shared equally by its adapters; by default all are equal, adding up to 1. `search` finds them.
    cat is the exact
    sum of the changes, its rank the sum of the ranks; svd reduces that to the largest rank. linear
    adds up LoRA's factors, which is not the sum of their products. ties (arXiv 2306.01708) and dare
    (arXiv 2311.03099) keep the share `density` of each adapter's values."""

    name: ClassVar[str] = "merge"
    kind: ClassVar[str] = "adapter"
    repo: ClassVar[str] = "merge"

    base: Annotated[str, REFERENCE] = "policy"
    of: Annotated[tuple[str, ...], REFERENCE, Field(min_length=1)] = ("dpo",)
    each: Annotated[Literal["all", "language"], REFERENCE] = "all"
    method: Literal[
        "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd",
        "dare_ties_svd",
    ] = "cat"  # fmt: skip
    weights: dict[str, float] = Field(default_factory=dict)
    search: Search | None = None
    density: float = Field(0.5, gt=0, le=1)
    dtype: Dtype = "bfloat16"  # that the result is probed in
    how: MergeHow = MergeHow()

    @model_validator(mode="after")
    def _density_is_for_sparse_methods(self) -> Merge:
        if self.density != 0.5 and self.method not in _SPARSE:
            raise ValueError(f"density is for {', '.join(_SPARSE)}")
        return self

    @model_validator(mode="after")
    def _languages_are_filled_in(self) -> Merge:
        for name in self.of:
            if "{" in name and self.each == "all":
                raise ValueError(f"of: {name} is of each language: set each: language")
            filled(name, {"language": "en"})
        return self

    def uses_seed(self, spec: SliceSpec) -> bool:
        return (self.method.startswith("dare") or bool(self.search)) and self.from_ is None

    def expected_rows(self, rows: Mapping[str, int], spec: SliceSpec) -> int:
        return 0

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        base = context.model(self.base, "base", self.name)
        languages = context.languages if self.each == "language" else (None,)
        return [self._spec(context, base, language) for language in languages]

    def _spec(self, context: StageContext, base: Need, language: str | None) -> SliceSpec:
        """Return the merge of a language, or of all adapters."""
        adapters: dict[str, Need] = {}
        for name in self.of:
            if "/" in name:
                adapters[name] = ExternalInput("adapter", _source(name, language), "model")
                continue
            stage = name.partition("[")[0]
            specs = {spec.step: spec for spec in context.slices(stage, self.name)}
            if context.stage(stage, self.name).kind != "adapter" or stage == self.name:
                raise RecipeError(
                    f"stages.merge.of: {name} makes no adapters",
                    "name sft, dpo, one step or org/name",
                )
            if name != stage and name not in specs:
                raise RecipeError(
                    f"stages.merge.of names {name!r}{nearest(name, specs)}",
                    f"use {stage} or one of {', '.join(specs)}",
                )
            own = getattr(context.stage(stage, self.name), "base", self.base)
            if context.base(own, "base", self.name) != base:
                raise RecipeError(
                    f"stages.merge is of the model {self.base}, {stage} of another",
                    "adapters of different base models cannot be merged",
                )
            self._check_held_out(context.stage(stage, self.name))
            steps = list(specs) if name == stage else [name]
            if language is not None and name == stage:
                steps = [s for s in (f"{stage}[{language}]", f"{stage}[all]") if s in specs][:1]
            for step in steps:
                adapters[step] = specs[step].as_input("adapter")
        place = f" for {language}" if language else ""
        if len(adapters) < 2:
            raise RecipeError(
                f"stages.merge has one adapter alone{place} ({', '.join(adapters)})",
                "name several in of:",
            )
        known = {self._of(name): None for name in adapters} | dict.fromkeys(adapters)
        weighted = {name for name in adapters if self._weight(name) is not None}
        if self.weights and (weighted != adapters.keys() or self.weights.keys() - known.keys()):
            raise RecipeError(
                f"stages.merge.weights are of {', '.join(self.weights)}",
                f"give one for each of {', '.join(adapters)}",
            )
        step = f"{self.name}[{language}]" if language else self.name
        needs: tuple[Need, ...] = (*adapters.values(), base)
        if self.search is None:
            return SliceSpec(step, language or "all", language, needs)
        reward = context.reward(self.search.reward, self.name)
        if not reward.model.is_plain_classifier:
            raise RecipeError(
                f"stages.merge.search.reward: {self.search.reward!r} is of kind: "
                f"{reward.model.kind}",
                "name one of kind: classifier",
            )
        prompts = [s for s in context.prompts(self.name) if language in (None, s.language)]
        needs += (*(spec.as_input("prompts") for spec in prompts), *reward.needs)
        return SliceSpec(step, language or "all", language, needs, reward=reward)

    def _of(self, adapter: str) -> str:
        """Return the name in `of` that an adapter goes by: its own, or that of its stage."""
        return adapter if adapter in self.of else adapter.partition("[")[0]

    def _weight(self, adapter: str) -> float | None:
        """Return the weight that the recipe gives an adapter or its stage."""
        return self.weights.get(adapter, self.weights.get(self._of(adapter)))

    def _check_held_out(self, stage: Stage) -> None:
        held_out = getattr(stage, "held_out", 1.0)
        if self.search is not None and stage.from_ is None and held_out < self.search.held_out:
            raise RecipeError(
                f"stages.merge.search.held_out is {self.search.held_out:g}, {stage.name} holds out "
                f"{held_out:g}",
                "answers would be to prompts that it was trained on: give it the same or more",
            )

    def run(self, job: Job) -> Outcome:
        from factory.training import adapters, probe

        [spec] = job.slices
        base = job.place(spec, "base")
        named = {_source(name, spec.language): name for name in self.of if "/" in name}
        places = {
            need.step if isinstance(need, StepInput) else named[need.source]: job.places[need]
            for need in spec.needs
            if need.role == "adapter" and not isinstance(need, ServedModel)
        }
        paths = {name: place.path for name, place in places.items()}
        share = self._shares(list(paths))
        searched: dict[str, Any] = {}
        if self.search is not None:
            share, searched = self._searched(job, spec, paths, share)
        combined = {job.out: {name: weight for name, weight in share.items() if weight}}
        adapters.combine(base.path, paths, combined, self.method, self.density, job.seed)
        adapters.name_base(job.out, base.name, base.revision)
        talks, engine = probe.GREETINGS, self.how.engine
        job.progress(0, 0, "probing")
        probed = probe.probe(base.path, job.out, talks, self.dtype, 256, engine)
        alarms = probe.check(probed, job.step)
        tokenizer = chat_template.load_tokenizer(str(base.path))
        tokenizer.save_pretrained(str(job.out))
        stats: dict[str, Any] = {
            "merged": [
                {"step": name, "repo": place.name, "revision": place.revision,
                 "weight": share[name]}
                for name, place in places.items()
            ],
            **searched,
            "chain": {"load_on": base.name, "revision": base.revision, "start": "policy"},
            "probe": probed,
            "alarms": alarms,
            "rank": adapters.read_config(job.out)["r"],
        }  # fmt: skip
        return Outcome({spec.name: Rows(into=0, out=0)}, determinism="rounding", stats=stats)

    def _shares(self, adapters: list[str]) -> dict[str, float]:
        """Return the weight of each adapter; one that the recipe gives a stage is divided."""
        if not self.weights:
            return dict.fromkeys(adapters, 1 / len(adapters))
        given = Counter(self._of(name) for name in adapters if name not in self.weights)
        return {
            name: self.weights.get(name, self.weights.get(of, 0.0) / (given[of] or 1))
            for name in adapters
            for of in [self._of(name)]
        }

    def _searched(
        self, job: Job, spec: SliceSpec, paths: dict[str, Path], stated_weights: dict[str, float]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the weights whose merge has the highest mean reward, and what each try had."""
        from factory.training import adapters, behaviour

        assert self.search is not None
        knobs, base = self.search, job.place(spec, "base").path
        tries = [
            stated_weights,
            *({name: float(name == alone) for name in paths} for alone in paths),
        ]
        random = Random(job.seed)
        for _ in range(knobs.tries):
            parts = [random.expovariate(1) for _ in paths]
            tries.append({n: round(x / sum(parts), 3) for n, x in zip(paths, parts, strict=True)})
        outs = [job.work / "search" / str(number) for number in range(len(tries))]
        mixtures = {
            out: {name: weight for name, weight in share.items() if weight}
            for out, share in zip(outs, tries, strict=True)
        }
        shutil.rmtree(job.work / "search", ignore_errors=True)
        adapters.combine(base, paths, mixtures, self.method, self.density, job.seed)
        prompts = job.table(spec, "prompts", "prompts").to_pylist()
        _, held_out = dataset.split(prompts, knobs.held_out, job.seed)
        questions = [behaviour.Question(row["messages"], row["language"], True) for row in held_out]
        questions.sort(key=lambda question: dataset.draw(job.seed, repr(question.prompt)))
        job.progress(0, 0, "searching weights")
        drawn = behaviour.draw(
            base,
            {str(n): out for n, out in enumerate(outs)},
            questions,
            ProbeKnobs(prompts=knobs.prompts, n=1, max_tokens=knobs.max_tokens, temperature=0.0),
            self.dtype,
            job.seed,
            self.how.engine,
        )
        if drawn is None:
            raise StageError(
                f"{job.step}: no held-out prompt leaves room for an answer",
                "raise stages.merge.search.held_out, or ask fewer max_tokens",
            )
        reward = job.place(spec, "reward").path
        read = behaviour.rewards(drawn, reward, self.dtype, self.how.engine)
        means = [math.fsum(values) / len(values) for values in read.values()]
        best = max(range(len(tries)), key=means.__getitem__)
        tried = [
            {"weights": share, "reward": mean} for share, mean in zip(tries, means, strict=True)
        ]
        return tries[best], {"search": {"prompts": len(drawn.questions), "tried": tried}}

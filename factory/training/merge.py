"""merge: combine adapters of several languages or objectives by PEFT's arithmetic."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from factory.artifacts.manifest import Rows
from factory.config import REFERENCE
from factory.engines import chat_template
from factory.errors import RecipeError, nearest
from factory.stage.inputs import SliceSpec, StepInput
from factory.stage.job import Job
from factory.stage.outcome import Outcome
from factory.stage.stage import How, Stage, StageContext
from factory.training.settings import Dtype

_SPARSE = ("ties", "dare_linear", "dare_ties", "ties_svd", "dare_linear_svd", "dare_ties_svd")


class MergeHow(How):
    """`engine`: the engine that the probe compares with PEFT."""

    engine: Literal["auto", "vllm", "transformers"] = "auto"


class Merge(Stage):
    """One adapter from those named in `of`: a training stage (all its adapters) or single steps
    like `dpo[es]`. `weights` by step; by default equal, adding up to 1. cat is the exact sum of
    the changes, its rank the sum of the ranks; svd reduces that to the largest rank. linear adds
    up LoRA's factors, which is not the sum of their products. ties (arXiv 2306.01708) and dare
    (arXiv 2311.03099) keep the share `density` of each adapter's values."""

    name: ClassVar[str] = "merge"
    kind: ClassVar[str] = "adapter"
    repo: ClassVar[str] = "merge"

    base: Annotated[str, REFERENCE] = "policy"
    of: Annotated[tuple[str, ...], REFERENCE, Field(min_length=1)] = ("dpo",)
    method: Literal[
        "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd",
        "dare_ties_svd",
    ] = "cat"  # fmt: skip
    weights: dict[str, float] = Field(default_factory=dict)
    density: float = Field(0.5, gt=0, le=1)
    dtype: Dtype = "bfloat16"  # that the result is probed in
    how: MergeHow = MergeHow()

    @model_validator(mode="after")
    def _density_is_for_sparse_methods(self) -> Merge:
        if self.density != 0.5 and self.method not in _SPARSE:
            raise ValueError(f"density is for {', '.join(_SPARSE)}")
        return self

    def uses_seed(self, spec: SliceSpec) -> bool:
        return self.method.startswith("dare") and self.from_ is None

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        base = context.model(self.base, "base", self.name)
        adapters: dict[str, SliceSpec] = {}
        for name in self.of:
            stage = name.partition("[")[0]
            specs = {spec.step: spec for spec in context.slices(stage, self.name)}
            if context.stage(stage, self.name).kind != "adapter" or stage == self.name:
                raise RecipeError(
                    f"stages.merge.of: {name} makes no adapters", "name sft, dpo or one step"
                )
            if name != stage and name not in specs:
                raise RecipeError(
                    f"stages.merge.of names {name!r}{nearest(name, specs)}",
                    f"use {stage} or one of {', '.join(specs)}",
                )
            if getattr(context.stage(stage, self.name), "base", None) != self.base:
                raise RecipeError(
                    f"stages.merge is of the model {self.base}, {stage} of another",
                    "adapters of different base models cannot be merged",
                )
            adapters |= specs if name == stage else {name: specs[name]}
        if len(adapters) < 2:
            raise RecipeError(
                f"stages.merge has one adapter alone ({', '.join(adapters)})", "name several in of:"
            )
        if self.weights and self.weights.keys() != adapters.keys():
            raise RecipeError(
                f"stages.merge.weights are of {', '.join(self.weights)}",
                f"give one for each of {', '.join(adapters)}",
            )
        reads = tuple(StepInput("adapter", spec.step, spec.name) for spec in adapters.values())
        return [SliceSpec(self.name, "all", None, (*reads, base))]

    def run(self, job: Job) -> Outcome:
        from factory.training import adapters, probe

        [spec] = job.slices
        base = job.place(spec, "base")
        reads = [
            need for need in spec.needs if isinstance(need, StepInput) and need.role == "adapter"
        ]
        share = {adapter.step: self.weights.get(adapter.step, 1 / len(reads)) for adapter in reads}
        places = {adapter.step: job.places[adapter] for adapter in reads}
        parts = {name: (place.path, share[name]) for name, place in places.items()}
        adapters.combine(base.path, parts, self.method, self.density, job.seed, job.out)
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
            "chain": {"load_on": base.name, "revision": base.revision, "start": "policy"},
            "probe": probed,
            "alarms": alarms,
            "rank": adapters.read_config(job.out)["r"],
        }  # fmt: skip
        return Outcome({spec.name: Rows(into=0, out=0)}, determinism="rounding", stats=stats)

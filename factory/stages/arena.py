"""arena: the models to be compared answer the same held-out questions, decoded alike."""

from __future__ import annotations

from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from factory import chat, schemas
from factory.artifact import Rows
from factory.engines import Sampling
from factory.engines.transformers import TransformersSampler
from factory.knobs import REFERENCE
from factory.language_id import detect, matches
from factory.shards import Shard
from factory.stages.contract import How, Need, Read, Scope, SliceSpec, Stage
from factory.stages.job import Job, Outcome
from factory.training import probe


class ArenaHow(How):
    """`shard`: questions in a shard, answered as one batch."""

    shard: int = Field(32, ge=1)


class Arena(Stage):
    """Answers of every model in `of`: a name under models:, or a stage that trains adapters.
    Greedy, and the same for all of them whatever they are called."""

    name: ClassVar[str] = "arena"
    kind: ClassVar[str] = "answers"
    repo: ClassVar[str] = "arena"
    version: ClassVar[int] = 2  # labels by language_id as docs/languages.md has it
    row_wise: ClassVar[bool] = True

    of: Annotated[tuple[str, ...], REFERENCE] = ("policy", "dpo")
    max_tokens: int = Field(8192, ge=1)
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float16|float32)$")
    how: ArenaHow = ArenaHow()

    def slices(self, scope: Scope) -> list[SliceSpec]:
        questions = {spec.name: spec for spec in scope.slices("questions", self.name)}
        found = []
        for name in self.of:
            for label, needs, languages in contestants(scope, name, self.name):
                found += [
                    SliceSpec(
                        self.name,
                        f"{language}/{label}",
                        language,
                        (Read("questions", questions[language].step, language), *needs),
                    )
                    for language in languages
                ]
        return found

    def shards(self, rows: int) -> int:
        return -(-rows // self.how.shard)

    def run(self, job: Job) -> Outcome:
        questions = {
            spec.name: job.table(spec, "questions", "prompts").to_pylist() for spec in job.slices
        }
        specs = {spec.name: spec for spec in job.slices}
        sampling = Sampling(temperature=0, top_p=1, max_tokens=self.max_tokens)
        loaded: tuple[str, TransformersSampler] | None = None

        def make(shard: Shard) -> tuple[pa.Table, int]:
            nonlocal loaded
            asked = questions[shard.slice][shard.start : shard.stop]
            label = shard.slice.split("/")[1]
            if loaded is None or loaded[0] != label:  # slices come model by model
                spec = specs[shard.slice]
                adapter = None
                if spec.need("adapter"):
                    adapter = job.place(spec, "adapter").path
                    probe.refuse_unapplied(adapter, label)
                loaded = None  # let go of the last model before the next is loaded
                sampler = TransformersSampler(job.place(spec, "model").path, self.dtype, adapter)
                loaded = (label, sampler)
            sampler = loaded[1]
            ids = [chat.prompt_ids(sampler.tokenizer, row["messages"]) for row in asked]
            drawn = sampler.sample(ids, sampling, job.seed) if ids else []
            rows = []
            for row, sample in zip(asked, drawn, strict=True):
                decoded = sampler.tokenizer.decode(
                    list(sample.token_ids), skip_special_tokens=True
                ).strip()
                rows.append(
                    {
                        "model": label,
                        "question_id": row["prompt_id"],
                        "language": row["language"],
                        "category": row["domain"],
                        "prompt": row["messages"],
                        "answer": decoded,
                        "n_tokens": len(sample.token_ids),
                        "finish_reason": sample.finish_reason,
                        "detected_language": detect(decoded),
                    }
                )
            cost = sum(len(sample.token_ids) for sample in drawn)
            return schemas.from_rows(rows, self.kind), cost

        sizes = {name: len(rows) for name, rows in questions.items()}
        tables = job.make_rows(self.kind, sizes, self.how.shard, make)
        counts = {name: Rows(into=sizes[name], out=len(table)) for name, table in tables.items()}
        stats = {}
        for name, table in tables.items():
            found = table.column("detected_language").to_pylist()
            stats[name] = {
                "answers": len(table),
                "tokens": sum(table.column("n_tokens").to_pylist()),
                "cut_off": table.column("finish_reason").to_pylist().count("length"),
                "in_language": sum(matches(label, str(specs[name].language)) for label in found),
            }
        return Outcome(
            counts,
            determinism="exact",
            stats={"by_slice": stats},
            tokens=sum(figures["tokens"] for figures in stats.values()),
        )


def contestants(
    scope: Scope, name: str, asked_by: str
) -> list[tuple[str, tuple[Need, ...], tuple[str, ...]]]:
    """(label, needs, languages) of each model that `name` stands for: a model under models: in
    every language, or each adapter of a training stage in the languages it was trained on."""
    if name in scope.models:
        return [(name, (scope.model(name, "model", asked_by),), scope.languages)]
    stage = scope.stage(name, asked_by)
    base = scope.model(getattr(stage, "base", "policy"), "model", asked_by)
    found: list[tuple[str, tuple[Need, ...], tuple[str, ...]]] = []
    for spec in stage.laid_out(scope):
        languages = (spec.language,) if spec.language else scope.languages
        needs = (base, Read("adapter", spec.step, spec.name))
        found.append((f"{name}-{spec.name}", needs, languages))
    return found

"""generate: the policy answers every prompt n times, in every language."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from factory import chat, schemas
from factory.artifact import Rows, fingerprint, text_hash
from factory.engines import Sample, Sampling
from factory.engines.transformers import TransformersSampler
from factory.knobs import EXTENT, REFERENCE
from factory.language_id import detect
from factory.shards import Shard
from factory.stages.contract import How, Read, Scope, SliceSpec, Stage
from factory.stages.job import Job, Outcome


class GenerateHow(How):
    """`shard`: prompts in a shard, all their n answers one batch."""

    shard: int = Field(8, ge=1)


class Generate(Stage):
    """Self-generations. Defaults are CroCo's: 64 samples at temperature 1, top_p 1, 4096 tokens."""

    name: ClassVar[str] = "generate"
    kind: ClassVar[str] = "samples"
    repo: ClassVar[str] = "generate"
    version: ClassVar[int] = 2  # labels by language_id as docs/languages.md has it
    seeded: ClassVar[bool] = True
    row_wise: ClassVar[bool] = True

    model: Annotated[str, REFERENCE] = "policy"
    n: Annotated[int, EXTENT, Field(ge=1)] = 64
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(4096, ge=1)
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float16|float32)$")
    how: GenerateHow = GenerateHow()

    def slices(self, scope: Scope) -> list[SliceSpec]:
        model = scope.model(self.model, "model", self.name)
        return [
            SliceSpec(
                self.name, spec.name, spec.language, (Read("prompts", spec.step, spec.name), model)
            )
            for spec in scope.prompts(self.name)
        ]

    def asks(self, rows: Mapping[str, int]) -> int:
        return rows["prompts"] * self.n

    def shards(self, rows: int) -> int:
        return -(-rows // (self.n * self.how.shard))

    def run(self, job: Job) -> Outcome:
        prompts = {
            spec.name: job.table(spec, "prompts", "prompts").to_pylist() for spec in job.slices
        }
        todo = {name: self._todo(job, name, rows) for name, rows in prompts.items()}
        model = job.place(job.slices[0], "model").path
        sampling = Sampling(self.temperature, self.top_p, self.max_tokens)

        @functools.cache  # loaded when there is something to draw
        def engine() -> TransformersSampler:
            return TransformersSampler(model, self.dtype)

        def make(shard: Shard) -> tuple[pa.Table, int]:
            asked = todo[shard.slice][shard.start : shard.stop]
            sampler = engine()
            # One seed a shard, from its first address: a batch is drawn together, so a row's
            # answer depends on its neighbours whatever seed the row itself were given.
            row, draws = asked[0]
            first = [job.seed, row["prompt_id"], shard.slice, draws[0]]
            seed = int(fingerprint(first), 16) % 2**31
            ids = [chat.prompt_ids(sampler.tokenizer, row["messages"]) for row, _ in asked]
            addresses = [(n, k) for n, (_, draws) in enumerate(asked) for k in draws]
            drawn = sampler.sample([ids[n] for n, _ in addresses], sampling, seed)
            rows = [
                self._row(asked[n][0], k, sample, seed, sampler.tokenizer)
                for (n, k), sample in zip(addresses, drawn, strict=True)
            ]
            cost = sum(len(sample.token_ids) for sample in drawn)
            return schemas.from_rows(rows, self.kind), cost

        sizes = {name: len(units) for name, units in todo.items()}
        tables = job.make_rows(self.kind, sizes, self.how.shard, make)
        counts = {
            name: Rows(into=len(prompts[name]) * self.n, out=len(table))
            for name, table in tables.items()
        }
        stats = {name: _describe(table) for name, table in tables.items()}
        return Outcome(
            counts,
            determinism="distribution",
            stats={"by_language": stats},
            template=chat.contract_of(model),
            tokens=sum(figures["tokens"] for figures in stats.values()),
        )

    def _todo(
        self, job: Job, name: str, prompts: list[dict[str, Any]]
    ) -> list[tuple[dict[str, Any], list[int]]]:
        """The prompts of a slice that want answers, each with the draws (k) it lacks."""
        import polars as pl

        frame = pl.DataFrame(
            {key: [row[key] for row in prompts] for key in ("prompt_id", "prompt_hash")},
            schema={"prompt_id": pl.String, "prompt_hash": pl.String},
        )
        asked = frame.join(pl.DataFrame({"k": range(self.n)}), how="cross", maintain_order="left")
        lacking: dict[int, list[int]] = {}
        for number in job.missing(name, self.kind, asked):
            lacking.setdefault(number // self.n, []).append(number % self.n)
        return [(prompts[number], draws) for number, draws in lacking.items()]

    def _row(
        self, prompt: dict[str, object], k: int, sample: Sample, seed: int, tokenizer: object
    ) -> dict[str, object]:
        decode = tokenizer.decode  # type: ignore[attr-defined]
        text = decode(list(sample.token_ids), skip_special_tokens=True).strip()
        return {
            "prompt_id": prompt["prompt_id"],
            "language": prompt["language"],
            "k": k,
            "prompt_hash": prompt["prompt_hash"],
            "response": text,
            "response_hash": text_hash(text),
            "n_tokens": len(sample.token_ids),
            "n_chars": len(text),
            "finish_reason": sample.finish_reason,
            "seed": seed,
            "detected_language": detect(text),
        }


def _describe(table: pa.Table) -> dict[str, int]:
    """Counts that a reader of the card wants first."""
    reasons = table.column("finish_reason").to_pylist()
    found = table.column("detected_language").to_pylist()
    wanted = table.column("language").to_pylist()
    return {
        "samples": len(table),
        "tokens": sum(table.column("n_tokens").to_pylist()),
        "finished": reasons.count("stop"),
        "cut_off": reasons.count("length"),
        "in_language": sum(1 for f, w in zip(found, wanted, strict=True) if f == w),
    }

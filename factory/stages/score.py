"""score: a reward model reads every sample with its prompt."""

from __future__ import annotations

import functools
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from factory import schemas
from factory.artifact import Rows
from factory.engines.transformers import TransformersScorer
from factory.errors import InputError
from factory.knobs import REFERENCE
from factory.rewards import Classifier
from factory.shards import Shard
from factory.stages.contract import How, Read, Scope, SliceSpec, Stage
from factory.stages.job import Job, Outcome


class ScoreHow(How):
    """`shard`: samples in a shard."""

    shard: int = Field(512, ge=1)


class Score(Stage):
    """Rewards. The published runs read up to 32,768 tokens with a model trained on 16,384."""

    name: ClassVar[str] = "score"
    kind: ClassVar[str] = "scores"
    repo: ClassVar[str] = "score"
    row_wise: ClassVar[bool] = True

    reward: Annotated[str, REFERENCE] = "reward"
    max_tokens: int = Field(16384, ge=1)
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float16|float32)$")
    how: ScoreHow = ScoreHow()

    def slices(self, scope: Scope) -> list[SliceSpec]:
        reward = scope.classifier(self.reward, "reward", self.name)
        prompts = {spec.name: spec for spec in scope.slices("prompts", self.name)}
        return [
            SliceSpec(
                self.name,
                spec.name,
                spec.language,
                (
                    Read("samples", spec.step, spec.name),
                    Read("prompts", prompts[spec.name].step, spec.name),
                    reward,
                ),
            )
            for spec in scope.slices("generate", self.name)
        ]

    def shards(self, rows: int) -> int:
        return -(-rows // self.how.shard)

    def run(self, job: Job) -> Outcome:
        samples = {spec.name: job.table(spec, "samples", "samples") for spec in job.slices}
        prompts = {
            spec.name: {
                (row["prompt_id"], row["prompt_hash"]): row["messages"]
                for row in job.table(spec, "prompts", "prompts").to_pylist()
            }
            for spec in job.slices
        }
        todo = {name: self._todo(job, name, table) for name, table in samples.items()}
        model = job.place(job.slices[0], "reward").path

        @functools.cache  # loaded when there is something to score
        def reward() -> Classifier:
            return Classifier(TransformersScorer(model, self.dtype), self.max_tokens)

        def make(shard: Shard) -> tuple[pa.Table, int]:
            rows = samples[shard.slice].take(todo[shard.slice][shard.start : shard.stop])
            rows = rows.to_pylist()
            known = prompts[shard.slice]
            for row in rows:
                if (row["prompt_id"], row["prompt_hash"]) not in known:
                    raise InputError(
                        f"sample {row['prompt_id']} k={row['k']} answers another prompt",
                        "samples and prompts are of different versions: generate again",
                    )
            rewards = reward()(
                [(known[row["prompt_id"], row["prompt_hash"]], row["response"]) for row in rows]
            )
            made = [
                {
                    **{name: row[name] for name in ("prompt_id", "language", "k", "response_hash")},
                    "reward": value.value,
                    "n_tokens": value.n_tokens,
                    "status": value.status,
                }
                for row, value in zip(rows, rewards, strict=True)
            ]
            return schemas.from_rows(made, self.kind), sum(r.n_tokens for r in rewards)

        sizes = {name: len(numbers) for name, numbers in todo.items()}
        tables = job.make_rows(self.kind, sizes, self.how.shard, make)
        counts = {
            name: Rows(into=len(samples[name]), out=len(table)) for name, table in tables.items()
        }
        stats = {name: describe(table) for name, table in tables.items()}
        return Outcome(
            counts,
            determinism="rounding",
            stats={"by_language": stats},
            tokens=sum(int(figures["tokens"]) for figures in stats.values()),
        )

    def _todo(self, job: Job, name: str, samples: pa.Table) -> list[int]:
        """Which samples of a slice have no score yet, by number."""
        import polars as pl

        asked = pl.from_arrow(samples.select(["prompt_id", "k", "response_hash"]))
        assert isinstance(asked, pl.DataFrame)
        return job.missing(name, self.kind, asked)


def describe(table: pa.Table) -> dict[str, Any]:
    """Counts, moments and a histogram of one language's rewards."""
    import numpy as np
    import polars as pl

    from factory.anatomy import histogram

    values = table.column("reward").drop_null().to_numpy()
    statuses = table.column("status").to_pylist()
    return {
        "scored": len(values),
        "without_reward": sum(status != "ok" for status in statuses),
        "tokens": sum(table.column("n_tokens").to_pylist()),
        "rewards": histogram({"reward": pl.Series(values)}),
        **({"mean": float(np.mean(values)), "std": float(np.std(values))} if len(values) else {}),
    }

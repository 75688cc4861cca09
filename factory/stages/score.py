"""score: a reward model reads every sample with its prompt."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from factory import schemas
from factory.artifact import Rows
from factory.audit import Limits, Pair, audit, blind
from factory.chat import Message
from factory.engines.transformers import TransformersLikelihood, TransformersScorer
from factory.errors import InputError, RecipeError, StageError
from factory.knobs import GATE, REFERENCE
from factory.reading import answer, messages
from factory.rewards import (
    QUESTION,
    Backend,
    Classifier,
    Generative,
    Implicit,
    Reward,
    crosslingual,
)
from factory.shards import Shard
from factory.stages.contract import (
    From,
    How,
    Need,
    Outside,
    Read,
    Scope,
    SliceSpec,
    Stage,
    filled,
)
from factory.stages.job import Job, Outcome

_ADDRESS = ("prompt_id", "language", "k", "response_hash")
_SIDES = ("chosen", "rejected")
_ALL = "all"  # languages


class ScoreHow(How):
    """`shard`: samples in a shard."""

    shard: int = Field(512, ge=1)


class Pairs(From):
    """Preference pairs of which the better answer is known, in rows of prompt, chosen and rejected
    as M-RewardBench has them; `config` where a dataset's configs are not language codes (its are
    like deu_Latn)."""

    split: str = "test"
    config: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class Audit(Limits):
    """How a reward model is audited: the limits of audit.py, and on which `preferences`, by
    language. One source without a language is for all of them."""

    preferences: dict[str, Pairs] = Field(default_factory=dict)

    @field_validator("preferences", mode="before")
    @classmethod
    def _for_all(cls, value: Any) -> Any:
        one = isinstance(value, str) or (isinstance(value, Mapping) and "source" in value)
        return {_ALL: value} if one else value

    def pairs(self, code: str) -> Pairs | None:
        """Where the pairs of a language come from, if from anywhere."""
        return self.preferences.get(code, self.preferences.get(_ALL))


class Score(Stage):
    """Rewards. The published runs read up to 32,768 tokens with a model trained on 16,384."""

    name: ClassVar[str] = "score"
    kind: ClassVar[str] = "scores"
    repo: ClassVar[str] = "score"
    row_wise: ClassVar[bool] = True

    reward: Annotated[str, REFERENCE] = "reward"
    prompt: Literal["english", "own"] = "english"  # which prompt an implicit reward reads under
    question: str | None = None  # what a generative reward asks, if not rewards.QUESTION
    max_tokens: int = Field(16384, ge=1)
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float16|float32)$")
    audit: Annotated[Audit, GATE] = Audit()
    how: ScoreHow = ScoreHow()

    @field_validator("question")
    @classmethod
    def _asks_about_both(cls, value: str | None) -> str | None:
        for part in ("{prompt}", "{answer}"):
            if value is not None and value.count(part) != 1:
                raise ValueError(f"must hold {part} once")
        return value

    def slices(self, scope: Scope) -> list[SliceSpec]:
        reward = scope.reward(self.reward, self.name)
        kind = scope.models[self.reward].kind
        for field, of in (("prompt", "implicit"), ("question", "generative")):
            if getattr(self, field) != type(self).model_fields[field].default and kind != of:
                raise RecipeError(
                    f"stages.score.{field} is for kind: {of}, and {self.reward!r} is a {kind}",
                    f"take {field} out",
                )
        # English may be there to be translated alone
        given = (*scope.slices("prompts", self.name), *scope.prompts(self.name))
        prompts = {spec.name: spec for spec in given}
        english = prompts.get("en")
        crosses = kind == "implicit" and self.prompt == "english"
        if crosses and english is None:
            raise RecipeError(
                "an implicit reward reads every answer under its English prompt, and the recipe "
                "has no en",
                "add en to languages:, or set stages.score.prompt: own",
            )
        found = []
        for spec in scope.slices("generate", self.name):
            needs: list[Need] = [
                Read("samples", spec.step, spec.name),
                Read("prompts", prompts[spec.name].step, spec.name),
            ]
            if crosses and english is not None and spec.language != "en":
                needs.append(Read("english", english.step, english.name))
            if pairs := self.audit.pairs(str(spec.language)):
                source = filled(pairs.source, {"language": str(spec.language)})
                needs.append(Outside("preferences", source, "dataset", extent=True))
            found.append(SliceSpec(self.name, spec.name, spec.language, (*needs, *reward)))
        return found

    def extent(self) -> dict[str, Any]:
        # which pairs an audit is made on changes no score, but it does change what is published
        pairs = {
            code: read.model_dump(mode="json", exclude={"source"}, exclude_defaults=True)
            for code, read in self.audit.preferences.items()
        }
        how_read = {code: read for code, read in pairs.items() if read}
        return super().extent() | ({"pairs": how_read} if how_read else {})

    def shards(self, rows: int) -> int:
        return -(-rows // self.how.shard)

    def run(self, job: Job) -> Outcome:
        samples = {spec.name: job.table(spec, "samples", "samples") for spec in job.slices}
        prompts = {spec.name: Asked.of(job, spec) for spec in job.slices}
        todo = {
            name: self._todo(job, name, table, prompts[name]) for name, table in samples.items()
        }

        @functools.cache  # loaded when there is something to score
        def reward() -> Backend:
            return self._backend(job, job.slices[0])

        def make(shard: Shard) -> tuple[pa.Table, int]:
            rows = samples[shard.slice].take(todo[shard.slice][shard.start : shard.stop])
            rows = rows.to_pylist()
            asked = [prompts[shard.slice].under(row) for row in rows]
            items = [
                (prompt, row["response"])
                for row, (prompt, _) in zip(rows, asked, strict=True)
                if prompt is not None
            ]
            values = iter(reward()(items))
            made = []
            for row, (prompt, prompt_hash) in zip(rows, asked, strict=True):
                none = Reward(None, 0, "no_english_prompt")
                value = none if prompt is None else next(values)
                made.append(
                    {
                        **{name: row[name] for name in _ADDRESS},
                        "reward": value.value,
                        "n_tokens": value.n_tokens,
                        "status": value.status,
                        "prompt_hash": prompt_hash,
                    }
                )
            return schemas.from_rows(made, self.kind), sum(int(row["n_tokens"]) for row in made)

        sizes = {name: len(numbers) for name, numbers in todo.items()}
        tables = job.make_rows(self.kind, sizes, self.how.shard, make)
        counts = {
            name: Rows(into=len(samples[name]), out=len(table)) for name, table in tables.items()
        }
        stats = {name: describe(table) for name, table in tables.items()}
        return Outcome(
            counts,
            determinism="rounding",
            stats={
                **self._kind(job.slices[0]),
                "by_language": stats,
                "audit": self._audited(job, samples, tables, reward),
            },
            tokens=sum(int(figures["tokens"]) for figures in stats.values()),
        )

    def _kind(self, spec: SliceSpec) -> dict[str, str]:
        if spec.need("reward"):
            return {"kind": "classifier"}
        if spec.need("generative"):
            return {"kind": "generative", "question": self.question or QUESTION}
        return {"kind": "implicit", "prompt": self.prompt}

    def _backend(self, job: Job, spec: SliceSpec) -> Backend:
        kind = self._kind(spec)["kind"]
        if kind == "classifier":
            model = job.place(spec, "reward").path
            return Classifier(TransformersScorer(model, self.dtype), self.max_tokens)
        if kind == "generative":
            model = job.place(spec, "generative").path
            asked = TransformersLikelihood(model, self.dtype)
            return Generative(asked, self.max_tokens, self.question or QUESTION)
        policy, reference = (
            TransformersLikelihood(job.place(spec, role).path, self.dtype)
            for role in ("policy", "reference")
        )
        return Implicit(policy, reference, self.max_tokens)

    def _todo(self, job: Job, name: str, samples: pa.Table, prompts: Asked) -> list[int]:
        """Which samples of a slice have no score yet, by number. A score under another language's
        prompt stands as long as that prompt does."""
        import polars as pl

        asked = pl.from_arrow(samples.select(["prompt_id", "k", "response_hash"]))
        assert isinstance(asked, pl.DataFrame)
        if prompts.english is not None:
            hashes = {key: hashed for key, (_, hashed) in prompts.english.items()}
            known = pl.col("prompt_id").replace_strict(hashes, default=None)
            asked = asked.with_columns(prompt_hash=known.cast(pl.String))
        return job.missing(name, self.kind, asked)

    def _audited(
        self,
        job: Job,
        samples: dict[str, pa.Table],
        tables: dict[str, pa.Table],
        reward: Callable[[], Backend],
    ) -> dict[str, Any]:
        """What the audit finds. Raises StageError when the recipe says to refuse a blind reward
        model; what is scored is kept."""
        import polars as pl

        parts = []
        for name, table in tables.items():
            made, drawn = pl.from_arrow(table), pl.from_arrow(samples[name])
            assert isinstance(made, pl.DataFrame) and isinstance(drawn, pl.DataFrame)
            drawn = drawn.select("prompt_id", "k", "n_chars", "n_tokens")
            made = made.select("language", "prompt_id", "k", "reward")
            parts.append(made.join(drawn, on=["prompt_id", "k"]))
        pairs = {
            str(spec.language): self._preferred(job, spec, reward())
            for spec in job.slices
            if spec.need("preferences")
        }
        found = audit(pl.concat(parts), pairs, self.audit)
        suspects = blind(found)
        if suspects and self.audit.on_blind == "refuse":
            said = "; ".join(f"{code} ({', '.join(why)})" for code, why in suspects.items())
            raise StageError(
                f"the reward model is blind in {said}",
                "take them out of languages:, use another reward model, or set "
                "stages.score.audit.on_blind: warn; the scores are kept",
            )
        return found

    def _preferred(self, job: Job, spec: SliceSpec, reward: Backend) -> list[Pair]:
        """Rewards of the chosen and the rejected answer of each pair of a language, each under the
        pair's own prompt."""
        code = str(spec.language)
        pairs = self.audit.pairs(code)
        assert pairs is not None
        rows = []
        for where, row in pairs.rows(job.place(spec, "preferences").path, pairs.config or code):
            if row is not None:
                sides = [answer(row.get(side), f"{where}: {side}") for side in _SIDES]
                rows.append((messages({"prompt": row.get("prompt")}, where), *sides))
        values = [
            [value.value for value in reward([(row[0], row[side][-1]["content"]) for row in rows])]
            for side in (1, 2)
        ]
        return list(zip(*values, strict=True))


@dataclass(frozen=True)
class Asked:
    """The prompts of a slice: `own` by id and hash, and `english` by id where answers are read
    under those, with the hash of what is read."""

    language: str
    own: dict[tuple[str, str], list[Message]]
    english: dict[str, tuple[list[Message], str]] | None

    @classmethod
    def of(cls, job: Job, spec: SliceSpec) -> Asked:
        """Those of a job's slice."""
        own = {
            (row["prompt_id"], row["prompt_hash"]): row["messages"]
            for row in job.table(spec, "prompts", "prompts").to_pylist()
        }
        if spec.need("english") is None:
            return cls(str(spec.language), own, None)
        english = {
            row["prompt_id"]: (row["messages"], row["prompt_hash"])
            for row in job.table(spec, "english", "prompts").to_pylist()
        }
        return cls(str(spec.language), own, english)

    def under(self, sample: dict[str, Any]) -> tuple[list[Message] | None, str | None]:
        """What a sample is read under (None if there is no such prompt), and its hash if that is
        another language's. Raises InputError for a sample of another prompt than ours."""
        address = (sample["prompt_id"], sample["prompt_hash"])
        if address not in self.own:
            raise InputError(
                f"sample {sample['prompt_id']} k={sample['k']} answers another prompt",
                "samples and prompts are of different versions: generate again",
            )
        if self.english is None:
            return self.own[address], None
        if sample["prompt_id"] not in self.english:
            return None, None
        messages, hashed = self.english[sample["prompt_id"]]
        return crosslingual(messages, self.language), hashed


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

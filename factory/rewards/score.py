"""score: a reward model reads every sample with its prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from factory.artifacts import schemas, shards
from factory.artifacts.manifest import Rows
from factory.artifacts.shards import Shard
from factory.artifacts.tables import read_slice
from factory.config import GATE, REFERENCE
from factory.engines import Engine, choose
from factory.engines.chat_template import Message
from factory.engines.choose import EngineCache, EngineKnobs
from factory.errors import InputError, RecipeError, StageError
from factory.rewards import preferences as preferred
from factory.rewards.audit import AuditLimits, Pair, audit, blind
from factory.rewards.backends import (
    QUESTION,
    Backend,
    Classifier,
    Generative,
    Implicit,
    RewardValue,
    crosslingual,
)
from factory.rewards.preferences import SIDES, Pairs
from factory.stage import shard_loop
from factory.stage.inputs import Need, SliceSpec, StepInput
from factory.stage.job import Job
from factory.stage.outcome import Outcome, engines, spent
from factory.stage.stage import How, Scope, Stage

_ADDRESS = ("prompt_id", "language", "k", "response_hash")
_PAIRS = pa.schema([(side, pa.float64()) for side in SIDES])  # rewards of an audit's pairs
_DESCRIBED = ("reward", "status", "n_tokens")
_SCORED = ("language", "prompt_id", "k", "reward")
_DRAWN = ("prompt_id", "k", "n_chars", "n_tokens")


class ScoreHow(How, EngineKnobs):
    """`shard`: samples in a shard. A shard should take five to ten minutes: with conversations
    of some 700 tokens, 16,384 samples on a GPU that reads 30,000 tokens a second."""

    shard: int = Field(16384, ge=1)


class AuditKnobs(AuditLimits):
    """How a reward model is audited: the limits of audit.py, and on which `preferences`, by
    language. One source without a language is for all of them."""

    preferences: dict[str, Pairs] = Field(default_factory=dict)

    @field_validator("preferences", mode="before")
    @classmethod
    def _for_all(cls, value: Any) -> Any:
        return preferred.for_all(value)

    def pairs(self, code: str) -> Pairs | None:
        """Where the pairs of a language come from, if from anywhere."""
        return preferred.of_language(self.preferences, code)


class Score(Stage):
    """Rewards. The published runs read up to 32,768 tokens with a model trained on 16,384."""

    name: ClassVar[str] = "score"
    kind: ClassVar[str] = "scores"
    repo: ClassVar[str] = "score"
    row_wise: ClassVar[bool] = True

    reward: Annotated[str, REFERENCE] = "reward"  # a name under models
    prompt: Literal["english", "own"] = "english"  # which prompt an implicit reward reads under
    question: str | None = None  # what a generative reward asks, if not rewards.QUESTION
    max_tokens: int = Field(16384, ge=1)  # of prompt and answer; longer ones get no reward
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float16|float32)$")
    audit: Annotated[AuditKnobs, GATE] = AuditKnobs()
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
                StepInput("samples", spec.step, spec.name),
                StepInput("prompts", prompts[spec.name].step, spec.name),
            ]
            if crosses and english is not None and spec.language != "en":
                needs.append(StepInput("english", english.step, english.name))
            if pairs := self.audit.pairs(str(spec.language)):
                needs.append(pairs.need("preferences", str(spec.language)))
            found.append(SliceSpec(self.name, spec.name, spec.language, (*needs, *reward)))
        return found

    def extent(self) -> dict[str, Any]:
        # which pairs an audit is made on changes no score, but it does change what is published
        pairs = {code: preferred.how_read(one) for code, one in self.audit.preferences.items()}
        how_read = {code: read for code, read in pairs.items() if read}
        return super().extent() | ({"pairs": how_read} if how_read else {})

    def shards(self, rows: int, spec: SliceSpec) -> int:
        return -(-rows // self.how.shard)

    def run(self, job: Job) -> Outcome:
        samples = {spec.name: job.reader(spec.need("samples"), "samples") for spec in job.slices}
        prompts = {spec.name: PromptTexts.of(job, spec) for spec in job.slices}
        todo = {spec.name: self._todo(job, spec, prompts[spec.name]) for spec in job.slices}
        with EngineCache(lambda _: self._scoring(job, job.slices[0])) as scoring:

            def make(shard: Shard) -> tuple[pa.Table, int]:
                rows = samples[shard.slice].rows(todo[shard.slice][shard.start : shard.stop])
                table, tokens = self._make(scoring().reward, prompts[shard.slice], rows)
                return shards.with_metadata(table, engine=scoring().name), tokens

            sizes = {name: len(numbers) for name, numbers in todo.items()}
            made = job.make_shards(
                self.kind,
                sizes,
                self.how.shard,
                make,
                lanes=lambda shard: scoring().lanes,
                spent=scoring.tokens,
            )
            stats = {n: describe(read_slice(job.out, n, self.kind, _DESCRIBED)) for n in made}
            audited = self._audited(job, scoring)
        counts = {
            name: Rows(
                into=len(samples[name]),
                out=figures["scored"] + figures["without_reward"],
            )
            for name, figures in stats.items()
        }
        return Outcome(
            counts,
            determinism="rounding",
            stats={
                **self._kind(job.slices[0]),
                "by_language": stats,
                "audit": audited,
                "engines": engines(made),
            },
            tokens=sum(int(figures["tokens"]) for figures in stats.values()),
            spent=spent(made),
        )

    def _make(
        self, reward: Backend, prompts: PromptTexts, rows: Sequence[dict[str, Any]]
    ) -> tuple[pa.Table, int]:
        """The scores of some samples, and the tokens read."""
        asked = [prompts.under(row) for row in rows]
        # Answers to one prompt one after another, wherever they stand: an engine that keeps
        # prefixes reads the prompt once.
        met: dict[str, int] = {}
        order = [number for number, (prompt, _) in enumerate(asked) if prompt is not None]
        order.sort(key=lambda number: met.setdefault(rows[number]["prompt_hash"], len(met)))
        items = [(asked[number][0] or [], rows[number]["response"]) for number in order]
        found = dict(zip(order, reward(items), strict=True))
        made = []
        for number, row in enumerate(rows):
            value = found.get(number, RewardValue(None, 0, "no_english_prompt"))
            made.append(
                {
                    **{name: row[name] for name in _ADDRESS},
                    "reward": value.value,
                    "n_tokens": value.n_tokens,
                    "status": value.status,
                    "prompt_hash": asked[number][1],
                }
            )
        return schemas.from_rows(made, self.kind), sum(int(row["n_tokens"]) for row in made)

    def _kind(self, spec: SliceSpec) -> dict[str, str]:
        if spec.need("reward"):
            return {"kind": "classifier"}
        if spec.need("generative"):
            return {"kind": "generative", "question": self.question or QUESTION}
        return {"kind": "implicit", "prompt": self.prompt}

    def _scoring(self, job: Job, spec: SliceSpec) -> _Scoring:
        kind = self._kind(spec)["kind"]
        if kind == "classifier":
            scorer = choose.scorer(self.how, job.place(spec, "reward").path, self.dtype)
            return _Scoring(Classifier(scorer, self.max_tokens), scorer)
        adapter = job.place(spec, "adapter").path if spec.need("adapter") else None
        if kind == "generative":
            model = job.place(spec, "generative").path
            asked = choose.likelihood(self.how, model, self.dtype, adapter)
            backend = Generative(asked, self.max_tokens, self.question or QUESTION)
            return _Scoring(backend, asked)
        # two models on one device, each with half of what one might take
        half = self.how.gpu_memory_utilization / 2
        how = self.how.model_copy(update={"gpu_memory_utilization": half})
        policy, reference = (
            choose.likelihood(how, job.place(spec, role).path, self.dtype, on)
            for role, on in (("policy", adapter), ("reference", None))
        )
        return _Scoring(Implicit(policy, reference, self.max_tokens), policy, reference)

    def _todo(self, job: Job, spec: SliceSpec, prompts: PromptTexts) -> list[int]:
        """Which samples of a slice have no score yet, by number. A score under another language's
        prompt stands as long as that prompt does."""
        import polars as pl

        columns = ["prompt_id", "k", "response_hash"]
        asked = pl.from_arrow(job.rows(_samples(spec), "samples", columns).select(columns))
        assert isinstance(asked, pl.DataFrame)
        if prompts.english is not None:
            hashes = {key: hashed for key, (_, hashed) in prompts.english.items()}
            known = pl.col("prompt_id").replace_strict(hashes, default=None)
            asked = asked.with_columns(prompt_hash=known.cast(pl.String))
        return job.missing(spec.name, self.kind, asked)

    def _audited(self, job: Job, scoring: Callable[[], _Scoring]) -> dict[str, Any]:
        """What the audit finds. Raises StageError when the recipe says to refuse a blind reward
        model; what is scored is kept."""
        import polars as pl

        parts = []
        for spec in job.slices:
            drawn = pl.from_arrow(job.rows(_samples(spec), "samples", _DRAWN))
            made = pl.from_arrow(read_slice(job.out, spec.name, self.kind, _SCORED))
            assert isinstance(made, pl.DataFrame) and isinstance(drawn, pl.DataFrame)
            parts.append(made.join(drawn, on=["prompt_id", "k"]))
        pairs = {
            str(spec.language): self._preferred(job, spec, scoring)
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

    def _preferred(self, job: Job, spec: SliceSpec, scoring: Callable[[], _Scoring]) -> list[Pair]:
        """Rewards of the chosen and the rejected answer of each pair of a language, each under the
        pair's own prompt. Shards of them are kept as those of samples are."""
        code = str(spec.language)
        pairs = self.audit.pairs(code)
        assert pairs is not None
        known = pairs.read(job.place(spec, "preferences").path, code)
        rows = [(prompt, better, worse) for _, prompt, better, worse in known]
        name, work = spec.name, job.work / "audit" / spec.name

        def make(shard: Shard) -> pa.Table:
            # both answers to a prompt one after another: an engine that keeps prefixes reads the
            # prompt once
            some = rows[shard.start : shard.stop]
            items = [(asked, text) for asked, *texts in some for text in texts]
            values = [one.value for one in scoring().reward(items)] if items else []
            return pa.table(dict(zip(SIDES, (values[::2], values[1::2]), strict=True)), _PAIRS)

        grid = shards.grid(work, {name: len(rows)}, self.how.shard)
        shard_loop.run(
            work,
            grid,
            make,
            lambda done, total: job.progress(done, total, f"shards of the audit of {name}"),
            lanes=lambda shard: scoring().lanes,
        )
        found = shards.rows(work, grid, name)
        return list(zip(*(found.column(side).to_pylist() for side in SIDES), strict=True))


class _Scoring:
    """A reward backend with the engines that it runs on."""

    def __init__(self, reward: Backend, *runs_on: Engine) -> None:
        self.reward, self._engines = reward, runs_on
        self.name = runs_on[0].name
        self.lanes = min(engine.lanes for engine in runs_on)

    @property
    def tokens(self) -> int:
        """Read by all of them."""
        return sum(engine.tokens for engine in self._engines)

    def close(self) -> None:
        """Let go of them."""
        for engine in self._engines:
            engine.close()


def _samples(spec: SliceSpec) -> StepInput:
    need = spec.need("samples")
    assert isinstance(need, StepInput)
    return need


@dataclass(frozen=True)
class PromptTexts:
    """The prompts of a slice: `own` by id and hash, and `english` by id where answers are read
    under those, with the hash of what is read."""

    language: str
    own: dict[tuple[str, str], list[Message]]
    english: dict[str, tuple[list[Message], str]] | None

    @classmethod
    def of(cls, job: Job, spec: SliceSpec) -> PromptTexts:
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

    from factory.pairs.statistics import histogram

    values = table.column("reward").drop_null().to_numpy()
    statuses = table.column("status").to_pylist()
    return {
        "scored": len(values),
        "without_reward": sum(status != "ok" for status in statuses),
        "reasons": dict(sorted(Counter(s for s in statuses if s != "ok").items())),
        "tokens": sum(table.column("n_tokens").to_pylist()),
        "rewards": histogram({"reward": pl.Series(values)}),
        **({"mean": float(np.mean(values)), "std": float(np.std(values))} if len(values) else {}),
    }

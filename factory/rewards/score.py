"""score: a reward model reads every sample with its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from factory.artifacts import schemas, shards
from factory.artifacts.hashing import text_hash
from factory.artifacts.manifest import Rows
from factory.artifacts.shards import Shard
from factory.artifacts.tables import read_slice, slice_directory, write_slice
from factory.config import GATE, REFERENCE
from factory.engines import choose
from factory.engines.choose import EngineCache, EngineKnobs
from factory.errors import FactoryError, RecipeError, StageError
from factory.rewards import backends
from factory.rewards import preferences as preferred
from factory.rewards.audit import AuditLimits, audit, blind
from factory.rewards.backends.backend import Backend, OpenReward, RewardSettings
from factory.rewards.backends.generative import GenerativeBackend
from factory.rewards.backends.implicit import LogProbability
from factory.rewards.ensemble import Combine
from factory.rewards.preferences import Pairs
from factory.rewards.reading import (
    LabelledPair,
    OpenRewards,
    PromptTexts,
    describe,
    read,
    score_pairs,
)
from factory.stage.inputs import Need, RewardInput, SliceSpec, StepInput
from factory.stage.job import Job
from factory.stage.models import RewardModel
from factory.stage.outcome import Outcome, engines, spent
from factory.stage.preference_pairs import SIDES
from factory.stage.stage import How, Stage, StageContext

_ADDRESS = ("prompt_id", "language", "k", "response_hash")
_DESCRIBED = ("reward", "status", "n_tokens")
_SCORED = ("language", "prompt_id", "k", "reward", "rewards", "disagreement")
_DRAWN = ("prompt_id", "k", "n_chars", "n_tokens")


class ScoreHow(How, EngineKnobs):
    """`shard`: samples in a shard. A shard should take five to ten minutes: with conversations
    of some 700 tokens, 16,384 samples on a GPU that reads 30,000 tokens a second."""

    shard: int = Field(16384, ge=1)


class AuditKnobs(AuditLimits):
    """Settings of the audit of a reward model: limits (see audit.py), and `preferences` by
    language. One source without a language is for all of them."""

    preferences: dict[str, Pairs] = Field(default_factory=dict)

    @field_validator("preferences", mode="before")
    @classmethod
    def _for_all(cls, value: Any) -> Any:
        return preferred.for_all(value)

    def pairs(self, code: str) -> Pairs | None:
        """Return the source of the pairs of a language, if it has one."""
        return preferred.of_language(self.preferences, code)


class Score(Stage):
    """Rewards. The published runs read up to 32,768 tokens with a model trained on 16,384. Several
    rewards of a list read every answer: `combine` says how they become one."""

    name: ClassVar[str] = "score"
    kind: ClassVar[str] = "scores"
    repo: ClassVar[str] = "score"
    reads: ClassVar[tuple[str, ...]] = ("samples", "prompts")
    row_wise: ClassVar[bool] = True

    reward: Annotated[str | tuple[str, ...], REFERENCE] = "reward"  # name or names under models
    # of several rewards, in standard deviations of each in the language: their mean or their least;
    # or the share of the prompt's other answers that they rank below
    combine: Combine = "mean"
    prompt: Literal["english", "own"] = "english"  # which prompt an implicit reward reads under
    # what a generative reward asks in the place of its own question; {reference} is the prompt's
    # gold answer
    question: str | None = None
    # a name under models: how likely it finds each answer, in column log_prob, beside the reward
    likelihood: Annotated[str | None, REFERENCE] = None
    max_tokens: int = Field(16384, ge=1)  # of prompt and answer; longer ones get no reward
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float16|float32)$")
    audit: Annotated[AuditKnobs, GATE] = AuditKnobs()
    how: ScoreHow = ScoreHow()

    @field_validator("question")
    @classmethod
    def _asks_about_both(cls, value: str | None) -> str | None:
        for part in ("{prompt}", "{answer}"):
            if value is not None and value.count(part) != 1:
                raise ValueError(f"must hold {part} once, and may hold {{reference}}")
        return value

    @model_validator(mode="after")
    def _several(self) -> Score:
        if len(set(self.rewards)) < len(self.rewards) or not self.rewards:
            raise ValueError("reward: is one name, or a list of different names")
        if len(self.rewards) == 1 and self.combine != "mean":
            raise ValueError(
                f"combine: {self.combine} is for several rewards, and there is one",
                "write reward: [one, another], or take combine out",
            )
        return self

    @property
    def rewards(self) -> tuple[str, ...]:
        """Return the names of all rewards."""
        return (self.reward,) if isinstance(self.reward, str) else self.reward

    def _reward(self, context: StageContext) -> RewardInput:
        """Return the first reward with the others, whose inputs have numbered roles."""
        first, *others = (context.reward(name, self.name) for name in self.rewards)
        numbered = (
            replace(
                other,
                by_role=tuple(
                    (role, replace(need, role=f"{role}-{number}")) for role, need in other.by_role
                ),
            )
            for number, other in enumerate(others, 2)
        )
        return replace(first, others=tuple(numbered))

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        reward = self._reward(context)
        kinds = [_backend(ref) for ref in reward.each]
        self._refuse_idle_knobs(kinds)
        if any(map(self._compares, kinds)) and not any(
            "gold" in getattr(stage, "columns", {}) for stage in context.stages.values()
        ):
            raise RecipeError(
                "stages.score.question compares with {reference}, and no prompt has a gold answer",
                "name their column: prompts: {columns: {gold: theirs}}",
            )
        # English may be there to be translated alone
        english = context.rows("prompts", self.name).get("en")
        crossing = [backend.kind for backend in kinds if self._crosses(backend)]
        if crossing and english is None:
            raise RecipeError(
                f"a reward of kind: {crossing[0]} reads every answer under its English prompt, "
                "and the recipe has no en",
                "add en to languages:, or set stages.score.prompt: own",
            )
        specs = []
        for spec in super().plan_slices(context):
            needs: list[Need] = [*spec.needs]
            if crossing and english is not None and spec.language != "en":
                needs.append(english.as_input("english"))
            if pairs := self.audit.pairs(str(spec.language)):
                needs.append(pairs.need("preferences", str(spec.language)))
            needs += [*reward.needs, *self._likelihood(context)]
            specs.append(replace(spec, needs=tuple(needs), reward=reward))
        return specs

    def _likelihood(self, context: StageContext) -> tuple[Need, ...]:
        """Return the model whose likelihoods are a column, with its adapter. Raises RecipeError for
        a classifier."""
        if self.likelihood is None:
            return ()
        ref = context.models.get(self.likelihood)
        if isinstance(ref, RewardModel) and ref.is_plain_classifier:
            raise RecipeError(
                f"stages.score.likelihood names {self.likelihood!r}, a classifier, which finds no "
                "answer likely or not",
                "name a chat model under models:",
            )
        model, *adapter = context.policy(self.likelihood, "likelihood", self.name)
        return (model, *(replace(need, role="adapter-likelihood") for need in adapter))

    def _crosses(self, backend: Backend) -> bool:
        """Return whether a reward reads answers under the English prompt."""
        return "prompt" in backend.score_knobs and self.prompt == "english"

    def _compares(self, backend: Backend) -> bool:
        """Return whether a reward compares answers with the gold answer of their prompt."""
        return isinstance(backend, GenerativeBackend) and "{reference}" in (self.question or "")

    def missing_requirements(self, specs: Sequence[SliceSpec]) -> list[FactoryError]:
        return backends.missing_server(specs)

    def _refuse_idle_knobs(self, rewards: Sequence[Backend]) -> None:
        """Raise RecipeError for a knob of this stage that no reward has a use for."""
        for field in ("prompt", "question"):
            default = type(self).model_fields[field].default
            if getattr(self, field) != default and not any(
                field in backend.score_knobs for backend in rewards
            ):
                kinds = [
                    backends.kind_of(backend_class)
                    for backend_class in backends.BACKENDS
                    if field in backend_class.score_knobs
                ]
                raise RecipeError(
                    f"stages.score.{field} is for kind: {', '.join(kinds)}, and "
                    f"{' and '.join(map(repr, self.rewards))} "
                    f"{'is' if len(rewards) == 1 else 'are'} of kind: "
                    f"{', '.join(dict.fromkeys(backend.kind for backend in rewards))}",
                    f"take {field} out",
                )

    def extent(self) -> dict[str, Any]:
        # which pairs an audit is made on changes no score, but it does change what is published
        pairs = {code: source.how_read() for code, source in self.audit.preferences.items()}
        how_read = {code: read for code, read in pairs.items() if read}
        return super().extent() | ({"pairs": how_read} if how_read else {})

    def n_shards(self, rows: int, spec: SliceSpec) -> int:
        return -(-rows // self.how.shard)

    def run(self, job: Job) -> Outcome:
        samples = {spec.name: job.reader(spec.need("samples"), "samples") for spec in job.slices}
        prompts = {spec.name: PromptTexts.of(job, spec) for spec in job.slices}
        todo = {spec.name: self._todo(job, spec, prompts[spec.name]) for spec in job.slices}
        preferred, dropped = self._preferred(job)
        with EngineCache(lambda _: self._open(job)) as scoring:

            def make(shard: Shard) -> tuple[pa.Table, int]:
                if shard.slice in preferred:
                    some = preferred[shard.slice][shard.start : shard.stop]
                    return score_pairs(scoring(), some)
                rows = samples[shard.slice].rows(todo[shard.slice][shard.start : shard.stop])
                table, tokens = self._make(scoring(), prompts[shard.slice], rows)
                return shards.with_metadata(table, engine=scoring().name), tokens

            sizes = {name: len(numbers) for name, numbers in todo.items()}
            totals = job.make_shards(
                self.kind,
                sizes,
                self.how.shard,
                make,
                lanes=lambda shard: scoring().lanes,
                spent=scoring.tokens,
                work_only={name: len(pairs) for name, pairs in preferred.items()},
            )
        if len(self.rewards) > 1:
            for name in totals:
                self._combine(job, name)
        stats = {n: describe(read_slice(job.out, n, self.kind, _DESCRIBED)) for n in totals}
        audited = self._audited(job, preferred, dropped)
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
                "engines": engines(totals),
            },
            tokens=sum(int(figures["tokens"]) for figures in stats.values()),
            spent=spent(totals),
        )

    def _make(
        self, open_rewards: OpenRewards, prompts: PromptTexts, rows: Sequence[dict[str, Any]]
    ) -> tuple[pa.Table, int]:
        """Return the scores of some samples, and the tokens read. Of several rewards, `reward` is
        left to be combined over the whole slice."""
        each = [
            read(
                opened,
                [
                    prompts.prompt_of(row, self._crosses(backend), self._compares(backend))
                    for row in rows
                ],
                rows,
                "no_reference" if self._compares(backend) else "no_english_prompt",
            )
            for backend, opened in open_rewards.each
        ]
        likely = (
            read(
                open_rewards.likelihood,
                [prompts.prompt_of(row, english=False, reference=False) for row in rows],
                rows,
                "",
            )
            if open_rewards.likelihood
            else None
        )
        kinds = [backend for backend, _ in open_rewards.each]
        crosses, compares = any(map(self._crosses, kinds)), any(map(self._compares, kinds))
        scored = []
        for number, row in enumerate(rows):
            values = [some[number] for some in each]
            failed = [value for value in values if value.status != "ok"]
            one = (failed or values)[0]
            scored.append(
                {
                    **{name: row[name] for name in _ADDRESS},
                    "reward": one.value if len(values) == 1 else None,
                    "rewards": None if len(values) == 1 else [value.value for value in values],
                    "log_prob": likely[number].value if likely else None,
                    "n_tokens": values[0].n_tokens,
                    "status": one.status,
                    "prompt_hash": prompts.prompt_of(row, crosses, compares)[1],
                }
            )
        tokens = sum(value.n_tokens for some in [*each, likely or []] for value in some)
        return schemas.from_rows(scored, self.kind), tokens

    def _combine(self, job: Job, name: str) -> None:
        """Write the combined rewards of a slice, which depend on all of its rows."""
        import polars as pl

        from factory.rewards import ensemble

        scores = pl.DataFrame(read_slice(job.out, name, self.kind))
        if not len(scores):
            return
        directory = slice_directory(job.out, name)
        for file in directory.glob("*.parquet"):
            file.unlink()
        table = ensemble.combined(scores, self.combine).to_arrow()
        write_slice(directory, schemas.conform(table, self.kind, f"{self.name} {name}"))

    def _kind(self, spec: SliceSpec) -> dict[str, Any]:
        """Return the kind of the reward and its knobs, for the manifest and the card; of several,
        those of each."""
        assert spec.reward is not None
        each = []
        for backend in map(_backend, spec.reward.each):
            knobs: dict[str, str] = {"prompt": self.prompt}
            if isinstance(backend, GenerativeBackend):
                knobs = {"question": backend.question(self.question)}
            about = {"about": backend.about} if backend.about else {}
            own = {name: knobs[name] for name in backend.score_knobs}
            each.append({"kind": backend.kind, **about, **backend.knobs(), **own})
        if len(each) == 1:
            return each[0]
        named = [{"name": name, **one} for name, one in zip(self.rewards, each, strict=True)]
        return {"kind": "ensemble", "combine": self.combine, "rewards": named}

    def _open(self, job: Job) -> OpenRewards:
        share = self.how.gpu_memory_utilization / (len(self.rewards) + bool(self.likelihood))
        how = self.how.model_copy(update={"gpu_memory_utilization": share})
        settings = RewardSettings(how, self.dtype, self.max_tokens, self.question)
        spec = job.slices[0]
        assert spec.reward is not None
        likelihood = None
        if self.likelihood is not None:
            role = "adapter-likelihood"
            adapter = job.place(spec, role).path if spec.need(role) else None
            path = job.place(spec, "likelihood").path
            model = choose.likelihood(how, path, self.dtype, adapter)
            likelihood = OpenReward(LogProbability(model, self.max_tokens), model)
        return OpenRewards(
            [
                (_backend(one), backends.open_reward(job, replace(spec, reward=one), settings))
                for one in spec.reward.each
            ],
            likelihood,
        )

    def _todo(self, job: Job, spec: SliceSpec, prompts: PromptTexts) -> list[int]:
        """Return the numbers of the samples of a slice that have no score yet. A score under
        another language's prompt stands as long as that prompt does."""
        import polars as pl

        columns = ["prompt_id", "k", "response_hash"]
        samples = pl.from_arrow(job.rows(_samples(spec), "samples", columns).select(columns))
        assert isinstance(samples, pl.DataFrame)
        if prompts.english is not None:
            hashes = {key: hashed for key, (_, hashed) in prompts.english.items()}
            hashed = pl.col("prompt_id").replace_strict(hashes, default=None)
            samples = samples.with_columns(prompt_hash=hashed.cast(pl.String))
        if "{reference}" in (self.question or ""):
            golds = {key: text_hash(gold) for key, gold in prompts.gold.items()}
            hashed = pl.col("prompt_id").replace_strict(golds, default=None)
            samples = samples.with_columns(prompt_hash=hashed.cast(pl.String))
        return job.missing(spec.name, self.kind, samples)

    def _audited(
        self,
        job: Job,
        preferred: Mapping[str, Sequence[LabelledPair]],
        dropped: Mapping[str, dict[str, int]],
    ) -> dict[str, Any]:
        """Return the figures of the audit. Raises StageError when the recipe says to refuse a blind
        reward model; what is scored is kept."""
        import polars as pl

        from factory.rewards import ensemble

        parts, pairs = [], {}
        for spec in job.slices:
            samples = pl.DataFrame(job.rows(_samples(spec), "samples", _DRAWN))
            scores = pl.DataFrame(read_slice(job.out, spec.name, self.kind, _SCORED))
            parts.append(scores.join(samples, on=["prompt_id", "k"]))
            if _audit_name(spec) in preferred:
                rewards = job.shard_rows(_audit_name(spec))
                sides = list(zip(*(rewards.column(s).to_pylist() for s in SIDES), strict=True))
                several = len(self.rewards) > 1
                pairs[str(spec.language)] = (
                    ensemble.combined_pairs(scores, sides, self.combine) if several else sides
                )
        answers = pl.concat(parts, how="diagonal")
        figures = audit(answers, pairs, self.audit, self.rewards)
        for code, reasons in dropped.items():
            if reasons:
                figures["by_language"][code]["pairs_dropped"] = reasons
        suspects = blind(figures)
        if suspects and self.audit.on_blind == "refuse":
            listed = "; ".join(f"{code} ({', '.join(why)})" for code, why in suspects.items())
            raise StageError(
                f"the reward model is blind in {listed}",
                "take them out of languages:, use another reward model, or set "
                "stages.score.audit.on_blind: warn; the scores are kept",
            )
        return figures

    def _preferred(
        self, job: Job
    ) -> tuple[dict[str, list[LabelledPair]], dict[str, dict[str, int]]]:
        """Return the preference pairs of the audit, by the name of their shards, and the rows that
        were dropped by reason, by language."""
        pairs: dict[str, list[LabelledPair]] = {}
        dropped: dict[str, dict[str, int]] = {}
        for spec in job.slices:
            code = str(spec.language)
            source = self.audit.pairs(code)
            if source is not None:
                labelled, dropped[code] = source.read(job.place(spec, "preferences").path, code)
                pairs[_audit_name(spec)] = [(p, better, worse) for _, p, better, worse in labelled]
        return {name: some for name, some in pairs.items() if some}, dropped


def _audit_name(spec: SliceSpec) -> str:
    return f"audit/{spec.name}"


def _backend(reward: RewardInput) -> Backend:
    assert isinstance(reward.model, Backend)
    return reward.model


def _samples(spec: SliceSpec) -> StepInput:
    need = spec.need("samples")
    assert isinstance(need, StepInput)
    return need

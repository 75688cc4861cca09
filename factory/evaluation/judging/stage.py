"""judge: tuned model against reference, question by question, and what the sum of it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field, field_validator

from factory.artifacts import schemas, shards
from factory.artifacts.hashing import fingerprint
from factory.artifacts.manifest import Rows
from factory.artifacts.shards import Shard
from factory.artifacts.tables import read_slice
from factory.config import REFERENCE
from factory.engines import Sampling, checkpoint, choose
from factory.engines.choose import EngineCache, EngineKnobs
from factory.engines.openai import OpenAIChat, address
from factory.errors import FactoryError, RecipeError, StageError
from factory.evaluation.judging import verdicts
from factory.evaluation.judging.backends import JudgeBackend, LocalJudge, ServedJudge
from factory.evaluation.judging.config import Ask
from factory.evaluation.judging.match import Match, match, trained_on
from factory.evaluation.judging.verdicts import APART, Comparison
from factory.evaluation.models import Contestant, contestants
from factory.evaluation.statistics.table import JudgedQuestion, by_category, by_language
from factory.rewards.backends import open_reward
from factory.rewards.backends.backend import OpenReward, RewardSettings
from factory.stage.inputs import Need, RewardInput, ServedModel, SliceSpec, StepInput
from factory.stage.job import Job
from factory.stage.models import RewardModel
from factory.stage.outcome import Outcome, engines, greedy, spent
from factory.stage.stage import How, Stage, StageContext

NOT_INDEPENDENT = "training reward (not independent)"
OWN_MODEL = "judges answers of its own (not independent)"
_NOT_PINNED = "not pinned: it is told by its name, and what that stands for may change"
_LLM = "llm_judge"  # the role of a causal model
# Roles of a reward's models: a classifier is the judge, and `reference` is who it compares with.
_REWARD_ROLES = {"reward": "judge", "reference": "judge_reference"}
_ADDRESS = ("question_id", "prompt_hash", "answer_hash", "reference_hash")
_NAMED = 10  # questions that were seen in training, in the manifest


class JudgeHow(How, EngineKnobs):
    """`shard`: questions in a shard."""

    shard: int = Field(64, ge=1)


class Judge(Stage):
    """Verdicts of a reward model, which reads each answer apart (up to `max_tokens`), or of a
    language model, which is asked for the better of two as `ask` says: whichever is named. One
    that is served is asked at OPENAI_BASE_URL, with OPENAI_API_KEY where it wants a key."""

    name: ClassVar[str] = "judge"
    kind: ClassVar[str] = "verdicts"
    repo: ClassVar[str] = "verdicts"
    version: ClassVar[int] = 2  # identical answers tie by rule; rows say what was read
    row_wise: ClassVar[bool] = True

    model: Annotated[str, REFERENCE] = "dpo"
    reference: Annotated[str, REFERENCE] = "policy"
    judge: Annotated[str, REFERENCE] = "reward"
    max_tokens: int = Field(16384, ge=1)
    ask: Ask = Ask()
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float16|float32)$")
    how: JudgeHow = JudgeHow()

    @field_validator("ask", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "as-published":
            raise ValueError("is a mapping, or the one word as-published")
        return value

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        judge = self._judge(context)
        reward, judges = (judge, judge.needs) if isinstance(judge, RewardInput) else (None, judge)
        answers = context.rows("answers", self.name)
        tuned = contestants(context, [self.model], self.name)
        rivals = self._rivals(context, [*tuned, *contestants(context, [self.reference], self.name)])
        speakers = _speakers(reward, judges)
        notes = same_models(speakers, rivals, _named_as)
        specs = []
        for contestant in tuned:
            for language in contestant.languages:
                names = {
                    "answers": f"{language}/{contestant.label}",
                    "reference": f"{language}/{self.reference}",
                }
                for name in names.values():
                    if name not in answers:
                        raise RecipeError(
                            f"stages.judge compares {name!r}, which stages.arena does not answer",
                            "add the model to stages.arena.of",
                        )
                reads = [answers[name].as_input(role) for role, name in names.items()]
                learned = self._learned(context, language)
                specs.append(
                    SliceSpec(
                        self.name,
                        names["answers"],
                        language,
                        (*reads, *judges, *learned),
                        notes,
                        reward,
                        rivals,
                    )
                )
        return specs

    def _judge(self, context: StageContext) -> RewardInput | tuple[Need, ...]:
        """Return the reward that judges, or what a model that is asked needs, by the kind of the
        model that is named."""
        ref = context.models.get(self.judge)
        if ref is None or isinstance(ref, RewardModel):
            if self.ask != Ask():
                raise RecipeError(
                    f"stages.judge.ask has no meaning for {self.judge!r}, a reward model",
                    "leave it out, or name a chat model as judge",
                )
            return context.reward(self.judge, self.name, _REWARD_ROLES)
        if ref.served is None and self.ask.request:
            raise RecipeError(
                f"stages.judge.ask.request is for a judge that is served; {self.judge!r} is not",
                "take it out",
            )
        if self.max_tokens != type(self).model_fields["max_tokens"].default:
            raise RecipeError(
                f"stages.judge.max_tokens is what a reward model reads; {self.judge!r} is asked",
                "say ask.max_tokens, what it may write, and ask.context",
            )
        limit = self.how.max_model_len
        if limit is not None and limit < self.ask.context:
            raise RecipeError(
                f"stages.judge.how.max_model_len {limit} is less than ask.context "
                f"{self.ask.context}: the first long pair would end the run",
                f"set ask.context to {limit}, so that answers are cut to fit, or raise the other",
            )
        if ref.served is None:
            return context.policy(self.judge, _LLM, self.name)
        other = self.dtype != type(self).model_fields["dtype"].default
        if other or self.how.engine not in ("auto", "openai"):
            which = "dtype" if other else "how.engine"
            raise RecipeError(
                f"stages.judge.{which} has no meaning for {self.judge!r}: its server runs it",
                "take it out",
            )
        return (ServedModel(_LLM, ref.served),)

    def _rivals(
        self, context: StageContext, compared: Sequence[Contestant]
    ) -> tuple[tuple[str, tuple[Need, ...]], ...]:
        """Return the models that an independent judge is none of, each with what to note if it is:
        every reward that trained what is compared, however far back, and what is compared."""
        known: dict[str, list[SliceSpec]] = {}
        rewards: dict[tuple[Need, ...], None] = {}
        pending, seen = [need for one in compared for need in one.needs], set[Need]()
        while pending:
            need = pending.pop()
            if not isinstance(need, StepInput) or need in seen:
                continue
            seen.add(need)
            stage = need.step.partition("[")[0]
            if stage not in known:
                known[stage] = context.slices(stage, self.name)
            for spec in known[stage]:
                if (spec.step, spec.name) == (need.step, need.slice):
                    pending += spec.needs
                    if spec.reward is not None:
                        rewards[spec.reward.speakers] = None
        own = dict.fromkeys(one.needs for one in compared)
        return (
            *((NOT_INDEPENDENT, models) for models in rewards),
            *((OWN_MODEL, models) for models in own),
        )

    def _learned(self, context: StageContext, language: str) -> list[StepInput]:
        """Return the prompts of a language that a model trained here has read."""
        if self.model in context.models or "prompts" not in context.stages:
            return []
        specs = [spec for spec in context.prompts(self.name) if spec.language == language]
        return [spec.as_input("training") for spec in specs]

    def identity_fields(self, spec: SliceSpec) -> dict[str, Any]:
        fields = super().identity_fields(spec)
        if spec.need(_LLM) is None:
            return fields
        return fields | {"wording": self.ask.wording().hash}

    def uses_seed(self, spec: SliceSpec) -> bool:
        return spec.need(_LLM) is not None and self.ask.drawn and self.ask.seed is None

    def expected_rows(self, rows: Mapping[str, int], spec: SliceSpec) -> int:
        return rows["answers"] * self._orders(spec)

    def n_shards(self, rows: int, spec: SliceSpec) -> int:
        return -(-rows // (self._orders(spec) * self.how.shard))

    def _orders(self, spec: SliceSpec) -> int:
        """Verdicts on each question: rows are verdicts, shards are cut by questions."""
        return 2 if spec.need(_LLM) is not None and self.ask.orders == "both" else 1

    def missing_requirements(self, specs: Sequence[SliceSpec]) -> list[FactoryError]:
        over_http = self.how.engine == "openai"
        if not over_http and not any(isinstance(spec.need(_LLM), ServedModel) for spec in specs):
            return []
        try:
            address()
        except StageError as error:
            return [error]
        return []

    def run(self, job: Job) -> Outcome:
        need = job.slices[0].need(_LLM)
        is_llm, served = need is not None, isinstance(need, ServedModel)
        seed = job.seed if self.ask.seed is None else self.ask.seed
        judge, revision = _named(job, need)
        matched, unanswered = {}, {}
        for spec in job.slices:
            ours, theirs = (job.table(spec, r, "answers") for r in ("answers", "reference"))
            matched[spec.name], unanswered[spec.name] = match(
                ours.to_pylist(), theirs.to_pylist(), spec.name
            )
        orders = {
            name: [self.ask.in_orders(pair.model, seed) if is_llm else (APART,) for pair in pairs]
            for name, pairs in matched.items()
        }
        todo = {name: _todo(job, name, matched[name], orders[name]) for name in matched}

        cache: EngineCache[Any] = EngineCache(lambda _: self._opened(job, need))
        with cache as engine:

            def make(shard: Shard) -> tuple[pa.Table, int]:
                pairs = matched[shard.slice]
                units = todo[shard.slice][shard.start : shard.stop]
                comparisons = [
                    (pairs[number], order) for number, lacking in units for order in lacking
                ]
                first = [seed, shard.slice]
                rows, tokens = self._read(engine(), judge, comparisons, first)
                table = schemas.from_rows(rows, self.kind)
                return shards.with_metadata(table, engine=engine().name), tokens

            totals = job.make_shards(
                self.kind,
                {name: len(units) for name, units in todo.items()},
                self.how.shard,
                make,
                lanes=lambda shard: engine().lanes,
                spent=engine.tokens,
            )
        counts, learned = {}, {}
        compared: dict[str, list[JudgedQuestion]] = {}
        for spec in job.slices:
            name, pairs = spec.name, matched[spec.name]
            rows = read_slice(job.out, name, self.kind).to_pylist()
            counts[name] = _counts(len(orders[name][0]), len(pairs), unanswered[name], len(rows))
            prompts = job.table(spec, "training", "prompts").to_pylist()
            in_training = trained_on((pair.model for pair in pairs), prompts)
            learned[name] = _overlap(len(pairs), len(prompts), in_training)
            label = str(pairs[0].model["model"])
            compared.setdefault(label, []).extend(verdicts.items(pairs, rows, in_training))
        stats = {
            "judge": judge,
            "judge_revision": revision,
            **self._manner(job.slices[0].reward, served),
            "notes": list(_notes(job)),
            **self._tables(compared),
            "seen_in_training": learned,
            "engines": engines(totals),
        }
        sampled = self.ask.temperature > 0 or served  # a server promises nothing
        return Outcome(
            counts,
            determinism="rounding" if not is_llm else "distribution" if sampled else greedy(totals),
            stats=stats,
            tokens=sum(done.tokens for done in totals.values()),
            spent=replace(spent(totals), gpu_seconds=0.0) if served else spent(totals),
        )

    def _tables(self, compared: Mapping[str, Sequence[JudgedQuestion]]) -> dict[str, Any]:
        """Return the tables of each model, by language and by category."""
        tables: dict[str, Any] = {"comparisons": [], "by_category": []}
        for label, items in compared.items():
            tables["comparisons"] += by_language(label, self.reference, items)
            tables["by_category"] += by_category(label, self.reference, items)
        return tables

    def _manner(self, reward: RewardInput | None, served: bool) -> dict[str, Any]:
        """Return how the judge came to its verdicts, for the manifest."""
        if reward is not None:
            return {"judge_kind": reward.model.kind, "orders": APART, "template": None}
        words = self.ask.wording()
        template = {
            "name": words.name,
            "hash": words.hash,
            "ties": "TIE" in words.allowed,
            "text": words.text,
        }
        manner = {"judge_kind": "llm", "orders": self.ask.orders, "template": template}
        return manner | ({"served": _NOT_PINNED, "cut_by": "characters"} if served else {})

    def _opened(self, job: Job, need: Need | None) -> Any:
        spec = job.slices[0]
        if need is None:
            return open_reward(job, spec, RewardSettings(self.how, self.dtype, self.max_tokens))
        if isinstance(need, ServedModel):
            return choose.chat(self.how, need.model, self.ask.request)
        place = job.places[need]
        adapter = job.place(spec, "adapter").path if spec.need("adapter") else None
        name = place.name or place.path.name
        # nothing longer is ever asked, so memory for a judge's whole context need not be there
        longest = min(self.ask.context, checkpoint.read(place.path).max_context)
        how = self.how.model_copy(update={"max_model_len": self.how.max_model_len or longest})
        return choose.sampler(how, place.path, name, self.dtype, adapter)

    def _read(
        self, engine: Any, judge: str, comparisons: Sequence[Comparison], first: list[Any]
    ) -> tuple[list[dict[str, object]], int]:
        """Return the verdicts on these comparisons, as rows, and the tokens they took."""
        if isinstance(engine, OpenReward):
            return verdicts.by_reward(engine, judge, comparisons)
        sampling = Sampling(self.ask.temperature, 1.0, self.ask.max_tokens)
        # one seed a shard, from its first address, as where answers are drawn
        seed = int(
            fingerprint([*first, comparisons[0][0].model["question_id"], comparisons[0][1]]), 16
        )
        speaker: JudgeBackend = (
            ServedJudge(engine) if isinstance(engine, OpenAIChat) else LocalJudge(engine)
        )
        return verdicts.by_asking(
            speaker,
            self.ask.wording(),
            sampling,
            self.ask.context,
            judge,
            comparisons,
            seed % 2**31,
        )


def _named(job: Job, need: Need | None) -> tuple[str, str | None]:
    """Return the name of a judge, and its revision where it has one. A reward is called by the
    first of its models, or by the adapter on that."""
    if isinstance(need, ServedModel):
        return need.model, None
    reward = job.slices[0].reward
    if reward is not None:
        needs = dict(reward.by_role)
        need = needs.get("adapter", reward.needs[0])
    assert need is not None
    place = job.places[need]
    return place.name or place.path.name, place.revision


def _speakers(reward: RewardInput | None, needs: Sequence[Need]) -> tuple[Need, ...]:
    """Return the models whose verdict it is: those of a reward, or who is asked."""
    return tuple(needs) if reward is None else reward.speakers


def _named_as(need: Need) -> str:
    """Return what a recipe resolves a model to, before its content is known. A served model is
    taken for the repo of its name."""
    if isinstance(need, StepInput):
        return f"{need.step} {need.slice} {need.checkpoint}"
    return need.model if isinstance(need, ServedModel) else need.source.removesuffix("@main")


def same_models(
    speakers: Sequence[Need],
    rivals: Sequence[tuple[str, Sequence[Need]]],
    resolved: Callable[[Need], str],
) -> tuple[str, ...]:
    """Return the notes of the rivals that are the very models that speak, each once."""
    judge = {resolved(need) for need in speakers}
    notes = (note for note, models in rivals if {resolved(need) for need in models} == judge)
    return tuple(dict.fromkeys(notes))


def _notes(job: Job) -> tuple[str, ...]:
    """Return what keeps the judge from being independent: by name, and by the content of models
    that have several names."""
    spec = job.slices[0]
    asked = [need for need in spec.needs if need.role in (_LLM, "adapter")]
    by_content = same_models(
        _speakers(spec.reward, asked),
        spec.rivals,
        lambda need: job.digests.get(need) or _named_as(need),
    )
    return tuple(dict.fromkeys((*spec.notes, *by_content)))


def _overlap(questions: int, prompts: int, in_training: Collection[str]) -> dict[str, Any]:
    """Return how many questions are among the prompts of training, and the first of them."""
    return {
        "questions": questions,
        "prompts": prompts,
        "seen": len(in_training),
        "ids": sorted(in_training)[:_NAMED],
    }


def _counts(orders: int, compared: int, unanswered: Sequence[str], out: int) -> Rows:
    """Count the verdicts of one slice, requested and made; a question is asked in so many
    orders."""
    dropped = {why: orders * count for why, count in sorted(Counter(unanswered).items())}
    return Rows(into=orders * (compared + len(unanswered)), out=out, dropped=dropped)


def _todo(
    job: Job, name: str, pairs: Sequence[Match], orders: Sequence[Sequence[str]]
) -> list[tuple[int, list[str]]]:
    """Return the questions of a slice that lack a verdict, by number, each with those orders."""
    import polars as pl

    where = [(number, order) for number, orders_of in enumerate(orders) for order in orders_of]
    addresses = [pair.address() for pair in pairs]
    frame = pl.DataFrame(
        [{**addresses[number], "order": order} for number, order in where],
        schema=dict.fromkeys((*_ADDRESS, "order"), pl.String),
    )
    lacking: dict[int, list[str]] = {}
    for row in job.missing(name, Judge.kind, frame):
        number, order = where[row]
        lacking.setdefault(number, []).append(order)
    return list(lacking.items())

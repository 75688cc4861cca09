"""judge: tuned model against reference, question by question, and what the sum of it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
from factory.evaluation.judging.match import Match, match, seen
from factory.evaluation.judging.verdicts import APART, Wanted
from factory.evaluation.models import contestants
from factory.evaluation.statistics.table import JudgedQuestion, by_category, by_language
from factory.stage.inputs import Need, ServedModel, SliceSpec, StepInput
from factory.stage.job import Job
from factory.stage.outcome import Outcome, engines, greedy, spent
from factory.stage.stage import How, Stage, StageContext

NOT_INDEPENDENT = "training reward (not independent)"
OWN_MODEL = "judges answers of its own (not independent)"
_NOT_PINNED = "not pinned: it is told by its name, and what that stands for may change"
_LLM = "llm_judge"  # the role of a causal model; a reward model's is `judge`
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
        judges = self._judges(context)
        answers = context.rows("answers", self.name)
        notes = self._notes(context)
        found = []
        for one in contestants(context, [self.model], self.name):
            for language in one.languages:
                names = {
                    "answers": f"{language}/{one.label}",
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
                found.append(
                    SliceSpec(
                        self.name,
                        names["answers"],
                        language,
                        (*reads, *judges, *learned),
                        notes,
                    )
                )
        return found

    def _judges(self, context: StageContext) -> tuple[Need, ...]:
        """What reading the judge means, by the kind of the model that is named."""
        ref = context.models.get(self.judge)
        if ref is None or ref.kind != "causal":
            if self.ask != Ask():
                raise RecipeError(
                    f"stages.judge.ask has no meaning for {self.judge!r}, a reward model",
                    "leave it out, or name a chat model as judge",
                )
            return (context.classifier(self.judge, "judge", self.name),)
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

    def _notes(self, context: StageContext) -> tuple[str, ...]:
        """What keeps this judge from being independent."""
        names = {key: ref.name for key, ref in context.models.items() if ref.name is not None}
        judge = names.get(self.judge)
        score = context.stages.get("score")
        reward = getattr(score, "reward", None)
        notes = []
        if reward is not None and (
            reward == self.judge or (judge is not None and names.get(reward) == judge)
        ):
            notes.append(NOT_INDEPENDENT)
        if judge is not None and judge == names.get(self.reference):
            notes.append(OWN_MODEL)
        return tuple(notes)

    def _learned(self, context: StageContext, language: str) -> list[StepInput]:
        """The prompts of a language that a model trained here has seen."""
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
        sampled = self.ask.temperature > 0 or self.ask.orders == "random"
        return spec.need(_LLM) is not None and sampled

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
        asked, served = need is not None, isinstance(need, ServedModel)
        judge, revision = _named(job, need)
        matched, unanswered = {}, {}
        for spec in job.slices:
            ours, theirs = (job.table(spec, r, "answers") for r in ("answers", "reference"))
            matched[spec.name], unanswered[spec.name] = match(
                ours.to_pylist(), theirs.to_pylist(), spec.name
            )
        orders = {
            name: [self.ask.in_orders(one.model, job.seed) if asked else (APART,) for one in pairs]
            for name, pairs in matched.items()
        }
        todo = {name: _todo(job, name, matched[name], orders[name]) for name in matched}

        held: EngineCache[Any] = EngineCache(lambda _: self._opened(job, need))
        with held as engine:

            def make(shard: Shard) -> tuple[pa.Table, int]:
                pairs = matched[shard.slice]
                units = todo[shard.slice][shard.start : shard.stop]
                wanted = [(pairs[number], order) for number, lacking in units for order in lacking]
                first = [job.seed, shard.slice]
                rows, tokens = self._read(engine(), asked, judge, wanted, first)
                table = schemas.from_rows(rows, self.kind)
                return shards.with_metadata(table, engine=engine().name), tokens

            made = job.make_shards(
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
            found = seen((one.model for one in pairs), prompts)
            learned[name] = {
                "questions": len(pairs),
                "prompts": len(prompts),
                "seen": len(found),
                "ids": sorted(found)[:_NAMED],
            }
            label = str(pairs[0].model["model"])
            compared.setdefault(label, []).extend(verdicts.items(pairs, rows, found))
        stats = {
            "judge": judge,
            "judge_revision": revision,
            **self._manner(asked, served),
            "notes": list(job.slices[0].notes),
            **self._tables(compared),
            "seen_in_training": learned,
            "engines": engines(made),
        }
        sampled = self.ask.temperature > 0 or served  # a server promises nothing
        return Outcome(
            counts,
            determinism="rounding" if not asked else "distribution" if sampled else greedy(made),
            stats=stats,
            tokens=sum(found.tokens for found in made.values()),
            spent=replace(spent(made), gpu_seconds=0.0) if served else spent(made),
        )

    def _tables(self, compared: Mapping[str, Sequence[JudgedQuestion]]) -> dict[str, Any]:
        """What the verdicts show of each model, by language and by category."""
        found: dict[str, Any] = {"comparisons": [], "by_category": []}
        for label, items in compared.items():
            found["comparisons"] += by_language(label, self.reference, items)
            found["by_category"] += by_category(label, self.reference, items)
        return found

    def _manner(self, asked: bool, served: bool) -> dict[str, Any]:
        """How the judge came to its verdicts."""
        if not asked:
            return {"judge_kind": "classifier", "orders": APART, "template": None}
        words = self.ask.wording()
        template = {
            "name": words.name,
            "hash": words.hash,
            "ties": "TIE" in words.allowed,
            "text": words.text,
        }
        found = {"judge_kind": "llm", "orders": self.ask.orders, "template": template}
        return found | ({"served": _NOT_PINNED, "cut_by": "characters"} if served else {})

    def _opened(self, job: Job, need: Need | None) -> Any:
        spec = job.slices[0]
        if need is None:
            return choose.scorer(self.how, job.place(spec, "judge").path, self.dtype)
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
        self, engine: Any, asked: bool, judge: str, wanted: Sequence[Wanted], first: list[Any]
    ) -> tuple[list[dict[str, object]], int]:
        """Verdicts on these, as rows, and the tokens they took."""
        if not asked:
            return verdicts.by_reward(engine, self.max_tokens, judge, wanted)
        sampling = Sampling(self.ask.temperature, 1.0, self.ask.max_tokens)
        # one seed a shard, from its first address, as where answers are drawn
        seed = int(fingerprint([*first, wanted[0][0].model["question_id"], wanted[0][1]]), 16)
        speaker: JudgeBackend = (
            ServedJudge(engine) if isinstance(engine, OpenAIChat) else LocalJudge(engine)
        )
        return verdicts.by_asking(
            speaker, self.ask.wording(), sampling, self.ask.context, judge, wanted, seed % 2**31
        )


def _named(job: Job, need: Need | None) -> tuple[str, str | None]:
    """What a judge is called, and its revision, where it can have one."""
    if isinstance(need, ServedModel):
        return need.model, None
    place = job.places[need] if need else job.place(job.slices[0], "judge")
    return place.name or place.path.name, place.revision


def _counts(orders: int, compared: int, unanswered: Sequence[str], out: int) -> Rows:
    """Verdicts asked for and made of one slice; a question is asked in so many orders."""
    dropped = {why: orders * count for why, count in sorted(Counter(unanswered).items())}
    return Rows(into=orders * (compared + len(unanswered)), out=out, dropped=dropped)


def _todo(
    job: Job, name: str, pairs: Sequence[Match], orders: Sequence[Sequence[str]]
) -> list[tuple[int, list[str]]]:
    """The questions of a slice that want a verdict, by number, each with the orders it lacks."""
    import polars as pl

    where = [(number, order) for number, there in enumerate(orders) for order in there]
    addresses = [one.address() for one in pairs]
    asked = pl.DataFrame(
        [{**addresses[number], "order": order} for number, order in where],
        schema=dict.fromkeys((*_ADDRESS, "order"), pl.String),
    )
    lacking: dict[int, list[str]] = {}
    for row in job.missing(name, Judge.kind, asked):
        number, order = where[row]
        lacking.setdefault(number, []).append(order)
    return list(lacking.items())

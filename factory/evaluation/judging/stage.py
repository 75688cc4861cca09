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
from factory.artifacts.manifest import Manifest, Rows, read_manifest
from factory.artifacts.shards import Shard
from factory.artifacts.tables import read_slice, slice_directory, write_slice
from factory.config import REFERENCE
from factory.engines import Sampling, choose
from factory.engines.choose import EngineCache, EngineKnobs
from factory.engines.openai import OpenAIChat, address
from factory.errors import FactoryError, InputError, RecipeError, StageError
from factory.evaluation.judging import jury, people, verdicts
from factory.evaluation.judging.backends import JudgeBackend, LocalJudge, ServedJudge
from factory.evaluation.judging.config import Ask
from factory.evaluation.judging.match import Match, match, trained_on
from factory.evaluation.judging.verdicts import ADDRESS, APART, Comparison
from factory.evaluation.models import Choice, Contestant, Languages, contestants
from factory.evaluation.statistics.table import JudgedQuestion, by_category, by_language
from factory.rewards.backends import open_reward
from factory.rewards.backends.backend import OpenReward, RewardSettings
from factory.stage.inputs import (
    ExternalInput,
    Need,
    RewardInput,
    ServedModel,
    SliceSpec,
    StepInput,
    model_of,
)
from factory.stage.job import Job
from factory.stage.models import RewardModel
from factory.stage.outcome import Outcome, engines, greedy, spent
from factory.stage.stage import How, Stage, StageContext

NOT_INDEPENDENT = "training reward (not independent)"
OWN_MODEL = "judges answers of its own (not independent)"
UNKNOWN_TRAINING = "its part in the training of the adapter is unknown"
_NOT_PINNED = "not pinned: it is told by its name, and what that stands for may change"
# roles of a causal model, of the verdicts of a jury's judges, and of what people said
_LLM, _VOTE, _PEOPLE = "llm_judge", "vote", "annotations"
_REMOTE = ("auto", "openai")
_CHOSEN = ("scores", "rankings", "pairs", "sft", "adapter")  # by a reward, or trained on such rows
Pairs = Mapping[str, Sequence[Match]]  # by slice
Unanswered = Mapping[str, Sequence[str]]  # reasons, by slice
# Roles of a reward's models: a classifier is the judge, and `reference` is who it compares with.
_REWARD_ROLES = {"reward": "judge", "reference": "judge_reference"}
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
    judge: Annotated[str | tuple[str, ...], REFERENCE] = "reward"
    annotations: Annotated[dict[str, str], REFERENCE] = Field(default_factory=dict)
    languages: Languages | None = None
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

    @field_validator("judge")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if not isinstance(value, str) and (len(value) < 2 or len(set(value)) < len(value)):
            raise ValueError("a jury has two judges or more, each once")
        return value

    @property
    def judges(self) -> tuple[str, ...]:
        """Return the names of the judges."""
        return (self.judge,) if isinstance(self.judge, str) else self.judge

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        self._check(context)
        tuned = contestants(context, [self.model], self.name)
        rivals, unknown = self._rivals(context, tuned)
        pairs = self._pairs(context, tuned)
        specs, notes = [], []
        for judge in self.judges:
            reward, needs = self._needs(context, judge)
            own = same_models(_speakers(reward, needs), rivals, _named_as)
            if unknown and judge not in self.annotations:
                own = (*own, UNKNOWN_TRAINING)
            notes += [f"{judge}: {note}" for note in own]
            step = self.name if len(self.judges) == 1 else f"{self.name}[{judge}]"
            specs += [
                SliceSpec(step, name, language, (*reads, *needs, *learned), own, reward, rivals)
                for name, language, reads, learned in pairs
            ]
        if len(self.judges) > 1:
            specs += [
                SliceSpec(
                    f"{self.name}[{jury.NAME}]",
                    name,
                    language,
                    (
                        *reads,
                        *(StepInput(_VOTE, f"{self.name}[{judge}]", name) for judge in self.judges),
                        *learned,
                    ),
                    tuple(notes),
                )
                for name, language, reads, learned in pairs
            ]
        return specs

    def _pairs(
        self, context: StageContext, tuned: Sequence[Contestant]
    ) -> list[tuple[str, str, tuple[StepInput, ...], tuple[StepInput, ...]]]:
        """Return what is compared: name, language, answers of both sides, prompts of training."""
        answers = context.rows("answers", self.name)
        arena: Choice = getattr(context.stages.get("arena"), "languages", "own")
        languages = self.languages or arena
        pairs = []
        for contestant in tuned:
            for language in contestant.languages(languages, context):
                names = {
                    "answers": f"{language}/{contestant.label}",
                    "reference": f"{language}/{self.reference}",
                }
                for name in names.values():
                    if name not in answers:
                        raise RecipeError(
                            f"stages.judge compares {name!r}, which stages.arena does not answer",
                            f"add {language} to stages.arena.languages"
                            if any(model_of(name) == model_of(other) for other in answers)
                            else "add the model to stages.arena.of",
                        )
                reads = tuple(answers[name].as_input(role) for role, name in names.items())
                learned = self._learned(context, language) if language in contestant.own else ()
                pairs.append((names["answers"], language, reads, tuple(learned)))
        return pairs

    def _needs(
        self, context: StageContext, judge: str
    ) -> tuple[RewardInput | None, tuple[Need, ...]]:
        """Return the reward that judges, if it is one, and what a judge needs, by the kind of the
        model that is named."""
        if judge in self.annotations:
            return None, (ExternalInput(_PEOPLE, self.annotations[judge], "dataset"),)
        ref = context.models.get(judge)
        if ref is None or isinstance(ref, RewardModel):
            reward = context.reward(judge, self.name, _REWARD_ROLES)
            return reward, reward.needs
        if ref.served is not None:
            return None, (ServedModel(_LLM, ref.served),)
        return None, context.policy(judge, _LLM, self.name)

    def _check(self, context: StageContext) -> None:
        """Raise RecipeError for knobs that none of the judges has a use for."""
        if idle := [name for name in self.annotations if name not in self.judges]:
            raise RecipeError(
                f"stages.judge.annotations has {idle[0]!r}, which is none of the judges",
                f"add it: stages.judge.judge: [{', '.join((*self.judges, idle[0]))}]",
            )
        refs = {name: context.models.get(name) for name in self.judges}
        chat_models = {
            name: ref
            for name, ref in refs.items()
            if ref and not isinstance(ref, RewardModel) and name not in self.annotations
        }
        rewards = [n for n in refs if n not in chat_models and n not in self.annotations]
        served = [name for name, ref in chat_models.items() if ref.served is not None]
        quoted = " and ".join(map(repr, self.judges))
        if not chat_models and self.ask != Ask():
            raise RecipeError(
                f"stages.judge.ask has no meaning for {quoted}, "
                + ("a reward model" if rewards else "which is no model"),
                "leave it out, or name a chat model as judge",
            )
        if chat_models and not served and self.ask.request:
            raise RecipeError(
                f"stages.judge.ask.request is for a judge that is served; {quoted} is not",
                "take it out",
            )
        if chat_models and not rewards and self._is_set("max_tokens"):
            raise RecipeError(
                f"stages.judge.max_tokens is what a reward model reads; {quoted} is asked",
                "say ask.max_tokens, what it may write, and ask.context",
            )
        limit = self.how.max_model_len
        if chat_models and limit is not None and limit < self.ask.context:
            raise RecipeError(
                f"stages.judge.how.max_model_len {limit} is less than ask.context "
                f"{self.ask.context}: the first long pair would end the run",
                f"set ask.context to {limit}, so that answers are cut to fit, or raise the other",
            )
        here = [name for name in self.judges if name not in served]
        if served and not here and (self._is_set("dtype") or self.how.engine not in _REMOTE):
            which = "dtype" if self._is_set("dtype") else "how.engine"
            raise RecipeError(
                f"stages.judge.{which} has no meaning for {quoted}: its server runs it",
                "take it out",
            )
        over_http = list(chat_models) if self.how.engine == "openai" else served
        if self.how.served_model is not None and len(over_http) > 1:
            raise RecipeError(
                f"how.served_model is one name, and a server judges as {', '.join(over_http)}",
                "leave it out, and serve each by the name that the recipe has",
            )

    def _is_set(self, knob: str) -> bool:
        return bool(getattr(self, knob) != type(self).model_fields[knob].default)

    def _rivals(
        self, context: StageContext, tuned: Sequence[Contestant]
    ) -> tuple[tuple[tuple[str, tuple[Need, ...]], ...], bool]:
        """Return the models that an independent judge is none of, each with what to note if it is:
        every reward that trained what is compared, however far back, and what is compared. Return
        too whether there may be others: of adapters and rows that were chosen elsewhere."""
        stages, slices = context.stages, dict[str, list[SliceSpec]]()
        rewards: dict[tuple[Need, ...], None] = {}
        visited: set[Need] = set()
        compared = [*tuned, *contestants(context, [self.reference], self.name)]
        pending = [need for contestant in compared for need in contestant.needs]
        unknown = any(
            isinstance(need, ExternalInput) and need.role == "adapter"
            for contestant in tuned
            for need in contestant.needs
        )
        while pending:
            need = pending.pop()
            if not isinstance(need, StepInput) or need in visited:
                continue
            visited.add(need)
            stage = need.step.partition("[")[0]
            if stage not in slices:
                slices[stage] = context.slices(stage, self.name)
            for spec in slices[stage]:
                if (spec.step, spec.name) == (need.step, need.slice):
                    pending += spec.needs
                    if spec.reward is not None:
                        rewards[spec.reward.speakers] = None
                    else:
                        unknown |= stages[stage].from_ is not None and stages[stage].kind in _CHOSEN
        own = dict.fromkeys(contestant.needs for contestant in compared)
        rivals = (
            *((NOT_INDEPENDENT, models) for models in rewards),
            *((OWN_MODEL, models) for models in own),
        )
        return rivals, unknown

    def _learned(self, context: StageContext, language: str) -> list[StepInput]:
        """Return the prompts of a language that a model trained here has read."""
        if self.model in context.models or "prompts" not in context.stages:
            return []
        specs = [spec for spec in context.prompts(self.name) if spec.language == language]
        return [spec.as_input("training") for spec in specs]

    def identity_fields(self, spec: SliceSpec) -> dict[str, Any]:
        fields = super().identity_fields(spec)
        if spec.need(_LLM) is not None:  # of a jury, each judge has the knobs that concern it
            fields.pop("max_tokens", None)
            return fields | {"wording": self.ask.wording().hash}
        fields.pop("ask", None)
        return fields if spec.reward is not None else {}

    def uses_seed(self, spec: SliceSpec) -> bool:
        return spec.need(_LLM) is not None and self.ask.drawn and self.ask.seed is None

    def expected_rows(self, rows: Mapping[str, int], spec: SliceSpec) -> int:
        return rows["answers"] * self._orders(spec)

    def n_shards(self, rows: int, spec: SliceSpec) -> int:
        if spec.need(_VOTE) or spec.need(_PEOPLE):
            return 0
        return -(-rows // (self._orders(spec) * self.how.shard))

    def _orders(self, spec: SliceSpec) -> int:
        """Verdicts on each question: rows are verdicts, shards are cut by questions."""
        both = self.ask.orders == "both" and not self.ask.wording().rubric
        return 2 if spec.need(_LLM) is not None and both else 1

    def missing_requirements(self, specs: Sequence[SliceSpec]) -> list[FactoryError]:
        llms = [need for spec in specs if (need := spec.need(_LLM)) is not None]
        over_http = self.how.engine == "openai"
        if not any(over_http or isinstance(need, ServedModel) for need in llms):
            return []
        try:
            address()
        except StageError as error:
            return [error]
        return []

    def run(self, job: Job) -> Outcome:
        matched, unanswered = {}, {}
        for spec in job.slices:
            ours, theirs = (job.table(spec, r, "answers") for r in ("answers", "reference"))
            matched[spec.name], unanswered[spec.name] = match(
                ours.to_pylist(), theirs.to_pylist(), spec.name
            )
        if job.slices[0].need(_VOTE) is not None:
            return self._run_jury(job, matched, unanswered)
        if job.slices[0].need(_PEOPLE) is not None:
            return self._run_people(job, matched, unanswered)
        return self._run_model(job, matched, unanswered)

    def _run_model(self, job: Job, matched: Pairs, unanswered: Unanswered) -> Outcome:
        """Ask a model for its verdicts."""
        need = job.slices[0].need(_LLM)
        is_llm, served = need is not None, isinstance(need, ServedModel)
        seed = job.seed if self.ask.seed is None else self.ask.seed
        judge, revision = _named(job, need)
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
        summary = _Summary(self, job, matched, unanswered, len(next(iter(orders.values()))[0]))
        stats = {
            "judge": judge,
            "judge_revision": revision,
            **self._manner(job.slices[0].reward, served),
            "notes": list(_notes(job)),
            **summary.tables(span=self.ask.wording().span if is_llm else None),
            "engines": engines(totals),
        }
        sampled = self.ask.temperature > 0 or served  # a server promises nothing
        return Outcome(
            summary.counts("same_texts_drawn_again"),
            determinism="rounding" if not is_llm else "distribution" if sampled else greedy(totals),
            stats=stats,
            tokens=sum(done.tokens for done in totals.values()),
            spent=replace(spent(totals), gpu_seconds=0.0) if served else spent(totals),
        )

    def _run_jury(self, job: Job, matched: Pairs, unanswered: Unanswered) -> Outcome:
        """Count the votes of the judges."""
        votes: dict[str, jury.Votes] = {}
        manifests: dict[str, Manifest] = {}
        for spec in job.slices:
            members = dict(
                zip(self.judges, (n for n in spec.needs if n.role == _VOTE), strict=True)
            )
            rows = {
                judge: job.rows(need, self.kind).to_pylist()
                for judge, need in members.items()
                if isinstance(need, StepInput)
            }
            votes[spec.name] = jury.read_votes(rows)
            manifests |= {judge: read_manifest(job.places[n].path) for judge, n in members.items()}
            table = schemas.from_rows(
                jury.by_votes(matched[spec.name], votes[spec.name]), self.kind
            )
            write_slice(slice_directory(job.out, spec.name), table)
        by_code: dict[str, list[tuple[Match, Mapping[str, float | None]]]] = {}
        for name, pairs in matched.items():
            by_code.setdefault(name.partition("/")[0], []).extend(
                (pair, votes[name].get(tuple(pair.address().values()), {})) for pair in pairs
            )
        notes, blind = jury.doubts(manifests)
        summary = _Summary(self, job, matched, unanswered, 1)
        stats = {
            "judge": f"a jury of {', '.join(self.judges)}",
            "judge_revision": None,
            "judge_kind": jury.NAME,
            "judge_blind": blind,
            "orders": APART,
            "template": None,
            "notes": notes,
            "agreement": jury.agreements(by_code, self.judges),
            **summary.tables(votes=votes),
        }
        return Outcome(summary.counts("same_texts_drawn_again"), determinism="exact", stats=stats)

    def _run_people(self, job: Job, matched: Pairs, unanswered: Unanswered) -> Outcome:
        """Read what people said."""
        place = job.place(job.slices[0], _PEOPLE)
        name = place.name or place.path.name
        annotated, used = people.read(place.path, name), 0
        for spec in job.slices:
            rows = people.by_people(matched[spec.name], annotated, name)
            used += len(rows)
            table = schemas.from_rows(rows, self.kind)
            write_slice(slice_directory(job.out, spec.name), table)
        if not used:
            raise InputError(
                f"{name}: none of {len(annotated)} annotated rows is of these answers",
                "the answers were made again since: export and annotate them again",
            )
        summary = _Summary(self, job, matched, unanswered, 1)
        stats = {
            "judge": f"people ({name})",
            "judge_revision": place.revision,
            "judge_kind": "people",
            "orders": "random",
            "template": None,
            "notes": [],
            "annotations": {
                "rows": sum(map(len, annotated.values())),
                "pairs": len(annotated),
                "used": used,
            },
            **summary.tables(),
        }
        return Outcome(summary.counts("not_annotated"), determinism="exact", stats=stats)

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
        orders = APART if words.rubric else self.ask.orders
        template |= {"scale": sorted(words.allowed, key=int)} if words.rubric else {}
        manner = {"judge_kind": "llm", "orders": orders, "template": template}
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
        return choose.sampler(self.how, place.path, name, self.dtype, adapter)

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
        read = verdicts.by_rating if self.ask.wording().rubric else verdicts.by_asking
        return read(
            speaker,
            self.ask.wording(),
            sampling,
            self.ask.context,
            judge,
            comparisons,
            seed % 2**31,
        )


class _Summary:
    """Counts and tables of the verdicts that a step left, each question asked in so many orders."""

    def __init__(
        self, stage: Judge, job: Job, matched: Pairs, unanswered: Unanswered, orders: int
    ) -> None:
        self._stage, self._job, self._orders = stage, job, orders
        self._matched, self._unanswered = matched, unanswered
        self._rows = {name: read_slice(job.out, name, stage.kind).to_pylist() for name in matched}

    def counts(self, why: str) -> dict[str, Rows]:
        """Count the verdicts of each slice, wanted and there; pairs without any by `why`."""
        counts = {}
        for name, pairs in self._matched.items():
            lost, out = self._unanswered[name], len(self._rows[name])
            dropped = {w: self._orders * n for w, n in sorted(Counter(lost).items())}
            if rest := self._orders * len(pairs) - out:
                dropped[why] = rest
            counts[name] = Rows(
                into=self._orders * (len(pairs) + len(lost)), out=out, dropped=dropped
            )
        return counts

    def tables(
        self, span: float | None = None, votes: Mapping[str, jury.Votes] | None = None
    ) -> dict[str, Any]:
        """Return the tables of each model, by language and by category, and the questions that are
        among the prompts of training."""
        ballots = votes or {}
        learned: dict[str, dict[str, Any]] = {}
        compared: dict[str, list[JudgedQuestion]] = {}
        for spec in self._job.slices:
            pairs = self._matched[spec.name]
            questions = {pair.model["question_id"]: pair.model for pair in pairs}
            prompts = self._job.table(spec, "training", "prompts").to_pylist()
            in_training = trained_on(questions.values(), prompts)
            learned[spec.name] = _overlap(len(questions), len(prompts), in_training)
            items = verdicts.items(
                pairs, self._rows[spec.name], in_training, span, ballots.get(spec.name)
            )
            if items:
                compared.setdefault(str(pairs[0].model["model"]), []).extend(items)
        tables: dict[str, Any] = {"comparisons": [], "by_category": []}
        for label, items in compared.items():
            tables["comparisons"] += by_language(label, self._stage.reference, items)
            tables["by_category"] += by_category(label, self._stage.reference, items)
        return {**tables, "seen_in_training": learned}


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
    judge_needs = [need for need in spec.needs if need.role in (_LLM, "adapter")]
    by_content = same_models(
        _speakers(spec.reward, judge_needs),
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


def _todo(
    job: Job, name: str, pairs: Sequence[Match], orders: Sequence[Sequence[str]]
) -> list[tuple[int, list[str]]]:
    """Return the pairs of answers of a slice that lack a verdict, by number, each with those
    orders. The same two texts, drawn twice, are judged once."""
    import polars as pl

    addresses = [pair.address() for pair in pairs]
    first = {tuple(address.values()): n for n, address in reversed(list(enumerate(addresses)))}
    where = [(number, order) for number in sorted(first.values()) for order in orders[number]]
    frame = pl.DataFrame(
        [{**addresses[number], "order": order} for number, order in where],
        schema=dict.fromkeys((*ADDRESS, "order"), pl.String),
    )
    lacking: dict[int, list[str]] = {}
    for row in job.missing(name, Judge.kind, frame):
        number, order = where[row]
        lacking.setdefault(number, []).append(order)
    return list(lacking.items())

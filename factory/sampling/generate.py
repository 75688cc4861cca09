"""generate: the policy answers every prompt n times, in every language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from factory.artifacts import schemas, shards
from factory.artifacts.hashing import fingerprint
from factory.artifacts.schemas import GOLD, OTHERS
from factory.artifacts.shards import Shard
from factory.artifacts.tables import slice_directory, slice_files, write_slice
from factory.config import EXTENT, REFERENCE
from factory.engines import Sampler, Sampling, chat_template, choose
from factory.engines.chat_template import REFUSED, Message, TemplateRefusal
from factory.engines.choose import EngineCache, EngineKnobs
from factory.errors import RecipeError
from factory.sampling.answers import Answers, describe, gold_row, sampled_row
from factory.stage.inputs import ExternalInput, Need, SliceSpec, StepInput
from factory.stage.job import Job, policy
from factory.stage.models import RewardModel
from factory.stage.outcome import Outcome, counted, engines, spent
from factory.stage.stage import How, Stage, StageContext


class GenerateHow(How, EngineKnobs):
    """`shard`: prompts in a shard. A shard should take five to ten minutes: with 64 answers of
    some 500 tokens, 100 prompts on a GPU that draws 5,000 to 10,000 tokens a second."""

    shard: int = Field(100, ge=1)


class Generate(Stage):
    """Self-generations. Defaults are CroCo's: 64 samples at temperature 1, top_p 1, 4096 tokens.
    The models of `also` answer the same prompts in the same way, each so many times: other
    teachers, or the adapters of earlier rounds. `answers` are taken in as they are: rows of prompt
    and answer from any number of datasets. Column `source` says who drew an answer."""

    name: ClassVar[str] = "generate"
    kind: ClassVar[str] = "samples"
    repo: ClassVar[str] = "generate"
    reads: ClassVar[tuple[str, ...]] = ("prompts",)
    version: ClassVar[int] = 2  # labels by language_id as docs/languages.md has it
    seeded: ClassVar[bool] = True
    row_wise: ClassVar[bool] = True

    model: Annotated[str, REFERENCE] = "policy"  # a name under models; another one is off-policy
    n: Annotated[int, EXTENT, Field(ge=1, le=OTHERS)] = 64  # answers to a prompt
    # further names under models, with the number of answers of each to a prompt
    also: Annotated[dict[str, Annotated[int, Field(ge=1, le=OTHERS)]], REFERENCE] = Field(
        default_factory=dict
    )
    # answers of others to the same prompts: [{source: org/their-answers}, more-{language}.jsonl]
    answers: Annotated[tuple[Answers, ...], REFERENCE] = ()
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(4096, ge=1)  # of an answer; less where the context has no more room
    # tokens that end an answer: all that end a turn; or those of the model's configs alone, which
    # is where vLLM stops by itself, as published
    stops: Literal["all", "config"] = "all"
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float16|float32)$")
    # before every prompt that has no system message of its own
    system: str | None = Field(None, min_length=1)
    how: GenerateHow = GenerateHow()

    @field_validator("answers", mode="before")
    @classmethod
    def _short_answers(cls, value: Any) -> Any:
        listed = isinstance(value, list)
        return [{"source": v} if isinstance(v, str) else v for v in value] if listed else value

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        if self.model in self.also:
            raise RecipeError(
                f"stages.generate.also names {self.model!r}, the model that answers already",
                "raise n, or name another",
            )
        for name in (self.model, *self.also):
            ref = context.models.get(name)
            if isinstance(ref, RewardModel) and ref.is_plain_classifier:
                raise RecipeError(
                    f"stages.generate draws with {name!r}, a classifier, which answers nothing",
                    "name a chat model under models:",
                )

        def models(code: str | None) -> list[Need]:
            needs = list(context.policy(self.model, "model", self.name, code))
            for number, name in enumerate(self.also, 2):
                needs += [
                    replace(need, role=f"{need.role}-{number}")
                    for need in context.policy(name, "model", self.name, code)
                ]
            return needs

        return [
            replace(
                spec,
                needs=(*spec.needs, *models(spec.language), *self._taken(str(spec.language))),
            )
            for spec in super().plan_slices(context)
        ]

    def _taken(self, code: str) -> list[ExternalInput]:
        """Return the sources of the answers of others in a language."""
        return [one.need(f"answers-{n}", code) for n, one in enumerate(self.answers, 1)]

    def identity_fields(self, spec: SliceSpec) -> dict[str, Any]:
        # which answers are taken in is extent; that there are any gives every row a source
        return super().identity_fields(spec) | ({"answers": True} if self.answers else {})

    def extent(self) -> dict[str, Any]:
        also = {"also": list(self.also.values())} if self.also else {}
        read = [one.how_read() for one in self.answers]
        return super().extent() | also | ({"answers": read} if read else {})

    @property
    def _counts(self) -> tuple[int, ...]:
        """Return the answers of each model to a prompt."""
        return (self.n, *self.also.values())

    def expected_rows(self, rows: Mapping[str, int], spec: SliceSpec) -> int:
        return rows["prompts"] * sum(self._counts)

    def n_shards(self, rows: int, spec: SliceSpec) -> int:
        prompts = -(-rows // sum(self._counts))
        return len(self._counts) * -(-prompts // self.how.shard)

    def run(self, job: Job) -> Outcome:
        prompts = {s.name: job.reader(s.need("prompts"), "prompts") for s in job.slices}
        # by name of their shards: a second model has its own
        todo: dict[str, list[tuple[int, Sequence[int]]]] = {}
        for spec in job.slices:
            for model, units in enumerate(self._todo(job, spec)):
                todo[_shards_of(spec.name, model)] = units
        todo = dict(sorted(todo.items(), key=lambda item: _model(item[0])))
        specs = {spec.name: spec for spec in job.slices}
        # an adapter may be of one language: see StageContext.adapter
        drawing = {
            _shards_of(spec.name, model): policy(job, spec, f"-{model + 1}" if model else "")
            for spec in job.slices
            for model in range(len(self._counts))
        }
        # by the name of shards: the first of those that are drawn by the same model
        alike = {
            name: next(other for other, place in drawing.items() if place == drawing[name])
            for name in drawing
        }

        def opened(shards_name: str) -> Sampler:
            place, adapter = drawing[shards_name]
            name = place.name or place.path.name
            sampler = choose.sampler(self.how, place.path, name, self.dtype, adapter)
            return choose.stopping(sampler, place.path, self.stops)

        with EngineCache(opened) as engine:

            def make(shard: Shard) -> tuple[pa.Table, int]:
                model, name = _model(shard.slice), _slice(shard.slice)
                units = todo[shard.slice][shard.start : shard.stop]
                rows = prompts[name].rows([number for number, _ in units])
                draws = [draw for _, draw in units]
                several = self.also or self.answers
                source = _named(job, specs[name], model) if several else None
                return self._make(engine(alike[shard.slice]), job.seed, name, rows, draws, source)

            sizes = {name: len(units) for name, units in todo.items()}
            own = {name: size for name, size in sizes.items() if not _model(name)}
            totals = job.make_shards(
                self.kind,
                own,
                self.how.shard,
                make,
                lanes=lambda shard: engine(alike[shard.slice]).lanes,
                apart=lambda shard: alike[shard.slice],
                spent=engine.tokens,
                work_only={name: size for name, size in sizes.items() if name not in own},
            )
            appended = {name: job.append(name, _slice(name)) for name in sizes if name not in own}
        lost = {spec.name: self._append_answers(job, spec) for spec in job.slices}
        stats = {name: describe(job.out, name, len(self._counts)) for name in totals}
        counts = {}
        for name, total in totals.items():
            gold = stats[name].get("gold", 0)
            into = len(prompts[name]) * sum(self._counts) + gold
            for other, more in appended.items():
                if _slice(other) == name:
                    total = replace(total, dropped=total.dropped + more.dropped)
            taken = sum(stats[name].get("taken_in", {}).values())
            into += taken + lost[name].total()
            total = replace(total, dropped=total.dropped + lost[name])
            counts[name] = counted(into, stats[name]["samples"] + taken + gold, total)
        totals |= appended
        return Outcome(
            counts,
            determinism="distribution",
            stats={"by_language": stats, "engines": engines(totals)},
            template=chat_template.read_contract(drawing[job.slices[0].name][0].path, self.stops),
            tokens=sum(figures["tokens"] for figures in stats.values()),
            spent=spent(totals),
        )

    def _append_answers(self, job: Job, spec: SliceSpec) -> Counter[str]:
        """Append the answers of others to a slice, a file for each source. Returns how many of
        their rows are left out, by reason."""
        dropped: Counter[str] = Counter()
        if not self.answers or job.reused(spec.name, self.kind).whole:
            return dropped
        directory = slice_directory(job.out, spec.name)
        need = spec.need("prompts")
        assert isinstance(need, StepInput)
        prompts = job.rows(need, "prompts", ["prompt_id", "prompt_hash"]).to_pylist()
        for number, one in enumerate(self.answers):
            place = job.place(spec, f"answers-{number + 1}")
            k = len(self._counts) + number
            rows, lost = one.rows_of(place, str(spec.language), prompts, k)
            dropped += lost
            table = schemas.from_rows(rows, self.kind)
            write_slice(directory, table, len(slice_files(job.out, spec.name)))
        return dropped

    def _make(
        self,
        sampler: Sampler,
        seed: int,
        name: str,
        prompts: Sequence[Mapping[str, Any]],
        draws: Sequence[Sequence[int]],
        source: str | None,
    ) -> tuple[pa.Table, int]:
        """Return the answers to some prompts at their missing draws (k), and the tokens sampled;
        `source`: the name of the model, where there are several."""
        sampling = Sampling(self.temperature, self.top_p, self.max_tokens)
        # One seed a shard, from its first address: answers that are drawn together depend on
        # their neighbours whatever seed each one were given.
        first = [seed, prompts[0]["prompt_id"], name, draws[0][0]]
        ids: list[list[int]] = []
        fits: list[int] = []  # prompts, by their number here
        dropped: Counter[str] = Counter()
        for n, row in enumerate(prompts):
            try:
                ids.append(chat_template.prompt_ids(sampler.tokenizer, self._messages(row)))
            except TemplateRefusal:  # `check` says why
                ids.append([])
                dropped[REFUSED] += sum(k != GOLD for k in draws[n])
                continue
            if sampling.room(len(ids[n]), sampler.max_context):
                fits.append(n)
            else:
                dropped["prompt_too_long"] += sum(k != GOLD for k in draws[n])
        # all answers to a prompt one after another: an engine reads it once
        addresses = [(n, k) for n in fits for k in draws[n] if k != GOLD]
        drawn = sampler.sample(
            [ids[n] for n, _ in addresses], sampling, int(fingerprint(first), 16) % 2**31
        )
        rows = [
            sampled_row(prompts[n], k, sample, sampler.tokenizer)
            for (n, k), sample in zip(addresses, drawn, strict=True)
        ]
        rows += [
            gold_row(row, sampler.tokenizer)
            for row, ks in zip(prompts, draws, strict=True)
            if GOLD in ks
        ]
        if source is not None:
            rows = [{**row, "source": "gold" if row["k"] == GOLD else source} for row in rows]
        table = shards.with_metadata(
            schemas.from_rows(rows, self.kind),
            engine=sampler.name,
            dropped=dict(dropped),
        )
        return table, sum(len(sample.token_ids) for sample in drawn)

    def _messages(self, prompt: Mapping[str, Any]) -> list[Message]:
        messages: list[Message] = list(prompt["messages"])
        if self.system is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.system}, *messages]

    def _todo(self, job: Job, spec: SliceSpec) -> list[list[tuple[int, Sequence[int]]]]:
        """Return the prompts of a slice that lack answers of each model: number and missing draws
        (k). Gold answers, which cost nothing, are never reused."""
        import polars as pl

        need = spec.need("prompts")
        assert isinstance(need, StepInput)
        prompts = job.rows(need, "prompts", ["prompt_id", "prompt_hash", "gold"])
        frame = pl.DataFrame(prompts.select(["prompt_id", "prompt_hash"]))
        draws = [range(model * OTHERS, model * OTHERS + n) for model, n in enumerate(self._counts)]
        ks = [k for some in draws for k in some]
        addresses = frame.join(pl.DataFrame({"k": ks}), how="cross", maintain_order="left")
        missing = job.missing(spec.name, self.kind, addresses)
        gold = prompts.column("gold").to_pylist() if "gold" in prompts.column_names else []
        if len(missing) == len(addresses) and not gold:
            return [[(number, some) for number in range(len(prompts))] for some in draws]
        lacking: list[dict[int, list[int]]] = [{} for _ in draws]
        for row in missing:
            number, k = row // len(ks), ks[row % len(ks)]
            lacking[k // OTHERS].setdefault(number, []).append(k)
        for number, text in enumerate(gold):
            if text is not None:
                lacking[0].setdefault(number, []).append(GOLD)
        return [sorted(some.items()) for some in lacking]


def _shards_of(name: str, model: int) -> str:
    """Return the name of the shards of a slice that a model draws; the first has the slice's."""
    return f"{name}+{model + 1}" if model else name


def _slice(shards_name: str) -> str:
    return shards_name.partition("+")[0]


def _model(shards_name: str) -> int:
    return int(shards_name.partition("+")[2] or 1) - 1


def _named(job: Job, spec: SliceSpec, model: int) -> str:
    """Return the repo of a model that draws, or of the adapter on it."""
    number = f"-{model + 1}" if model else ""
    role = f"adapter{number}" if spec.need(f"adapter{number}") else f"model{number}"
    place = job.place(spec, role)
    return place.name or place.path.name

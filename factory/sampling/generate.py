"""generate: the policy answers every prompt n times, in every language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from factory.artifacts import schemas, shards
from factory.artifacts.hashing import fingerprint, text_hash
from factory.artifacts.schemas import GOLD
from factory.artifacts.shards import Shard
from factory.artifacts.tables import read_slice
from factory.config import EXTENT, REFERENCE
from factory.engines import Completion, Sampler, Sampling, chat_template, choose
from factory.engines.chat_template import Message
from factory.engines.choose import EngineCache, EngineKnobs
from factory.errors import InputError
from factory.language.detect import detect, right_labels
from factory.stage.inputs import SliceSpec, StepInput
from factory.stage.job import Job, policy
from factory.stage.outcome import Outcome, counted, engines, spent
from factory.stage.stage import How, Stage, StageContext


class GenerateHow(How, EngineKnobs):
    """`shard`: prompts in a shard. A shard should take five to ten minutes: with 64 answers of
    some 500 tokens, 100 prompts on a GPU that draws 5,000 to 10,000 tokens a second."""

    shard: int = Field(100, ge=1)


class Generate(Stage):
    """Self-generations. Defaults are CroCo's: 64 samples at temperature 1, top_p 1, 4096 tokens."""

    name: ClassVar[str] = "generate"
    kind: ClassVar[str] = "samples"
    repo: ClassVar[str] = "generate"
    reads: ClassVar[tuple[str, ...]] = ("prompts",)
    version: ClassVar[int] = 2  # labels by language_id as docs/languages.md has it
    seeded: ClassVar[bool] = True
    row_wise: ClassVar[bool] = True

    model: Annotated[str, REFERENCE] = "policy"  # a name under models; another one is off-policy
    n: Annotated[int, EXTENT, Field(ge=1)] = 64  # answers to a prompt
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

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        model = context.policy(self.model, "model", self.name)
        return [replace(spec, needs=(*spec.needs, *model)) for spec in super().plan_slices(context)]

    def expected_rows(self, rows: Mapping[str, int], spec: SliceSpec) -> int:
        return rows["prompts"] * self.n

    def n_shards(self, rows: int, spec: SliceSpec) -> int:
        return -(-rows // (self.n * self.how.shard))

    def run(self, job: Job) -> Outcome:
        prompts = {s.name: job.reader(s.need("prompts"), "prompts") for s in job.slices}
        todo = {spec.name: self._todo(job, spec) for spec in job.slices}
        place, adapter = policy(job, job.slices[0])

        def opened(_: str) -> Sampler:
            name = place.name or place.path.name
            sampler = choose.sampler(self.how, place.path, name, self.dtype, adapter)
            return choose.stopping(sampler, place.path, self.stops)

        with EngineCache(opened) as engine:

            def make(shard: Shard) -> tuple[pa.Table, int]:
                units = todo[shard.slice][shard.start : shard.stop]
                rows = prompts[shard.slice].rows([number for number, _ in units])
                draws = [draw for _, draw in units]
                return self._make(engine(), job.seed, shard.slice, rows, draws)

            sizes = {name: len(units) for name, units in todo.items()}
            totals = job.make_shards(
                self.kind,
                sizes,
                self.how.shard,
                make,
                lanes=lambda shard: engine().lanes,
                spent=engine.tokens,
            )
        stats = {name: _describe(job.out, name) for name in totals}
        counts = {}
        for name, total in totals.items():
            gold = stats[name].get("gold", 0)
            into, out = len(prompts[name]) * self.n + gold, stats[name]["samples"] + gold
            counts[name] = counted(into, out, total)
        return Outcome(
            counts,
            determinism="distribution",
            stats={"by_language": stats, "engines": engines(totals)},
            template=chat_template.read_contract(place.path, self.stops),
            tokens=sum(figures["tokens"] for figures in stats.values()),
            spent=spent(totals),
        )

    def _make(
        self,
        sampler: Sampler,
        seed: int,
        name: str,
        prompts: Sequence[Mapping[str, Any]],
        draws: Sequence[Sequence[int]],
    ) -> tuple[pa.Table, int]:
        """Return the answers to some prompts at their missing draws (k), and the tokens sampled."""
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
            except InputError:  # the order of its turns; `check` says why
                ids.append([])
                dropped["refused_by_template"] += sum(k != GOLD for k in draws[n])
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
            _row(prompts[n], k, sample, sampler.tokenizer)
            for (n, k), sample in zip(addresses, drawn, strict=True)
        ]
        rows += [
            _gold_row(row, sampler.tokenizer)
            for row, ks in zip(prompts, draws, strict=True)
            if GOLD in ks
        ]
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

    def _todo(self, job: Job, spec: SliceSpec) -> list[tuple[int, Sequence[int]]]:
        """Return the prompts of a slice that lack answers: number and missing draws (k). Gold
        answers, which cost nothing, are never reused."""
        import polars as pl

        need = spec.need("prompts")
        assert isinstance(need, StepInput)
        prompts = job.rows(need, "prompts", ["prompt_id", "prompt_hash", "gold"])
        frame = pl.from_arrow(prompts.select(["prompt_id", "prompt_hash"]))
        assert isinstance(frame, pl.DataFrame)
        addresses = frame.join(
            pl.DataFrame({"k": range(self.n)}), how="cross", maintain_order="left"
        )
        missing = job.missing(spec.name, self.kind, addresses)
        gold = prompts.column("gold").to_pylist() if "gold" in prompts.column_names else []
        if len(missing) == len(addresses) and not gold:
            return [(number, range(self.n)) for number in range(len(prompts))]
        lacking: dict[int, list[int]] = {}
        for number in missing:
            lacking.setdefault(number // self.n, []).append(number % self.n)
        for number, text in enumerate(gold):
            if text is not None:
                lacking.setdefault(number, []).append(GOLD)
        return sorted(lacking.items())


def _row(
    prompt: Mapping[str, Any], k: int, sample: Completion, tokenizer: Any
) -> dict[str, object]:
    text = tokenizer.decode(list(sample.token_ids), skip_special_tokens=True).strip()
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
        "seed": sample.seed,
        "detected_language": detect(text, prompt["language"]),
    }


def _gold_row(prompt: Mapping[str, Any], tokenizer: Any) -> dict[str, object]:
    """Return the answer that a person wrote to a prompt as one more sample, which was not drawn."""
    text = prompt["gold"]
    return {
        "prompt_id": prompt["prompt_id"],
        "language": prompt["language"],
        "k": GOLD,
        "prompt_hash": prompt["prompt_hash"],
        "response": text,
        "response_hash": text_hash(text),
        "n_tokens": len(tokenizer(text, add_special_tokens=False)["input_ids"]),
        "n_chars": len(text),
        "finish_reason": "stop",
        "seed": None,
        "detected_language": detect(text, prompt["language"]),
    }


def _describe(out: Path, name: str) -> dict[str, Any]:
    """Return the counts of one slice for the card."""
    import polars as pl

    columns = ["finish_reason", "detected_language", "language", "n_tokens", "k"]
    every = pl.from_arrow(read_slice(out, name, "samples", columns))
    assert isinstance(every, pl.DataFrame)
    frame = every.filter(pl.col("k") != GOLD)
    gold = len(every) - len(frame)
    ended, right = frame["finish_reason"], list(right_labels(name))
    return {
        "samples": len(frame),
        "tokens": int(frame["n_tokens"].sum()),
        "finished": int((ended == "stop").sum()),
        "cut_off": int((ended == "length").sum()),
        "in_language": int(frame["detected_language"].is_in(right).sum()) if right else None,
        **({"gold": gold} if gold else {}),
    }

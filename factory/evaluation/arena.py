"""arena: the models to be compared answer the same held-out questions, decoded alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from factory.artifacts import schemas, shards
from factory.artifacts.hashing import fingerprint
from factory.artifacts.shards import Shard
from factory.artifacts.tables import read_slice
from factory.config import REFERENCE
from factory.engines import Sampler, Sampling, chat_template, choose
from factory.engines.choose import EngineCache, EngineKnobs
from factory.errors import RecipeError
from factory.evaluation.models import Languages, contestants
from factory.language.confusion import count_english, count_lines, no_word_rate, pass_rates
from factory.language.detect import detect, detect_line, differs, matches, right_labels
from factory.language.english import english
from factory.stage.inputs import SliceSpec, StepInput, model_of
from factory.stage.job import Job, policy
from factory.stage.outcome import Outcome, counted, engines, greedy, spent
from factory.stage.stage import How, Stage, StageContext
from factory.training import probe


class ArenaHow(How, EngineKnobs):
    """`shard`: questions in a shard."""

    shard: int = Field(64, ge=1)


class Arena(Stage):
    """Answers of every model in `of`: a name under models:, or a stage that trains adapters
    (`dpo@0.5`: as they were after half of the steps; `dpo@*`: all that it keeps, and the end).
    Greedy unless `temperature` says otherwise, and the same for all of them whatever they are
    called. `n`: answers drawn to each question, over a temperature of 0. `languages`: those that
    a model was trained in (`own`), all of the recipe, or a list, which may go beyond the recipe's:
    questions are read in these too."""

    name: ClassVar[str] = "arena"
    kind: ClassVar[str] = "answers"
    repo: ClassVar[str] = "arena"
    instead_of_from: ClassVar[str] = "its answers must all be decoded alike; run it"
    version: ClassVar[int] = 3  # with the hash of the question and its judged lines
    row_wise: ClassVar[bool] = True

    of: Annotated[tuple[str, ...], REFERENCE] = ("policy", "dpo")
    languages: Languages = "own"
    max_tokens: int = Field(8192, ge=1)
    temperature: float = Field(0.0, ge=0)  # over 0 an answer is drawn
    top_p: float = Field(1.0, gt=0, le=1)  # from the likeliest tokens of so much probability
    n: int = Field(1, ge=1)
    stops: Literal["all", "config"] = "all"  # tokens that end an answer: as for generate
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float16|float32)$")
    how: ArenaHow = ArenaHow()

    @model_validator(mode="after")
    def _drawn(self) -> Arena:
        if self.n > 1 and not self.temperature:
            raise ValueError(f"n is {self.n}, and at temperature 0 all answers are the same one: "
                             "set a temperature, or leave n out")  # fmt: skip
        if self.top_p < 1 and not self.temperature:
            raise ValueError("top_p means nothing at temperature 0: set a temperature")
        return self

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        questions = context.rows("questions", self.name)
        specs = []
        for contestant in contestants(context, self.of, self.name):
            specs += [
                SliceSpec(
                    self.name,
                    f"{language}/{contestant.label}",
                    language,
                    (questions[language].as_input("questions"), *contestant.needs),
                )
                for language in contestant.languages(self.languages, context)
            ]
        self._served(dict.fromkeys(model_of(spec.name) for spec in specs))
        return specs

    def question_languages(self) -> tuple[str, ...]:
        return () if isinstance(self.languages, str) else self.languages

    def uses_seed(self, spec: SliceSpec) -> bool:
        return self.temperature > 0

    def expected_rows(self, rows: Mapping[str, int], spec: SliceSpec) -> int:
        return rows["questions"] * self.n

    def n_shards(self, rows: int, spec: SliceSpec) -> int:
        return -(-rows // (self.n * self.how.shard))

    def _served(self, labels: Collection[str]) -> None:
        """Refuse one name at a server for several models: they would all be the same."""
        if self.how.engine == "openai" and self.how.served_model is not None and len(labels) > 1:
            raise RecipeError(
                f"how.served_model is one name, and stages.{self.name} lets "
                f"{len(labels)} models answer: {', '.join(labels)}",
                "leave it out and serve each model by the name of its repo (adapters merged), or "
                "use engine: vllm, which loads a base once for all its adapters",
            )

    def run(self, job: Job) -> Outcome:
        questions = {s.name: job.reader(s.need("questions"), "prompts") for s in job.slices}
        specs = {spec.name: spec for spec in job.slices}
        todo = {name: self._todo(job, spec) for name, spec in specs.items()}
        # models that have questions left to answer
        models = {model_of(n): policy(job, spec) for n, spec in specs.items() if todo[n]}

        def opened(base: str) -> Sampler:
            alike = {label: model for label, model in models.items() if str(model[0].path) == base}
            for label, (_, adapter) in alike.items():
                if adapter is not None:
                    probe.refuse_unapplied(adapter, label)
            place = next(place for place, _ in alike.values())
            first, *adapters = dict.fromkeys(adapter for _, adapter in alike.values())
            name, rest = (
                place.name or place.path.name,
                [adapter for adapter in adapters if adapter is not None],
            )
            sampler = choose.sampler(self.how, place.path, name, self.dtype, first, rest)
            return choose.stopping(sampler, place.path, self.stops)

        with EngineCache(opened) as cache:

            def engine(label: str) -> Sampler:
                """Load a base once for all models made of it, which answer in turn."""
                place, adapter = models[label]
                sampler = cache(str(place.path))
                sampler.set_adapter(adapter)
                return sampler

            def make(shard: Shard) -> tuple[pa.Table, int]:
                rows = questions[shard.slice].rows(todo[shard.slice][shard.start : shard.stop])
                label = model_of(shard.slice)
                return self._make(engine(label), job.seed, label, rows)

            totals = job.make_shards(
                self.kind,
                {name: len(rows) for name, rows in todo.items()},
                self.how.shard,
                make,
                lanes=lambda shard: engine(model_of(shard.slice)).lanes,
                apart=lambda shard: model_of(shard.slice),
                spent=cache.tokens,
            )
        counts, stats = {}, {}
        for name, done in totals.items():
            table = read_slice(job.out, name, self.kind)
            counts[name] = counted(len(questions[name]) * self.n, len(table), done)
            stats[name] = _describe(table, str(specs[name].language))
        return Outcome(
            counts,
            determinism="distribution" if self.temperature else greedy(totals),
            stats={"by_slice": stats, "engines": engines(totals)},
            tokens=sum(figures["tokens"] for figures in stats.values()),
            spent=spent(totals),
        )

    def _todo(self, job: Job, spec: SliceSpec) -> list[int]:
        """Return the numbers of the questions of a slice that this model has not answered yet."""
        import polars as pl

        need = spec.need("questions")
        assert isinstance(need, StepInput)
        frame = pl.from_arrow(job.rows(need, "prompts", ["prompt_id", "prompt_hash"]))
        assert isinstance(frame, pl.DataFrame)
        questions = frame.rename({"prompt_id": "question_id"})
        if self.n > 1:
            draws = pl.DataFrame({"draw": range(self.n)})
            questions = questions.join(draws, how="cross", maintain_order="left")
        # all draws of a question are made together
        return sorted({row // self.n for row in job.missing(spec.name, self.kind, questions)})

    def _make(
        self, sampler: Sampler, seed: int, label: str, questions: Sequence[Mapping[str, Any]]
    ) -> tuple[pa.Table, int]:
        """Return one model's answers to some questions, and their tokens."""
        sampling = Sampling(self.temperature, self.top_p, self.max_tokens)
        ids: dict[int, list[int]] = {}
        for n, row in enumerate(questions):
            with suppress(chat_template.TemplateRefusal):  # `check` says why
                ids[n] = chat_template.prompt_ids(sampler.tokenizer, row["messages"])
        fits = [n for n, i in ids.items() if sampling.room(len(i), sampler.max_context)]
        # one seed a shard, from its first address, and the same for every model
        first = [seed, questions[0]["prompt_id"], questions[0]["language"]]
        stream = int(fingerprint(first), 16) % 2**31 if self.temperature else seed
        # all answers to a question one after another: an engine reads it once
        addresses = [(n, draw) for n in fits for draw in range(self.n)]
        drawn = sampler.sample([ids[n] for n, _ in addresses], sampling, stream)
        rows = []
        for (n, draw), sample in zip(addresses, drawn, strict=True):
            row = questions[n]
            decoded = sampler.tokenizer.decode(list(sample.token_ids), skip_special_tokens=True)
            answer = decoded.strip()
            code = row["language"]
            identify = partial(detect_line, code=code)
            lines = count_lines(answer, code, identify) if right_labels(code) else None
            rows.append(
                {
                    "model": label,
                    "question_id": row["prompt_id"],
                    "language": row["language"],
                    "category": row["domain"],
                    "subcategory": row["subcategory"],
                    "prompt": row["messages"],
                    "answer": answer,
                    "n_tokens": len(sample.token_ids),
                    "finish_reason": sample.finish_reason,
                    "detected_language": detect(answer, code),
                    "prompt_hash": row["prompt_hash"],
                    "lines": lines and lines[0],
                    "wrong_lines": lines and lines[1],
                    "draw": draw if self.n > 1 else None,
                }
            )
        dropped = {
            chat_template.REFUSED: (len(questions) - len(ids)) * self.n,
            "prompt_too_long": (len(ids) - len(fits)) * self.n,
        }
        table = shards.with_metadata(
            schemas.from_rows(rows, self.kind),
            engine=sampler.name,
            dropped={reason: count for reason, count in dropped.items() if count},
        )
        return table, sum(len(sample.token_ids) for sample in drawn)


def _describe(answers: pa.Table, language: str) -> dict[str, Any]:
    """Return the main figures of one model's answers in one language, for the card. The line pass
    rate is the share of answers without a line in another language; the word pass rate that of
    these without an English word. A rate that there is none of is None, the second with why."""
    detected = answers.column("detected_language").to_pylist()
    columns = [answers.column(name).to_pylist() for name in ("answer", "lines", "wrong_lines")]
    lines, words = pass_rates(
        (count, wrong, None if wrong else count_english(text, language, english))
        for text, count, wrong in zip(*columns, strict=True)
    )
    labels = right_labels(language)
    why = no_word_rate(language) or ("no_answer_to_judge" if words is None else None)
    why = why if labels else "no_detector"
    return {
        "answers": len(answers),
        "tokens": sum(answers.column("n_tokens").to_pylist()),
        "cut_off": answers.column("finish_reason").to_pylist().count("length"),
        "in_language": sum(matches(code, language) for code in detected) if labels else None,
        "other_language": sum(differs(code, language) for code in detected) if labels else None,
        "line_pass_rate": lines,
        "word_pass_rate": words,
        **({"no_word_pass_rate": why} if why else {}),
    }

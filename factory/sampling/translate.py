"""translate: a model carries prompts over into the languages that have none of their own.
translate_pairs: it carries preference pairs over."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from factory.artifacts import files, schemas, shards
from factory.artifacts.hashing import text_hash
from factory.artifacts.manifest import Rows
from factory.artifacts.shards import Shard
from factory.artifacts.tables import read_slice
from factory.config import EXTENT, GATE, REFERENCE
from factory.engines import Sampler, chat_template, choose
from factory.engines.choose import EngineCache, EngineKnobs
from factory.errors import FactoryError, RecipeError
from factory.language.detect import detect
from factory.language.languages import language
from factory.rewards.backends import missing_server, open_reward
from factory.rewards.backends.backend import Item, OpenReward, RewardSettings
from factory.sampling.chrf import chrf
from factory.sampling.quality import QUESTIONS, Quality, distribution
from factory.sampling.translation import Format, flaw, length_ratio, wording
from factory.sampling.translator import Sending, Translation, translate
from factory.stage.inputs import RewardInput, SliceSpec
from factory.stage.job import Job, policy
from factory.stage.outcome import AS_BEFORE, Outcome, engines, greedy, spent
from factory.stage.readers import address
from factory.stage.stage import How, Stage, StageContext

_NEVER_KEPT = ("markers", "too_long", "empty")  # reasons that leave nothing to keep
Made = tuple[dict[str, Any], dict[str, Any] | None]  # a row, and the record of its drop


class _Translating:
    """A translator, and the reward that rates what it makes, on engines that are open together."""

    def __init__(self, sampler: Sampler, rater: OpenReward | None) -> None:
        self.sampler, self.rater = sampler, rater
        self.lanes = min(sampler.lanes, rater.lanes) if rater else sampler.lanes

    @property
    def tokens(self) -> int:
        """Tokens drawn and read so far."""
        return self.sampler.tokens + (self.rater.tokens if self.rater else 0)

    def close(self) -> None:
        """Close both."""
        self.sampler.close()
        if self.rater:
            self.rater.close()


class TranslateHow(How, EngineKnobs):
    """`shard`: prompts in a shard."""

    shard: int = Field(256, ge=1)


class Translate(Stage):
    """Translations, greedy. By default every language of the recipe but the source language is
    translated into; with `languages` only these are, and the others come in through `prompts`."""

    name: ClassVar[str] = "translate"
    kind: ClassVar[str] = "prompts"
    repo: ClassVar[str] = "translate"
    instead_of_from: ClassVar[str] = "let prompts read what is translated already"
    row_wise: ClassVar[bool] = True

    model: Annotated[str, REFERENCE] = "translator"  # a name under models
    source_language: str = "en"
    languages: Annotated[tuple[str, ...] | None, REFERENCE] = None  # to translate into
    turns: Literal["first", "all"] = "first"  # CroCo asked the first user turn alone
    first: Annotated[int | None, EXTENT, Field(ge=1)] = None  # prompts, from the top
    format: Format = "chat"  # what the translator is told: see translation.TEMPLATES
    names: dict[str, str] = Field({})  # what the translator calls a language, where that is unusual
    max_tokens: int = Field(8192, ge=1)  # of a piece of translation; CroCo's
    chunk: int = Field(1024, ge=16)  # tokens of source at once: TranslateGemma was made for 2K
    # a text of more is cut into pieces; or a prompt whose request has more is dropped, as published
    over: Literal["chunk", "drop"] = "chunk"
    # fenced code, and what holds no letter: as it is, or translated like the rest, as published
    code: Literal["keep", "send"] = "keep"
    # a translation so many times as long as usual, or as short, is dropped; null: none
    length_ratio: float | None = Field(3.0, gt=1)
    # as published: what was cut off, copied or in another language
    keep_flawed: bool = False
    # of every translation, with or without a least one: {by: back, least: 40}
    quality: Quality | None = Field(None, exclude_if=lambda value: value is None)
    compare: Annotated[bool, GATE] = False  # with what people wrote, which prompts then reads
    dtype: str = Field("bfloat16", pattern="^(bfloat16|float16|float32)$")
    how: TranslateHow = TranslateHow()

    @model_validator(mode="after")
    def _paragraphs_are_pieces(self) -> Translate:
        if self.format == "completion" and (self.over, self.code) != ("chunk", "keep"):
            raise ValueError(
                "a completion model gets one paragraph at a time, and no code: leave over and code "
                "out"
            )
        return self

    @field_validator("source_language", "languages", "names", mode="after")
    @classmethod
    def _check_languages(cls, value: Any) -> Any:
        codes = [value] if isinstance(value, str) else value or ()
        for code in codes:
            try:
                language(code)
            except RecipeError as error:
                raise ValueError(f"{error.what}; {error.fix}") from None
        if len(set(codes)) < len(codes):
            raise ValueError("a language is there twice")
        return value

    def targets(self, languages: Sequence[str]) -> tuple[str, ...]:
        """Return the languages that are translated into, in a recipe that has `languages`."""
        if self.languages is not None:
            return self.languages
        return tuple(code for code in languages if code != self.source_language)

    def _checked_targets(self, context: StageContext) -> tuple[str, ...]:
        """Return the languages to translate into. Raises RecipeError for none, or the source's."""
        targets = self.targets(context.languages)
        if self.source_language in targets or not targets:
            raise RecipeError(
                f"stages.{self.name} has nothing to translate from {self.source_language} into",
                "give languages: at least one other than source_language",
            )
        for code in targets:  # raises for a language that the translator has no name for
            wording(self.format, self.source_language, code, self.names)
        return targets

    def native(self, languages: tuple[str, ...]) -> tuple[str, ...]:
        targets = self.targets(languages)
        untranslated = [code for code in languages if self.compare or code not in targets]
        more = [self.source_language, *(targets if self.compare else ())]
        return tuple(dict.fromkeys([*untranslated, *more]))

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        source_stage = context.stage("prompts", self.name)
        targets = self._checked_targets(context)
        used = set(targets) & set(context.languages)
        if used and self.turns == "first" and getattr(source_stage, "turns", "first") == "all":
            raise RecipeError(
                "stages.translate would leave all turns but the first out of the prompts",
                "say turns: all there too, or turns: first under stages.prompts",
            )
        prompts = context.rows("prompts", self.name)
        source = prompts[self.source_language]
        model, reward = context.policy(self.model, "model", self.name), self._reward(context)
        return [
            SliceSpec(
                self.name,
                code,
                code,
                (
                    source.as_input("prompts"),
                    *model,
                    *([prompts[code].as_input("reference")] if self.compare else []),
                    *(reward.needs if reward else ()),
                ),
                reward=reward,
            )
            for code in targets
        ]

    def _reward(self, context: StageContext) -> RewardInput | None:
        """Return the reward that rates translations, if one does. Raises RecipeError for one that
        says nothing of them."""
        if self.quality is None or self.quality.reward is None:
            return None
        roles = {"adapter": "adapter-quality"}
        reward = context.reward(self.quality.reward, self.name, roles)
        if reward.model.kind not in ("generative", "embedding"):
            raise RecipeError(
                f"stages.{self.name}.quality.reward names {self.quality.reward!r}, of kind "
                f"{reward.model.kind}, which says nothing of a translation",
                "name a reward of kind generative or embedding",
            )
        return reward

    def missing_requirements(self, specs: Sequence[SliceSpec]) -> list[FactoryError]:
        return missing_server(specs)

    def expected_rows(self, rows: Mapping[str, int], spec: SliceSpec) -> int:
        return min(rows["prompts"], self.first or rows["prompts"])

    def n_shards(self, rows: int, spec: SliceSpec) -> int:
        return -(-rows // self.how.shard)

    def identity_fields(self, spec: SliceSpec) -> dict[str, Any]:
        fields = super().identity_fields(spec)
        names = {code: name for code, name in self.names.items() if code in self._pair(spec)}
        if self.quality is not None:  # the reward is known by its content
            fields["quality"].pop("reward", None)
        return {name: value for name, value in fields.items() if name != "names"} | (
            {"names": names} if names else {}
        )

    def _pair(self, spec: SliceSpec) -> tuple[str, str]:
        return self.source_language, str(spec.language)

    def run(self, job: Job) -> Outcome:
        sources = {spec.name: self._source_rows(job, spec) for spec in job.slices}
        todo = {name: self._todo(job, name, rows) for name, rows in sources.items()}
        place, adapter = policy(job, job.slices[0])

        def opened(_: str) -> _Translating:
            name, rater = place.name or place.path.name, None
            how = self.how
            if (reward := job.slices[0].reward) is not None:  # both at once
                share = how.gpu_memory_utilization / 2
                how = how.model_copy(update={"gpu_memory_utilization": share})
                ask = QUESTIONS.get(getattr(reward.model, "scale", ""))
                settings = RewardSettings(how, self.dtype, 2 * self.max_tokens, ask)
                rater = open_reward(job, job.slices[0], settings)
            return _Translating(choose.sampler(how, place.path, name, self.dtype, adapter), rater)

        with EngineCache(opened) as engine:

            def make(shard: Shard) -> tuple[pa.Table, int]:
                rows = todo[shard.slice][shard.start : shard.stop]
                return self._make(engine(), job.work, shard, rows)

            totals = job.make_shards(
                self.kind,
                {name: len(rows) for name, rows in todo.items()},
                self.how.shard,
                make,
                lanes=lambda shard: engine().lanes,
                spent=engine.tokens,
            )
        counts, stats = {}, {}
        for spec in job.slices:
            name = spec.name
            rows = read_slice(job.out, name, self.kind).to_pylist()
            lost = _lost(job, name)
            dropped = Counter(str(row["reason"]) for row in lost)
            dropped[AS_BEFORE] += len(sources[name]) - len(rows) - len(lost)
            counts[name] = Rows(
                into=len(sources[name]), out=len(rows), dropped=dict(sorted((+dropped).items()))
            )
            stats[name] = self._describe(job, spec, sources[name], rows, lost)
            if lost:
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lost)
                files.write_atomically(_dropped(job.out, name), lines.encode())
        return Outcome(
            counts,
            determinism=greedy(totals),
            stats={"by_language": stats, "engines": engines(totals)}
            | ({"quality_kind": reward.model.kind} if (reward := job.slices[0].reward) else {}),
            template=None
            if self.format == "completion"
            else chat_template.read_contract(place.path),
            tokens=sum(total.tokens for total in totals.values()),
            spent=spent(totals),
        )

    def _make(
        self, opened: _Translating, work: Path, shard: Shard, prompts: Sequence[dict[str, Any]]
    ) -> tuple[pa.Table, int]:
        """Return the translations of some prompts, and their tokens."""
        sampler = opened.sampler
        translations = translate(
            [message["content"] for row in prompts for message in row["messages"]],
            wording(self.format, self.source_language, shard.slice, self.names),
            sampler,
            Sending(self.chunk, self.max_tokens, self.code == "send", self.over == "drop"),
        )
        parts = iter(translations)
        rows = [
            self._row(row, [next(parts) for _ in row["messages"]], shard.slice) for row in prompts
        ]
        cost = sum(part.n_tokens for part in translations)
        if self.quality is not None:
            values, more = self._values(opened, prompts, rows, shard.slice)
            rows = self._rated(self.quality, rows, values)
            cost += more
        # Before the shard: one that is there has said what it dropped.
        lost = [lost for _, lost in rows if lost]
        files.write_atomically(_notes(work, shard), json.dumps(lost).encode())
        good = [row for row, lost in rows if not lost]
        table = schemas.from_rows(good, self.kind, ("quality",) if self.quality else ())
        reasons = Counter(str(row["reason"]) for row in lost)
        table = shards.with_metadata(table, engine=sampler.name, dropped=dict(reasons))
        return table, cost

    def _values(
        self,
        opened: _Translating,
        prompts: Sequence[dict[str, Any]],
        rows: Sequence[Made],
        code: str,
    ) -> tuple[list[float | None], int]:
        """Return the quality of each translation that stays so far, and the tokens of finding it:
        what the reward says of it, or how it comes back. One that cannot be read has none."""
        texts = [
            ([m["content"] for m in prompt["messages"]],
             [m["content"] for m in self._messages(row)])
            for prompt, (row, lost) in zip(prompts, rows, strict=True)
            if not lost
        ]  # fmt: skip
        if opened.rater is not None:
            items: list[Item] = [
                ([{"role": "user", "content": source}], text)
                for sources, translations in texts
                for source, text in zip(sources, translations, strict=True)
            ]
            rewards = opened.rater.reward(items)
            ratings = iter([rating.value for rating in rewards])
            each = [[next(ratings) for _ in sources] for sources, _ in texts]
            known = [[v for v in values if v is not None] for values in each]
            means = [
                sum(some) / len(some) if len(some) == len(values) else None
                for some, values in zip(known, each, strict=True)
            ]
            return means, sum(rating.n_tokens for rating in rewards)
        again = translate(
            [text for _, translations in texts for text in translations],
            wording(self.format, code, self.source_language, self.names),
            opened.sampler,
            Sending(self.chunk, self.max_tokens, self.code == "send"),
        )
        parts, values = iter(again), []
        for sources, _ in texts:
            back = [next(parts) for _ in sources]
            failed = any(part.reason for part in back)
            both = zip((part.text for part in back), sources, strict=True)
            values.append(None if failed else chrf(both))
        return values, sum(part.n_tokens for part in again)

    def _rated(
        self, quality: Quality, rows: Sequence[Made], values: Sequence[float | None]
    ) -> list[Made]:
        """Return the translations with the quality of those that stay so far; one of too little is
        dropped."""
        each = iter(values)
        rated: list[Made] = []
        for row, lost in rows:
            if not lost:
                row["quality"] = value = next(each)
                if quality.least is not None and (value is None or value < quality.least):
                    text = _text(self._messages(row))
                    lost = self._record(row, "low_quality", text) | {"quality": value}
            rated.append((row, lost))
        return rated

    def _source_rows(self, job: Job, spec: SliceSpec) -> list[dict[str, Any]]:
        """Return the prompts to translate, with only the turns that are translated."""
        table = job.table(spec, "prompts", "prompts")
        rows: list[dict[str, Any]] = table.slice(0, self.first).to_pylist()
        if self.turns == "all":
            return rows
        return [row | {"messages": [_first(row["messages"])]} for row in rows]

    def _todo(self, job: Job, name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the prompts that no earlier artifact has a translation of."""
        import polars as pl

        frame = pl.DataFrame(
            {
                "prompt_id": [row["prompt_id"] for row in rows],
                "source_hash": [row["prompt_hash"] for row in rows],
            },
            schema={"prompt_id": pl.String, "source_hash": pl.String},
        )
        return [rows[number] for number in job.missing(name, self.kind, frame)]

    def _row(self, prompt: dict[str, Any], translations: Sequence[Translation], code: str) -> Made:
        """Return the row of one translated prompt, and the record of its drop, if it is dropped."""
        sources = [message["content"] for message in prompt["messages"]]
        reason = next((part.reason for part in translations if part.reason), None)
        cut = any(part.cut_off for part in translations)
        if reason is None and cut:
            reason = "cut_off"
        if reason is None:
            flaws = (
                flaw(source, part.text, (self.source_language, code), self.length_ratio)
                for source, part in zip(sources, translations, strict=True)
            )
            reason = next((name for name in flaws if name), None)
        if self.keep_flawed and reason not in _NEVER_KEPT:
            reason = None
        messages = [
            {"role": message["role"], "content": part.text}
            for message, part in zip(prompt["messages"], translations, strict=True)
        ]
        text = "\n".join(part.text for part in translations)
        row = {
            **address(prompt, messages, ""),
            "language": code,
            "messages": messages,
            "source_dataset": prompt["source_dataset"],
            "domain": prompt["domain"],
            "source_language": self.source_language,
            "source_hash": prompt["prompt_hash"],
            "finish_reason": "length" if cut else "stop",
            "detected_language": detect(text, code),
        }
        return row, self._record(row, reason, text) if reason else None

    def _record(self, row: dict[str, Any], reason: str, text: str) -> dict[str, Any]:
        """Return the record of a dropped translation."""
        keys = ("prompt_id", "finish_reason", "detected_language")
        return {**{key: row.get(key) for key in keys}, "reason": reason, "translation": text}

    def _messages(self, row: dict[str, Any]) -> list[dict[str, str]]:
        """Return all texts of a translated row, as those of its source are."""
        messages: list[dict[str, str]] = row["messages"]
        return messages

    def _describe(
        self,
        job: Job,
        spec: SliceSpec,
        sources: list[dict[str, Any]],
        rows: list[dict[str, Any]],
        lost: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """Return figures for the card; with references, chrF of the translations that stay and of
        all."""
        import statistics

        code = str(spec.language)
        translations = {row["prompt_id"]: _text(self._messages(row)) for row in rows}
        ratios = [
            length_ratio(_text(row["messages"]), translations[row["prompt_id"]], code)
            for row in sources
            if row["prompt_id"] in translations
        ]
        figures: dict[str, Any] = {
            "asked": len(sources),
            "kept": len(rows),
            "cut_off": sum(row.get("finish_reason") == "length" for row in rows),
            "unlabelled": sum(row.get("detected_language", "") is None for row in rows),
            **({"length_ratio": statistics.median(ratios)} if ratios else {}),
        }
        if self.quality is not None:
            figures["quality"] = distribution([row.get("quality") for row in (*rows, *lost)])
        if self.compare:
            everything = translations | {row["prompt_id"]: row["translation"] for row in lost}
            wrote = {
                row["prompt_id"]: _text(
                    row["messages"] if self.turns == "all" else [_first(row["messages"])]
                )
                for row in job.table(spec, "reference", "prompts").to_pylist()
            }
            sets = {"chrf_kept": translations, "chrf_all": everything}
            figures["compared"] = sum(name in wrote for name in everything)
            for name, texts in sets.items():
                figures[name] = chrf((texts[i], wrote[i]) for i in texts if i in wrote)
        return figures


class TranslatePairs(Translate):
    """Preference pairs translated, greedy: prompt, better and worse answer of each pair of
    `preferences`, as `translate` does prompts. dpo and sft read them as pairs. A pair is dropped
    if one of its texts is, or if its answers come out the same."""

    name: ClassVar[str] = "translate_pairs"
    kind: ClassVar[str] = "pairs"
    repo: ClassVar[str] = "translate-pairs"
    instead_of_from: ClassVar[str] = "let pair take in what is translated already"
    row_wise: ClassVar[bool] = False  # a pair has no column for what it was translated from

    turns: Literal["first", "all"] = "all"  # an answer is one to the whole prompt

    @model_validator(mode="after")
    def _whole_pairs(self) -> TranslatePairs:
        if self.from_ is not None:
            raise ValueError(f"cannot be taken in: {self.instead_of_from}")
        if self.turns != "all":
            raise ValueError("turns: all, since an answer is one to the whole prompt")
        if self.compare:
            raise ValueError("compare is for prompts: nobody wrote these pairs a second time")
        return self

    def native(self, languages: tuple[str, ...]) -> tuple[str, ...]:
        return languages

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        preferences = context.rows("preferences", self.name)
        targets = self._checked_targets(context)
        if self.source_language not in preferences:
            raise RecipeError(
                f"stages.{self.name} translates from {self.source_language}, and preferences are "
                f"in {', '.join(preferences)}",
                f"set source_language, or preferences.languages: [{self.source_language}]",
            )
        source = preferences[self.source_language].as_input("preferences")
        model, reward = context.policy(self.model, "model", self.name), self._reward(context)
        needs = (source, *model, *(reward.needs if reward else ()))
        return [SliceSpec(self.name, code, code, needs, reward=reward) for code in targets]

    def expected_rows(self, rows: Mapping[str, int], spec: SliceSpec) -> int:
        return min(rows["preferences"], self.first or rows["preferences"])

    def _source_rows(self, job: Job, spec: SliceSpec) -> list[dict[str, Any]]:
        """Return the pairs to translate, with all their texts as `messages`."""
        table = job.table(spec, "preferences", "preferences")
        pairs = table.slice(0, self.first).to_pylist()
        texts = [[*pair["prompt"], pair["chosen"][-1], pair["rejected"][-1]] for pair in pairs]
        return [
            {
                "prompt_id": pair["prompt_id"],
                "prompt_hash": text_hash(repr(messages)),
                "messages": messages,
                "source_dataset": None,
                "domain": None,
            }
            for pair, messages in zip(pairs, texts, strict=True)
        ]

    def _todo(self, job: Job, name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [] if job.reused(name, self.kind).whole else rows

    def _row(self, prompt: dict[str, Any], translations: Sequence[Translation], code: str) -> Made:
        row, lost = super()._row(prompt, translations, code)
        *prompt_messages, chosen, rejected = row["messages"]
        pair = {
            "prompt_id": row["prompt_id"],
            "id": row["prompt_id"],
            "prompt": prompt_messages,
            "chosen": [chosen],
            "rejected": [rejected],
            "prompt_language": code,
            "chosen_language": detect(chosen["content"]) or "und",
            "rejected_language": detect(rejected["content"]) or "und",
        }
        if lost is None and chosen["content"].strip() == rejected["content"].strip():
            lost = self._record(row, "same_text", chosen["content"])
        return pair, lost

    def _messages(self, row: dict[str, Any]) -> list[dict[str, str]]:
        return [*row["prompt"], *row["chosen"], *row["rejected"]]


def _lost(job: Job, name: str) -> list[dict[str, Any]]:
    """Return the records of the prompts dropped from a slice. Those of a slice that is reused as a
    whole are in the artifact that it comes from."""
    if job.reused(name, Translate.kind).whole:
        for earlier in job.earlier.get(name, ()):
            file = _dropped(earlier.path.parent.parent, name)
            if earlier.whole and file.exists():
                return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        return []
    own = [shard for shard in shards.read_grid(job.work).shards if shard.slice == name]
    paths = [path for shard in own if (path := _notes(job.work, shard)).exists()]
    return [lost for path in paths for lost in json.loads(path.read_bytes())]


def _notes(work: Path, shard: Shard) -> Path:
    return shard.file(work).with_suffix(".json")


def _dropped(root: Path, name: str) -> Path:
    """Return the file of an artifact with the prompts dropped from a slice."""
    return root / "dropped" / f"{name}.jsonl"


def _first(messages: Sequence[dict[str, str]]) -> dict[str, str]:
    return next(message for message in messages if message["role"] == "user")


def _text(messages: Sequence[dict[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages)

"""Base of the stages pair and best: select answers of each prompt by their scores.

No model is needed. While the rows of one slice are written, the next is being chosen.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, ValidationInfo, field_validator, model_validator

from factory.artifacts import schemas, tables
from factory.artifacts.manifest import Rows
from factory.artifacts.tables import slice_directory
from factory.config import REFERENCE
from factory.errors import RecipeError, nearest
from factory.pairs import augment
from factory.pairs.candidates import VOTES, Candidates
from factory.pairs.config import Budget, ChosenPoint, DropRules, Keep
from factory.pairs.shortage import shortage
from factory.stage.inputs import SliceSpec
from factory.stage.job import Job
from factory.stage.outcome import Outcome
from factory.stage.stage import Stage, StageContext

if TYPE_CHECKING:
    import polars as pl

    from factory.pairs.rules import Pairing, PairLimits

CROSS = "all_lang"  # the slice of the pool that holds all languages
Share = Annotated[float, Field(gt=0, le=1)]
First = Annotated[int, Field(ge=1)]
_WRITERS = 2  # slices being written at once; unpacking their texts is most of the work


@dataclass(frozen=True)
class SelectedPairs:
    """Selected pairs of one slice: rows without texts, drops by reason, figures."""

    rows: pl.DataFrame
    dropped: dict[str, int]
    figures: dict[str, Any]


class Selection(Stage):
    """`pool: all_lang` compares the answers to one prompt in all languages, `both` makes that set
    beside those of single languages; `normalize: zscore` then compares scores in deviations of
    their language, and `ties` says which of equal scores is first: the lowest k, then the first
    language of the recipe, or the other way round, as CroCo's files do. Answers that people wrote
    (k -1) join the pool with `gold`. With `vote` the score of an answer is the share of all answers
    to its prompt, in every language, that say the same in the end (CALM, arXiv 2501.18457)."""

    reads: ClassVar[tuple[str, ...]] = ("scores", "samples", "prompts")

    pool: Annotated[Literal["in_lang", "all_lang", "both"], REFERENCE] = "in_lang"
    chosen: ChosenPoint = "max"  # which of the pool
    normalize: Literal["none", "zscore"] = "none"
    ties: Literal["k", "language"] = "k"  # what decides between equal scores
    gold: bool = False
    # what an answer says in the end, as a regular expression: its last match, or the first group of
    # that. The answers of all languages then vote, and no stage score is needed
    vote: str | None = Field(None, min_length=1)
    budget: Budget | None = None  # of tokens
    # of the rows that are left: about this share, drawn at random, or one by the language of the
    # prompt (languages that are not named stay whole)
    share: Share | dict[str, Share] | None = None
    first: First | dict[str, First] | None = None  # then at most so many, by prompt_id

    # fields that in_lang slices do not have
    _cross: ClassVar[tuple[str, ...]] = ("normalize", "ties")
    _sides: ClassVar[dict[str, str]]  # side to the column of its text

    @field_validator("share", "first", mode="before")
    @classmethod
    def _by_language(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a wrong number of one language by its code."""
        share = info.field_name == "share"
        for code, one in value.items() if isinstance(value, dict) else ():
            number = isinstance(one, int | float if share else int) and not isinstance(one, bool)
            if not number or one <= 0 or (share and one > 1):
                a = "share, over 0 and at most 1" if share else "whole number of 1 or more"
                raise ValueError(f"{code}: {one!r} is no {a}")
        return value

    @field_validator("vote")
    @classmethod
    def _matches(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _cross_lingual_alone(self) -> Selection:
        for name in self._cross:
            default = type(self).model_fields[name].default
            if self.pool == "in_lang" and getattr(self, name) != default:
                raise ValueError(f"{name} is for pool: all_lang or both")
        if self.vote is not None and self.normalize != "none":
            raise ValueError("normalize is for rewards, and with vote there are none")
        keeps = self._keeps().values()
        bounds = [bound for keep in keeps for bound in (keep.reward_above, keep.reward_below)]
        of_scores = (self.budget, self._drops.disagreement_above, *bounds)
        if self.vote is not None and any(knob is not None for knob in of_scores):
            raise ValueError(
                "budget, drop.disagreement_above and bounds of the reward are for scores, which "
                "vote does not read"
            )
        return self

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        if self.gold and not any(
            stage.from_ or "gold" in getattr(stage, "columns", {})
            for name, stage in context.stages.items()
            if name in ("prompts", "generate", "score")
        ):
            raise RecipeError(
                f"stages.{self.name}.gold: no answer is gold",
                "name the column of answers that people wrote: prompts: {columns: {gold: theirs}}",
            )
        rewards = getattr(context.stages.get("score"), "reward", "")
        if self._drops.disagreement_above is not None and isinstance(rewards, str):
            raise RecipeError(
                f"stages.{self.name}.drop.disagreement_above is for several rewards, and "
                "stages.score has one",
                "write score: {reward: [one, another]}, or take it out",
            )
        for name in ("share", "first"):
            knob = getattr(self, name)
            for code in knob if isinstance(knob, dict) else ():
                if code not in context.languages:
                    raise RecipeError(
                        f"stages.{self.name}.{name} names {code!r}, no language of the recipe"
                        f"{nearest(code, context.languages)}",
                        f"its languages are {', '.join(context.languages)}",
                    )
        generate = context.stages.get("generate")
        several = self.gold or any(getattr(generate, name, ()) for name in ("also", "answers"))
        if not several and any(keep.source != "any" for keep in self._keeps().values()):
            raise RecipeError(
                f"stages.{self.name}.keep.source is for answers of several sources, and there is "
                "one",
                "name others in generate: {also: {other: 4}} or {answers: [theirs]}",
            )
        single = self._single(context)
        every = tuple(need for spec in single for need in spec.needs)
        cross = [SliceSpec(self.name, CROSS, None, tuple(n for n in every if n.role != VOTES))]
        return {"in_lang": single, "all_lang": cross, "both": single + cross}[self.pool]

    def _single(self, context: StageContext) -> list[SliceSpec]:
        """Return the slices of single languages. Where answers vote, those of the other languages
        are read beside them, and scores are not."""
        if self.vote is None:
            return super().plan_slices(context)
        samples, prompts = (context.rows(kind, self.name) for kind in ("samples", "prompts"))
        codes = [code for code in context.languages if code in samples]
        own = {
            code: (samples[code].as_input("samples"), prompts[code].as_input("prompts"))
            for code in codes
        }
        return [
            SliceSpec(
                self.name,
                code,
                code,
                (*own[code], *(samples[o].as_input(VOTES) for o in codes if o != code)),
            )
            for code in codes
        ]

    def expected_rows(self, rows: Mapping[str, int], spec: SliceSpec) -> int:
        return rows["prompts"]

    def shortage(self, rows: Rows, figures: Mapping[str, Any]) -> tuple[str, str]:
        return shortage(self.name, rows, figures)

    def identity_fields(self, spec: SliceSpec) -> dict[str, Any]:
        fields = super().identity_fields(spec)
        single = self._cross if spec.language else ()
        return {name: value for name, value in fields.items() if name not in single}

    def run(self, job: Job) -> Outcome:
        done = self.make(job)
        return Outcome(
            {name: rows for name, (_, rows) in done.items()},
            determinism="exact",
            stats={"by_slice": {name: figures for name, (figures, _) in done.items()}},
        )

    def make(self, job: Job) -> dict[str, tuple[dict[str, Any], Rows]]:
        """Write the files of every slice. Returns figures and row counts of each."""
        done: dict[str, tuple[dict[str, Any], Rows]] = {}
        writing: deque[Future[tuple[SliceSpec, SelectedPairs, int]]] = deque()

        def finish(limit: int) -> None:
            while len(writing) > limit:
                spec, selected, out = writing.popleft().result()
                n_in = out + sum(selected.dropped.values())
                rows = Rows(into=n_in, out=out, dropped=selected.dropped)
                done[spec.name] = (selected.figures, rows)
                job.progress(len(done), len(job.slices), "languages")

        with ThreadPoolExecutor(_WRITERS, "write") as writers:
            for spec in job.slices:
                candidates = Candidates(job, spec)
                selected = self.find(candidates)
                finish(_WRITERS - 1)  # no slice waits for a writer: memory is bounded
                writing.append(writers.submit(self._write, candidates, selected))
            finish(0)
        return done

    def find(self, candidates: Candidates) -> SelectedPairs:
        """Select pairs in one slice, without gathering texts."""
        import polars as pl

        from factory.pairs import statistics

        seed, codes = candidates.job.seed, candidates.codes
        answers = candidates.pool(self.gold)
        objections = {side: keep.objections() for side, keep in self._keeps().items()}
        answers = answers.with_columns(
            may_choose=~pl.any_horizontal(pl.lit(False), *objections["chosen"].values()),
            may_reject=~pl.any_horizontal(pl.lit(False), *objections.get("rejected", {}).values()),
        )
        answers, more = self._scaled(answers, candidates)
        result = self._select(answers)
        dropped = dict(result.dropped)
        if absent := len(candidates.prompt_ids) - answers["prompt_id"].n_unique():
            dropped["no_samples"] = absent
        rows = result.pairs.with_columns(pl.col("prompt_id").cast(pl.String))
        rows = self._prompted(rows, candidates.prompts, seed, codes)
        rows = self._sized(rows, seed, codes, dropped)
        budget = self.budget.tokens if self.budget else None
        figures = statistics.describe(answers, rows, codes, objections, budget) | more
        return SelectedPairs(self._augmented(rows, answers), dropped, figures)

    def _sized(
        self, rows: pl.DataFrame, seed: int, codes: list[str], dropped: dict[str, int]
    ) -> pl.DataFrame:
        """Return `share` and then `first` of the rows; what they leave out is counted."""
        import polars as pl

        from factory.pairs.normalize import draws

        for name, knob in (("share", self.share), ("first", self.first)):
            if knob is None:
                continue
            by_code = knob if isinstance(knob, dict) else dict.fromkeys(codes, knob)
            limits = pl.Series("limit", [by_code.get(code) for code in codes], pl.Float64)
            k = pl.Series("k", [1], pl.Int64).new_from_index(0, len(rows))
            languages = rows["prompt_language"]
            place = (
                draws(seed, rows["prompt_id"], languages, k, codes) / 2**64
                if name == "share"
                else rows.select(pl.int_range(pl.len()).over("prompt_language")).to_series()
            )
            limit = limits[languages]
            kept_rows = rows.filter(limit.is_null() | (place < limit))
            if len(kept_rows) < len(rows):
                dropped[f"beyond_{name}"] = len(rows) - len(kept_rows)
            rows = kept_rows
        return rows

    def uses_seed(self, spec: SliceSpec) -> bool:
        return self.share is not None

    def _augmented(self, rows: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
        """Return the rows as they are written, of which a pair may have several."""
        return rows

    def _write(
        self, candidates: Candidates, selected: SelectedPairs
    ) -> tuple[SliceSpec, SelectedPairs, int]:
        """Write the file of one slice. Returns its number of rows."""
        import polars as pl

        rows, spec = selected.rows, candidates.spec
        ids = f"{self.name}/{spec.name}/" + rows["prompt_id"]
        messages = candidates.messages(rows)
        if "target" in rows:
            ids = ids + pl.Series(["", "/lower"], dtype=pl.String)[rows["turn"]]
            messages = augment.asking_for(messages, rows["target"].to_list())
        columns = {
            **self._columns(rows, candidates.codes),
            "prompt_id": rows["prompt_id"].to_arrow(),
            "id": ids.to_arrow(),
            "prompt": messages,
            **candidates.texts(rows, self._sides),
        }
        table = schemas.conform(pa.table(columns), self.kind, f"{self.name} {spec.name}")
        tables.write_slice(slice_directory(candidates.job.out, spec.name), table)
        return spec, selected, len(table)

    @property
    def _drops(self) -> DropRules:
        """Return the reasons to drop what the rule selected."""
        raise NotImplementedError

    def _keeps(self) -> Mapping[str, Keep]:
        """Return the filters of each side."""
        raise NotImplementedError

    def _scaled(
        self, answers: pl.DataFrame, candidates: Candidates
    ) -> tuple[pl.DataFrame, dict[str, Any]]:
        """Return the pool with the scores that are compared, and figures about them."""
        from factory.pairs.normalize import zscored
        from factory.pairs.votes import by_vote

        if self.vote is not None:
            return by_vote(self.vote, answers, candidates)
        across = self.normalize == "zscore" and candidates.spec.language is None
        return (zscored(answers) if across else answers), {}

    def _select(self, answers: pl.DataFrame) -> Pairing:
        raise NotImplementedError

    def _prompted(
        self, rows: pl.DataFrame, prompts: pl.DataFrame, seed: int, codes: list[str]
    ) -> pl.DataFrame:
        """Return the rows with the language of their prompt, as a number."""
        return rows.with_columns(prompt_language="chosen_language")

    def _columns(self, rows: pl.DataFrame, codes: list[str]) -> dict[str, Any]:
        """Return the columns of the output that hold no text."""
        return {name: rows[name].to_arrow() for name in ("pool_size", "pool_mean", "pool_std")}

    def _limits(self) -> PairLimits:
        from factory.pairs.rules import PairLimits

        dropping = self.budget is not None and self.budget.over == "drop"
        return PairLimits(
            **self._drops.model_dump(),
            over_budget=self.budget.tokens if self.budget and dropping else None,
        )


def coded(numbers: pl.Series, codes: list[str]) -> pa.Array:
    """Return the codes of languages that are given as numbers."""
    import polars as pl

    return pl.Series(codes)[numbers].to_arrow()

"""pair and best: which answer is preferred to which, and which is the best, prompt by prompt.

No model is needed. Both read scores and the light columns of samples; texts are gathered only
for the answers that were found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from factory import schemas, shards
from factory.artifact import Rows
from factory.errors import InputError
from factory.knobs import REFERENCE
from factory.languages import language
from factory.stages.contract import Read, Scope, SliceSpec, Stage
from factory.stages.job import Job, Outcome, slice_directory
from factory.strategies import (
    Budget,
    ChosenPoint,
    Drop,
    DropPair,
    Keep,
    KeepSides,
    MinOf,
    RejectedPoint,
    Sigma,
    place,
)

if TYPE_CHECKING:
    import polars as pl

    from factory.pairing import Limits, Pairing

_UPSTREAM = {"scores": "score", "samples": "generate", "prompts": "prompts"}  # role: stage
CROSS = "all_lang"  # the slice of the pool that holds all languages
FIGURE = "anatomy.png"
# the columns that are read for every answer
_LIGHT = {
    "scores": ("prompt_id", "k", "response_hash", "reward", "n_tokens"),
    "samples": ("prompt_id", "k", "response_hash", "finish_reason", "detected_language",
                "n_chars", "n_tokens"),
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What was found in one slice: rows without texts, drops by reason, figures."""

    rows: pl.DataFrame
    dropped: dict[str, int]
    figures: dict[str, Any]


class _Choosing(Stage):
    """What pair and best share. `pool: all_lang` compares the answers to one prompt in all
    languages, `both` makes that set beside those of single languages; `normalize: zscore` then
    compares scores in deviations of their language. Answers that people wrote (k -1) join the
    pool with `gold`."""

    pool: Annotated[Literal["in_lang", "all_lang", "both"], REFERENCE] = "in_lang"
    chosen: ChosenPoint = "max"
    normalize: Literal["none", "zscore"] = "none"
    gold: bool = False
    budget: Budget | None = None

    _cross: ClassVar[tuple[str, ...]] = ("normalize",)  # fields that in_lang slices do not have
    _sides: ClassVar[dict[str, str]]  # side to the column of its text

    @model_validator(mode="after")
    def _cross_lingual_alone(self) -> _Choosing:
        for name in self._cross:
            default = type(self).model_fields[name].default
            if self.pool == "in_lang" and getattr(self, name) != default:
                raise ValueError(f"{name} is for pool: all_lang or both")
        return self

    def slices(self, scope: Scope) -> list[SliceSpec]:
        upstream = {
            role: {spec.name: spec for spec in scope.slices(stage, self.name)}
            for role, stage in _UPSTREAM.items()
        }

        def reads(name: str) -> tuple[Read, ...]:
            return tuple(Read(role, specs[name].step, name) for role, specs in upstream.items())

        names = {name: spec.language for name, spec in upstream["scores"].items()}
        found = [SliceSpec(self.name, name, code, reads(name)) for name, code in names.items()]
        every = tuple(read for name in names for read in reads(name))
        cross = [SliceSpec(self.name, CROSS, None, every)]
        return {"in_lang": found, "all_lang": cross, "both": found + cross}[self.pool]

    def asks(self, rows: Mapping[str, int]) -> int:
        return rows["prompts"]

    def semantic(self, spec: SliceSpec) -> dict[str, Any]:
        fields = super().semantic(spec)
        single = self._cross if spec.language else ()
        return {name: value for name, value in fields.items() if name not in single}

    def run(self, job: Job) -> Outcome:
        from factory import figures

        done = self.make(job)
        with shards.replacing(job.out / FIGURE) as path:
            figures.draw_anatomy(path, done)
        return Outcome(
            {name: rows for name, (_, rows) in done.items()},
            determinism="exact",
            stats={"by_slice": {name: found for name, (found, _) in done.items()}},
        )

    def make(self, job: Job) -> dict[str, tuple[dict[str, Any], Rows]]:
        """The files of every slice; returns figures and counts of each."""
        done = {}
        for spec in job.slices:
            found = self.find(job, spec)
            table = self._table(job, spec, found.rows)
            shards.write_slice(slice_directory(job.out, spec.name), table)
            asked = len(table) + sum(found.dropped.values())
            rows = Rows(into=asked, out=len(table), dropped=found.dropped)
            done[spec.name] = (found.figures, rows)
            job.progress(len(done), len(job.slices), "languages")
        return done

    def find(self, job: Job, spec: SliceSpec) -> Found:
        """Choose in one slice, without gathering a text."""
        import polars as pl

        from factory import anatomy

        parts = _parts(spec)
        prompts = _prompt_places(job, parts)
        ids = prompts["prompt_id"].unique().sort()
        answers = self._answers(job, parts, pl.Enum(ids))
        if answers["prompt_id"].null_count():
            raise InputError(
                f"{self.name} {spec.name}: answers to prompts that are not there",
                "samples and prompts are of different versions: generate again",
            )
        objections = {side: keep.objections() for side, keep in self._keeps().items()}
        answers = answers.with_columns(
            may_choose=~pl.any_horizontal(pl.lit(False), *objections["chosen"].values()),
            may_reject=~pl.any_horizontal(pl.lit(False), *objections.get("rejected", {}).values()),
        )
        answers, more = self._scaled(answers, spec, job.seed, list(parts))
        result = self._select(answers)
        dropped = dict(result.dropped)
        if absent := len(ids) - answers["prompt_id"].n_unique():
            dropped["no_samples"] = absent
        rows = result.pairs.with_columns(pl.col("prompt_id").cast(pl.String))
        rows = self._prompted(rows, prompts, job.seed, list(parts))
        budget = self.budget.tokens if self.budget else None
        figures = anatomy.describe(answers, rows, list(parts), objections, budget) | more
        return Found(rows, dropped, figures)

    def _answers(self, job: Job, parts: _Parts, ids: pl.Enum) -> pl.DataFrame:
        """The pool of a slice. Ids become numbers language by language, so that the strings of
        one language at a time are in memory."""
        import polars as pl

        from factory import pairing

        return pl.concat(
            pairing.pool(
                job.rows(reads["scores"], "scores", _LIGHT["scores"]),
                job.rows(reads["samples"], "samples", _LIGHT["samples"]),
                language(code).accepted,
                number,
                self.gold,
            ).with_columns(pl.col("prompt_id").cast(ids, strict=False))
            for number, (code, reads) in enumerate(parts.items())
        )

    def _keeps(self) -> Mapping[str, Keep]:
        """Who may stand on which side."""
        raise NotImplementedError

    def _scaled(
        self, answers: pl.DataFrame, spec: SliceSpec, seed: int, codes: list[str]
    ) -> tuple[pl.DataFrame, dict[str, Any]]:
        """The pool with the scores that are to be compared, and figures of what that took."""
        from factory.scales import zscored

        wanted = self.normalize == "zscore" and spec.language is None
        return (zscored(answers) if wanted else answers), {}

    def _select(self, answers: pl.DataFrame) -> Pairing:
        raise NotImplementedError

    def _prompted(
        self, rows: pl.DataFrame, prompts: pl.DataFrame, seed: int, codes: list[str]
    ) -> pl.DataFrame:
        """The rows with the language their prompt is given in, as a number."""
        return rows.with_columns(prompt_language="chosen_language")

    def _columns(self, rows: pl.DataFrame, codes: list[str]) -> dict[str, Any]:
        """The columns of the output that hold no text."""
        raise NotImplementedError

    def _limits(self, drop: Drop) -> Limits:
        from factory.pairing import Limits

        dropping = self.budget is not None and self.budget.over == "drop"
        return Limits(
            **drop.model_dump(),
            over_budget=self.budget.tokens if self.budget and dropping else None,
        )

    def _table(self, job: Job, spec: SliceSpec, rows: pl.DataFrame) -> pa.Table:
        """Rows with the texts of their prompts and answers."""
        parts = _parts(spec)
        columns = {
            **self._columns(rows, list(parts)),
            "prompt_id": rows["prompt_id"].to_arrow(),
            "id": (f"{self.name}/{spec.name}/" + rows["prompt_id"]).to_arrow(),
            "prompt": _messages(job, parts, rows),
            **_texts(job, parts, rows, self._sides),
        }
        return schemas.conform(pa.table(columns), self.kind, f"{self.name} {spec.name}")


class Pair(_Choosing):
    """Preference pairs. Chosen is the best of the pool; rejected is nearest to mean - 2 sigma
    (CroCo, after arXiv 2502.16825) among those below it. The prompt of a cross-lingual pair is in
    the language of one of its sides, or in a random one that it exists in. `length_control`: scores
    less alpha a character, as in ICR (arXiv 2503.04647), for the highest against the lowest."""

    name: ClassVar[str] = "pair"
    kind: ClassVar[str] = "pairs"
    repo: ClassVar[str] = "pair"

    rejected: RejectedPoint = Sigma(sigma=-2.0)
    keep: KeepSides = Field(default=KeepSides())
    drop: DropPair = DropPair()
    prompt_language: Literal["chosen", "rejected", "random"] = "chosen"
    length_control: bool = False

    _cross: ClassVar[tuple[str, ...]] = ("normalize", "prompt_language")
    _sides: ClassVar[dict[str, str]] = {"chosen": "chosen", "rejected": "rejected"}

    @model_validator(mode="after")
    def _one_lies_below_the_other(self) -> Pair:
        chosen, rejected = self.chosen, self.rejected
        if (
            isinstance(chosen, Sigma)
            and isinstance(rejected, Sigma)
            and rejected.sigma >= chosen.sigma
        ):
            raise ValueError(
                f"rejected at {rejected.sigma:+g} sigma does not lie below chosen at "
                f"{chosen.sigma:+g}"
            )
        if self.length_control and (chosen, rejected, self.pool) != ("max", "min", "in_lang"):
            raise ValueError("length_control is for chosen: max, rejected: min, pool: in_lang")
        return self

    def draws(self, spec: SliceSpec) -> bool:
        random = spec.language is None and self.prompt_language == "random"
        return random or isinstance(self.rejected, MinOf)

    def _keeps(self) -> Mapping[str, Keep]:
        return {"chosen": self.keep.chosen, "rejected": self.keep.rejected}

    def _scaled(
        self, answers: pl.DataFrame, spec: SliceSpec, seed: int, codes: list[str]
    ) -> tuple[pl.DataFrame, dict[str, Any]]:
        from factory import scales

        answers, more = super()._scaled(answers, spec, seed, codes)
        if self.length_control:
            answers, alpha = scales.length_controlled(answers)
            more = {"alpha": alpha}
        if isinstance(self.rejected, MinOf):
            answers = answers.with_columns(
                scales.draws(seed, answers["prompt_id"], answers["language"], answers["k"], codes)
            )
        return answers, more

    def _select(self, answers: pl.DataFrame) -> Pairing:
        from factory.pairing import Rule, pair

        rule = Rule(
            place(self.chosen),
            "min" if isinstance(self.rejected, MinOf) else place(self.rejected),
            self.rejected.min_of if isinstance(self.rejected, MinOf) else None,
        )
        return pair(answers, rule, self._limits(self.drop))

    def _prompted(
        self, rows: pl.DataFrame, prompts: pl.DataFrame, seed: int, codes: list[str]
    ) -> pl.DataFrame:
        import polars as pl

        from factory import scales

        if self.prompt_language != "random":
            return rows.with_columns(prompt_language=f"{self.prompt_language}_language")
        k = pl.Series("k", [0], pl.Int64).new_from_index(0, len(prompts))
        drawn = prompts.with_columns(
            scales.draws(seed, prompts["prompt_id"], prompts["language"], k, codes)
        )
        first = drawn.sort("prompt_id", "draw").unique(
            "prompt_id", keep="first", maintain_order=True
        )
        return rows.join(
            first.select("prompt_id", prompt_language="language"),
            on="prompt_id",
            maintain_order="left",
        )

    def _columns(self, rows: pl.DataFrame, codes: list[str]) -> dict[str, Any]:
        columns: dict[str, Any] = {
            **_pool_columns(rows),
            "prompt_language": _coded(rows["prompt_language"], codes),
        }
        for side in self._sides:
            columns |= {
                f"{side}_language": _coded(rows[f"{side}_language"], codes),
                f"{side}_k": rows[f"{side}_k"].to_arrow(),
                f"{side}_tokens": rows[f"{side}_n_tokens"].to_arrow(),
                f"score_{side}": rows[f"{side}_score"].to_arrow(),
                f"reward_{side}": rows[f"{side}_reward"].to_arrow(),
            }
        return columns


class Best(_Choosing):
    """Best-of-n for SFT: the chosen side of pair without a second answer, one a prompt."""

    name: ClassVar[str] = "best"
    kind: ClassVar[str] = "sft"
    repo: ClassVar[str] = "best"

    keep: Keep = Keep(finished=True, language="match")
    drop: Drop = Drop()

    _sides: ClassVar[dict[str, str]] = {"chosen": "completion"}

    def _keeps(self) -> Mapping[str, Keep]:
        return {"chosen": self.keep}

    def _select(self, answers: pl.DataFrame) -> Pairing:
        from factory.pairing import best

        return best(answers, place(self.chosen), self._limits(self.drop))

    def _columns(self, rows: pl.DataFrame, codes: list[str]) -> dict[str, Any]:
        return {
            **_pool_columns(rows),
            "language": _coded(rows["chosen_language"], codes),
            "k": rows["chosen_k"].to_arrow(),
            "n_tokens": rows["chosen_n_tokens"].to_arrow(),
            "score": rows["chosen_score"].to_arrow(),
            "reward": rows["chosen_reward"].to_arrow(),
        }


_Parts = dict[str, dict[str, Read]]  # what is read, by language and role


def _parts(spec: SliceSpec) -> _Parts:
    found: _Parts = {}
    for need in spec.needs:
        if isinstance(need, Read):
            found.setdefault(need.slice, {})[need.role] = need
    return found


def _pool_columns(rows: pl.DataFrame) -> dict[str, Any]:
    return {name: rows[name].to_arrow() for name in ("pool_size", "pool_mean", "pool_std")}


def _coded(numbers: pl.Series, codes: list[str]) -> pa.Array:
    """Languages by their codes."""
    import polars as pl

    return pl.Series(codes)[numbers].to_arrow()


def _prompt_places(job: Job, parts: _Parts) -> pl.DataFrame:
    """prompt_id and language of every prompt of a slice, in the order that it is read in."""
    import polars as pl

    return pl.concat(
        pl.DataFrame(job.rows(reads["prompts"], "prompts", ("prompt_id",))).with_columns(
            language=pl.lit(number, pl.UInt8)
        )
        for number, reads in enumerate(parts.values())
    )


def _messages(job: Job, parts: _Parts, rows: pl.DataFrame) -> pa.ChunkedArray:
    """The conversation that each row's prompt is, in its language."""
    there = _prompt_places(job, parts).with_row_index("at")
    at = rows.select("prompt_id", language="prompt_language").join(
        there, on=["prompt_id", "language"], how="left", maintain_order="left"
    )["at"]
    texts = [job.rows(reads["prompts"], "prompts", ("messages",)) for reads in parts.values()]
    return pa.concat_tables(texts).column(0).take(at.to_arrow())


def _texts(
    job: Job, parts: _Parts, rows: pl.DataFrame, sides: Mapping[str, str]
) -> dict[str, pa.Array]:
    """The answers on each side, in the order of `rows`; no other text is gathered."""
    import numpy as np
    import polars as pl

    at = np.concatenate([rows[f"{side}_row"].to_numpy() for side in sides])
    spoken = np.concatenate([rows[f"{side}_language"].to_numpy() for side in sides])
    order = np.argsort(spoken, kind="stable")
    found = pl.concat(
        job.pick(reads["samples"], "response", at[spoken == number])
        for number, reads in enumerate(parts.values())
    )
    texts = found[np.argsort(order, kind="stable")]
    return {
        column: schemas.said("assistant", texts.slice(number * len(rows), len(rows)))
        for number, column in enumerate(sides.values())
    }

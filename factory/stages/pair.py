"""pair: which answer is preferred to which, prompt by prompt. No model is needed."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import Field

from factory import schemas, shards
from factory.artifact import Rows
from factory.language_id import matches
from factory.pairing import pair
from factory.stages.contract import (
    Job,
    Knobs,
    Outcome,
    Read,
    Scope,
    SliceSpec,
    Stage,
    slice_directory,
)

_UPSTREAM = {"scores": "score", "samples": "generate", "prompts": "prompts"}  # role: stage


class Keep(Knobs):
    """Who may stand on one side of a pair: only answers that ended by themselves (`finished`),
    only those in the prompt's language (`match`)."""

    finished: bool = False
    language: Literal["any", "match"] = "any"


class KeepSides(Knobs):
    """Filters of both sides. A chosen answer teaches what to say, so it must be whole and in the
    right language; a rejected one may be anything."""

    chosen: Keep = Keep(finished=True, language="match")
    rejected: Keep = Keep()


class Sigma(Knobs):
    """A point of the pool's distribution: mean + `sigma` standard deviations."""

    sigma: float


class Pair(Stage):
    """Preference pairs. Chosen is the best of the pool; rejected is nearest to mean - 2 sigma
    (CroCo, after arXiv 2502.16825) among those below it."""

    name: ClassVar[str] = "pair"
    kind: ClassVar[str] = "pairs"
    repo: ClassVar[str] = "pair"

    rejected: Sigma = Sigma(sigma=-2.0)
    keep: KeepSides = Field(default=KeepSides())

    def slices(self, scope: Scope) -> list[SliceSpec]:
        upstream = {
            role: {spec.name: spec for spec in scope.slices(stage, self.name)}
            for role, stage in _UPSTREAM.items()
        }
        return [
            SliceSpec(
                self.name,
                name,
                spec.language,
                tuple(Read(role, specs[name].step, name) for role, specs in upstream.items()),
            )
            for name, spec in upstream["scores"].items()
        ]

    def run(self, job: Job) -> Outcome:
        counts, stats = {}, {}
        for number, spec in enumerate(job.slices):
            table, dropped, figures = self._pair(job, spec)
            asked = len(table) + sum(dropped.values())
            shards.write_slice(slice_directory(job.out, spec.name), table)
            counts[spec.name] = Rows(into=asked, out=len(table), dropped=dropped)
            stats[spec.name] = figures
            job.progress(number + 1, len(job.slices), "languages")
        return Outcome(counts, determinism="exact", stats={"by_language": stats})

    def _pair(self, job: Job, spec: SliceSpec) -> tuple[Any, dict[str, int], dict[str, float]]:
        language = str(spec.language)
        samples = pl.from_arrow(job.table(spec, "samples", "samples"))
        scores = pl.from_arrow(job.table(spec, "scores", "scores"))
        assert isinstance(samples, pl.DataFrame) and isinstance(scores, pl.DataFrame)
        pool = scores.join(
            samples.select(
                "prompt_id",
                "k",
                "response_hash",
                "finish_reason",
                "detected_language",
                not_empty=pl.col("n_chars") > 0,
            ),
            on=["prompt_id", "k", "response_hash"],
            how="inner",
        ).with_columns(
            may_choose=self._allowed(self.keep.chosen, language) & pl.col("not_empty"),
            may_reject=self._allowed(self.keep.rejected, language),
        )
        result = pair(pool, self.rejected.sigma)
        prompts = {r["prompt_id"]: r for r in job.table(spec, "prompts", "prompts").to_pylist()}
        dropped = dict(result.dropped)
        if absent := len(prompts) - pool["prompt_id"].n_unique():
            dropped["no_samples"] = absent
        text = {
            (r["prompt_id"], r["k"]): r["response"]
            for r in self._winners(samples, result.pairs).iter_rows(named=True)
        }
        rows = [self._row(row, prompts, text, language) for row in result.pairs.to_dicts()]
        margins = result.pairs["score_chosen"] - result.pairs["score_rejected"]
        figures = {"mean_margin": float(margins.mean() or 0.0)} if len(margins) else {}  # type: ignore[arg-type]
        return schemas.from_rows(rows, self.kind), dropped, figures

    @staticmethod
    def _allowed(keep: Keep, language: str) -> pl.Expr:
        allowed = pl.lit(True)
        if keep.finished:
            allowed = allowed & (pl.col("finish_reason") == "stop")
        if keep.language == "match":
            right = pl.col("detected_language").map_elements(
                lambda found: matches(found, language), return_dtype=pl.Boolean
            )
            allowed = allowed & right.fill_null(False)
        return allowed

    @staticmethod
    def _winners(samples: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
        wanted = pl.concat(
            [pairs.select("prompt_id", k=side) for side in ("chosen_k", "rejected_k")]
        )
        return samples.join(wanted.unique(), on=["prompt_id", "k"], how="semi")

    @staticmethod
    def _row(
        row: dict[str, Any],
        prompts: dict[str, Any],
        text: dict[tuple[str, int], str],
        language: str,
    ) -> dict[str, Any]:
        side = {
            name: [{"role": "assistant", "content": text[row["prompt_id"], row[f"{name}_k"]]}]
            for name in ("chosen", "rejected")
        }
        return {
            **row,
            **side,
            "prompt": prompts[row["prompt_id"]]["messages"],
            "prompt_language": language,
            "chosen_language": language,
            "rejected_language": language,
        }

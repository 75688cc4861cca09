"""pair: which answer is preferred to which, prompt by prompt. No model is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from factory import schemas, shards
from factory.artifact import Rows
from factory.languages import language
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

if TYPE_CHECKING:
    import polars as pl

_UPSTREAM = {"scores": "score", "samples": "generate", "prompts": "prompts"}  # role: stage


class Keep(Knobs):
    """Who may stand on one side of a pair: only answers that ended by themselves (`finished`),
    only those in the prompt's language (`match`)."""

    finished: bool = False
    language: Literal["any", "match"] = "any"

    def rule(self, code: str) -> pl.Expr:
        """As an expression over samples in the language `code`."""
        from factory.pairing import allowed

        return allowed(self.finished, language(code).accepted if self.language == "match" else None)


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
        from factory import pairing

        code = str(spec.language)
        samples = job.table(spec, "samples", "samples")
        pool = pairing.pool(
            job.table(spec, "scores", "scores"),
            samples,
            self.keep.chosen.rule(code),
            self.keep.rejected.rule(code),
        )
        result = pairing.pair(pool, self.rejected.sigma)
        prompts = {r["prompt_id"]: r for r in job.table(spec, "prompts", "prompts").to_pylist()}
        dropped = dict(result.dropped)
        if absent := len(prompts) - pool["prompt_id"].n_unique():
            dropped["no_samples"] = absent
        text = pairing.texts(samples, result.pairs)
        rows = [self._row(row, prompts, text, code) for row in result.pairs.to_dicts()]
        margins = [row["score_chosen"] - row["score_rejected"] for row in rows]
        figures = {"mean_margin": sum(margins) / len(margins)} if margins else {}
        return schemas.from_rows(rows, self.kind), dropped, figures

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

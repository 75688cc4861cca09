"""dedup: leave out answers that repeat an earlier answer to the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from factory.artifacts.schemas import from_rows
from factory.artifacts.shards import Shard, with_metadata
from factory.artifacts.tables import read_slice
from factory.stage.inputs import SliceSpec, StepInput
from factory.stage.job import Job
from factory.stage.outcome import Outcome, counted
from factory.stage.stage import How, Stage

_NGRAM = 5  # characters; shorter ones are shared by answers that have little in common


class DedupHow(How):
    """`shard`: samples in a shard. Answers to one prompt stay together."""

    shard: int = Field(16384, ge=1)


class Dedup(Stage):
    """Samples without near-duplicates. An answer is left out when the Jaccard similarity of its
    character 5-grams to an earlier answer that stays (a lower `k`; same prompt and language) is
    `near` or more."""

    name: ClassVar[str] = "dedup"
    kind: ClassVar[str] = "samples"
    repo: ClassVar[str] = "dedup"
    reads: ClassVar[tuple[str, ...]] = ("samples",)
    row_wise: ClassVar[bool] = True
    compares_rows: ClassVar[bool] = True

    near: Annotated[float, Field(gt=0, le=1)] = 0.9  # 1: only answers with the same n-grams
    how: DedupHow = DedupHow()

    def n_shards(self, rows: int, spec: SliceSpec) -> int:
        return -(-rows // self.how.shard)

    def run(self, job: Job) -> Outcome:
        samples = {spec.name: job.reader(spec.need("samples"), self.kind) for spec in job.slices}
        prompts = {spec.name: _rows_by_prompt(job, spec) for spec in job.slices}

        def make(shard: Shard) -> tuple[pa.Table, int]:
            # the prompts whose first answer lies in this shard
            groups = [rows for rows in prompts[shard.slice] if shard.start <= rows[0] < shard.stop]
            distinct, duplicates = [], 0
            for rows in groups:
                answers = samples[shard.slice].rows(rows)
                distinct += self._distinct(answers)
                duplicates += len(answers)
            duplicates -= len(distinct)
            dropped = {"duplicate": duplicates} if duplicates else {}
            return with_metadata(from_rows(distinct, self.kind), dropped=dropped), 0

        sizes = {name: len(reader) for name, reader in samples.items()}
        totals = job.make_shards(self.kind, sizes, self.how.shard, make)
        rows = {
            name: counted(sizes[name], read_slice(job.out, name, self.kind, ["k"]).num_rows, total)
            for name, total in totals.items()
        }
        return Outcome(rows, determinism="exact")

    def _distinct(self, answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return those of the answers to one prompt that repeat no earlier one, in their order."""
        distinct: list[dict[str, Any]] = []
        earlier: list[frozenset[str]] = []
        for answer in answers:
            grams = _ngrams(answer["response"])
            if not any(_similar(grams, other, self.near) for other in earlier):
                distinct.append(answer)
                earlier.append(grams)
        return distinct


def _rows_by_prompt(job: Job, spec: SliceSpec) -> list[list[int]]:
    """Return the row numbers of the answers to each prompt, by `k`. Answers that people wrote
    (k -1) are compared with one another alone."""
    import polars as pl

    need = spec.need("samples")
    assert isinstance(need, StepInput)
    samples = pl.DataFrame(job.rows(need, "samples", ["prompt_id", "k"]))
    prompts = (
        samples.with_row_index("row")
        .sort("k", maintain_order=True)
        .group_by("prompt_id", pl.col("k") < 0)
        .agg("row")
    )
    return sorted(prompts["row"].to_list())


def _ngrams(text: str) -> frozenset[str]:
    """Return the character n-grams of a text, whatever its white space; a short text is one."""
    text = " ".join(text.split())
    return frozenset(text[n : n + _NGRAM] for n in range(max(1, len(text) - _NGRAM + 1)))


def _similar(first: frozenset[str], second: frozenset[str], near: float) -> bool:
    """Return whether the Jaccard similarity of two sets is `near` or more."""
    smaller, larger = sorted((len(first), len(second)))
    if smaller < near * larger:  # no overlap would be enough
        return False
    common = len(first & second)
    return common >= near * (smaller + larger - common)

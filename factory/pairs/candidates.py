"""What one slice is chosen from: the prompts and answers that it reads, language by language.

A rule sees the light columns alone; texts are gathered for the answers that it found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa

from factory.artifacts import schemas
from factory.errors import InputError
from factory.language.languages import language
from factory.stage.inputs import SliceSpec, StepInput

if TYPE_CHECKING:
    import polars as pl

    from factory.stage.job import Job

# the columns that are read for every answer
_LIGHT = {
    "scores": ("prompt_id", "k", "response_hash", "reward", "n_tokens"),
    "samples": ("prompt_id", "k", "response_hash", "finish_reason", "detected_language",
                "n_chars", "n_tokens"),
}  # fmt: skip


@dataclass(frozen=True)
class Candidates:
    """The prompts and answers of one slice; a language is known by its place in `codes`."""

    job: Job
    spec: SliceSpec

    @cached_property
    def parts(self) -> dict[str, dict[str, StepInput]]:
        """What is read, by language and role."""
        found: dict[str, dict[str, StepInput]] = {}
        for need in self.spec.needs:
            if isinstance(need, StepInput):
                found.setdefault(need.slice, {})[need.role] = need
        return found

    @property
    def codes(self) -> list[str]:
        """The languages, in the order that their numbers mean."""
        return list(self.parts)

    @cached_property
    def _conversations(self) -> list[pa.Table]:
        columns = ("prompt_id", "messages")
        return [self.job.rows(part["prompts"], "prompts", columns) for part in self.parts.values()]

    @cached_property
    def prompts(self) -> pl.DataFrame:
        """prompt_id and language of every prompt, in the order that it is read in."""
        import polars as pl

        return pl.concat(
            pl.DataFrame(table.select(["prompt_id"])).with_columns(
                language=pl.lit(number, pl.UInt8)
            )
            for number, table in enumerate(self._conversations)
        )

    @cached_property
    def prompt_ids(self) -> pl.Series:
        """Every prompt once, in order."""
        return self.prompts["prompt_id"].unique().sort()

    def pool(self, gold: bool) -> pl.DataFrame:
        """All answers as the rules see them. Ids become numbers language by language, so that
        the strings of one language at a time are in memory. Raises InputError for answers to a
        prompt that is not there."""
        import polars as pl

        from factory.pairs import rules

        ids = pl.Enum(self.prompt_ids)
        answers = pl.concat(
            rules.pool(
                self.job.rows(part["scores"], "scores", _LIGHT["scores"]),
                self.job.rows(part["samples"], "samples", _LIGHT["samples"]),
                language(code).accepted,
                number,
                gold,
            ).with_columns(pl.col("prompt_id").cast(ids, strict=False))
            for number, (code, part) in enumerate(self.parts.items())
        )
        if answers["prompt_id"].null_count():
            raise InputError(
                f"{self.spec.step} {self.spec.name}: answers to prompts that are not there",
                "samples and prompts are of different versions: generate again",
            )
        return answers

    def messages(self, rows: pl.DataFrame) -> pa.ChunkedArray:
        """The conversation that each row's prompt is, in its prompt_language."""
        at = rows.select("prompt_id", language="prompt_language").join(
            self.prompts.with_row_index("at"),
            on=["prompt_id", "language"],
            how="left",
            maintain_order="left",
        )["at"]
        return pa.concat_tables(self._conversations).column("messages").take(at.to_arrow())

    def texts(self, rows: pl.DataFrame, sides: Mapping[str, str]) -> dict[str, pa.Array]:
        """The answers on each side under the name of its column, in the order of `rows`."""
        import numpy as np
        import polars as pl

        at = np.concatenate([rows[f"{side}_row"].to_numpy() for side in sides])
        spoken = np.concatenate([rows[f"{side}_language"].to_numpy() for side in sides])
        order = np.argsort(spoken, kind="stable")
        found = pl.concat(
            self.job.pick(part["samples"], "response", at[spoken == number])
            for number, part in enumerate(self.parts.values())
        )
        texts = found[np.argsort(order, kind="stable")]
        return {
            column: schemas.single_messages("assistant", texts.slice(number * len(rows), len(rows)))
            for number, column in enumerate(sides.values())
        }

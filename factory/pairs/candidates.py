"""Prompts and answers of one slice of pairs, language by language.

Rules see the light columns alone; texts are gathered for the answers that they select.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from factory.artifacts import schemas
from factory.errors import InputError
from factory.language.detect import right_labels
from factory.stage.inputs import SliceSpec, StepInput

if TYPE_CHECKING:
    import polars as pl

    from factory.stage.job import Job

VOTES = "votes"  # the role of answers of other languages that vote on those of a slice
# the columns that are read for every answer
_LIGHT = {
    "scores": ("prompt_id", "k", "response_hash", "reward", "n_tokens",
               "disagreement", "log_prob"),
    "samples": ("prompt_id", "k", "response_hash", "finish_reason", "detected_language",
                "n_chars", "n_tokens", "source"),
}  # fmt: skip


@dataclass(frozen=True)
class Candidates:
    """The prompts and answers of one slice; a language is known by its place in `codes`."""

    job: Job
    spec: SliceSpec

    @cached_property
    def parts(self) -> dict[str, dict[str, StepInput]]:
        """Return the inputs by language and role, without the answers that only vote."""
        inputs: dict[str, dict[str, StepInput]] = {}
        for need in self.spec.needs:
            if isinstance(need, StepInput) and need.role != VOTES:
                inputs.setdefault(need.slice, {})[need.role] = need
        return inputs

    @property
    def codes(self) -> list[str]:
        """Return the languages; their position is their number."""
        return list(self.parts)

    @cached_property
    def _conversations(self) -> list[pa.Table]:
        columns = ("prompt_id", "messages")
        return [self.job.rows(part["prompts"], "prompts", columns) for part in self.parts.values()]

    @cached_property
    def prompts(self) -> pl.DataFrame:
        """Return prompt_id and language of every prompt, in the order of the inputs."""
        import polars as pl

        return pl.concat(
            pl.DataFrame(table.select(["prompt_id"])).with_columns(
                language=pl.lit(number, pl.UInt8)
            )
            for number, table in enumerate(self._conversations)
        )

    @cached_property
    def prompt_ids(self) -> pl.Series:
        """Return the id of every prompt once, in order."""
        return self.prompts["prompt_id"].unique().sort()

    def pool(self, gold: bool) -> pl.DataFrame:
        """Return all answers as the rules see them. Raises InputError for answers to a prompt that
        is not read, and where no prompt is in two languages. Ids become numbers language by
        language, so that the strings of only one language are in memory."""
        import polars as pl

        from factory.pairs import rules

        if len(self.parts) > 1 and len(self.prompt_ids) == len(self.prompts):
            raise InputError(
                f"{self.spec.step} {self.spec.name}: no prompt has one id in two languages",
                "give a prompt the same id in every language (columns: {id: theirs}), or set "
                "pool: in_lang",
            )
        ids = pl.Enum(self.prompt_ids)
        pools = [
            rules.pool(
                self._scores(part),
                self.job.rows(part["samples"], "samples", _LIGHT["samples"]),
                right_labels(code),
                number,
                gold,
            ).with_columns(pl.col("prompt_id").cast(ids, strict=False))
            for number, (code, part) in enumerate(self.parts.items())
        ]
        answers = pl.concat(pools, how="diagonal")  # a language without rows has fewer columns
        if answers["prompt_id"].null_count():
            raise InputError(
                f"{self.spec.step} {self.spec.name}: answers to prompts that are not there",
                "samples and prompts are of different versions: generate again; prompts of answers "
                "that were taken in come from the same file: prompts: {from: it, repeats: drop}",
            )
        return answers

    def _scores(self, part: Mapping[str, StepInput]) -> pa.Table:
        """Return the scores of a language; of answers that only vote, scores without a reward."""
        if "scores" in part:
            return self.job.rows(part["scores"], "scores", _LIGHT["scores"])
        keys = self.job.rows(part["samples"], "samples", _LIGHT["scores"][:3])
        for name, kind in (("reward", pa.float64()), ("n_tokens", pa.int64())):
            keys = keys.append_column(name, pa.nulls(len(keys), kind))
        return keys

    def responses(self, answers: pl.DataFrame) -> pl.Series:
        """Return the text of each answer of a pool, in its order."""
        return self._picked(answers["row"].to_numpy(), answers["language"].to_numpy())

    def messages(self, rows: pl.DataFrame) -> pa.ChunkedArray:
        """Return the conversation of the prompt of each row, in its prompt_language."""
        at = rows.select("prompt_id", language="prompt_language").join(
            self.prompts.with_row_index("at"),
            on=["prompt_id", "language"],
            how="left",
            maintain_order="left",
        )["at"]
        return pa.concat_tables(self._conversations).column("messages").take(at.to_arrow())

    def texts(self, rows: pl.DataFrame, sides: Mapping[str, str]) -> dict[str, pa.Array]:
        """Return the answers of each side by the name of its column, in the order of `rows`."""
        import numpy as np

        at = np.concatenate([rows[f"{side}_row"].to_numpy() for side in sides])
        spoken = np.concatenate([rows[f"{side}_language"].to_numpy() for side in sides])
        texts = self._picked(at, spoken)
        return {
            column: schemas.single_messages("assistant", texts.slice(number * len(rows), len(rows)))
            for number, column in enumerate(sides.values())
        }

    def _picked(self, at: Any, spoken: Any) -> pl.Series:
        """Return the answers at these rows of these languages, by their number, in their order."""
        import numpy as np
        import polars as pl

        order = np.argsort(spoken, kind="stable")
        texts = pl.concat(
            self.job.pick(part["samples"], "response", at[spoken == number])
            for number, part in enumerate(self.parts.values())
        )
        return texts[np.argsort(order, kind="stable")]

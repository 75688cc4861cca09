"""Votes of answers on what they say in the end (CALM, arXiv 2501.18457): of parallel prompts the
answers of all languages vote."""

from __future__ import annotations

import re
from collections.abc import Iterable

import polars as pl

from factory.errors import InputError
from factory.pairs.candidates import VOTES, Candidates
from factory.stage.inputs import StepInput


def final_answers(pattern: str, texts: Iterable[str]) -> pl.Series:
    """Return what each text says in the end: the first group (or all) of the last match of a
    regular expression, in small letters with single spaces; null where nothing matches."""
    compiled = re.compile(pattern)

    def final(text: str) -> str | None:
        matches = [match[compiled.groups and 1] for match in compiled.finditer(text)]
        return " ".join((matches[-1] or "").casefold().split()) or None if matches else None

    return pl.Series("said", [final(text) for text in texts], pl.String)


def voted(answers: pl.DataFrame, said: pl.Series, votes: pl.DataFrame) -> pl.DataFrame:
    """Return the answers with the share of the votes on their prompt that say the same as `score`;
    those that say nothing have none. Only answers of the majority may be chosen: where two have
    most votes, or all votes are different, there is none.

    answers: prompt_id and may_choose, in the order of `said`.
    votes: prompt_id and `said` of every answer of every language, null where it says nothing.
    """
    counts = votes.drop_nulls().group_by("prompt_id", "said").len("votes")
    most, votes_of = pl.col("votes").max().over("prompt_id"), pl.col("votes")
    first = (votes_of == most) & (votes_of > 1)
    counts = counts.with_columns(
        share=votes_of / votes_of.sum().over("prompt_id"),
        majority=first & (first.sum().over("prompt_id") == 1),
    )
    rows = answers.with_columns(said=said).join(
        counts.select("prompt_id", "said", "share", "majority"),
        on=["prompt_id", "said"],
        how="left",
        maintain_order="left",
    )
    may = pl.col("may_choose") & pl.col("majority").fill_null(False)
    return rows.with_columns(score="share", may_choose=may).drop("said", "share", "majority")


def by_vote(
    pattern: str, answers: pl.DataFrame, candidates: Candidates
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the answers of a slice with their votes (see `voted`), and how many say nothing.
    Raises InputError where no prompt is in two of several languages."""
    spec, job = candidates.spec, candidates.job
    reads = [part["samples"] for part in candidates.parts.values()]
    reads += [n for n in spec.needs if isinstance(n, StepInput) and n.role == VOTES]
    parts = []
    for read in reads:
        table = job.rows(read, "samples", ("prompt_id", "response"))
        said = final_answers(pattern, table.column("response").to_pylist())
        parts.append(pl.DataFrame(table.select(["prompt_id"])).with_columns(said=said))
    if len(parts) > 1 and pl.concat(p["prompt_id"].unique() for p in parts).is_unique().all():
        raise InputError(
            f"{spec.step} {spec.name}: no prompt has one id in two languages, so no language votes "
            "on the answers of another",
            "give a prompt the same id in every language (columns: {id: theirs}), or take vote out",
        )
    said = final_answers(pattern, candidates.responses(answers))
    ids = pl.col("prompt_id").cast(answers["prompt_id"].dtype, strict=False)
    return voted(answers, said, pl.concat(parts).with_columns(ids)), {"unread": said.null_count()}

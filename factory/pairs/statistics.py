"""Statistics of pairs: rewards, margins, lengths, languages. Pure, and all of it
goes into the manifest, from which the card and the drawings are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from factory.artifacts.schemas import GOLD
from factory.pairs.rules import own

BINS = 24


def describe(
    answers: pl.DataFrame,
    pairs: pl.DataFrame,
    languages: Sequence[str],
    objections: Mapping[str, Mapping[str, pl.Expr]],
    budget: int | None = None,
) -> dict[str, Any]:
    """Return the figures of one slice.

    answers: the pool that `pairs` were chosen from, as `rules.pool` makes it.
    pairs: rows as `rules.pair` or `rules.best` returns them, with prompt_language if pairs.
    languages: the codes behind the numbers in the columns of languages.
    objections: what speaks against an answer, by side and name, as `rules.objections` gives it.
    budget: how many conversations longer than so many tokens are to be counted, if given.
    """
    sides = [side for side in ("chosen", "rejected") if f"{side}_score" in pairs.columns]
    figures: dict[str, Any] = {
        "answers": len(answers),
        "unscored": answers["score"].null_count(),
        "scores": histogram(
            {"pool": answers["score"]} | {side: pairs[f"{side}_score"] for side in sides}
        ),
        "tokens": histogram({side: pairs[f"{side}_n_tokens"] for side in sides}),
        "passed_over": {side: passed_over(answers, objections[side]) for side in sides},
    }
    if not len(pairs):
        return figures
    tokens = {side: pairs[f"{side}_n_tokens"] for side in sides}  # null where nobody counted them
    figures["mean_tokens"] = {
        side: _mean(counted)
        for side, column in tokens.items()
        if len(counted := column.drop_nulls())
    }
    figures["mean_chars"] = {side: _mean(pairs[f"{side}_n_chars"]) for side in sides}
    longest = pairs.select(
        longest=pl.max_horizontal(f"{side}_conversation" for side in sides)
    ).to_series()
    if longest.null_count() < len(longest):
        figures["longest"] = int(longest.max())  # type: ignore[arg-type]
    if "source" in answers.columns or answers.select((pl.col("k") == GOLD).any()).item():
        figures["off_policy"] = {
            side: _mean(pairs.select(~own(f"{side}_k")).to_series()) for side in sides
        }
    if "source" in answers.columns:
        figures["sources"] = {
            side: dict(pairs.group_by(f"{side}_source").len().sort(pl.all()).rows())
            for side in sides
        }
    if budget is not None:
        figures["over_budget"] = int((longest > budget).sum())
    if "rejected" in sides:
        margin = pairs["chosen_score"] - pairs["rejected_score"]
        figures["margins"] = histogram({"margin": margin})
        figures["mean_margin"] = _mean(margin)
        if "chosen_dcrm" in pairs.columns:
            figures["mean_dcrm"] = _mean(pairs["chosen_dcrm"])
        if len(figures["mean_tokens"]) == len(sides):
            figures["token_gap"] = _mean(tokens["chosen"] - tokens["rejected"])
    names = ["prompt_language", *(f"{side}_language" for side in sides)]
    mix = pairs.group_by([n for n in names if n in pairs.columns]).len().sort(pl.all())
    figures["languages"] = [
        {
            **{key: languages[row[key]] for key in row if key != "len"},
            "rows": row["len"],
        }
        for row in mix.to_dicts()
    ]
    return figures


def passed_over(answers: pl.DataFrame, objections: Mapping[str, pl.Expr]) -> dict[str, int]:
    """Count the answers that are unfit for a side, by filter. One answer may count several
    times."""
    counts = answers.select(**{name: rule.sum() for name, rule in objections.items()})
    return {name: int(n) for name, n in counts.row(0, named=True).items()} if objections else {}


def histogram(columns: dict[str, pl.Series]) -> dict[str, Any]:
    """Count values in bins that all columns share. Without any value there are no bins."""
    values = {name: column.drop_nulls().to_numpy() for name, column in columns.items()}
    ends = [(v.min(), v.max()) for v in values.values() if len(v)]
    if not ends:
        return {"edges": [], **{name: [] for name in values}}
    low, high = float(min(end[0] for end in ends)), float(max(end[1] for end in ends))
    # one width for everybody; a single value gets a bin around it
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    return {
        "edges": [float(f"{edge:.6g}") for edge in edges],
        **{name: np.histogram(v, edges)[0].tolist() for name, v in values.items()},
    }


def overlap(rows: pl.DataFrame, other: pl.DataFrame) -> float | None:
    """Return the share of `rows` that `other` has too, with both answers; None without rows."""
    keys = ["prompt_id", "chosen_language", "chosen_k", "rejected_language", "rejected_k"]
    if not len(rows):
        return None
    return len(rows.join(other, on=keys, how="semi")) / len(rows)


def _mean(values: pl.Series) -> float:
    return float(values.mean())  # type: ignore[arg-type]

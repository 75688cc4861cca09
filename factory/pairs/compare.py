"""Strategies of pairing side by side over the same scores; nothing is made or published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from factory.errors import RecipeError
from factory.pairs.candidates import Candidates
from factory.pairs.config import parse
from factory.pairs.pair import Pair
from factory.pairs.selection import SelectedPairs
from factory.stage.inputs import SliceSpec
from factory.stage.job import Job
from factory.stage.stage import StageContext

if TYPE_CHECKING:
    import polars as pl

# of the sweet-spot study and the published script
USUAL = ("max:min", "max:q1", "+2:-2", "max:min_of_5")


@dataclass(frozen=True)
class Strategy:
    """A way to pair, under a name."""

    name: str
    stage: Pair

    def plan_slices(self, context: StageContext) -> list[SliceSpec]:
        """Return the slices that it would make."""
        return self.stage.plan_slices(context)


def strategies(recipe: Pair, descriptions: Sequence[str]) -> list[Strategy]:
    """Return the recipe's own strategy and the described ones, with the recipe's filters. Raises
    RecipeError for one that is misspelt or impossible."""
    choices = [Strategy("recipe", recipe)]
    for text in dict.fromkeys(descriptions or USUAL):
        plain = {"normalize": "none", "prompt_language": "chosen", "length_control": False,
                 "rule": "points", "vote": None}  # fmt: skip
        fields = {**recipe.model_dump(), "pool": "in_lang", **plain, **parse(text)}
        try:
            choices.append(Strategy(text, Pair.model_validate(fields)))
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise RecipeError(f"strategy {text!r}: {message}", "see docs/pairing.md") from None
    return choices


def compare(choices: Sequence[Strategy], context: StageContext, job: Job) -> list[dict[str, Any]]:
    """Return one row for each strategy and slice. `job` holds every slice that they read."""
    rows = []
    first: dict[str, pl.DataFrame] = {}
    for strategy in choices:
        for spec in strategy.plan_slices(context):
            selected = strategy.stage.find(Candidates(job, spec))
            reference = first.setdefault(spec.name, selected.rows)
            rows.append(_row(strategy.name, spec.name, selected, reference))
    return rows


def _row(
    strategy: str, name: str, selected: SelectedPairs, reference: pl.DataFrame
) -> dict[str, Any]:
    from factory.pairs.statistics import overlap

    mix = selected.figures.get("languages", [])
    across = sum(m["rows"] for m in mix if m["chosen_language"] != m["rejected_language"])
    tokens = selected.figures.get("mean_tokens", {})
    return {
        "strategy": strategy,
        "slice": name,
        "rows": len(selected.rows),
        "dropped": selected.dropped,
        "mean_margin": selected.figures.get("mean_margin"),
        "chosen_tokens": tokens.get("chosen"),
        "rejected_tokens": tokens.get("rejected"),
        "token_gap": selected.figures.get("token_gap"),
        "cross": across / len(selected.rows) if len(selected.rows) else None,
        "overlap": overlap(selected.rows, reference),
    }


def totals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each strategy: means over its slices, weighted by their pairs."""
    summaries = []
    for name in dict.fromkeys(row["strategy"] for row in rows):
        own = [row for row in rows if row["strategy"] == name]
        pairs = sum(row["rows"] for row in own)
        dropped: dict[str, int] = {}
        for row in own:
            for reason, count in row["dropped"].items():
                dropped[reason] = dropped.get(reason, 0) + count
        keys = ("mean_margin", "chosen_tokens", "rejected_tokens", "token_gap", "cross", "overlap")
        means = {key: _mean(own, key) for key in keys}
        summaries.append(
            {"strategy": name, "slice": "all", "rows": pairs, "dropped": dropped, **means}
        )
    return summaries


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """Return the mean of a figure, weighted by pairs, over the slices that have it: of somebody
    else's answers the tokens may be unknown."""
    measured = [(row[key], row["rows"]) for row in rows if row["rows"] and row[key] is not None]
    pairs = sum(count for _, count in measured)
    return sum(value * count for value, count in measured) / pairs if pairs else None

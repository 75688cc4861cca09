"""Knobs of pairing: points of a pool, filters of each side, and reasons to drop a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from factory.config import Knobs
from factory.errors import RecipeError, nearest

if TYPE_CHECKING:
    import polars as pl

    from factory.pairs.rules import Point


class Sigma(Knobs):
    """A point of the pool's distribution: mean + `sigma` population standard deviations."""

    sigma: float


class MinOf(Knobs):
    """The lowest of so many answers drawn from the pool: the rule of arXiv 2502.16825 that scales
    without a distribution."""

    min_of: int = Field(ge=1)


def _point(value: Any, words: tuple[str, ...], forms: tuple[type[Knobs], ...]) -> Any:
    """One point, from its word or its mapping. Pydantic by itself would speak of one form after
    another; this names them all. Raises ValueError."""
    if isinstance(value, forms) or (isinstance(value, str) and value in words):
        return value
    by_key = {next(iter(form.model_fields)): form for form in forms}
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in by_key:
        key, number = next(iter(value.items()))
        try:
            return by_key[key](**{key: number})
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"{key}: {message}") from None
    shapes = [*words, *(f"{{{key}: {-2 if key == 'sigma' else 5}}}" for key in by_key)]
    raise ValueError(f"it is one of {', '.join(shapes)}")


ChosenPoint = Annotated[
    Literal["max"] | Sigma, BeforeValidator(lambda v: _point(v, ("max",), (Sigma,)))
]
RejectedPoint = Annotated[
    Literal["min", "q1"] | Sigma | MinOf,
    BeforeValidator(lambda v: _point(v, ("min", "q1"), (Sigma, MinOf))),
]


class Keep(Knobs):
    """Filters of the chosen side: no answers that were cut off (`finished`), only those in the
    prompt's language (`match`), only the policy's `own` or those of `others` (see generate.also;
    gold answers are others'). An empty answer is never chosen."""

    finished: bool = False
    language: Literal["any", "match"] = "any"
    source: Literal["any", "own", "others"] = "any"
    reward_above: float | None = None  # only answers with a higher raw reward
    reward_below: float | None = None  # only answers with a lower one, such as wrong ones

    @property
    def nonempty(self) -> bool:
        """Whether an empty answer is kept out."""
        return True

    def objections(self) -> dict[str, pl.Expr]:
        """Return the filters of this side, by name: expressions that are true for unfit answers."""
        from factory.pairs.rules import objections

        return objections(
            self.finished,
            self.language == "match",
            self.nonempty,
            self.source,
            self.reward_above,
            self.reward_below,
        )


class KeepRejected(Keep):
    """Filters of the rejected side, which may be an empty answer unless `empty` is false."""

    empty: bool = True

    @property
    def nonempty(self) -> bool:
        return not self.empty


class KeepSides(Knobs):
    """Filters of both sides. A chosen answer teaches what to say, so it must be whole and in the
    right language; a rejected one may be anything."""

    chosen: Keep = Keep(finished=True, language="match")
    rejected: KeepRejected = KeepRejected()


class Budget(Knobs):
    """Conversations (prompt and answer) of over so many `tokens`, as the reward model counted
    them, are dropped, or kept and counted."""

    tokens: int = Field(ge=1)
    over: Literal["drop", "keep"] = "drop"


class DropRules(Knobs):
    """Reasons to drop a best answer: scores of its prompt deviate by less than `std_below`; its
    score lies below that quantile of all scores of its language; the same text was chosen for an
    earlier prompt (`duplicates`); several rewards disagree on it, or on either side of a pair, by
    more than `disagreement_above` (the standard deviation of their z-scores)."""

    std_below: float | None = Field(None, ge=0)
    chosen_below_quantile: float | None = Field(None, ge=0, le=1)
    duplicates: bool = False
    disagreement_above: float | None = Field(None, ge=0)


class DropPairRules(DropRules):
    """Reasons to drop a pair: those of a best answer, a margin too small or too large, and sides
    of which one is longer by more than `length_gap_above` of its characters (0.2: by a fifth).
    A pair of the same text twice is always dropped (`same_text`)."""

    margin_below: float | None = Field(None, ge=0)
    margin_above: float | None = Field(None, gt=0)
    length_gap_above: float | None = Field(None, ge=0, lt=1)


def place(point: Literal["max", "min", "q1"] | Sigma) -> Point:
    """A point as the rules take it."""
    return point.sigma if isinstance(point, Sigma) else point


GRAMMAR = "chosen:rejected[@all_lang[-zscore]], icr or dcrm"


def parse(text: str) -> dict[str, Any]:
    """The fields that a strategy stands for: `max:-2`, `+1:min`, `max:q1`, `max:min_of_5`, with
    `@all_lang` or `@all_lang-zscore` for the pool of all languages; `icr` for length control,
    `dcrm` for that rule. Raises RecipeError."""
    rule, _, pool = text.partition("@")
    pools = {
        "": {},
        "all_lang": {"pool": "all_lang"},
        "all_lang-zscore": {"pool": "all_lang", "normalize": "zscore"},
    }
    if pool not in pools:
        raise RecipeError(
            f"strategy {text!r}: no pool {pool!r}{nearest(pool, pools)}", f"write {GRAMMAR}"
        )
    if rule == "icr":
        return {"chosen": "max", "rejected": "min", "length_control": True, **pools[pool]}
    if rule == "dcrm":
        default = {"chosen": "max", "rejected": {"sigma": -2.0}}
        return {**default, "rule": "dcrm", **pools[pool]}
    chosen, colon, rejected = rule.partition(":")
    if not colon:
        raise RecipeError(f"strategy {text!r} names no rejected side", f"write {GRAMMAR}")
    return {"chosen": _parsed(chosen), "rejected": _parsed(rejected), **pools[pool]}


def _parsed(word: str) -> Any:
    if word.startswith("min_of_") and word[7:].isdecimal():
        return {"min_of": int(word[7:])}
    try:
        return {"sigma": float(word)}
    except ValueError:
        return word

"""Audit a reward model: is it blind in a language? Figures from its rewards alone, sentences on
them, and what makes a language suspect. Pure: nothing is read or written.

A reward model that was tuned on English still gives a number to a Maltese answer. Whether the
number means anything there shows in how it parts answers to one prompt, and in what it follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field

from factory.config import Knobs
from factory.rewards.ensemble import agreement
from factory.stage.proportions import interval

FEWEST = 5  # prompts, or pairs, under which nothing is concluded
_SLIGHT = 0.1  # a rank correlation that is not worth a word
# 0 for equal rewards: the last bits of their mean would make a deviation of its own
_std = (
    pl.when(pl.col("reward").n_unique() > 1)
    .then(pl.col("reward").std(ddof=0))
    .otherwise(pl.when(pl.len() > 0).then(0.0))
)
Pair = tuple[float | None, float | None]  # rewards of the chosen and the rejected answer


class AuditLimits(Knobs):
    """When a language counts as one the reward model is blind in, and whether to go on then."""

    on_blind: Literal["warn", "refuse"] = "warn"
    # least spread within a prompt, as a share of that over all answers, and of English's own
    spread: Annotated[float, Field(ge=0, le=1)] = 0.1
    # greatest rank correlation with length within a prompt, either way
    length: Annotated[float, Field(ge=0, le=1)] = 0.8
    # least share of preference pairs put in the right order; chance is one half. A language is
    # suspect where the whole 95 % interval of its share is below
    accuracy: Annotated[float, Field(ge=0, le=1)] = 0.55


def audit(
    answers: pl.DataFrame,
    preferences: Mapping[str, Sequence[Pair]],
    limits: AuditLimits,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Return figures, readings and verdicts of each language, as plain values for a manifest.

    answers: language, prompt_id, k, reward (null where there is none), n_chars, n_tokens; of
        several rewards `rewards` and `disagreement`, too.
    preferences: rewards of pairs whose better answer is known, by language.
    names: of several rewards.
    Standard deviations are of the population; correlations are Spearman's, ties at their mean
    rank, over prompts in which they are defined.
    """
    scored = answers.filter(pl.col("reward").is_not_null())
    languages = answers["language"].unique(maintain_order=True).to_list()
    by_language = {
        code: _figures(answers.filter(pl.col("language") == code))
        | _accuracy(preferences.get(code, ()))
        | _disagreement(answers.filter(pl.col("language") == code), names)
        for code in languages
    }
    means = {code: _prompt_means(scored.filter(pl.col("language") == code)) for code in languages}
    for code, figures in by_language.items():
        figures["agreement"] = {
            other: rho
            for other in languages
            if other != code and (rho := _agreement(means[code], means[other])) is not None
        }
    english = by_language.get("en")
    for code, figures in by_language.items():
        # several rewards are combined in deviations of each language, which have no offset
        others = english and code != "en" and len(names) < 2
        if english and others and None not in (english["mean"], figures["mean"]):
            figures["offset"] = figures["mean"] - english["mean"]
            figures["scale"] = figures["std"] / english["std"] if english["std"] else None
        figures["blind"] = _suspicions(figures, english, limits)
        figures["readings"] = readings(figures)
    return {"limits": limits.model_dump(mode="json"), "by_language": by_language}


def blind(figures: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the languages that an audit finds the reward model blind in, with the reasons."""
    by_language = figures["by_language"]
    return {
        code: list(figures_of["blind"])
        for code, figures_of in by_language.items()
        if figures_of["blind"]
    }


def _figures(answers: pl.DataFrame) -> dict[str, Any]:
    """Return spread, correlation with length and repeatability of means, in one language."""
    rows = answers.filter(pl.col("reward").is_not_null())
    ranked = rows.with_columns(
        rank=pl.col("reward").rank().over("prompt_id"),
        chars=pl.col("n_chars").rank().over("prompt_id"),
        tokens=pl.col("n_tokens").rank().over("prompt_id"),
    )
    prompts = (
        ranked.group_by("prompt_id")
        .agg(
            std=_std,
            alike=pl.col("reward").n_unique() == 1,
            chars=pl.corr("rank", "chars"),
            tokens=pl.corr("rank", "tokens"),
            size=pl.len(),
        )
        .filter(pl.col("size") > 1)
        .fill_nan(None)
    )
    return {
        "answers": len(answers),
        "scored": len(rows),
        "mean": rows["reward"].mean(),
        "std": rows.select(_std).item(),
        "prompts": len(prompts),
        "spread": prompts["std"].mean(),
        "alike": int(prompts["alike"].sum()),
        "length_chars": prompts["chars"].mean(),
        "length_tokens": prompts["tokens"].mean(),
        "length_prompts": prompts["chars"].count(),
        # fewer where answers are cut at the same number of tokens
        "token_prompts": prompts["tokens"].count(),
        "repeatable": _repeatable(rows),
    }


def _prompt_means(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.group_by("prompt_id").agg(mean=pl.col("reward").mean())


def _agreement(means: pl.DataFrame, other_means: pl.DataFrame) -> float | None:
    """Return Spearman's correlation of the mean rewards of the prompts that both have."""
    both = means.join(other_means, on="prompt_id")
    if len(both) < FEWEST:
        return None
    rho = both.select(pl.corr(pl.col("mean").rank(), pl.col("mean_right").rank())).item()
    return None if rho is None or rho != rho else float(rho)


def _repeatable(rows: pl.DataFrame) -> float | None:
    """Return how well the mean rewards of prompts would agree with those of as many new answers:
    halves of the answers against each other, by the Spearman-Brown formula for twice the length."""
    odd = pl.col("k") % 2 == 1
    half = _agreement(_prompt_means(rows.filter(odd)), _prompt_means(rows.filter(~odd)))
    return None if half is None or half <= 0 else 2 * half / (1 + half)


def _accuracy(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Count pairs in which the chosen answer gets strictly more, as M-RewardBench counts them; one
    with a side that has no reward is not counted."""
    scored = [(chosen, rejected) for chosen, rejected in pairs if None not in (chosen, rejected)]
    right = sum(chosen > rejected for chosen, rejected in scored)  # type: ignore[operator]
    low, high = interval(right, len(scored))
    return {
        "pairs": len(scored),
        "pairs_unscored": len(pairs) - len(scored),
        "pairs_right": right,
        "accuracy": right / len(scored) if scored else None,
        **({"accuracy_low": low, "accuracy_high": high} if scored else {}),
    }


def _disagreement(answers: pl.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """Return how far apart several rewards are: the mean disagreement on an answer, and how alike
    each two order the answers to a prompt. Nothing of one reward."""
    if "rewards" not in answers.columns:
        return {}
    numbers = range(len(names))
    return {
        "disagreement": answers["disagreement"].mean(),
        "alike_in_order": [
            {"rewards": [names[a], names[b]], "correlation": agreement(answers, a, b)}
            for a in numbers
            for b in numbers[a + 1 :]
        ],
    }


def _suspicions(
    figures: Mapping[str, Any], english: Mapping[str, Any] | None, limits: AuditLimits
) -> list[str]:
    reasons = []
    if figures["prompts"] >= FEWEST:
        if not figures["std"] or figures["spread"] < limits.spread * figures["std"]:
            reasons.append("flat: it hardly tells answers to one prompt apart")
        elif english and figures["spread"] < limits.spread * (english["spread"] or 0.0):
            reasons.append("flat: it tells answers apart far less than in English")
    if figures["length_prompts"] >= FEWEST:
        tokens = figures["length_tokens"] if figures["token_prompts"] >= FEWEST else 0.0
        follows = max(figures["length_chars"], tokens, key=abs)
        if abs(follows) > limits.length:
            reasons.append(f"length: it follows {'length' if follows > 0 else 'shortness'} alone")
    if figures["pairs"] >= FEWEST and figures["accuracy_high"] < limits.accuracy:
        worse = figures["accuracy_high"] < 1 - limits.accuracy
        reasons.append(
            "accuracy: it prefers the worse answer; the sides look exchanged"
            if worse
            else "accuracy: it does not find the better answer"
        )
    return reasons


def readings(figures: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each figure: what it says, and what it does not."""
    return [
        *_read_spread(figures),
        *_read_length(figures),
        *_read_offset(figures),
        *_read_agreement(figures),
        *_read_accuracy(figures),
        *_read_disagreement(figures),
    ]


def _read_spread(figures: Mapping[str, Any]) -> list[str]:
    if figures["prompts"] < FEWEST:
        return [f"Only {figures['prompts']} prompts have two scored answers: too few to judge by."]
    share = figures["spread"] / figures["std"] if figures["std"] else 0.0
    alike = f"; {figures['alike']} prompts got one reward for all answers"
    return [
        f"Answers to one prompt lie {figures['spread']:.3g} around their mean, {share:.0%} of the "
        f"{figures['std']:.3g} over all answers{alike if figures['alike'] else ''}: pairs are made "
        "of this difference."
    ]


def _read_length(figures: Mapping[str, Any]) -> list[str]:
    if figures["length_prompts"] < FEWEST:
        return []
    chars, tokens = figures["length_chars"], figures["length_tokens"]
    enough = figures["token_prompts"] >= FEWEST
    also = f" and {tokens:+.2f} in tokens" if enough else ""
    side = "longer" if chars > 0 else "shorter"
    favours = "hardly minds it" if abs(chars) < _SLIGHT else f"favours the {side}"
    return [
        f"Among answers to one prompt its order agrees with length at {chars:+.2f} in characters"
        f"{also} (rank correlation, {figures['length_prompts']} prompts): it {favours}; at 1 it "
        "would measure nothing else."
    ]


def _read_offset(figures: Mapping[str, Any]) -> list[str]:
    if figures.get("offset") is None:
        return []
    scale = figures.get("scale")
    wide = "" if scale is None else f", {scale:.2f} times as wide"
    return [
        f"Rewards lie {abs(figures['offset']):.3g} {'above' if figures['offset'] >= 0 else 'below'}"
        f" English's on average{wide}: how good the answers are and what the reward model gives "
        "the language are mixed in this, so raw rewards of two languages are not comparable."
    ]


def _read_agreement(figures: Mapping[str, Any]) -> list[str]:
    agreement = figures["agreement"]
    if not agreement:
        return []
    other = "en" if "en" in agreement else next(iter(agreement))
    ceiling = figures["repeatable"]
    repeat = "hardly repeat" if ceiling is None else f"repeat at about {ceiling:.2f}"
    return [
        f"The mean rewards of prompts rank as in {other} at {agreement[other]:+.2f}, and would "
        f"{repeat} with new answers here: each language has other answers, so this compares "
        "prompts, not one answer read twice."
    ]


def _read_accuracy(figures: Mapping[str, Any]) -> list[str]:
    if figures["accuracy"] is None:
        return []
    unscored = figures["pairs_unscored"]
    tells = not figures["accuracy_low"] <= 0.5 <= figures["accuracy_high"]
    return [
        f"It puts the better answer first in {figures['pairs_right']} of {figures['pairs']} pairs "
        f"({figures['accuracy']:.0%}, 95 % interval {figures['accuracy_low']:.0%} to "
        f"{figures['accuracy_high']:.0%}; chance is 50%)"
        + (f", {unscored} more have no reward" if unscored else "")
        + ("." if tells else ": too few to tell.")
    ]


def _read_disagreement(figures: Mapping[str, Any]) -> list[str]:
    if figures.get("disagreement") is None:
        return []
    pairs = "; ".join(
        f"{' and '.join(two['rewards'])} {two['correlation']:+.2f}"
        for two in figures["alike_in_order"]
        if two["correlation"] is not None
    )
    order = f" Among answers to one prompt their orders agree (rank correlation): {pairs}."
    return [
        f"The rewards of an answer lie {figures['disagreement']:.2f} standard deviations around "
        f"their mean.{order if pairs else ''}"
    ]

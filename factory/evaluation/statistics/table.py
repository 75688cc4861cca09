"""Verdicts become the rows of a table: for each model over all languages, in each, and in each
category, everything that is to be said of it. What a manifest, a card and a terminal show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from factory.evaluation.statistics.finished import finish_rates, paired
from factory.evaluation.statistics.intervals import Floats, percent
from factory.evaluation.statistics.length_control import lc_minimal, style_controlled
from factory.evaluation.statistics.rates import bounds, consistency, merged, win_rate
from factory.language.confusion import pass_rates

POINTS = {"model": 1.0, "tie": 0.5, "reference": 0.0}
ALL = "all"


@dataclass(frozen=True)
class JudgedAnswer:
    """One model's answer to a question: its length, whether it is in another language than the
    question (a detector that cannot tell says no), its lines that could be judged and those of
    them in another language, English words in them (None for a language in Latin script, or one
    whose words cannot be told apart), the reward a classifier or the rating a rubric gave it,
    whether it ended before the token limit (None where that is not known), and its pieces of
    markdown (headings, list items, bold text)."""

    chars: int
    tokens: int
    wrong_language: bool
    lines: int | None = None
    wrong_lines: int | None = None
    english_words: int | None = None
    reward: float | None = None
    finished: bool | None = None
    marks: int = 0


@dataclass(frozen=True)
class JudgedQuestion:
    """A judge's verdicts on one question in one language: verdicts (`model`, `reference`, `tie`,
    `unparseable`) by order; `orders` names them (`model_first`, `reference_first`, `apart`).
    `identical`: both answers are the same text; `cut`: one was shortened for the judge;
    `in_training`: the question is among the prompts that the model was trained on. `span`: the
    steps of the scale, where answers were rated by a rubric. `votes`: of a jury, the worth of each
    judge's verdict (POINTS), None where it gave none; by the judge's name."""

    question: str
    language: str
    category: str | None
    subcategory: str | None
    orders: tuple[str, ...]
    verdicts: tuple[str, ...]
    model: JudgedAnswer
    reference: JudgedAnswer
    identical: bool = False
    cut: bool = False
    in_training: bool = False
    span: float | None = None
    votes: Mapping[str, float | None] = field(default_factory=dict)


def by_language(name: str, reference: str, items: Sequence[JudgedQuestion]) -> list[dict[str, Any]]:
    """Return a row over all languages, where there are several, and one for each of them."""
    languages = list(dict.fromkeys(item.language for item in items))
    groups = {code: [item for item in items if item.language == code] for code in languages}
    every = {ALL: list(items), **groups} if len(groups) > 1 else groups
    return [
        {"model": name, "reference": reference, "language": code, "category": ALL} | figures(rows)
        for code, rows in every.items()
    ]


def by_category(name: str, reference: str, items: Sequence[JudgedQuestion]) -> list[dict[str, Any]]:
    """Return a row over all languages for each category, and for each subcategory (`category/sub`),
    where the questions have them."""
    table = []
    for label in _labels(items, lambda item: item.category):
        inside = [item for item in items if item.category == label]
        subs = _labels(inside, lambda item: item.subcategory)
        parts = {label: inside} | {
            f"{label}/{sub}": [item for item in inside if item.subcategory == sub]
            for sub in (subs if len(subs) > 1 else ())
        }
        table += [
            {"model": name, "reference": reference, "language": ALL, "category": part}
            | figures(rows)
            for part, rows in parts.items()
        ]
    return table


def figures(items: Sequence[JudgedQuestion]) -> dict[str, Any]:
    """Return all figures of these comparisons, as plain values in percent and counts.
    docs/evaluation.md says what each means; a figure that there is none of is None or left out."""
    points = _points(items)
    value = merged(points)
    readable = np.isfinite(value)
    questions = np.unique([item.question for item in items], return_inverse=True)[1]
    languages = np.unique([item.language for item in items], return_inverse=True)[1]
    verdicts = [verdict for item in items for verdict in item.verdicts]
    worst, best = bounds(points)
    row: dict[str, Any] = {
        "won": int((value[readable] > 0.5).sum()),
        "tied": int((value[readable] == 0.5).sum()),
        "lost": int((value[readable] < 0.5).sum()),
        "unparseable": int((~readable).sum()),
        "verdicts": {
            "asked": len(verdicts),
            "unparseable": verdicts.count("unparseable"),
            "identical": sum(item.identical for item in items),
            "cut": sum(item.cut for item in items),
        },
        "bounds": {"worst": worst, "best": best},
        "seen_in_training": sum(item.in_training for item in items),
        **_rewards(items),
        **_finished(items),
        **_jury(items),
        **_kept_to_language(items),
    }
    if readable.any():
        rate = win_rate(value[readable], questions[readable])
        row |= {"win_rate": rate.dump(), "shown": rate.shown()}
        if len(np.unique(languages[readable])) > 1:
            row["macro"] = win_rate(
                value[readable], questions[readable], languages[readable]
            ).dump()
        for unit in ("chars", "tokens"):
            apart = [getattr(i.model, unit) - getattr(i.reference, unit) for i in items]
            controlled = lc_minimal(
                value[readable],
                np.asarray(apart, float)[readable],
                questions[readable],
            )
            row[f"lc_minimal_{unit}"] = controlled.dump()
        if any(item.model.marks or item.reference.marks for item in items):
            style = [
                (i.model.chars - i.reference.chars, i.model.marks - i.reference.marks)
                for i in items
            ]
            row["style_controlled"] = style_controlled(
                value[readable], np.asarray(style, float)[readable], questions[readable]
            ).dump()
    strict = _in_language(items, value)
    if (readable_strict := np.isfinite(strict)).any():
        row["in_language"] = win_rate(strict[readable_strict], questions[readable_strict]).dump()
    if points.shape[1] > 1:
        # what was never shown to a judge says nothing about it
        shown = np.array([not item.identical for item in items], bool)
        row["consistency"] = consistency(points[shown]).dump()
    return row


def _points(items: Sequence[JudgedQuestion]) -> Floats:
    """Item by order; in two orders the model stands first in the first column."""
    width = max(len(item.verdicts) for item in items)
    points = np.full((len(items), width), np.nan)
    for row, item in enumerate(items):
        # of one order at random: where it stands in does not matter
        ranked = sorted(zip(item.orders, item.verdicts, strict=True))
        for column, (_, verdict) in enumerate(ranked):
            points[row, column] = POINTS.get(verdict, np.nan)
    return points


def _in_language(items: Sequence[JudgedQuestion], value: Floats) -> Floats:
    """Return the values with an answer in another language than its question counted as lost,
    whatever the judge said; where both are, as a tie."""
    ours = np.array([item.model.wrong_language for item in items], bool)
    theirs = np.array([item.reference.wrong_language for item in items], bool)
    return np.select([ours & theirs, ours, theirs], [0.5, 0.0, 1.0], value)


def _rewards(items: Sequence[JudgedQuestion]) -> dict[str, Any]:
    triples = [(item.model.reward, item.reference.reward, item.question) for item in items]
    both = [(o, t, q) for o, t, q in triples if o is not None and t is not None]
    if not both:
        return {}
    ours, theirs, questions = zip(*both, strict=True)
    if (span := items[0].span) is not None:
        return {"ratings": paired(ours, theirs, questions, span)}
    return {
        "mean_reward_model": sum(ours) / len(both),
        "mean_reward_reference": sum(theirs) / len(both),
    }


def _jury(items: Sequence[JudgedQuestion]) -> dict[str, Any]:
    """Return the win rate by the mean of the judges, and by each of them."""
    rates = {}
    for judge in items[0].votes:
        read = [(p, item.question) for item in items if (p := item.votes[judge]) is not None]
        if read:
            points, questions = zip(*read, strict=True)
            rates[judge] = win_rate(points, questions).dump()
    if not rates:
        return {}
    voted = [(vote, i.question) for i in items if (vote := _mean(i.votes.values())) is not None]
    mean = win_rate([vote for vote, _ in voted], [question for _, question in voted])
    return {"jury_mean": mean.dump(), "judges": rates}


def _mean(votes: Iterable[float | None]) -> float | None:
    read = [vote for vote in votes if vote is not None]
    return sum(read) / len(read) if read else None


def _finished(items: Sequence[JudgedQuestion]) -> dict[str, Any]:
    both = [
        (item.model.finished, item.reference.finished, item.question)
        for item in items
        if item.model.finished is not None and item.reference.finished is not None
    ]
    if not both:
        return {}
    model, reference, questions = zip(*both, strict=True)
    return {"finish_rates": finish_rates(model, reference, questions)}


def _kept_to_language(items: Sequence[JudgedQuestion]) -> dict[str, Any]:
    """Count answers in another language than their question, line and word pass rates, of both
    sides."""
    figures: dict[str, Any] = {}
    sides: Mapping[str, list[JudgedAnswer]] = {
        "model": [item.model for item in items],
        "reference": [item.reference for item in items],
    }
    for name, answers in sides.items():
        lines, words = pass_rates((s.lines, s.wrong_lines, s.english_words) for s in answers)
        figures[f"wrong_language_{name}"] = sum(side.wrong_language for side in answers)
        figures[f"line_pass_rate_{name}"] = percent(lines)
        figures[f"word_pass_rate_{name}"] = percent(words)
        figures[f"mean_tokens_{name}"] = sum(side.tokens for side in answers) / len(answers)
    return figures


def _labels(
    items: Sequence[JudgedQuestion], of: Callable[[JudgedQuestion], str | None]
) -> list[str]:
    return list(dict.fromkeys(label for item in items if (label := of(item)) is not None))

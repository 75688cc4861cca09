"""A jury: verdicts of several judges on the same answers become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain, combinations
from typing import Any

from factory.artifacts.manifest import Manifest
from factory.evaluation.judging.match import Match
from factory.evaluation.judging.verdicts import ADDRESS, APART, Rows, row_of
from factory.evaluation.statistics.agreement import agreement, outcome
from factory.evaluation.statistics.table import ALL, POINTS

NAME = "jury"
Votes = dict[tuple[str, ...], dict[str, float | None]]  # by what was read, then by judge


def read_votes(members: Mapping[str, Sequence[Mapping[str, Any]]]) -> Votes:
    """Return the worth of each judge's verdict on each pair of answers, from 1 (the model's is
    better) to 0: the mean of its orders, None where it gave none. `members`: rows of verdicts, by
    judge."""
    read: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for judge, rows in members.items():
        for row in rows:
            points = POINTS.get(row["verdict"])
            by_judge = read.setdefault(tuple(row[name] for name in ADDRESS), {})
            by_judge.setdefault(judge, []).extend([] if points is None else [points])

    def mean(points: Sequence[float]) -> float | None:
        return sum(points) / len(points) if points else None

    return {
        address: {judge: mean(by_judge.get(judge, ())) for judge in members}
        for address, by_judge in read.items()
    }


def decide(ballot: Mapping[str, float | None]) -> str:
    """Return the verdict that most judges give; `tie` where two are as frequent, `unparseable`
    where no judge gives any."""
    counts = Counter(verdict for v in ballot.values() if (verdict := outcome(v))).most_common()
    if not counts:
        return "unparseable"
    if len(counts) > 1 and counts[0][1] == counts[1][1]:
        return "tie"
    return counts[0][0]


def by_votes(pairs: Sequence[Match], votes: Votes) -> Rows:
    """Return the verdicts of the jury, one for every two texts, with the vote of each judge."""
    rows = {}
    for pair in pairs:
        address = tuple(pair.address().values())
        each = votes.get(address, {})
        verdict = decide(each)
        reason = "no_verdict" if verdict == "unparseable" else None
        row = row_of(pair, NAME, APART, verdict, "identical" if pair.identical else reason)
        output = "; ".join(f"{judge}: {outcome(v) or 'no verdict'}" for judge, v in each.items())
        rows[address] = row | {"judge_output": output}
    return list(rows.values())


def agreements(
    pairs: Mapping[str, Sequence[tuple[Match, Mapping[str, float | None]]]], judges: Sequence[str]
) -> list[dict[str, Any]]:
    """Return how far each two judges agree (see agreement.Agreement), over all languages and in
    each. `pairs`: answers with the votes on them, by language. Identical answers say nothing of a
    judge and are left out."""
    groups = {
        code: [(pair, ballot) for pair, ballot in rows if not pair.identical]
        for code, rows in pairs.items()
    }
    if len(groups) > 1:
        groups = {ALL: list(chain.from_iterable(groups.values())), **groups}
    return [
        {"first": first, "second": second, "language": code}
        | asdict(
            agreement(
                [outcome(ballot.get(first)) for _, ballot in rows],
                [outcome(ballot.get(second)) for _, ballot in rows],
                [pair.model["question_id"] for pair, _ in rows],
            )
        )
        for first, second in combinations(judges, 2)
        for code, rows in groups.items()
    ]


def doubts(members: Mapping[str, Manifest]) -> tuple[list[str], dict[str, list[str]]]:
    """Return what keeps judges from being independent, and the languages in which the audit of a
    judge's reward suspects it, with the reasons; each with the judge's name."""
    notes = [f"{judge}: {note}" for judge, m in members.items() for note in m.stats["notes"]]
    blind: dict[str, list[str]] = {}
    for judge, manifest in members.items():
        for code, reasons in manifest.stats.get("judge_blind", {}).items():
            blind.setdefault(code, []).extend(f"{judge}: {reason}" for reason in reasons)
    return notes, blind

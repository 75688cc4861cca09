"""Questions with the answers of the base and of a tuned model, and every judge's verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from factory.pages import rows
from factory.pages.pools import turns
from factory.pages.visit import Version, Visit
from factory.reports import values

FILTERS = ("lost", "won", "other language", "cut off", "judges disagree")
_ANSWER = ("question_id", "language", "prompt", "answer", "n_tokens", "finish_reason",
           "detected_language")  # fmt: skip
_VERDICT = ("question_id", "judge", "order", "verdict", "reason", "judge_output", "score_model",
            "score_reference")  # fmt: skip
_OUTCOMES = {"model": "won", "reference": "lost", "tie": "tied"}
_ORDERS = {"model_first": "tuned first", "reference_first": "base first", "apart": "each alone"}


@dataclass(frozen=True)
class Side:
    """An answer: its text, detected language, tokens, and whether it was cut off."""

    text: str
    language: str
    tokens: int | None
    cut_off: bool


@dataclass(frozen=True)
class Verdict:
    """Decision of a judge on one order of the answers, and its own words."""

    judge: str
    outcome: str
    order: str
    reason: str
    words: str
    score: str


@dataclass(frozen=True)
class ComparedAnswers:
    """One question with both answers and all verdicts; `marks` are the filters it passes."""

    question_id: str
    language: str
    turns: tuple[tuple[str, str], ...]
    tuned: Side
    base: Side
    verdicts: tuple[Verdict, ...]
    marks: frozenset[str]


def read(visit: Visit, version: Version, name: str) -> list[ComparedAnswers]:
    """Read all questions of a slice of verdicts, with the verdicts of the other judges in its
    collections on the same answers. Raises NotFound."""
    tuned, base = (_answers(visit, version, name, role) for role in ("answers", "reference"))
    verdicts: dict[str, list[Verdict]] = {}
    for judged in [version, *_others(visit, version, name)]:
        for row in rows.records(visit.tables(judged).get(name, []), _VERDICT):
            verdicts.setdefault(str(row["question_id"]), []).append(_verdict(judged, row))
    return [
        _comparison(key, tuned[key], base[key], tuple(verdicts.get(key, ())), version)
        for key in tuned
        if key in base
    ]


def _others(visit: Visit, version: Version, name: str) -> list[Version]:
    own = _digests(version, name)
    return [
        other
        for other in visit.beside(version, "verdicts")
        if other.commit.oid != version.commit.oid
        and other.repo.key != version.repo.key
        and own and own == _digests(other, name)
    ]  # fmt: skip


def _digests(version: Version, name: str) -> dict[str, str]:
    record = version.manifest.slices.get(name) if version.manifest else None
    reads = record.inputs if record else ()
    return {read.role: read.digest for read in reads if read.role in ("answers", "reference")}


def _answers(visit: Visit, version: Version, name: str, role: str) -> dict[str, dict[str, Any]]:
    record = version.manifest.slices.get(name) if version.manifest else None
    for read in record.inputs if record else ():
        source = visit.source(read) if read.role == role else None
        files = visit.tables(source).get(read.slice or "") if source else None
        if files:
            return {str(row["question_id"]): row for row in rows.records(files, _ANSWER)}
    return {}


def _side(row: dict[str, Any]) -> Side:
    return Side(
        text=str(row.get("answer")),
        language=str(row.get("detected_language") or ""),
        tokens=row.get("n_tokens"),
        cut_off=row.get("finish_reason") == "length",
    )


def _verdict(version: Version, row: dict[str, Any]) -> Verdict:
    scores = [values.number(row[f"score_{side}"]) for side in ("model", "reference")]
    return Verdict(
        judge=str(row.get("judge") or version.repo.id),
        outcome=_OUTCOMES.get(str(row.get("verdict")), "unreadable"),
        order=_ORDERS.get(str(row.get("order")), str(row.get("order"))),
        reason=str(row.get("reason") or "").replace("_", " "),
        words=str(row.get("judge_output") or ""),
        score=" and ".join(f"{s:.3g}" for s in scores) if None not in scores else "",
    )


def _comparison(
    key: str,
    tuned: dict[str, Any],
    base: dict[str, Any],
    verdicts: tuple[Verdict, ...],
    version: Version,
) -> ComparedAnswers:
    sides = (_side(tuned), _side(base))
    language = str(tuned.get("language") or "")
    own = version.manifest.stats.get("judge") if version.manifest else None
    by_judge: dict[str, int] = {}
    for verdict in verdicts:
        worth = {"won": 1, "lost": -1}.get(verdict.outcome, 0)
        by_judge[verdict.judge] = by_judge.get(verdict.judge, 0) + worth
    signs = {(total > 0) - (total < 0) for total in by_judge.values()}
    total = by_judge.get(str(own), sum(by_judge.values()))
    passed = {
        "lost": total < 0,
        "won": total > 0,
        "other language": any(s.language not in ("", language) for s in sides),
        "cut off": any(s.cut_off for s in sides),
        # of one judge, its two orders
        "judges disagree": {1, -1} <= signs
        or {"won", "lost"} <= {v.outcome for v in verdicts if len(by_judge) == 1},
    }
    marks = frozenset(name for name, does in passed.items() if does)
    return ComparedAnswers(key, language, turns(tuned.get("prompt")), *sides, verdicts, marks)

"""Two ways to a verdict: by the rewards of both answers, or by asking which is better. Rows of the
kind `verdicts` come out, and go into the statistics."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from factory.engines import Sampling
from factory.engines.chat_template import REFUSED
from factory.evaluation.judging import llm_judge
from factory.evaluation.judging.backends import JudgeBackend
from factory.evaluation.judging.llm_judge import AnswerPair
from factory.evaluation.judging.match import Match
from factory.evaluation.judging.prompts import JudgePrompt
from factory.evaluation.statistics.table import JudgedAnswer, JudgedQuestion
from factory.language.confusion import count_english
from factory.language.detect import differs
from factory.language.english import english
from factory.rewards.backends.backend import OpenReward

APART, MODEL_FIRST, REFERENCE_FIRST = "apart", "model_first", "reference_first"
ADDRESS = ("question_id", "prompt_hash", "answer_hash", "reference_hash")  # of Match
Comparison = tuple[Match, str]  # two answers, and in which order they are to be read
Rows = list[dict[str, object]]
# headings, list items and bold text
_MARKDOWN = re.compile(
    r"^ {0,3}#{1,6} |^\s*(?:[-*+]|\d{1,3}[.)]) |(?:\*\*|__)\S.*?(?:\*\*|__)", re.MULTILINE
)
_FINISHED = {"stop": True, "length": False}  # of any other answer it is not known


def by_reward(
    opened: OpenReward, judge: str, comparisons: Sequence[Comparison]
) -> tuple[Rows, int]:
    """Return the verdicts of a reward, and the tokens it read. Identical answers tie, whatever the
    last digits of their rewards."""
    sides = [side for pair, _ in comparisons for side in (pair.model, pair.reference)]
    values = opened.reward([(side["prompt"], side["answer"]) for side in sides])
    rows = []
    for number, (pair, order) in enumerate(comparisons):
        both = values[2 * number : 2 * number + 2]
        ours, theirs = (value.value for value in both)
        if ours is None or theirs is None:
            refused = REFUSED in [value.status for value in both]
            verdict, reason = "unparseable", REFUSED if refused else "no_reward"
        elif pair.identical:
            verdict, reason = "tie", "identical"
        else:
            verdict = _better(ours, theirs)
            reason = None
        row = row_of(pair, judge, order, verdict, reason)
        rows.append(row | {"score_model": ours, "score_reference": theirs})
    return rows, sum(value.n_tokens for value in values)


def _better(ours: float, theirs: float) -> str:
    return "tie" if ours == theirs else "model" if ours > theirs else "reference"


def by_asking(
    speaker: JudgeBackend,
    words: JudgePrompt,
    sampling: Sampling,
    context: int,
    judge: str,
    comparisons: Sequence[Comparison],
    seed: int,
) -> tuple[Rows, int]:
    """Return the verdicts of a model that is asked, and the tokens it read and wrote. Identical
    answers tie, and it is not asked about them."""
    pairs = [_pair(pair, order) for pair, order in comparisons if not pair.identical]
    answers = iter(llm_judge.ask(speaker, words, pairs, sampling, context, seed))
    rows, tokens = [], 0
    for pair, order in comparisons:
        if pair.identical:
            rows.append(row_of(pair, judge, order, "tie", "identical"))
            continue
        answer = next(answers)
        tokens += answer.n_tokens
        row = row_of(pair, judge, order, meant(answer.verdict, order), answer.reason)
        rows.append(row | {"judge_output": answer.output, "cut_tokens": answer.cut})
    return rows, tokens


def by_rating(
    speaker: JudgeBackend,
    words: JudgePrompt,
    sampling: Sampling,
    context: int,
    judge: str,
    comparisons: Sequence[Comparison],
    seed: int,
) -> tuple[Rows, int]:
    """Return the verdicts of a model that rates each answer apart by a rubric, and the tokens it
    read and wrote. The answer with the higher rating is better. One of two identical answers is
    rated, and they tie."""
    sides = [
        (pair.model, pair.model if pair.identical else pair.reference) for pair, _ in comparisons
    ]
    to_rate = {
        (row["question_id"], row["answer"]): AnswerPair(
            row["prompt"], row["answer"], "", row["language"]
        )
        for pair in sides
        for row in pair
    }
    answers = dict(
        zip(to_rate, llm_judge.ask(speaker, words, list(to_rate.values()), sampling, context, seed),
            strict=True)
    )  # fmt: skip
    rows = []
    for (pair, order), both in zip(comparisons, sides, strict=True):
        read = [answers[row["question_id"], row["answer"]] for row in both]
        ours, theirs = (None if a.verdict is None else float(a.verdict) for a in read)
        if ours is None or theirs is None:
            verdict, reason = "unparseable", next(a.reason for a in read if a.verdict is None)
        else:
            verdict = _better(ours, theirs)
            reason = "identical" if pair.identical else None
        outputs = [
            f"{side}: {a.output}" for side, a in zip(("model", "reference"), read, strict=True)
        ]
        rows.append(
            row_of(pair, judge, order, verdict, reason)
            | {
                "score_model": ours,
                "score_reference": theirs,
                "judge_output": "\n\n".join(outputs),
                "cut_tokens": sum(a.cut for a in read),
            }
        )
    return rows, sum(answer.n_tokens for answer in answers.values())


def items(
    pairs: Sequence[Match],
    rows: Sequence[Mapping[str, Any]],
    learned: Collection[str],
    span: float | None = None,
    votes: Mapping[tuple[str, ...], Mapping[str, float | None]] | None = None,
) -> list[JudgedQuestion]:
    """Return the verdicts on each question that has any, for the statistics. `learned`: the
    questions that are among the prompts of training. `span`: of the scale of a rubric. `votes`: of
    a jury, by what was read."""
    by_address: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_address.setdefault(tuple(row[name] for name in ADDRESS), []).append(row)
    judged = []
    for pair in pairs:
        name = pair.model["question_id"]
        address = tuple(pair.address().values())
        if not (verdicts := by_address.get(address)):
            continue
        judged.append(
            JudgedQuestion(
                question=name,
                language=pair.model["language"],
                category=pair.model["category"],
                subcategory=pair.model["subcategory"],
                orders=tuple(row["order"] for row in verdicts),
                verdicts=tuple(row["verdict"] for row in verdicts),
                model=_side(pair.model, verdicts[0]["score_model"]),
                reference=_side(pair.reference, verdicts[0]["score_reference"]),
                identical=pair.identical,
                cut=any(row["cut_tokens"] for row in verdicts),
                in_training=name in learned,
                span=span,
                votes=(votes or {}).get(address, {}),
            )
        )
    return judged


def _pair(pair: Match, order: str) -> AnswerPair:
    sides = pair.model["answer"], pair.reference["answer"]
    first, second = sides if order == MODEL_FIRST else sides[::-1]
    return AnswerPair(pair.model["prompt"], first, second, pair.model["language"])


def meant(verdict: str | None, order: str) -> str:
    """Return whose answer a judge's letter stands for."""
    if verdict is None:
        return "unparseable"
    if verdict == "TIE":
        return "tie"
    return "model" if (verdict == "A") == (order == MODEL_FIRST) else "reference"


def row_of(
    pair: Match, judge: str, order: str, verdict: str, reason: str | None
) -> dict[str, object]:
    return {
        "model": pair.model["model"],
        "reference": pair.reference["model"],
        "judge": judge,
        "language": pair.model["language"],
        "order": order,
        "verdict": verdict,
        "reason": reason,
        **pair.address(),
    }


def _side(answer: Mapping[str, Any], reward: float | None) -> JudgedAnswer:
    return JudgedAnswer(
        chars=len(answer["answer"]),
        tokens=answer["n_tokens"],
        wrong_language=differs(answer["detected_language"], answer["language"]),
        lines=answer["lines"],
        wrong_lines=answer["wrong_lines"],
        english_words=count_english(answer["answer"], answer["language"], english),
        reward=reward,
        finished=_FINISHED.get(answer["finish_reason"]),
        marks=len(_MARKDOWN.findall(answer["answer"])),
    )

"""A language model as judge: pairs of answers in, verdicts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from factory.engines import Sampling
from factory.engines.chat_template import Message
from factory.evaluation.judging.backends import JudgeBackend
from factory.evaluation.judging.prompts import JudgePrompt
from factory.evaluation.judging.truncate import fit


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to a prompt, in the order in which a judge reads them, and the language that
    they should be in."""

    prompt: Sequence[Message]
    first: str
    second: str
    language: str


@dataclass(frozen=True)
class JudgeAnswer:
    """A judge's `verdict` (`A`: the first, `B`: the second, `TIE`) or None with the `reason`:
    `too_long` (the request leaves no room for it), `cut_off` (it had not ended at max_tokens),
    `refused` (by a server) or `no_verdict`. `cut`: how much of the answers was left out so that
    they fit, in the judge's measure."""

    verdict: str | None
    reason: str | None
    output: str | None
    cut: int
    n_tokens: int


def ask(
    speaker: JudgeBackend,
    words: JudgePrompt,
    pairs: Sequence[AnswerPair],
    sampling: Sampling,
    context: int,
    seed: int,
) -> list[JudgeAnswer]:
    """Return the judge's answer on each pair, in order, in one batch. `context`: of question and
    verdict together in the judge's measure, at most the model's own."""
    context = min(context, speaker.max_context or context)
    room = min(sampling.max_tokens, context // 2)
    fitted = [_fitted(speaker, words, pair, context - room) for pair in pairs]
    drawing = Sampling(sampling.temperature, sampling.top_p, room)
    requests = [request for request, _ in fitted if request is not None]
    replies = iter(speaker.say(requests, drawing, seed))
    verdicts = []
    for request, cut in fitted:
        if request is None:
            verdicts.append(JudgeAnswer(None, "too_long", None, 0, 0))
            continue
        reply = next(replies)
        # one that did not come to its end has not said its last word
        verdict = words.read(reply.text) if reply.unread is None else None
        reason = None if verdict else reply.unread or "no_verdict"
        verdicts.append(JudgeAnswer(verdict, reason, reply.text, cut, reply.n_tokens))
    return verdicts


def _fitted(
    speaker: JudgeBackend, words: JudgePrompt, pair: AnswerPair, limit: int
) -> tuple[Any, int]:
    def conversation(first: str, second: str) -> list[Message]:
        return words.fill(pair.prompt, first, second, pair.language)

    return fit(speaker.measure, conversation, pair.first, pair.second, limit)

"""A language model as judge: pairs of answers in, what it said of each out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factory.chat import Message
from factory.engines import Sampler, Sampling
from factory.judging.fitting import fit
from factory.judging.wording import Wording


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt, in the order in which a judge reads them, and the language that
    they should be in."""

    prompt: Sequence[Message]
    first: str
    second: str
    language: str


@dataclass(frozen=True)
class Said:
    """A judge's `verdict` (`A`: the first, `B`: the second, `TIE`) or None with the `reason`:
    `too_long` (the request leaves no room for it), `cut_off` (it had not ended at max_tokens) or
    `no_verdict`. `cut`: tokens of the answers that were left out so that they fit."""

    verdict: str | None
    reason: str | None
    output: str | None
    cut: int
    n_tokens: int


def ask(
    sampler: Sampler,
    words: Wording,
    pairs: Sequence[Pair],
    sampling: Sampling,
    context: int,
    seed: int,
) -> list[Said]:
    """What the judge says of each pair, in order, in one batch. `context`: tokens of question and
    verdict together, at most the model's own."""
    context = min(context, sampler.max_context)
    room = min(sampling.max_tokens, context // 2)
    fitted = [_fitted(sampler, words, pair, context - room) for pair in pairs]
    asked = [ids for ids, _ in fitted if ids is not None]
    drawing = Sampling(sampling.temperature, sampling.top_p, room)
    answers = iter(sampler.sample(asked, drawing, seed) if asked else [])
    said = []
    for ids, cut in fitted:
        if ids is None:
            said.append(Said(None, "too_long", None, 0, 0))
            continue
        answer = next(answers)
        text = sampler.tokenizer.decode(list(answer.token_ids), skip_special_tokens=True).strip()
        # one that did not come to its end has not said its last word
        ended = answer.finish_reason != "length"
        verdict = words.read(text) if ended else None
        reason = None if verdict else "no_verdict" if ended else "cut_off"
        said.append(Said(verdict, reason, text, cut, len(ids) + len(answer.token_ids)))
    return said


def _fitted(
    sampler: Sampler, words: Wording, pair: Pair, limit: int
) -> tuple[list[int] | None, int]:
    def conversation(first: str, second: str) -> list[Message]:
        return words.fill(pair.prompt, first, second, pair.language)

    return fit(sampler.tokenizer, conversation, pair.first, pair.second, limit)

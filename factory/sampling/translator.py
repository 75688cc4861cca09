"""A translator: a model that samples, asked for one text after another, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from factory.engines import Completion, Sampler, Sampling, chat_template
from factory.sampling.translation import Piece, TranslationPrompt, pieces


@dataclass(frozen=True)
class Translation:
    """Translation of one text, its pieces joined; `reason` if it was not sent."""

    text: str
    cut_off: bool
    n_tokens: int
    reason: str | None = None


@dataclass(frozen=True)
class Sending:
    """What of a text is sent: pieces of at most `chunk` tokens of it, or texts in one piece whose
    whole request has no more tokens (`whole`); code too with `code`. An answer has at most
    `max_tokens`."""

    chunk: int
    max_tokens: int
    code: bool = False
    whole: bool = False


def translate(
    texts: Sequence[str], words: TranslationPrompt, sampler: Sampler, sending: Sending
) -> list[Translation]:
    """Translate every text, in order: cut, ask for all pieces in one batch, put together."""
    tokenizer = sampler.tokenizer
    sampling = Sampling(0.0, 1.0, sending.max_tokens)

    def count(text: str) -> int:
        return 0 if sending.whole else len(tokenizer(text, add_special_tokens=False)["input_ids"])

    completion = words.format == "completion"
    cut = [pieces(text, sending.chunk, count, completion, sending.code) for text in texts]
    reasons: list[str | None] = []
    prompts: list[list[int]] = []
    for parts in cut:
        bodies = [piece.text.strip() for piece in parts if piece.translatable]
        ids = [
            chat_template.text_ids(tokenizer, words.ask(body))
            if completion
            else chat_template.prompt_ids(tokenizer, [{"role": "user", "content": words.ask(body)}])
            for body in bodies
        ]
        if any(words.markers(body, tokenizer.all_special_tokens) for body in bodies):
            reasons.append("markers")
        elif (sending.whole and any(len(prompt) > sending.chunk for prompt in ids)) or not all(
            sampling.room(len(prompt), sampler.max_context) for prompt in ids
        ):
            reasons.append("too_long")
        else:
            reasons.append(None)
            prompts += ids
    answers = iter(sampler.sample(prompts, sampling, seed=0) if prompts else [])
    return [
        Translation("", cut_off=False, n_tokens=0, reason=reason)
        if reason
        else _joined(parts, answers, words, tokenizer)
        for parts, reason in zip(cut, reasons, strict=True)
    ]


def _joined(
    parts: Sequence[Piece], answers: Iterator[Completion], words: TranslationPrompt, tokenizer: Any
) -> Translation:
    text, cut_off, tokens = "", False, 0
    for piece in parts:
        if not piece.translatable:
            text += piece.text
            continue
        answer = next(answers)
        decoded = tokenizer.decode(list(answer.token_ids), skip_special_tokens=True)
        translation, ended = words.answer(decoded)
        text += piece.around(translation)
        cut_off = cut_off or (answer.finish_reason == "length" and not ended)
        tokens += len(answer.token_ids)
    return Translation(text, cut_off, tokens)

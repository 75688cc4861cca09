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


def translate(
    texts: Sequence[str], words: TranslationPrompt, sampler: Sampler, chunk: int, max_tokens: int
) -> list[Translation]:
    """Translate every text, in order: cut, ask for all pieces in one batch, put together."""
    tokenizer = sampler.tokenizer
    sampling = Sampling(0.0, 1.0, max_tokens)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    completion = words.format == "completion"
    cut = [pieces(text, chunk, count, paragraphs=completion) for text in texts]
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
        elif not all(sampling.room(len(prompt), sampler.max_context) for prompt in ids):
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

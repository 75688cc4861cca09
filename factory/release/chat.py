"""A conversation with a released model, and beside it with its base."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from factory.engines import Sampling, chat_template
from factory.language.detect import detect
from factory.language.languages import name_of
from factory.release.adapter import Released

if TYPE_CHECKING:
    from factory.engines.transformers import Talker


@dataclass(frozen=True)
class ChatAnswer:
    """Answer of one speaker (`base`, `tuned`, or `model` without an adapter): text, ISO 639-1 code
    of the detected language (None if undetected), tokens, finish reason (`stop` or `length`),
    seconds."""

    who: str
    text: str
    language: str | None
    tokens: int
    finish_reason: str
    seconds: float

    def about(self) -> str:
        """Return details of the answer as one line."""
        code = self.language
        name = f"{name_of(code)} ({code})" if code else "language unknown"
        cut = ", cut off" if self.finish_reason == "length" else ""
        return f"{name}, {self.tokens} tokens in {self.seconds:.1f} s{cut}"


@dataclass
class Conversation:
    """Turns so far, separate for each speaker: each model sees its own answers."""

    talker: Talker
    sampling: Sampling
    seed: int
    speakers: tuple[str, ...]
    _turns: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def say(self, text: str) -> Iterator[tuple[str, str | ChatAnswer]]:
        """Yield (speaker, piece of text) while it answers and (speaker, ChatAnswer) when done, one
        speaker after another. A turn that is stopped before its end is left out of the
        conversation. Raises InputError when the conversation is too long for the model."""
        answered = {}
        for who in self.speakers:
            turns = [*self._turns.get(who, []), {"role": "user", "content": text}]
            prompt = chat_template.prompt_ids(self.talker.tokenizer, turns)
            begun, pieces = time.monotonic(), []
            answer = self.talker.say(prompt, self.sampling, self.seed, as_base=who == "base")
            while True:
                try:
                    piece = next(answer)
                except StopIteration as end:
                    sample = end.value
                    break
                pieces.append(piece)
                yield who, piece
            response = "".join(pieces).strip()
            answered[who] = [*turns, {"role": "assistant", "content": response}]
            yield (
                who,
                ChatAnswer(
                    who,
                    response,
                    detect(response),
                    len(sample.token_ids),
                    sample.finish_reason,
                    round(time.monotonic() - begun, 2),
                ),
            )
        self._turns.update(answered)

    def forget(self) -> None:
        """Start a new conversation."""
        self._turns.clear()


def open_with(released: Released, sampling: Sampling, seed: int, compare: bool) -> Conversation:
    """Load a released model and start a conversation. Raises InputError."""
    from factory.engines.transformers import Talker, causal
    from factory.training import adapters

    speakers: tuple[str, ...] = ("model",)
    if released.adapter is None:
        model = causal(released.base, released.dtype)
    else:
        model = adapters.load(released.base, released.adapter, released.dtype)
        speakers = ("base", "tuned") if compare else ("tuned",)
    return Conversation(Talker(model, released.base, released.speech), sampling, seed, speakers)

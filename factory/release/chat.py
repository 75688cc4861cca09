"""A conversation with a released model, with what its base would have said beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from factory.engines import Sampling, chat_template
from factory.language.detect import detect
from factory.language.languages import LANGUAGES
from factory.release.adapter import Released

if TYPE_CHECKING:
    from factory.engines.transformers import Talker


@dataclass(frozen=True)
class ChatAnswer:
    """One answer: who gave it (`base`, `tuned`, or `model` where there is no adapter), its text,
    the ISO 639-1 code of the language it is in (None when that cannot be told), tokens, how it
    ended (`stop` or `length`), seconds."""

    who: str
    text: str
    language: str | None
    tokens: int
    finish_reason: str
    seconds: float

    def about(self) -> str:
        """What is to be known of it, in a line."""
        row = LANGUAGES.get(self.language or "")
        name = f"{row.name} ({row.code})" if row else self.language or "no language told"
        cut = ", cut off" if self.finish_reason == "length" else ""
        return f"{name}, {self.tokens} tokens in {self.seconds:.1f} s{cut}"


@dataclass
class Conversation:
    """Turns so far, kept apart for each that speaks: an answer is to what itself said before."""

    talker: Talker
    sampling: Sampling
    seed: int
    speakers: tuple[str, ...]
    _turns: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def say(self, text: str) -> Iterator[tuple[str, str | ChatAnswer]]:
        """(speaker, piece of its answer) as they come, and (speaker, Said) when it is done; one
        after another. Raises InputError when the conversation is too long for the model."""
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
            whole = "".join(pieces).strip()
            self._turns[who] = [*turns, {"role": "assistant", "content": whole}]
            yield (
                who,
                ChatAnswer(
                    who,
                    whole,
                    detect(whole),
                    len(sample.token_ids),
                    sample.finish_reason,
                    round(time.monotonic() - begun, 2),
                ),
            )

    def forget(self) -> None:
        """Begin anew."""
        self._turns.clear()


def open_with(found: Released, sampling: Sampling, seed: int, compare: bool) -> Conversation:
    """Load a released model and begin. Raises InputError."""
    from factory.engines.transformers import Talker, causal
    from factory.training import adapters

    speakers: tuple[str, ...] = ("model",)
    if found.adapter is None:
        model = causal(found.base, found.dtype)
    else:
        model = adapters.load(found.base, found.adapter, found.dtype)
        speakers = ("base", "tuned") if compare else ("tuned",)
    return Conversation(Talker(model, found.base, found.speech), sampling, seed, speakers)

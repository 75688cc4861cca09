"""Rows to leave out before anything is spent on them: those seen in evaluation prompts, and those
that nearly repeat an earlier one."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from factory.config import Knobs
from factory.stage import presets
from factory.stage.inputs import SliceSpec
from factory.stage.job import Job
from factory.stage.readers import messages as conversation_of
from factory.stage.stage import From

if TYPE_CHECKING:
    from datasketch import MinHash

QUESTIONS = "questions"  # the stage of evaluation prompts
_SHINGLE = 5  # characters; shorter ones are shared by texts that have little in common
_PERMUTATIONS = 128
# scripts that put no space between words: Thai, Lao, Burmese, Khmer, kana and Han
_UNSPACED = re.compile(r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff])")


@lru_cache(maxsize=1)
def _marks() -> dict[int, str]:
    return {code: " " for code in range(0x20000) if unicodedata.category(chr(code))[0] in "PSC"}


def words(text: str) -> list[str]:
    """Return the words of a text without case and punctuation. In scripts that put no space
    between words each character is one."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_marks())
    return _UNSPACED.sub(r" \1 ", plain).split()


def _runs(text: list[str], length: int) -> Iterator[str]:
    """Yield all runs of `length` words; a shorter text is one."""
    for start in range(max(1, len(text) - length + 1)):
        yield " ".join(text[start : start + length])


class Cleaner:
    """Tells which texts to leave out. `evaluation`: prompts. A text is seen if it shares a run
    of `ngrams` words with one of them (all words, if that one is shorter). With `near` it is also
    left out if the Jaccard similarity of its character 5-grams to an evaluation prompt, or to an
    earlier text that stays, is as much; candidates come from MinHash, and are then compared."""

    def __init__(self, evaluation: Iterable[str] = (), ngrams: int = 8, near: float | None = None):
        self._ngrams, self._near = ngrams, near
        self._seen: set[str] = set()
        self._texts: list[tuple[str, bool]] = []  # what later ones are held against
        if near is not None:
            from datasketch import MinHash, MinHashLSH

            self._empty = MinHash(_PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
            # missing a candidate costs more than one too many: each is compared
            self._index = MinHashLSH(min(near, 0.95), _PERMUTATIONS, weights=(0.1, 0.9))
        for text in evaluation:
            of_text = words(text)
            if of_text:
                self._seen.update(_runs(of_text, ngrams))
                if near is not None:
                    self._add(plain := " ".join(of_text), self._sketch(plain), True)

    def reason(self, text: str) -> str | None:
        """Return why a text is left out, `seen_in` or `near_duplicate`; None if it stays."""
        of_text = words(text)
        if not of_text:
            return None
        plain = " ".join(of_text)
        if not self._seen.isdisjoint(_runs(of_text, self._ngrams)):
            return "seen_in"
        if self._near is None:
            return None
        sketch = self._sketch(plain)
        near = {
            self._texts[number][1]
            for number in self._index.query(sketch)
            if _similarity(plain, self._texts[number][0]) >= self._near
        }
        if near:
            return "seen_in" if True in near else "near_duplicate"
        self._add(plain, sketch, False)
        return None

    def _add(self, plain: str, sketch: MinHash, is_evaluation: bool) -> None:
        self._index.insert(len(self._texts), sketch)
        self._texts.append((plain, is_evaluation))

    def _sketch(self, plain: str) -> MinHash:
        sketch = self._empty.copy()
        sketch.update_batch([shingle.encode() for shingle in _shingles(plain)])
        return sketch


def _shingles(plain: str) -> set[str]:
    return {plain[n : n + _SHINGLE] for n in range(max(1, len(plain) - _SHINGLE + 1))}


def _similarity(first: str, second: str) -> float:
    left, right = _shingles(first), _shingles(second)
    return len(left & right) / len(left | right)


class Drop(Knobs):
    """Rows to leave out before anything is spent on them, by what they ask: those seen in
    evaluation prompts, and those that nearly repeat an earlier row. See Cleaner."""

    # `questions`, the stage, or a source or preset of evaluation prompts, read as any other
    seen_in: Literal["questions"] | From | None = None
    ngrams: int = Field(8, ge=1)  # words in a row that a prompt seen there shares with one of them
    near: float | None = Field(None, gt=0, le=1)  # similarity of a repetition; null: keep them

    @field_validator("seen_in", mode="before")
    @classmethod
    def _source(cls, value: Any) -> Any:
        if isinstance(value, str) and value != QUESTIONS:
            return {"source": value}
        return presets.expanded(value, QUESTIONS)

    @model_validator(mode="after")
    def _drops(self) -> Drop:
        if self.seen_in is None and self.near is None:
            raise ValueError("drops nothing: give seen_in: questions, near: 0.8 or both")
        if isinstance(self.seen_in, From) and self.seen_in.base is not None:
            raise ValueError("base is for adapters: questions have no base")
        return self


def asked(messages: Sequence[Mapping[str, str]]) -> str:
    """Return what the user says in a prompt."""
    return "\n".join(turn["content"] for turn in messages if turn["role"] == "user")


def cleaner_of(drop: Drop | None, job: Job, spec: SliceSpec) -> Cleaner | None:
    """Return what tells the rows of a slice that are left out, None without `drop`."""
    if drop is None:
        return None
    evaluation: list[str] = []
    if drop.seen_in == QUESTIONS:
        table = job.table(spec, "seen_in", "prompts")
        evaluation = [asked(messages) for messages in table["messages"].to_pylist()]
    elif isinstance(drop.seen_in, From):
        place = job.place(spec, "seen_in")
        rows = drop.seen_in.converted_rows(
            place.path,
            str(spec.language),
            lambda row, where: {"asked": asked(conversation_of(row, where))},
            Counter(),
            name=place.name or place.path.name,
        )
        evaluation = [row["asked"] for row in rows]
    return Cleaner(evaluation, drop.ngrams, drop.near)

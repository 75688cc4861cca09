"""Rows to leave out before anything is spent on them: those seen in evaluation prompts, and those
that nearly repeat an earlier one. Pure."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasketch import MinHash

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

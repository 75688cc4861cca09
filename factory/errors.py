"""Errors and checks. Each error says what went wrong and how to fix it.

FactoryError            exit code 1: the user can fix it
├── RecipeError         the recipe says something impossible
├── InputError          a file, a dataset or a row is not what the stage needs
├── HubError            the hub cannot be reached, lacks something, or refuses
├── WorkError           the work directory: no space left, in use by another process
├── StageError          a stage ran and its result cannot be used
└── Interrupted         told to stop; what is finished is kept (exit code 75)
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal


class FactoryError(Exception):
    """An error that the user can fix: `what` happened and the `fix`, one line each."""

    exit_code = 1
    also: tuple[FactoryError, ...] = ()  # other errors of the same kind, told with this one

    def __init__(self, what: str, fix: str) -> None:
        # a line each, whatever was quoted in them, and no secret
        self.what, self.fix = (visible(redact(" ".join(s.split()))) for s in (what, fix))
        super().__init__(self.what)

    def __str__(self) -> str:
        return f"{self.what} ({self.fix})"


class RecipeError(FactoryError):
    """The recipe, its overrides or its lock say something that cannot be."""


class InputError(FactoryError):
    """Data from outside (a file, a dataset, one row of it) does not fit its contract."""


class HubError(FactoryError):
    """The hub is out of reach, lacks what was asked for, or refused it."""


class WorkError(FactoryError):
    """The work directory cannot be used: disk full, not writable, held by another process."""


class StageError(FactoryError):
    """A stage ended without a result that the next one could use."""


class Interrupted(FactoryError):
    """Asked to stop (SIGTERM, SIGUSR1): finished shards are kept, the one in flight is dropped."""

    exit_code = 75  # EX_TEMPFAIL: run the same command again


@contextmanager
def reading(what: str, fix: str) -> Iterator[None]:
    """Raise InputError for whatever goes wrong inside the block, in which a library reads files of
    others: it raises anything for what it did not expect in them. What is not the files' fault
    (too little memory, a package that is not there, a GPU) passes."""
    try:
        yield
    except (FactoryError, ImportError, MemoryError):
        raise
    except Exception as error:
        if type(error).__module__ == "torch":  # OutOfMemoryError, AcceleratorError
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{what}: {lines[0]}", fix) from None


def raise_all(errors: Sequence[FactoryError]) -> None:
    """Raise the first of these errors with the others, all of which are told; nothing if there are
    none."""
    if errors:
        first, *later = errors
        first.also = tuple(later)
        raise first from None


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the closest of `words`, or `""` when none is close."""
    close = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """Result of one check: its subject (a package, a model, a key of a card), state, what was
    seen, and the fix."""

    name: str
    state: State
    seen: str
    fix: str = ""

    @classmethod
    def of(cls, name: str, good: bool, seen: str, fix: str) -> Check:
        """Return a check that is well or has failed; only one that failed has its fix."""
        return cls(name, "ok" if good else "failed", seen, "" if good else fix)

    @property
    def level(self) -> str:
        """The state of a problem as commands print it: error or warning."""
        return "error" if self.state == "failed" else self.state

    def line(self) -> str:
        """Return the check as one line of text."""
        return visible(f"{self.level}: {self.name}: {self.seen} (fix: {self.fix})")


HIDDEN = "[hidden]"
_SHORTEST = 8  # characters; a shorter value would also be found in ordinary words
_NAMES = re.compile(r"(TOKEN|API_KEY|SECRET|PASSWORD)$")
_SHAPES = re.compile(
    r"\bhf_(local_[A-Za-z0-9_-]{16,}|[A-Za-z0-9]{16,})"  # Hugging Face, a hub like ours
    r"|\bsk-[A-Za-z0-9_-]{16,}"  # OpenAI and those who copied it
    r"|(?<=://)[^/\s@]+(?=@)"  # user:password@ in an address
    r"|(?<=[Bb]earer )[A-Za-z0-9._-]{8,}"
)


def redact(text: str) -> str:
    """Return `text` without tokens, or secrets of this environment."""
    for name, value in os.environ.items():
        if _NAMES.search(name) and len(value) >= _SHORTEST and value in text:
            text = text.replace(value, HIDDEN)
    return _SHAPES.sub(HIDDEN, text)


_JOINERS = "\u200c\u200d"  # part of how Persian, Bengali and emoji are written


def unseen(char: str) -> bool:
    """Return whether a character is invisible, or would steer a terminal or the direction of a
    line."""
    kind = unicodedata.category(char)
    return kind in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and char not in _JOINERS


def visible(text: str, keep: str = "") -> str:
    """Return `text` with invisible characters (controls, bidi marks, surrogates) as \\uXXXX, but
    those to `keep`."""
    return "".join(_escaped(char) if unseen(char) and char not in keep else char for char in text)


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"

"""Templates of a judge's question, and the verdicts that they allow.

The templates are text files beside this module, and so in the wheel: plain text with four places to
fill in needs no template language. Which verdicts are allowed is read from the text itself, so that
what is asked for and what is accepted cannot part ways.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from factory.artifacts.hashing import text_hash
from factory.engines.chat_template import Message
from factory.language.languages import language

TEMPLATES = Path(__file__).parent / "templates"
PLACES = ("prompt", "answer_a", "answer_b", "language")
_OF_A_RUBRIC = ("prompt", "answer", "language")
_VERDICT = re.compile(r"\[\[([^\[\]\n]*)\]\]")
_KNOWN = {"A", "B", "TIE"}
_PUBLISHED = {"1": "A", "2": "B", "T": "TIE"}  # the marks of CroCo's judge
# CroCo's script (arXiv 2605.26293) finds its marks so, also where a judge escapes them
_NUMBERED = re.compile(r"\\?\[\\?\[\s*([12Tt])\s*\\?\]\\?\]")


@dataclass(frozen=True)
class JudgePrompt:
    """A template: its name, its text, and the verdicts it allows: `A`, `B`, perhaps `TIE`.
    `numbered`: a judge writes them with the published marks, `1`, `2`, perhaps `T`. A `rubric`
    reads one answer, and allows the steps of its scale (`1`, `2`, …)."""

    name: str
    text: str
    allowed: frozenset[str]
    rubric: bool = False
    numbered: bool = False

    @property
    def hash(self) -> str:
        """Return the hash of the text: another wording is another judge."""
        return text_hash(self.text)

    @property
    def span(self) -> float | None:
        """Return the distance between both ends of the scale of a rubric; None for no rubric."""
        steps = [int(verdict) for verdict in self.allowed] if self.rubric else []
        return float(max(steps) - min(steps)) if steps else None

    def fill(self, prompt: Sequence[Message], first: str, second: str, code: str) -> list[Message]:
        """Return the conversation that asks about two answers to a prompt in language `code`."""
        parts = {
            "prompt": prompt[0]["content"] if len(prompt) == 1 else _transcript(prompt),
            "answer": first,
            "answer_a": first,
            "answer_b": second,
            "language": language(code).name,
        }
        # in one pass: an answer may hold "{prompt}" as its own text
        places = re.compile(r"\{(" + "|".join(parts) + r")\}")
        return [{"role": "user", "content": places.sub(lambda at: parts[at[1]], self.text)}]

    def read(self, output: str) -> str | None:
        """The verdict in what a judge said, or its rating: what stands in its last double brackets,
        if that is one of those allowed, letter by letter. The last one, because a judge that
        explains itself may first say what it was told of the form, or change its mind. Of the
        published marks it is the last one of them, with space around it or a small letter too."""
        if self.numbered:
            verdicts = [_PUBLISHED[mark.upper()] for mark in _NUMBERED.findall(output)]
        else:
            verdicts = _VERDICT.findall(output)
        return verdicts[-1] if verdicts and verdicts[-1] in self.allowed else None


def names() -> list[str]:
    """Return the names of the templates."""
    return sorted(path.stem for path in TEMPLATES.glob("*.txt"))


def wording(name: str) -> JudgePrompt:
    """Read the template of this name. Raises ValueError."""
    path = TEMPLATES / f"{name}.txt"
    if name not in names():
        raise ValueError(f"no template {name!r}, only {', '.join(names())}")
    return parse(name, path.read_text(encoding="utf-8").strip())


def parse(name: str, text: str) -> JudgePrompt:
    """Parse a template. Raises ValueError for one that lacks a place or a verdict. With the
    published marks it may leave the language out, as the published prompt does."""
    allowed = frozenset(_VERDICT.findall(text))
    rubric = "{answer}" in text
    if numbered := not rubric and bool(allowed) and allowed <= _PUBLISHED.keys():
        allowed = frozenset(_PUBLISHED[mark] for mark in allowed)
    for place in _OF_A_RUBRIC if rubric else PLACES[: 3 if numbered else 4]:
        if f"{{{place}}}" not in text:
            raise ValueError(f"the template {name} does not say where {{{place}}} goes")
    if rubric:
        if len(allowed) < 2 or not all(verdict.isdecimal() for verdict in allowed):
            raise ValueError(
                f"the template {name} rates one answer: it must name the steps of its scale, [[1]] "
                "and [[2]] and so on, and nothing else"
            )
        return JudgePrompt(name, text, allowed, rubric=True)
    if not {"A", "B"} <= allowed <= _KNOWN:
        raise ValueError(
            f"the template {name} asks for {', '.join(sorted(allowed)) or 'no verdict'}: "
            "it must name [[A]] and [[B]], may name [[TIE]] (or [[1]], [[2]] and [[T]]), and "
            "nothing else"
        )
    return JudgePrompt(name, text, allowed, numbered=numbered)


def _transcript(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)

"""Separate prose from code: code is not translated and has no language."""

from __future__ import annotations

import re
from collections.abc import Iterator

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_LINK = re.compile(r"\bhttps?://\S+|\bwww\.\S+")

# Code in a line: between two runs of as many backticks.
INLINE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
LETTER = re.compile(r"[^\W\d_]")


def fenced(text: str) -> Iterator[tuple[str, bool]]:
    """Yield runs of whole lines, each with whether it is fenced code; joined, they are the text. As
    in CommonMark, a fence that is never closed runs to the end."""
    run, fence = "", ""
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if not fence and mark:
            if run:
                yield run, False
            run, fence = line, mark[1]
        elif fence and mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
            yield run + line, True
            run, fence = "", ""
        else:
            run += line
    if run:
        yield run, bool(fence)


def prose(text: str) -> str:
    """Return a text without its code and links."""
    if "```" in text or "~~~" in text:
        text = "".join(part for part, code in fenced(text) if not code)
    if "`" in text:
        text = INLINE.sub(" ", text)
    return _LINK.sub(" ", text) if "://" in text or "www." in text else text

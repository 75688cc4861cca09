"""Markdown as cards need it: text that cannot break out of its place.

Prompts, file names and names of models are other people's text. A value is shown as it is when
nothing in it means anything to Markdown, and as a code span otherwise, where nothing does.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

LIMIT = 240  # characters of one value; longer ones say how much is left out
HUB = "https://huggingface.co"

# Letters, digits and punctuation that Markdown leaves alone inside a line.
_PLAIN = re.compile(r"[\w .,:;%+/()=\-'\"…\[\]]*")
_EDGE = re.compile(r"(?:^|\W)_|_(?:$|\W)|__|://|www\.|\][(\[:]", re.IGNORECASE)
_STOPS = re.compile(r"[ ,.;:]*")  # what stands between values
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"[\w.-]+", re.ASCII)
_URL = re.compile(r"https?://[^\s()<>\[\]`\\|]+")
_JOINERS = "\u200c\u200d"  # part of how Persian, Bengali and emoji are written


class Safe(str):
    """Text that is Markdown already and is not escaped again."""


def inline(value: Any) -> Safe:
    """A value inside a line or a table's cell, whatever it holds."""
    if isinstance(value, Safe):
        return value
    if isinstance(value, str) and _STOPS.fullmatch(value):
        return Safe(value)
    text = visible(" ".join(str(value).split()))
    if len(text) > LIMIT:
        text = f"{text[:LIMIT]}… and {len(text) - LIMIT} more characters"
    if not text or (_PLAIN.fullmatch(text) and not _EDGE.search(text) and re.search(r"\w", text)):
        return Safe(text)
    # Not `\|`: renderers do not agree on what a backslash before it means.
    return Safe(code(text).replace("|", "¦"))


def code(value: Any) -> Safe:
    """A value as a code span, to be read exactly: not for tables, where a `|` parts cells."""
    text = visible(" ".join(str(value).split()))[:LIMIT].replace("`", "'")
    text = _TAG.sub("‹", text)  # code spans are inert, but not every page is made with care
    return Safe(f"`{text}`" if text else "")


def cell(value: Any) -> Safe:
    """A value in a table: numbers to four digits, yes and no, else as `inline`."""
    if isinstance(value, bool):
        return Safe("yes" if value else "no")
    if value is None:
        return Safe("not set")
    return Safe(f"{value:.4g}") if isinstance(value, float) else inline(value)


def share(value: float | None) -> Safe:
    """A percentage in a table; nothing where there is none."""
    return Safe("" if value is None else f"{value:.1f} %")


def visible(text: str) -> str:
    """`text` with what cannot be seen (controls, bidi marks, surrogates) written as \\uXXXX."""
    return "".join(_escaped(char) if _unseen(char) else char for char in text)


def quoted(value: Any) -> Safe:
    """A string as Python source: in double quotes, in ASCII, with nothing that ends a fence."""
    body = str(value).encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return Safe('"' + _TAG.sub(r"\\x3c", body) + '"')


def block(value: Any) -> Safe:
    """A value as indented JSON for a code fence: no line of it can end the fence, and no tag or
    unseen character is in it as such."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    seen = "".join(char if char == "\n" else _json(char) for char in text)
    return Safe(_TAG.sub(r"\\u003c", seen))


def line(text: str) -> Safe:
    """A line inside a code fence that begins with a word of ours."""
    return Safe(_TAG.sub("‹", visible(" ".join(text.split()))))


def link(label: str, repo: str, kind: str, revision: str | None = None) -> Safe:
    """A link to a Hub repo at a revision; only the label where that is not a repo's name, or one
    of `local/`, which no public hub has."""
    if not _REPO.fullmatch(repo) or repo.startswith("local/"):
        return inline(label)
    prefix = "datasets/" if kind == "dataset" else ""
    end = f"/tree/{revision}" if revision and _REVISION.fullmatch(revision) else ""
    return Safe(f"[{inline(label)}]({HUB}/{prefix}{repo}{end})")


def url(address: str) -> Safe:
    """An address inside the round brackets of a link; `#` for anything that could leave them."""
    return Safe(address if _URL.fullmatch(address) and visible(address) == address else "#")


def _unseen(char: str) -> bool:
    kind = unicodedata.category(char)
    return kind in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and char not in _JOINERS


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def _json(char: str) -> str:
    return json.dumps(char)[1:-1] if _unseen(char) else char

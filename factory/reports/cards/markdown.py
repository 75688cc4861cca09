"""Markdown for cards: values are escaped, so that they cannot change the document.

Prompts, file names and names of models are other people's text. A value without a meaning in
Markdown is written as it is, any other as a code span.
"""

from __future__ import annotations

import json
import re
from typing import Any

from factory.errors import unseen, visible

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


class Safe(str):
    """Text that is Markdown already and is not escaped again."""


def inline(value: Any) -> Safe:
    """Return any value for a line or a table's cell."""
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
    """Return a value as a code span. Not for tables, where a `|` separates cells."""
    text = visible(" ".join(str(value).split()))[:LIMIT].replace("`", "'")
    text = _TAG.sub("‹", text)  # code spans are inert, but not every page is made with care
    return Safe(f"`{text}`" if text else "")


def cell(value: Any) -> Safe:
    """Return a value for a table: numbers to four digits, yes and no, else as `inline`."""
    if isinstance(value, bool):
        return Safe("yes" if value else "no")
    if value is None:
        return Safe("not set")
    return Safe(f"{value:.4g}") if isinstance(value, float) else inline(value)


def share(value: float | None) -> Safe:
    """Return a percentage for a table; empty for None."""
    return Safe("" if value is None else f"{value:.1f} %")


def quoted(value: Any) -> Safe:
    """Return a string as Python source: in double quotes, in ASCII, and safe in a code fence."""
    body = str(value).encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return Safe('"' + _TAG.sub(r"\\x3c", body) + '"')


def block(value: Any) -> Safe:
    """Return a value as indented JSON for a code fence. No line can end the fence; tags and
    invisible characters are escaped."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    escaped = "".join(char if char == "\n" else _json(char) for char in text)
    return Safe(_TAG.sub(r"\\u003c", escaped))


def line(text: str) -> Safe:
    """Return a line for a code fence that begins with a fixed word."""
    return Safe(_TAG.sub("‹", visible(" ".join(text.split()))))


def link(label: str, repo: str, kind: str, revision: str | None = None) -> Safe:
    """Return a link to a Hub repo at a revision; only the label for an invalid name or a repo of
    `local/`, which no public hub has."""
    if not _REPO.fullmatch(repo) or repo.startswith("local/"):
        return inline(label)
    prefix = "datasets/" if kind == "dataset" else ""
    end = f"/tree/{revision}" if revision and _REVISION.fullmatch(revision) else ""
    return Safe(f"[{inline(label)}]({HUB}/{prefix}{repo}{end})")


def path_link(label: str, path: str, namespace: str) -> Safe:
    """Return a link to a path of the Hub; in `local/`, of whatever hub shows it."""
    if not all(map(_REVISION.fullmatch, path.split("/"))):
        return inline(label)
    return Safe(f"[{inline(label)}]({'' if namespace == 'local' else HUB}/{path})")


def url(address: str) -> Safe:
    """Return an address for the round brackets of a link; `#` for one that could leave them."""
    return Safe(address if _URL.fullmatch(address) and visible(address) == address else "#")


def _json(char: str) -> str:
    return json.dumps(char)[1:-1] if unseen(char) else char

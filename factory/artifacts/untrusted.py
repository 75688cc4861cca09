"""Names, ids and sizes that another hub or a manifest gives, checked where they enter.

One function for each kind. It returns what it was given, or raises `Untrusted`: a client joins such
words into paths and addresses, so one that could lead out of a folder must never reach it. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

from factory.errors import HubError

_MAX_PART = 255  # bytes of a file's name
_MAX_PATH = 1024  # bytes of a path inside a repo
_MAX_SIZE = 2**53  # bytes; JSON holds no larger whole number exactly
_HEX = re.compile(r"[0-9a-f]+")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REPO_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_SLUG = re.compile(r"[\w.-]{1,200}")
_STEP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(\[[A-Za-z0-9._+-]{1,127}\])?")
_ETAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,127}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_REF_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{")


class Untrusted(HubError, ValueError):
    """A word from elsewhere that could do harm as a path or an address. A ValueError too, so that
    a manifest that holds it is not one."""


def repo(name: str) -> str:
    """The id of a repo, `org/name` or `name`."""
    parts = _text(name, "repo").split("/")
    odd = ".." in name or "--" in name
    if odd or len(parts) > 2 or not all(_REPO_PART.fullmatch(part) for part in parts):
        raise _refusal("repo", name)
    return name


def commit(text: str) -> str:
    """The id of a commit: 40 hex digits, or 64 where git is set to SHA-256."""
    return _hexadecimal("commit id", text, 40, 64)


def history(commits: Iterable[str], revision: str) -> None:
    """The commits up to a revision, oldest first: at least one, each once, and where the revision
    is a commit, that one is the last."""
    found = [commit(text) for text in commits]
    whole = found and len(set(found)) == len(found)
    if not whole or (_HEX.fullmatch(revision) and len(revision) >= 40 and found[-1] != revision):
        raise Untrusted(f"{len(found)} commits are no history of {_shown(revision)}", _FIX)


def blob(text: str) -> str:
    """The id of a file's content: git's, 40 or 64 hex digits."""
    return _hexadecimal("blob id", text, 40, 64)


def sha256(text: str) -> str:
    """The sha256 of a file's content, in hex."""
    return _hexadecimal("sha256", text, 64)


def fingerprint(text: str) -> str:
    """The fingerprint of an artifact or a slice: at most 64 hex digits."""
    return _hexadecimal("fingerprint", text, *range(1, 65))


def etag(text: str) -> str:
    """An ETag as a client takes it apart (`W/"x"`, `"x"` or `x`).

    Public hubs and the local one give hex of 40 or 64 digits. Others may give anything that is
    one file name, as `5d41402a-12`: it is a name of a cached file, and no more than that.
    """
    if not _ETAG.fullmatch(_text(text, "ETag").removeprefix("W/").strip('"')):
        raise _refusal("ETag", text)
    return text


def path(text: str) -> str:
    """The path of a file inside a repo, by the rules of the local hub."""
    parts = _text(text, "path").split("/")
    if len(_bytes(text, "path")) > _MAX_PATH or "\\" in text or _CONTROL.search(text):
        raise _refusal("path", text)
    for part in parts:
        plain = part.split(":")[0].rstrip(" .").lower()
        if part in ("", ".", "..") or plain in (".git", "git~1") or len(part.encode()) > _MAX_PART:
            raise _refusal("path", text)
    return text


def paths(listed: Iterable[str]) -> list[str]:
    """The paths of all files of a repo: each is there once, and none is a folder of another."""
    found = [path(text) for text in listed]
    files = set(found)
    if len(files) < len(found):
        raise Untrusted("a listing names one file twice", _FIX)
    for text in found:
        folder = text
        while folder := folder.rpartition("/")[0]:
            if folder in files:
                raise Untrusted(f"a listing has {_shown(folder)} as a file and a folder", _FIX)
    return found


def ref(text: str) -> str:
    """The name of a branch or a tag, by the rules of git; none that reads as a commit."""
    _text(text, "branch or tag")
    if len(_bytes(text, "branch or tag")) > _MAX_PART or _REF_FORBIDDEN.search(text):
        raise _refusal("branch or tag", text)
    parts = text.split("/")
    odd = any(not p or p.startswith((".", "-")) or p.endswith((".", ".lock")) for p in parts)
    if odd or (len(text) in (40, 64) and _HEX.fullmatch(text)):
        raise _refusal("branch or tag", text)
    return text


def revision(text: str) -> str:
    """A commit, a branch or a tag."""
    return text if len(text) in (40, 64) and _HEX.fullmatch(text) else ref(text)


def slug(text: str) -> str:
    """The slug of a collection, `org/title-0123abcd`."""
    org, _, rest = _text(text, "collection").partition("/")
    if not _REPO_PART.fullmatch(org) or ".." in text or not _SLUG.fullmatch(rest):
        raise _refusal("collection", text)
    return text


def word(text: str) -> str:
    """The name of a recipe, a stage or a kind; also none at all."""
    if text and not _WORD.fullmatch(_text(text, "name")):
        raise _refusal("name", text)
    return text


def step(text: str) -> str:
    """The name of a step, as `judge` or `dpo[da]`."""
    if not _STEP.fullmatch(_text(text, "step")):
        raise _refusal("step", text)
    return text


def text(words: str | None) -> str:
    """A title, a description or a note: any text, also none at all."""
    if words is not None and not isinstance(words, str):
        raise _refusal("text", words)
    return words or ""


def date(moment: datetime) -> int:
    """When something was made, as seconds since 1970."""
    if not isinstance(moment, datetime):
        raise _refusal("date", moment)
    return int(moment.timestamp())


def size(number: int) -> int:
    """The size of a file in bytes."""
    if type(number) is not int or not 0 <= number <= _MAX_SIZE:
        raise _refusal("size", number)
    return number


_FIX = "check the name; if a hub or a manifest gave it, do not use what is there"


def _hexadecimal(what: str, text: str, *lengths: int) -> str:
    if len(_text(text, what)) not in lengths or not _HEX.fullmatch(text):
        raise _refusal(what, text)
    return text


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise _refusal(what, value)
    return value


def _bytes(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        raise _refusal(what, text) from None


def _refusal(what: str, value: object) -> Untrusted:
    return Untrusted(f"{_shown(value)} cannot be a {what}", _FIX)


def _shown(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 80 else f"{shown[:60]}... ({len(shown)} characters)"

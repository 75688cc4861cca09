"""Check names, ids and sizes from another hub or a manifest where they enter. Pure.

One function for each kind. It returns a valid value unchanged and raises `Untrusted` otherwise:
clients join such values into paths and addresses, so none may lead out of a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

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
    """A value from outside that could do harm in a path or an address. Also a ValueError, so that
    a manifest with it is invalid."""


def repo(name: str) -> str:
    """Check the id of a repo, `org/name` or `name`."""
    parts = _text(name, "repo").split("/")
    odd = ".." in name or "--" in name
    if odd or len(parts) > 2 or not all(_REPO_PART.fullmatch(part) for part in parts):
        raise _refusal("repo", name)
    return name


def commit(text: str) -> str:
    """Check the id of a commit: 40 hex digits, or 64 where git is set to SHA-256."""
    return _hexadecimal("commit id", text, 40, 64)


def history(commits: Iterable[str], revision: str) -> None:
    """Check the commits up to a revision, oldest first: at least one, none twice, and the last is
    the revision if that is a commit."""
    ids = [commit(text) for text in commits]
    complete = ids and len(set(ids)) == len(ids)
    if not complete or (_HEX.fullmatch(revision) and len(revision) >= 40 and ids[-1] != revision):
        raise Untrusted(f"{len(ids)} commits are not the history of {_shown(revision)}", _FIX)


def blob(text: str) -> str:
    """Check the id of a file's content: git's, 40 or 64 hex digits."""
    return _hexadecimal("blob id", text, 40, 64)


def sha256(text: str) -> str:
    """Check the sha256 of a file's content, in hex."""
    return _hexadecimal("sha256", text, 64)


def fingerprint(text: str) -> str:
    """Check the fingerprint of an artifact or a slice: at most 64 hex digits."""
    return _hexadecimal("fingerprint", text, *range(1, 65))


def etag(text: str) -> str:
    """Check an ETag, in any of its forms (`W/"x"`, `"x"` or `x`).

    Public hubs and the local one give 40 or 64 hex digits. Others may give any single file name,
    such as `5d41402a-12`, since the client only names a cached file by it.
    """
    if not _ETAG.fullmatch(_text(text, "ETag").removeprefix("W/").strip('"')):
        raise _refusal("ETag", text)
    return text


def path(text: str) -> str:
    """Check the path of a file inside a repo, by the rules of the local hub."""
    parts = _text(text, "path").split("/")
    if len(_bytes(text, "path")) > _MAX_PATH or "\\" in text or _CONTROL.search(text):
        raise _refusal("path", text)
    for part in parts:
        plain = part.split(":")[0].rstrip(" .").lower()
        if part in ("", ".", "..") or plain in (".git", "git~1") or len(part.encode()) > _MAX_PART:
            raise _refusal("path", text)
    return text


def paths(listed: Iterable[str]) -> list[str]:
    """Check the paths of all files of a repo: none is there twice or is a folder of another."""
    checked = [path(text) for text in listed]
    files = set(checked)
    if len(files) < len(checked):
        raise Untrusted("a listing names the same file twice", _FIX)
    for text in checked:
        folder = text
        while folder := folder.rpartition("/")[0]:
            if folder in files:
                raise Untrusted(f"a listing has {_shown(folder)} both as file and as folder", _FIX)
    return checked


def ref(text: str) -> str:
    """Check the name of a branch or a tag, by the rules of git; it must not look like a commit."""
    _text(text, "branch or tag")
    if len(_bytes(text, "branch or tag")) > _MAX_PART or _REF_FORBIDDEN.search(text):
        raise _refusal("branch or tag", text)
    parts = text.split("/")
    odd = any(not p or p.startswith((".", "-")) or p.endswith((".", ".lock")) for p in parts)
    if odd or (len(text) in (40, 64) and _HEX.fullmatch(text)):
        raise _refusal("branch or tag", text)
    return text


def revision(text: str) -> str:
    """Check a commit, a branch or a tag."""
    return text if len(text) in (40, 64) and _HEX.fullmatch(text) else ref(text)


def fields(content: bytes) -> dict[str, Any]:
    """Check a JSON file of a model: one object."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Untrusted("a file of a model is not one JSON object", "publish it again")
    return value


def adapter_config(content: bytes) -> dict[str, Any]:
    """Check the config of an adapter: what is read of it, if it is there, is of its type."""
    config = fields(content)
    for key in ("base_model_name_or_path", "revision", "peft_type"):
        text(config.get(key))
    targets = config.get("target_modules")
    for target in targets if isinstance(targets, list) else [targets]:
        text(target)
    ranks = config.get("rank_pattern") or {}
    if config.get("peft_type") == "LORA" and not (
        isinstance(ranks, dict)
        and all(type(rank) is int and rank > 0 for rank in (config.get("r", 8), *ranks.values()))
    ):
        raise Untrusted("the rank of an adapter is not a number", "publish it again")
    return config


def slug(text: str) -> str:
    """Check the slug of a collection, `org/title-0123abcd`."""
    org, _, rest = _text(text, "collection").partition("/")
    if not _REPO_PART.fullmatch(org) or ".." in text or not _SLUG.fullmatch(rest):
        raise _refusal("collection", text)
    return text


def word(text: str) -> str:
    """Check the name of a recipe, a stage or a kind; it may be empty."""
    if text and not _WORD.fullmatch(_text(text, "name")):
        raise _refusal("name", text)
    return text


def step(text: str) -> str:
    """Check the name of a step, such as `judge` or `dpo[da]`."""
    if not _STEP.fullmatch(_text(text, "step")):
        raise _refusal("step", text)
    return text


def text(words: str | None) -> str:
    """Check a title, a description or a note: any text; None becomes empty."""
    if words is not None and not isinstance(words, str):
        raise _refusal("text", words)
    return words or ""


def date(moment: datetime) -> int:
    """Return a date as seconds since 1970."""
    if not isinstance(moment, datetime):
        raise _refusal("date", moment)
    return int(moment.timestamp())


def size(number: int, most: int = _MAX_SIZE) -> int:
    """Check the size of a file in bytes."""
    if type(number) is not int or not 0 <= number <= most:
        raise _refusal("size", number)
    return number


_FIX = "check the name; if it came from a hub or a manifest, do not use that source"


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
    return Untrusted(f"{_shown(value)} is not a valid {what}", _FIX)


def _shown(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 80 else f"{shown[:60]}... ({len(shown)} characters)"

"""Check names: of repos, files inside repos, branches and tags.

A path inside a repo never reaches this machine's file system, but clients make files of it, so
names that could harm them are refused here.
"""

from __future__ import annotations

import re

from factory.localhub.errors import BadPath, BadRequest
from factory.localhub.git_objects import SHA1

_REPO_PART = re.compile(r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
# The first words of paths that mean something else to clients.
_RESERVED_NAMESPACES = {"api", "datasets", "models", "spaces", "kernels", "collections", "upload"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_REF_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
# Code points that some file systems ignore, so that ".g\u200cit" would be ".git" there.
_IGNORED = dict.fromkeys([*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070),
                          0xFEFF])  # fmt: skip
_MAX_PART = 255
_MAX_PATH = 1024


def check_repo_part(text: str, what: str) -> str:
    """`text` as a namespace or repo name. Raises BadRequest with the rule it breaks."""
    if not _REPO_PART.fullmatch(text) or "--" in text or ".." in text or text.endswith(".git"):
        raise BadRequest(
            f"{what} {text!r} is not allowed: use letters, digits, '-', '_' and '.', at most 96, "
            "no '--' or '..', not starting with '-' or '.' and not ending with '-' or '.git'"
        )
    if what == "namespace" and text in _RESERVED_NAMESPACES:
        raise BadRequest(f"namespace {text!r} is a word of the protocol: choose another")
    return text


def split_path(path: str) -> tuple[str, ...]:
    """The parts of a path inside a repo. Raises BadPath if a client could not hold it safely."""
    parts = tuple(path.split("/"))
    if len(path.encode()) > _MAX_PATH:
        raise BadPath(f"path of {len(path)} characters is too long (at most {_MAX_PATH} bytes)")
    for part in parts:
        if part in ("", ".", "..") or _looks_like_dot_git(part):
            raise BadPath(f"path {path!r} has a part that is not allowed: {part!r}")
        if "\\" in part or _CONTROL.search(part):
            raise BadPath(f"path {path!r} has a backslash or a control character")
        if len(part.encode()) > _MAX_PART:
            raise BadPath(f"path {path[:80]!r}... has a part over {_MAX_PART} bytes")
    return parts


def check_ref_name(name: str) -> str:
    """`name` as a branch or tag, by the rules of git check-ref-format. Raises BadRequest."""
    parts = name.split("/")
    if (
        not name
        or len(name.encode()) > _MAX_PART
        or _REF_FORBIDDEN.search(name)
        or name.startswith("-")
        or name.endswith(".")
        or name in ("@", "HEAD")
        or any(not part or part.startswith(".") or part.endswith(".lock") for part in parts)
    ):
        raise BadRequest(f"{name!r} is not a valid branch or tag name (git check-ref-format)")
    if parts[0] == "refs" or SHA1.fullmatch(name):
        raise BadRequest(
            f"{name!r} cannot name a branch or tag: it reads as a full ref or a commit"
        )
    return name


def _looks_like_dot_git(part: str) -> bool:
    """Whether some file system takes `part` for .git (upper case, trailing dots, NTFS streams)."""
    plain = part.translate(_IGNORED).split(":")[0].rstrip(" .").lower()
    return plain in (".git", "git~1")

"""Git object ids, computed without git. Equal ones that were computed prove equal content; that of
a commit of another hub is as that hub told it (history.py says which of them were computed)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:[0-9a-f]{64}\nsize [0-9]+\n?"
)
SHA1 = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory. A directory has no `sha256`; `oid` is the git id either way."""

    name: str
    oid: str
    size: int = 0
    sha256: str | None = None
    lfs: bool = False

    @property
    def is_directory(self) -> bool:
        """Whether other names lie below this one."""
        return self.sha256 is None


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit, with what its git object is made of."""

    oid: str
    tree: str
    parent: str | None
    author: str
    date: int
    title: str
    message: str


def object_id(kind: str, content: bytes) -> str:
    """The sha1 under which git stores `content` as a `kind` (blob, tree or commit)."""
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(content)) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text file that stands in git for a large file."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def is_lfs_pointer(content: bytes) -> bool:
    """Whether `content` would be read by git-lfs as a stand-in for another file."""
    return _POINTER.fullmatch(content) is not None


def tree_content(entries: Iterable[Entry]) -> bytes:
    """A git tree object; git sorts a directory as if its name ended with a slash."""
    lines = []
    for entry in entries:
        name, oid = entry.name.encode(), bytes.fromhex(entry.oid)
        if entry.sha256 is None:
            lines.append((name + b"/", b"40000 %b\0%b" % (name, oid)))
        else:
            lines.append((name, b"100644 %b\0%b" % (name, oid)))
    lines.sort()
    return b"".join([line for _, line in lines])


def commit_content(commit: Commit) -> bytes:
    """The git object of a commit made here; its date is in seconds, UTC."""
    person = f"{commit.author} <{commit.author}@localhub> {commit.date} +0000"
    lines = [f"tree {commit.tree}"]
    if commit.parent:
        lines.append(f"parent {commit.parent}")
    lines += [f"author {person}", f"committer {person}", "", commit.title]
    if commit.message:
        lines += ["", commit.message]
    return ("\n".join(lines) + "\n").encode()

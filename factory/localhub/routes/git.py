"""Repos for `git clone` and `git fetch`, read-only, over git's plain ("dumb") HTTP protocol.

Objects are put together from the store as they are asked for. A commit of another hub is shown
under the id of what git makes of it here, so its clone has other commit ids than the hub. Large
files are LFS pointers; git-lfs fetches what they stand for.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import lru_cache

from starlette.responses import Response

from factory.localhub.errors import EntryNotFound
from factory.localhub.git_objects import (
    Entry,
    commit_content,
    lfs_pointer,
    object_id,
    tree_content,
)
from factory.localhub.hub import LocalHub
from factory.localhub.refs import BRANCH, MAIN
from factory.localhub.repos import Repo
from factory.localhub.wire import Call, route

_CLONES_AT_ONCE = 4  # clones whose objects are remembered: a client asks for them one by one


class _Clone:
    """The refs and objects of a repo, by git id."""

    def __init__(self, hub: LocalHub, repo: Repo, targets: dict[str, str]) -> None:
        self.refs: dict[str, str] = {}
        self.commits: dict[str, bytes] = {}
        self.entries: dict[str, Entry] = {}
        ids: dict[str, str] = {}
        for ref, target in targets.items():
            for oid in reversed(hub.history.line(repo, target)):
                if oid in ids:
                    continue
                commit = hub.history.resolve(repo, oid)
                parent = ids[commit.parent] if commit.parent else None
                content = commit_content(replace(commit, parent=parent))
                ids[oid] = object_id("commit", content)
                self.commits[ids[oid]] = content
                self._add(hub, Entry("", commit.tree))
            self.refs[ref] = ids[target]

    def _add(self, hub: LocalHub, entry: Entry) -> None:
        """Add a directory with all below it, or a file."""
        if entry.oid not in self.entries:
            self.entries[entry.oid] = entry
            if entry.is_directory:
                for below in hub.trees.read(entry.oid).values():
                    self._add(hub, below)

    def content(self, hub: LocalHub, oid: str) -> tuple[str, bytes] | None:
        """Return kind and content of an object; None if the repo has no such object."""
        if oid in self.commits:
            return "commit", self.commits[oid]
        entry = self.entries.get(oid)
        if entry is None:
            return None
        if entry.sha256 is None:
            return "tree", tree_content(hub.trees.read(oid).values())
        if entry.lfs:
            return "blob", lfs_pointer(entry.sha256, entry.size)
        return "blob", hub.blobs.read(entry.sha256)


def _clone(call: Call) -> _Clone:
    repo = call.repo()
    return _load(call.hub, repo, tuple(call.hub.refs.all(repo).items()))


@lru_cache(maxsize=_CLONES_AT_ONCE)
def _load(hub: LocalHub, repo: Repo, targets: tuple[tuple[str, str], ...]) -> _Clone:
    return _Clone(hub, repo, dict(targets))


def list_refs(call: Call) -> Response:
    """Every ref with its commit, in git's own lines."""
    refs = sorted(_clone(call).refs.items())
    return _plain("".join(f"{oid}\t{ref}\n" for ref, oid in refs).encode())


def head(call: Call) -> Response:
    """The branch that a clone checks out."""
    call.repo()
    return _plain(f"ref: {BRANCH}{MAIN}\n".encode())


def packs(call: Call) -> Response:
    """There are no packs: every object is loose."""
    call.repo()
    return _plain(b"\n")


def loose_object(call: Call) -> Response:
    """One object, compressed as git keeps it."""
    oid = call.params["first"] + call.params["rest"]
    item = _clone(call).content(call.hub, oid)
    if item is None:
        raise EntryNotFound(f"this repo has no git object {oid}")
    kind, content = item
    loose = zlib.compress(b"%s %d\0" % (kind.encode(), len(content)) + content, 1)
    return Response(loose, media_type="application/x-git-loose-object")


def _plain(content: bytes) -> Response:
    return Response(content, headers={"Cache-Control": "no-cache"}, media_type="text/plain")


ROUTES = [
    route("GET", f"{prefix}/{{namespace}}/{{name}}{suffix}{path}", handle)
    for prefix in ("", "/{kind}")
    for suffix in (".git", "")
    for path, handle in (
        ("/info/refs", list_refs),
        ("/HEAD", head),
        ("/objects/info/packs", packs),
        ("/objects/{first}/{rest}", loose_object),
    )
]

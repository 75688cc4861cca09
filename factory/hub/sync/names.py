"""Write cards, manifests and recipes for the names that their repos get on the other hub.

A repo's text names repos of the hub it was made on: in titles, snippets, links, `datasets:`. Where
repos go to another hub under other names, every name of theirs in these files becomes the new one,
and the commits that cards name become those over there. Data is never changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from factory.artifacts import untrusted
from factory.artifacts.files import write_atomically
from factory.artifacts.hashing import MANIFEST
from factory.hub.sync.side import File, HubReader, Moved, RepoId, git_blob_id

CARD = "README.md"
WRITTEN_ANEW = frozenset({CARD, MANIFEST, "recipe.yaml", "recipe.lock.yaml"})
_HUB = b"https://huggingface.co/"
_NAME = re.compile(rb"(?<![\w.-])[\w.-]+/[\w.-]*\w")
_COMMIT = re.compile(rb"\b[0-9a-f]{40}\b")
_SHORT = 12  # digits of a commit in a label
_SPAN = re.compile(rb"`([\w.-]+/[\w.-]*\w)(?:@([\w.-]+))?`")
_FENCE = re.compile(rb"(^```.*?^```\n?)", re.MULTILINE | re.DOTALL)
_INDEX = re.compile(rb"^- name: (\S+)$", re.MULTILINE)


def renamed(repo: RepoId, names: Mapping[str, str]) -> RepoId:
    """Return a repo under its new name, by a mapping of namespaces and full names."""
    namespace, _, name = repo.name.partition("/")
    return repo._replace(name=names.get(repo.name) or f"{names.get(namespace, namespace)}/{name}")


class RenamedSource(HubReader):
    """A hub as it is to be on the destination, under other names.

    Its files are those of the hub, except that cards, manifests and recipes name the new repos.
    """

    def __init__(self, source: HubReader, destination: HubReader, names: Mapping[str, str]) -> None:
        super().__init__(source.endpoint, str(source.token or "") or None, source.staging)
        self._destination, self._renames = destination, names
        self._kinds: dict[str, tuple[str, ...]] = {}
        self._commits: dict[RepoId, dict[bytes, bytes]] = {}
        self._anew: dict[tuple[RepoId, str], Path] = {}

    def files(self, repo: RepoId, commit: str) -> dict[str, File]:
        """Return the files at a commit, by path, with sizes and ids under the new names."""
        files = dict(super().files(repo, commit))
        for path in WRITTEN_ANEW & files.keys():
            if path == CARD or MANIFEST in files:
                files[path] = self._rewrite(repo, commit, files[path])
        return files

    def download(self, repo: RepoId, commit: str, file: File, moved: Moved | None = None) -> Path:
        """Download a file, or return the rewritten one."""
        path = self._anew.get((repo, file.blob))
        if path is not None and path.is_file():
            return path
        return super().download(repo, commit, file, moved)

    def missing(self, repo: RepoId, commit: str) -> list[str]:
        """Return the new names in the card at a commit that the destination does not have."""
        file = self.files(repo, commit).get(CARD)
        path = self._anew.get((repo, file.blob)) if file else None
        if path is None:
            return []
        text = path.read_bytes()
        named = {
            self._new(name)
            for name, kinds in self._kinds.items()
            if kinds and re.search(rb"(?<![\w.-])%s(?![\w-])" % re.escape(self._new(name)), text)
        }
        return sorted(name.decode() for name in named if not self._destination.kinds(name.decode()))

    def _rewrite(self, repo: RepoId, commit: str, file: File) -> File:
        text = super().download(repo, commit, file).read_bytes()
        changed = _NAME.sub(lambda match: self._name(match[0]), text)
        if changed == text:
            return file
        changed = self._with_commits(text, changed)
        if file.path == CARD:
            changed = self._linked(repo, changed)
        blob = git_blob_id(changed)
        path = self.staging / "renamed" / blob
        write_atomically(path, changed)
        self._anew[repo, blob] = path
        return replace(file, size=len(changed), blob=blob, sha256=None)

    def _name(self, name: bytes) -> bytes:
        return self._new(name.decode()) if self._is_renamed(name.decode()) else name

    def _new(self, name: str) -> bytes:
        return renamed(RepoId("", name), self._renames).name.encode()

    def _is_renamed(self, name: str) -> bool:
        """Return whether this is the name of a repo of the source that gets another."""
        if self._new(name) == name.encode():
            return False
        if name not in self._kinds:
            try:
                repos = self.kinds(untrusted.repo(name))
            except untrusted.Untrusted:  # a path in a sentence, no repo
                repos = []
            self._kinds[name] = tuple(repo.kind for repo in repos)
        return bool(self._kinds[name])

    def _with_commits(self, text: bytes, changed: bytes) -> bytes:
        """Replace the commits of renamed repos by those that repeat them on the destination."""
        commits = set(_COMMIT.findall(text))
        for name in {match.decode() for match in _NAME.findall(text)} if commits else ():
            for kind in self._kinds.get(name, ()):
                for old, new in self._repeated(RepoId(kind, name)).items():
                    if old in commits:
                        changed = changed.replace(old, new)
                        changed = changed.replace(b"@" + old[:_SHORT], b"@" + new[:_SHORT])
        return changed

    def _repeated(self, repo: RepoId) -> dict[bytes, bytes]:
        """Return the commits of a repo by their ids here, as far as the destination has them."""
        target = renamed(repo, self._renames)
        if not self._commits.get(repo) and self._destination.refs(target) is not None:
            self._commits[repo] = {
                name.encode(): commit.id.encode()
                for commit in self._destination.log(target, "main")
                for name in commit.names[1:]
            }
        return self._commits.get(repo, {})

    def _linked(self, repo: RepoId, text: bytes) -> bytes:
        """Make links of the new names that stand as code, and name the evaluations' model anew."""
        old, new = repo.name.partition("/")[2], self._new(repo.name).partition(b"/")[2]
        text = _INDEX.sub(lambda m: b"- name: " + new if m[1] == old.encode() else m[0], text)
        namespaces = repo.name.encode().partition(b"/")[0], self._new(repo.name).partition(b"/")[0]
        for place in (b"%s/collections)", b"spaces/%s/"):  # of its collection, of its results
            before, after = (
                b"](" + (b"/" if namespace == b"local" else _HUB) + place % namespace
                for namespace in namespaces
            )
            text = text.replace(before, after)
        kinds = {
            self._new(name): kinds[0]
            for name, kinds in self._kinds.items()
            if kinds and not self._new(name).startswith(b"local/")
        }

        def link(match: re.Match[bytes]) -> bytes:
            kind = kinds.get(match[1])
            if kind is None:
                return match[0]
            label = match[1] + (b"@" + match[2] if match[2] else b"")
            end = b"/tree/" + match[2] if match[2] else b""
            prefix = b"datasets/" if kind == "dataset" else b""
            return b"[%s](%s%s%s%s)" % (label, _HUB, prefix, match[1], end)

        parts = _FENCE.split(text)
        return b"".join(
            part if part.startswith(b"```") else _SPAN.sub(link, part) for part in parts
        )

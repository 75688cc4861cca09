"""Transfer repos and collections between hubs: plan, replay, compare.

Resuming needs no record of earlier work: the plan is made from the state of both hubs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from factory.artifacts.hashing import MANIFEST
from factory.errors import HubError
from factory.hub.connection import address_of
from factory.hub.sync.destination import ConcurrentUpdate, Destination, contradiction
from factory.hub.sync.names import WRITTEN_ANEW, RenamedSource, renamed
from factory.hub.sync.plan import CommitLine, Options, RepoPair, RepoPlan, plan_repo
from factory.hub.sync.side import Copies, Damaged, HubReader, RepoId

_LOOKS = 6  # plans made for one repo while others write to it too
_DESCRIPTION = 150  # characters a collection's description may have
KINDS = ("model", "dataset")
# A branch for commits to which only a tag leads, until the tag is there.
_HELPER = re.compile(r"sync-[0-9a-f]{12}")


class TransferProgress(Protocol):
    """Receiver of progress events; the command line implements it."""

    def begin(self, what: str, size: int) -> None:
        """Begin a repo, with the bytes to transfer."""

    def moved(self, size: int) -> None:
        """Add to the bytes that have arrived."""


@dataclass
class RepoOutcome:
    """Changes made to one repo, or planned: commits, files, bytes, tags, conflicts."""

    repo: RepoId
    target: RepoId
    commits: int = 0
    files: int = 0
    size: int = 0
    tags: int = 0
    conflicts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class CollectionOutcome:
    """Changes made to a collection, or planned: number of items that were missing or differed."""

    title: str
    slug: str
    changes: int = 0
    notes: list[str] = field(default_factory=list)


class RepoTransfer:
    """Transfer of repos and collections from one hub to another."""

    def __init__(
        self,
        source: HubReader,
        destination: Destination,
        options: Options,
        watcher: TransferProgress,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._names = names or {}
        if self._names and not destination.keeps_ids:
            source = RenamedSource(source, destination, self._names)
        self.source, self._destination = source, destination
        self._options, self._watcher = options, watcher

    def preview(self, repo: RepoId, revision: str | None = None) -> RepoOutcome:
        """Return the planned changes to a repo, without making them. Raises HubError."""
        with self._explained(repo):
            return _outcome(plan_repo(self._pair(repo), self._options, revision))

    def repo(self, repo: RepoId, revision: str | None = None) -> RepoOutcome:
        """Transfer a repo, or one revision of it, and compare both sides. Raises HubError.

        A repo with conflicts is not changed; the outcome lists them.
        """
        pair = self._pair(repo)
        with self._explained(repo):
            for _ in range(_LOOKS):
                plan = plan_repo(pair, self._options, revision)
                if plan.absent:
                    self._create(pair)
                    plan = plan_repo(pair, self._options, revision)
                done = _outcome(plan)
                if plan.conflicts:
                    return done
                self._watcher.begin(str(repo), plan.size)
                try:
                    self._carry_out(plan)
                except ConcurrentUpdate:
                    continue
                self._compare(plan)
                done.notes += self._damage(plan)
                return done
        raise HubError(
            f"{pair.target} at {self._destination.called} keeps changing", "try again later"
        )

    def dead_names(self, repo: RepoId) -> list[str]:
        """Return a note for what the renamed card of a repo names and the destination lacks, once
        all repos are transferred."""
        if not isinstance(self.source, RenamedSource):
            return []
        with self._explained(repo):
            refs = self.source.refs(repo)
            commit = refs.branches.get("main") if refs else None
            names = self.source.missing(repo, commit) if commit else []
        listed = ", ".join(names)
        return [f"its card names what is not there: push {listed} too"] if names else []

    def collection(self, slug: str, *, dry: bool = False) -> CollectionOutcome:
        """Transfer a collection: title, description, items with notes, in their order."""
        with self._explained(f"the collection {slug}"):
            ours = self.source.collection(slug)
            namespace = self._names.get(slug.partition("/")[0], slug.partition("/")[0])
            items = [item for item in ours.items if item.item_type in KINDS]
            entries = [
                (renamed(RepoId(item.item_type, item.item_id), self._names), item.note)
                for item in items
            ]
            theirs = next(
                (
                    self._destination.collection(candidate.slug)
                    for candidate in self._destination.collections(namespace)
                    if candidate.title == ours.title
                ),
                None,
            )
            existing = (
                [(RepoId(i.item_type, i.item_id), i.note) for i in theirs.items] if theirs else []
            )
            outcome = CollectionOutcome(
                ours.title, theirs.slug if theirs else f"{namespace}/{ours.title}"
            )
            outcome.changes = sum(
                place >= len(existing) or existing[place] != item
                for place, item in enumerate(entries)
            )
            if n_skipped := len(ours.items) - len(items):
                outcome.notes.append(
                    f"{n_skipped} items that are neither models nor datasets left out"
                )
            if (theirs is None or outcome.changes) and not dry:
                outcome.slug = self._destination.write_collection(
                    ours.title,
                    namespace,
                    (ours.description or "")[:_DESCRIPTION],
                    ours.private or self._options.private,
                    entries,
                )
            return outcome

    def repos_of(self, slug: str) -> list[RepoId]:
        """Return the repos of a collection."""
        with self._explained(f"the collection {slug}"):
            items = self.source.collection(slug).items
            return [
                RepoId(item.item_type, item.item_id) for item in items if item.item_type in KINDS
            ]

    def find(self, word: str) -> list[RepoId]:
        """Return the repos of a name: `org/name`, with `models/` or `datasets/` to be exact.

        Raises HubError if there is none.
        """
        kind, _, rest = word.partition("/")
        named = {"models": "model", "datasets": "dataset"}.get(kind)
        if "/" not in (rest if named else word):
            raise HubError(f"{word!r} is not a repo", "write org/name or datasets/org/name")
        with self._explained(word):
            repos = [RepoId(named, rest)] if named else self.source.kinds(word)
        if not repos:
            raise HubError(
                f"{self.source.called} has no {word}, or hides it", "check the name and the token"
            )
        return repos

    @contextmanager
    def _explained(self, what: object) -> Iterator[None]:
        """Turn errors of a client inside the block into a HubError that names the right hub."""
        try:
            yield
        except HubError:  # explained already
            raise
        except Damaged as error:
            raise HubError(str(error), "run it again; if it stays, that copy is damaged") from None
        except Exception as error:
            side: HubReader = self.source
            if address_of(error).startswith(f"{self._destination.endpoint}/"):
                side = self._destination
            with side.explained(what):
                raise

    def _pair(self, repo: RepoId) -> RepoPair:
        return RepoPair(
            self.source,
            repo,
            self._destination,
            renamed(repo, self._names),
            keeps_ids=self._destination.keeps_ids,
        )

    def _create(self, pair: RepoPair) -> None:
        private = self._options.private or self.source.is_private(pair.repo)
        self._destination.create(pair.target, private)

    def _carry_out(self, plan: RepoPlan) -> None:
        target = plan.pair.target
        for line in plan.lines:
            self._repeat(plan, line)
        for branch, commit in plan.branches.items():
            self._destination.create_branch(target, branch, plan.counterparts[commit])
        for tag, commit in plan.tags.items():
            self._destination.create_tag(target, tag, plan.counterparts[commit])

    def _repeat(self, plan: RepoPlan, line: CommitLine) -> None:
        """Replay the commits of a line. A line without a branch gets a temporary one."""
        repo, target = plan.pair.repo, plan.pair.target
        branch, head = line.branch, plan.counterparts[line.after] if line.after else line.start
        if not self._destination.keeps_ids:
            branch = branch or f"sync-{line.steps[-1].commit.id[:12]}"
            refs = self._destination.refs(target)
            if refs is not None and branch not in refs.branches:
                self._destination.create_branch(target, branch, str(head))
        for step in line.steps:
            commit = step.commit.id
            head = plan.counterparts[commit] = self._destination.replay(
                target,
                branch,
                head,
                step,
                Copies(self.source, repo, commit),
                self._watcher.moved,
            )

    def _damage(self, plan: RepoPlan) -> list[str]:
        """Return a note for each pulled artifact whose content is not what its manifest records."""
        if not self._destination.keeps_ids:
            return []
        refs = {**plan.refs.branches, **plan.refs.tags}
        brought = {step.commit.id for step in plan.steps}
        notes = []
        for name, commit in refs.items():
            paths = self._destination.damaged(plan.pair.target, commit) if commit in brought else []
            if paths:
                notes.append(
                    f"{name}: {len(paths)} files are not what {MANIFEST} records, "
                    f"{paths[0]} for one"
                )
        return notes

    def _compare(self, plan: RepoPlan) -> None:
        """Compare the content at every ref with the source's. Raises HubError.

        Cards under new names may be of an earlier push, which knew fewer of the other repos.
        """
        pair = plan.pair
        anew = WRITTEN_ANEW if isinstance(self.source, RenamedSource) else frozenset()
        refs = self._destination.refs(pair.target)
        for branch in refs.branches if refs else ():
            if _HELPER.fullmatch(branch) and branch not in plan.refs.branches:
                self._destination.delete_branch(pair.target, branch)
        for kind, ours in (("branch", plan.refs.branches), ("tag", plan.refs.tags)):
            theirs = (refs.branches if kind == "branch" else refs.tags) if refs else {}
            for name, commit in ours.items():
                if name in plan.apart:
                    continue
                if name not in theirs:
                    raise HubError(f"{kind} {name} of {pair.target} is missing", "run it again")
                paths = [p for p in pair.differences(commit, theirs[name]) if p not in anew]
                if paths and theirs[name] == commit:
                    raise contradiction(pair.target, commit)
                if paths:
                    raise HubError(
                        f"{kind} {name} of {pair.target} differs in {len(paths)} files, "
                        f"{paths[0]} for one",
                        "somebody may be writing there: run it again",
                    )


def rename(pairs: Sequence[str]) -> dict[str, str]:
    """Read `OLD=NEW` pairs of namespaces or full names as a mapping. Raises HubError."""
    names = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new) or old.count("/") != new.count("/"):
            raise HubError(
                f"{pair!r} is not OLD=NEW", "give two namespaces, or two names with their namespace"
            )
        names[old] = new
    return names


def _outcome(plan: RepoPlan) -> RepoOutcome:
    return RepoOutcome(
        plan.pair.repo,
        plan.pair.target,
        commits=sum(bool(s.put or s.drop or plan.pair.keeps_ids) for s in plan.steps),
        files=plan.files,
        size=plan.size,
        tags=len(plan.tags),
        conflicts=plan.conflicts,
        notes=plan.notes,
    )

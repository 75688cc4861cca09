"""Plan of a repo's transfer: the commits to replay, and the conflicts.

Histories are replayed line by line, oldest commit first. A commit is identified on the other side
by its id or by the `Synced-from` line of its replay; so a second run, or one after a kill, plans
only the rest. Nothing that exists is ever moved back or overwritten: a branch only goes forward
from where the other side has it, and a tag never moves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from factory.errors import HubError
from factory.hub.sync.side import File, HubReader, RepoCommit, RepoId, RepoRefs

# Files of a new, empty repo.
_HUBS_OWN = {".gitattributes"}


@dataclass(frozen=True)
class Options:
    """Options of a transfer."""

    adopt: bool = False  # where both differ, the destination's stands
    squash: bool = False  # only commits that a branch or tag names
    private: bool = False  # make new repos private whatever the source's are


@dataclass(frozen=True)
class RepoPair:
    """A repo on the source hub and its counterpart, present or future, on the destination."""

    source: HubReader
    repo: RepoId
    destination: HubReader
    target: RepoId
    keeps_ids: bool = False  # the destination takes in commits under the ids the source gave them

    def same(self, commit: str, ours: File, their_commit: str, theirs: File) -> bool:
        """Return whether two files have the same content, even if one hub stores it as a large
        file."""
        if ours.size != theirs.size:
            return False
        if ours.sha256 is None and theirs.sha256 is None:
            return ours.blob == theirs.blob
        return self.source.sha256(self.repo, commit, ours) == self.destination.sha256(
            self.target, their_commit, theirs
        )

    def differences(self, commit: str, theirs: str) -> list[str]:
        """Return the paths whose content differs between two commits."""
        our_files = self.source.files(self.repo, commit)
        their_files = self.destination.files(self.target, theirs)
        both = our_files.keys() & their_files.keys()
        return sorted(our_files.keys() ^ their_files.keys()) + [
            path
            for path in sorted(both)
            if not self.same(commit, our_files[path], theirs, their_files[path])
        ]


@dataclass(frozen=True)
class CommitStep:
    """One commit to replay: the files it adds and those it deletes."""

    commit: RepoCommit
    put: list[File]
    drop: list[str]


@dataclass(frozen=True)
class CommitLine:
    """Commits to replay one upon the other, on a branch or only so that a tag can name one."""

    branch: str | None
    start: str | None  # the destination's commit it goes on from; None is nowhere
    after: str | None  # or the source's, if that is still to be repeated in a line before this
    steps: list[CommitStep]


@dataclass
class RepoPlan:
    """All changes to be made for one repo."""

    pair: RepoPair
    absent: bool  # at the destination
    refs: RepoRefs
    counterparts: dict[str, str] = field(default_factory=dict)  # commits: source's to destination's
    lines: list[CommitLine] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)  # new ones where all commits are known
    tags: dict[str, str] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    apart: set[str] = field(default_factory=set)  # refs that stay different, knowingly

    @property
    def steps(self) -> list[CommitStep]:
        """Return the commits to replay, of all lines."""
        return [step for line in self.lines for step in line.steps]

    @property
    def reached(self) -> set[str]:
        """Return the source's commits that the destination has, or will have after these lines."""
        return self.counterparts.keys() | {step.commit.id for step in self.steps}

    @property
    def files(self) -> int:
        """Count the files in the commits."""
        return sum(len(step.put) for step in self.steps)

    @property
    def size(self) -> int:
        """Sum the bytes of those files."""
        return sum(file.size for step in self.steps for file in step.put)


def plan_repo(pair: RepoPair, options: Options, revision: str | None = None) -> RepoPlan:
    """Plan the transfer of a repo, or of one revision. Raises HubError if the source lacks it."""
    refs = pair.source.refs(pair.repo)
    if refs is None:
        raise HubError(
            f"{pair.source.called} has no {pair.repo}, or hides it", "check name and token"
        )
    return _Layout(pair, options, refs, pair.destination.refs(pair.target)).plan(revision)


class _Layout:
    """Both sides of one repo, with their histories."""

    def __init__(
        self, pair: RepoPair, options: Options, refs: RepoRefs, existing: RepoRefs | None
    ) -> None:
        self._pair = pair
        self._options = options
        self._existing = existing or RepoRefs({}, {})
        self._their_logs = _histories(pair.destination, pair.target, self._existing, set())
        self._plan = RepoPlan(pair, existing is None, refs)

    def plan(self, revision: str | None) -> RepoPlan:
        """Plan the transfer of the whole repo or of one revision."""
        plan, squash = self._plan, self._options.squash
        requested: set[str] = set()
        if revision is not None:
            commit = self._pair.source.commit_of(self._pair.repo, revision)
            requested, squash = {commit}, True
            plan.refs = self._narrowed(revision, commit)
        logs = _histories(self._pair.source, self._pair.repo, plan.refs, requested)
        self._match(logs)
        ends = {*plan.refs.branches.values(), *plan.refs.tags.values(), *requested}

        def line(commit: str) -> list[RepoCommit]:
            return [entry for entry in logs[commit] if not squash or entry.id in ends]

        # main first: it is there from the beginning, so others can only branch off from it
        for branch, commit in sorted(plan.refs.branches.items(), key=lambda ref: ref[0] != "main"):
            self._branch(branch, line(commit))
        for tag, commit in plan.refs.tags.items():
            self._tag(tag, commit)
        for commit in dict.fromkeys([*plan.tags.values(), *requested]):
            if commit not in plan.reached:
                self._graft(None, line(commit))
        if self._options.adopt:
            plan.notes += [f"unchanged: {conflict}" for conflict in plan.conflicts]
            plan.conflicts = []
        return plan

    def _narrowed(self, revision: str, commit: str) -> RepoRefs:
        """Return the refs for one revision: its own, and main where that is free."""
        refs, main = self._plan.refs, self._existing.branches.get("main")
        branches = {branch: commit for branch in refs.branches if branch == revision}
        if main is None or self._untouched(main):
            branches["main"] = commit
        return RepoRefs(branches, {tag: commit for tag in refs.tags if tag == revision})

    def _match(self, logs: dict[str, list[RepoCommit]]) -> None:
        """Match the source's commits with those of the destination, under whatever id."""
        at = {}
        for log in self._their_logs.values():
            for entry in log:
                at.update(dict.fromkeys(entry.names, entry.id))
        for log in logs.values():
            for entry in log:
                if match := next((at[name] for name in entry.names if name in at), None):
                    self._plan.counterparts[entry.id] = match

    def _branch(self, branch: str, line: list[RepoCommit]) -> None:
        plan, target = self._plan, self._pair.target
        head, newest = self._existing.branches.get(branch), line[-1]
        last = max((n for n, entry in enumerate(line) if entry.id in plan.counterparts), default=-1)
        if head is None and newest.id in plan.reached:
            plan.branches[branch] = newest.id
        elif head is None:
            self._graft(branch, line)
        elif last >= 0 and plan.counterparts[line[last].id] == head:
            self._line(branch, line[last + 1 :], start=head)
        elif self._untouched(head):
            if not self._pair.keeps_ids:
                self._line(branch, line, start=head)
            elif newest.id in plan.counterparts:  # nothing to bring, but the branch has to go there
                plan.lines.append(CommitLine(branch, None, None, [CommitStep(newest, [], [])]))
            else:
                self._graft(branch, line)
        elif not self._pair.differences(newest.id, head):
            plan.counterparts[newest.id] = head
        else:
            plan.apart.add(branch)
            if newest.id in plan.counterparts:
                plan.notes.append(f"{target} has newer commits on {branch}")
            else:
                plan.conflicts.append(
                    f"branch {branch} of {target} has commits that {self._pair.repo} has not"
                )

    def _tag(self, tag: str, commit: str) -> None:
        plan, theirs = self._plan, self._existing.tags.get(tag)
        if theirs is None:
            plan.tags[tag] = commit
        elif plan.counterparts.get(commit) != theirs and self._pair.differences(commit, theirs):
            plan.conflicts.append(f"tag {tag} of {self._pair.target} has other content")
            plan.apart.add(tag)

    def _graft(self, branch: str | None, line: list[RepoCommit]) -> None:
        """Replay the rest of a line after the last of its commits that the destination will
        have."""
        plan, pair = self._plan, self._pair
        last = max((n for n, entry in enumerate(line) if entry.id in plan.reached), default=-1)
        if last >= 0 and (after := line[last].id) not in plan.counterparts:
            self._line(branch, line[last + 1 :], after=after)
        elif last >= 0:
            self._line(branch, line[last + 1 :], start=plan.counterparts[after])
        elif self._their_logs and not pair.keeps_ids:
            oldest = next(iter(self._their_logs.values()))[0]  # with it the repo was made
            self._line(branch, line, start=oldest.id)
        elif not pair.keeps_ids and self._is_bare(pair.source.files(pair.repo, line[0].id)):
            self._line(branch, line[1:], after=line[0].id)  # the hub will make that one itself
        else:
            self._line(branch, line)

    def _line(
        self, branch: str | None, line: list[RepoCommit], start: str | None = None, after: str = ""
    ) -> None:
        """Replay a line on top of a commit of the destination, or of one yet to be replayed."""
        pair = self._pair
        theirs = pair.destination.files(pair.target, start) if start else {}
        before = pair.source.files(pair.repo, after) if after else None
        steps = []
        for commit in line:
            files = pair.source.files(pair.repo, commit.id)
            if before is None:  # the first is compared with the destination
                same = {
                    path
                    for path in files.keys() & theirs.keys()
                    if pair.same(commit.id, files[path], str(start), theirs[path])
                }
                gone = theirs.keys() - files.keys()
            else:
                same = {path for path in files if before.get(path) == files[path]}
                gone = before.keys() - files.keys()
            put = [file for path, file in files.items() if path not in same]
            steps.append(CommitStep(commit, put, sorted(gone)))
            before = files
        if steps:
            self._plan.lines.append(CommitLine(branch, start, after or None, steps))

    def _untouched(self, head: str) -> bool:
        """Return whether the destination has nothing at `head` but its own initial commit."""
        files = self._pair.destination.files(self._pair.target, head)
        return len(self._their_logs[head]) == 1 and self._is_bare(files)

    @staticmethod
    def _is_bare(files: dict[str, File]) -> bool:
        return files.keys() <= _HUBS_OWN


def _histories(
    side: HubReader, repo: RepoId, refs: RepoRefs, requested: set[str]
) -> dict[str, list[RepoCommit]]:
    """Return the history of each commit that a ref names, oldest first, by commit."""
    histories: dict[str, list[RepoCommit]] = {}
    for commit in dict.fromkeys([*refs.branches.values(), *refs.tags.values(), *requested]):
        for log in histories.values():
            if (place := next((n for n, m in enumerate(log) if m.id == commit), None)) is not None:
                histories[commit] = log[: place + 1]
                break
        else:
            histories[commit] = side.log(repo, commit)
    return histories

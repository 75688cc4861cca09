"""One of the two hubs of a transfer, to read from: refs, commits, files, collections.

Whatever may pass (a lost connection, a 5xx, too many requests, a body cut short) is tried again,
after the time the hub asks for if it names one; what arrives is held against the id it should have.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import Collection, HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from factory.artifacts import untrusted
from factory.artifacts.hashing import file_sha256
from factory.hub import http_guard
from factory.hub.client import Hub, commit_of, files_at
from factory.hub.connection import announce_retry, connection_errors, resolves, status_of

_ORIGIN = re.compile(r"^Synced-from: ([0-9a-f]{40})$", re.MULTILINE)
_TRIES = 8
_COPIES = 3  # downloads of a file that does not arrive as it should
_WAIT = wait_exponential_jitter(multiplier=0.2, max=30, jitter=0.2)
T = TypeVar("T")


class RepoId(NamedTuple):
    """A repo of a hub, by kind (model or dataset) and name."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}s/{self.name}" if self.kind == "dataset" else self.name


@dataclass(frozen=True)
class File:
    """A file at a commit; `sha256` is known of large files, `blob` (git's id) of the others."""

    path: str
    size: int
    blob: str
    sha256: str | None


@dataclass(frozen=True)
class RepoCommit:
    """A commit, as a hub lists it."""

    id: str
    title: str
    message: str
    author: str
    date: int

    @property
    def names(self) -> tuple[str, ...]:
        """Its id and those of the commits, on other hubs, that it repeats."""
        return (self.id, *_ORIGIN.findall(self.message))


@dataclass(frozen=True)
class RepoRefs:
    """Branches and tags, each with the commit it names."""

    branches: dict[str, str]
    tags: dict[str, str]


class Damaged(OSError):
    """A file did not arrive as the hub says it is."""


@dataclass(frozen=True)
class Copies:
    """The files at a commit of a hub, as whoever takes them gets at them."""

    side: HubReader
    repo: RepoId
    commit: str

    def fetch(self, file: File) -> Path:
        """A file on this disk."""
        return self.side.download(self.repo, self.commit, file)

    def discard(self, path: Path) -> None:
        """Forget a file that was fetched."""
        self.side.discard(path)


class HubReader:
    """A hub, read with retries; `staging`, for what is on its way, belongs to this hub alone."""

    def __init__(self, endpoint: str, token: str | None, staging: Path) -> None:
        self.endpoint = endpoint
        # False, not None: a client without a token of its own would send the one it finds.
        self.token: str | bool = token or False
        self.staging = staging
        self.api = HfApi(endpoint=endpoint, token=self.token, library_name="croco-factory")
        self._hub = Hub(endpoint, token)
        self._files: dict[tuple[RepoId, str], dict[str, File]] = {}

    def explained(self, name: object) -> AbstractContextManager[None]:
        """What the client raises inside becomes one line and its fix."""
        return self._hub.explained(str(name))

    def refs(self, repo: RepoId) -> RepoRefs | None:
        """Branches and tags; None if this hub has no such repo, or hides it."""
        try:
            found = retry_transient(lambda: self.api.list_repo_refs(repo.name, repo_type=repo.kind))
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
        branches, tags = (
            {untrusted.ref(ref.name): untrusted.commit(ref.target_commit) for ref in refs}
            for refs in (found.branches, found.tags)
        )
        return RepoRefs(branches, tags)

    def commit_of(self, repo: RepoId, revision: str) -> str:
        """The commit that a revision names."""
        info = retry_transient(
            lambda: self.api.repo_info(repo.name, repo_type=repo.kind, revision=revision)
        )
        return commit_of(info)

    def is_private(self, repo: RepoId) -> bool:
        """Whether strangers do not see it."""
        return bool(
            retry_transient(lambda: self.api.repo_info(repo.name, repo_type=repo.kind)).private
        )

    def log(self, repo: RepoId, revision: str) -> list[RepoCommit]:
        """The commits up to a revision, oldest first."""
        found = retry_transient(
            lambda: self.api.list_repo_commits(repo.name, repo_type=repo.kind, revision=revision)
        )
        made = [
            RepoCommit(
                id=commit.commit_id,
                title=untrusted.text(commit.title),
                message=untrusted.text(commit.message),
                author=untrusted.text((commit.authors or ["unknown"])[0]),
                date=untrusted.date(commit.created_at),
            )
            for commit in reversed(found)
        ]
        untrusted.history((one.id for one in made), revision)
        return made

    def files(self, repo: RepoId, commit: str) -> dict[str, File]:
        """The files at a commit, by path."""
        if (repo, commit) not in self._files:
            listed = retry_transient(lambda: files_at(self.api, repo.name, repo.kind, commit))
            self._files[repo, commit] = {
                file.path: File(
                    file.path, file.size, file.blob_id, file.lfs.sha256 if file.lfs else None
                )
                for file in listed
            }
        return self._files[repo, commit]

    def download(self, repo: RepoId, commit: str, file: File) -> Path:
        """A file on this disk. A large one is checked by whoever takes it, who hashes it anyway."""

        def get() -> str:
            with http_guard.at_most(file.size):
                return hf_hub_download(
                    repo.name,
                    file.path,
                    repo_type=repo.kind,
                    revision=commit,
                    endpoint=self.endpoint,
                    token=self.token,
                    cache_dir=self.staging,
                )

        for _ in range(_COPIES):
            path = Path(retry_transient(get))
            if path.stat().st_size == file.size and (
                file.sha256 is not None or _blob_id(path.read_bytes()) == file.blob
            ):
                return path
            self.discard(path)
        raise Damaged(f"{file.path} of {repo} does not arrive as {self.endpoint} says it is")

    def discard(self, path: Path) -> None:
        """Forget a downloaded file, so that the next try starts anew. Nothing outside of the
        staging folder is touched, wherever a link leads."""
        staging = self.staging.resolve()
        for found in (path.resolve(), path.parent.resolve() / path.name):
            if staging in found.parents:
                found.unlink(missing_ok=True)

    def sha256(self, repo: RepoId, commit: str, file: File) -> str:
        """The hash of a file's content; a hub says it only of large ones."""
        return file.sha256 or file_sha256(self.download(repo, commit, file))

    def collection(self, slug: str) -> Collection:
        """A collection with all its items."""
        found = retry_transient(lambda: self.api.get_collection(slug))
        untrusted.slug(found.slug), untrusted.text(found.title), untrusted.text(found.description)
        for item in found.items:
            if item.item_type in ("model", "dataset"):
                untrusted.repo(item.item_id), untrusted.text(item.note)
        return found

    def collections(self, owner: str | None = None) -> list[Collection]:
        """The collections of an owner, or all; of each only the first few items."""
        with self.explained("the collections"):
            found = retry_transient(lambda: list(self.api.list_collections(owner=owner)))
            for one in found:
                untrusted.slug(one.slug), untrusted.text(one.title)
            return found

    def repos(self) -> list[RepoId]:
        """All repos of this hub that its token may see; only to be asked of a hub of one's own."""
        with self.explained("the repos"):
            models = retry_transient(lambda: list(self.api.list_models()))
            datasets = retry_transient(lambda: list(self.api.list_datasets()))
        return [
            RepoId(kind, untrusted.repo(info.id))
            for kind, found in (("model", models), ("dataset", datasets))
            for info in found
        ]

    def kinds(self, name: str) -> list[RepoId]:
        """The repos of this name: a model, a dataset, both, or none."""
        repos = (RepoId("model", name), RepoId("dataset", name))
        return [repo for repo in repos if self.refs(repo) is not None]


def retry_transient(call: Callable[[], T], also: Sequence[int] = ()) -> T:
    """The answer of a call that may be repeated; also after answers with these statuses."""

    def passing(error: BaseException) -> bool:
        if isinstance(error, RuntimeError) and error.__cause__ is not None:
            error = error.__cause__  # the client wraps what went wrong with an upload
        if isinstance(error, LocalEntryNotFoundError):  # there was no connection
            return resolves(error)
        if isinstance(error, Damaged):
            return False
        if isinstance(error, GatedRepoError | RevisionNotFoundError):
            return False
        if isinstance(error, HfHubHTTPError):
            status = status_of(error) or 0
            return status in (408, 429, *also) or (status >= 500 and status not in (501, 507))
        if isinstance(error, connection_errors()):
            return resolves(error)
        return isinstance(error, OSError) and "Consistency check failed" in str(error)

    retrying = Retrying(
        retry=retry_if_exception(passing),
        stop=stop_after_attempt(_TRIES),
        wait=_patience,
        before_sleep=announce_retry,
        reraise=True,
    )
    return retrying(call)


def _blob_id(content: bytes) -> str:
    """The id by which git knows a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _patience(state: RetryCallState) -> float:
    """As long as the hub asks for (http_guard refuses what is too long), else longer each time."""
    error: Any = state.outcome.exception() if state.outcome else None
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else _WAIT(state)

"""Source hub of a transfer: refs, commits, files, collections.

Transient errors (a lost connection, a 5xx, too many requests, a truncated body) are retried, after
the hub's Retry-After if it sends one. Downloads are checked against their ids.
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
from huggingface_hub.hf_api import RepoFile
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from factory.artifacts.hashing import file_sha256
from factory.hub.client import Hub
from factory.hub.connection import announce_retry, connection_errors, resolves, status_of

_ORIGIN = re.compile(r"^Synced-from: ([0-9a-f]{40})$", re.MULTILINE)
_TRIES = 8
_COPIES = 3  # downloads of a file that does not arrive as it should
_WAIT = wait_exponential_jitter(multiplier=0.2, max=30, jitter=0.2)
_LONGEST_WAIT = 300.0
T = TypeVar("T")


class RepoId(NamedTuple):
    """A repo of a hub, by kind (model or dataset) and name."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}s/{self.name}" if self.kind == "dataset" else self.name


@dataclass(frozen=True)
class File:
    """A file at a commit; `sha256` is that of large files, `blob` (git's id) of the others."""

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
        """Its id and those of the commits, on other hubs, that it replays."""
        return (self.id, *_ORIGIN.findall(self.message))


@dataclass(frozen=True)
class RepoRefs:
    """Branches and tags, each with the commit it names."""

    branches: dict[str, str]
    tags: dict[str, str]


class Damaged(OSError):
    """A file arrived with another content than the hub lists."""


class HubReader:
    """A hub, read with retries; `staging` is its own directory for downloads."""

    def __init__(self, endpoint: str, token: str | None, staging: Path) -> None:
        self.endpoint = endpoint
        # False, not None: a client without a token of its own would send the one it finds.
        self.token: str | bool = token or False
        self.staging = staging
        self.api = HfApi(endpoint=endpoint, token=self.token, library_name="croco-factory")
        self._hub = Hub(endpoint, token)
        self._files: dict[tuple[RepoId, str], dict[str, File]] = {}

    def explained(self, name: object) -> AbstractContextManager[None]:
        """Translate the client's errors into HubError with a fix."""
        return self._hub.explained(str(name))

    def refs(self, repo: RepoId) -> RepoRefs | None:
        """Return branches and tags; None if this hub has no such repo, or hides it."""
        try:
            refs = retry_transient(lambda: self.api.list_repo_refs(repo.name, repo_type=repo.kind))
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
        return RepoRefs(
            {ref.name: ref.target_commit for ref in refs.branches},
            {ref.name: ref.target_commit for ref in refs.tags},
        )

    def commit_of(self, repo: RepoId, revision: str) -> str:
        """Return the commit of a revision."""
        info = retry_transient(
            lambda: self.api.repo_info(repo.name, repo_type=repo.kind, revision=revision)
        )
        return str(info.sha)

    def is_private(self, repo: RepoId) -> bool:
        """Return whether the repo is private."""
        return bool(
            retry_transient(lambda: self.api.repo_info(repo.name, repo_type=repo.kind)).private
        )

    def log(self, repo: RepoId, revision: str) -> list[RepoCommit]:
        """Return the commits up to a revision, oldest first."""
        commits = retry_transient(
            lambda: self.api.list_repo_commits(repo.name, repo_type=repo.kind, revision=revision)
        )
        return [
            RepoCommit(
                id=commit.commit_id,
                title=commit.title,
                message=commit.message,
                author=(commit.authors or ["unknown"])[0],
                date=int(commit.created_at.timestamp()),
            )
            for commit in reversed(commits)
        ]

    def files(self, repo: RepoId, commit: str) -> dict[str, File]:
        """Return the files at a commit, by path."""
        if (repo, commit) not in self._files:
            listed = retry_transient(
                lambda: list(
                    self.api.list_repo_tree(
                        repo.name, recursive=True, revision=commit, repo_type=repo.kind
                    )
                )
            )
            self._files[repo, commit] = {
                entry.path: File(
                    entry.path, entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None
                )
                for entry in listed
                if isinstance(entry, RepoFile)
            }
        return self._files[repo, commit]

    def download(self, repo: RepoId, commit: str, file: File) -> Path:
        """Download a file and return its path. A large one is checked by the caller, who hashes it
        anyway."""

        for _ in range(_COPIES):
            path = Path(
                retry_transient(
                    lambda: hf_hub_download(
                        repo.name,
                        file.path,
                        repo_type=repo.kind,
                        revision=commit,
                        endpoint=self.endpoint,
                        token=self.token,
                        cache_dir=self.staging,
                    )
                )
            )
            if file.sha256 is not None or _blob_id(path.read_bytes()) == file.blob:
                return path
            discard(path)
        raise Damaged(f"{file.path} of {repo} does not arrive as {self.endpoint} says it is")

    def sha256(self, repo: RepoId, commit: str, file: File) -> str:
        """Return the hash of a file's content; a hub lists it only for large ones."""
        return file.sha256 or file_sha256(self.download(repo, commit, file))

    def collection(self, slug: str) -> Collection:
        """Return a collection with all its items."""
        return retry_transient(lambda: self.api.get_collection(slug))

    def collections(self, owner: str | None = None) -> list[Collection]:
        """List the collections of an owner, or all, each with its first few items only."""
        return retry_transient(lambda: list(self.api.list_collections(owner=owner)))

    def repos(self) -> list[RepoId]:
        """List all repos that the token may see; meant for a hub of one's own."""
        models = [
            RepoId("model", info.id)
            for info in retry_transient(lambda: list(self.api.list_models()))
        ]
        datasets = retry_transient(lambda: list(self.api.list_datasets()))
        return models + [RepoId("dataset", info.id) for info in datasets]

    def kinds(self, name: str) -> list[RepoId]:
        """Return the repos with this name: a model, a dataset, both, or none."""
        repos = (RepoId("model", name), RepoId("dataset", name))
        return [repo for repo in repos if self.refs(repo) is not None]


def discard(path: Path) -> None:
    """Delete a downloaded file, so that the next try starts anew."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def retry_transient(call: Callable[[], T], also: Sequence[int] = ()) -> T:
    """Return the result of an idempotent call, retried after transient errors and the statuses in
    `also`."""

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
    """Return the git id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _patience(state: RetryCallState) -> float:
    """Return the seconds to wait: the hub's Retry-After, else an exponential backoff."""
    error: Any = state.outcome.exception() if state.outcome else None
    headers = getattr(getattr(error, "response", None), "headers", {})
    retry_after = headers.get("Retry-After", "")
    return min(float(retry_after), _LONGEST_WAIT) if retry_after.isdigit() else _WAIT(state)

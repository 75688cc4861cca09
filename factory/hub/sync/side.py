"""One of the two hubs of a transfer, to read from: refs, commits, files, collections.

Transient errors (a lost connection, a 5xx, too many requests, a body cut short) are retried, after
the time that the hub asks for if it names one. Downloaded content is checked against its id.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import Collection, HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from factory.artifacts import untrusted
from factory.artifacts.hashing import MANIFEST, file_sha256
from factory.artifacts.manifest import Manifest
from factory.hub import http_guard
from factory.hub.client import Hub, commit_of, files_at
from factory.hub.connection import announce_retry, connection_errors, resolves, status_of

_ORIGIN = re.compile(r"^Synced-from: ([0-9a-f]{40})$", re.MULTILINE)
_TRIES = 8
_COPIES = 3  # downloads of a file that does not arrive as it should
_WAIT = wait_exponential_jitter(multiplier=0.2, max=30, jitter=0.2)
T = TypeVar("T")
Moved = Callable[[int], None]


class FileProgress:
    """Bytes of one file that have moved: reported as they do, never more than its size, however
    often a part is sent again."""

    def __init__(self, size: int, moved: Moved) -> None:
        self._left, self._moved = size, moved
        self._lock = Lock()

    def add(self, count: int) -> None:
        """Add bytes."""
        with self._lock:
            count = max(0, min(count, self._left))
            self._left -= count
        if count:
            self._moved(count)

    def finish(self) -> None:
        """Add what is left: the file is there, or did not have to be moved."""
        self.add(self._left)


def _bar_that_calls(moved: Moved) -> type[tqdm]:
    """Return a progress bar for the client that shows nothing and passes the bytes on.

    With Xet the client counts bytes twice, as they come and as they are written: whichever is
    ahead is passed on.
    """

    class Counter(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]
            self._came = self._written = self._reported = 0
            self.update(options.get("initial"))

        def update(self, n: float | None = 1) -> None:
            self._written += int(n or 0)
            self._tell()

        def update_transfer(self, n: float) -> None:
            self._came += int(n)
            self._tell()

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            """Show nothing."""

        def _tell(self) -> None:
            ahead = max(self._came, self._written)
            moved(ahead - self._reported)
            self._reported = ahead

    return Counter


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
        """Return its id and those of the commits on other hubs that it repeats."""
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
    """Files at a commit of a hub, to download one by one."""

    side: HubReader
    repo: RepoId
    commit: str

    def fetch(self, file: File, moved: Moved | None = None) -> Path:
        """Download a file; return its path. `moved` is told the bytes as they arrive."""
        return self.side.download(self.repo, self.commit, file, moved)

    def discard(self, path: Path) -> None:
        """Delete a downloaded file."""
        self.side.discard(path)


class HubReader:
    """A hub, read with retries. `staging` is the directory of its downloads, for this hub alone."""

    def __init__(self, endpoint: str, token: str | None, staging: Path) -> None:
        self.endpoint = endpoint
        # False, not None: a client without a token of its own would send the one it finds.
        self.token: str | bool = token or False
        self.staging = staging
        self.api = HfApi(endpoint=endpoint, token=self.token, library_name="croco-factory")
        self._hub = Hub(endpoint, token)
        self.called = self._hub.called
        self._files: dict[tuple[RepoId, str], dict[str, File]] = {}

    def explained(self, name: object) -> AbstractContextManager[None]:
        """Turn errors of the client inside the block into a HubError: one line and its fix."""
        return self._hub.explained(str(name))

    def refs(self, repo: RepoId) -> RepoRefs | None:
        """Return branches and tags; None if this hub has no such repo, or hides it."""
        try:
            listed = retry_transient(
                lambda: self.api.list_repo_refs(repo.name, repo_type=repo.kind)
            )
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
        branches, tags = (
            {untrusted.ref(ref.name): untrusted.commit(ref.target_commit) for ref in refs}
            for refs in (listed.branches, listed.tags)
        )
        return RepoRefs(branches, tags)

    def commit_of(self, repo: RepoId, revision: str) -> str:
        """Return the commit that a revision names."""
        info = retry_transient(
            lambda: self.api.repo_info(repo.name, repo_type=repo.kind, revision=revision)
        )
        return commit_of(info)

    def is_private(self, repo: RepoId) -> bool:
        """Return whether a repo is private."""
        return bool(
            retry_transient(lambda: self.api.repo_info(repo.name, repo_type=repo.kind)).private
        )

    def log(self, repo: RepoId, revision: str) -> list[RepoCommit]:
        """Return the commits up to a revision, oldest first."""
        newest_first = retry_transient(
            lambda: self.api.list_repo_commits(repo.name, repo_type=repo.kind, revision=revision)
        )
        commits = [
            RepoCommit(
                id=commit.commit_id,
                title=untrusted.text(commit.title),
                message=untrusted.text(commit.message),
                author=untrusted.text((commit.authors or ["unknown"])[0]),
                date=untrusted.date(commit.created_at),
            )
            for commit in reversed(newest_first)
        ]
        untrusted.history((commit.id for commit in commits), revision)
        return commits

    def files(self, repo: RepoId, commit: str) -> dict[str, File]:
        """Return the files at a commit, by path."""
        if (repo, commit) not in self._files:
            listed = retry_transient(lambda: files_at(self.api, repo.name, repo.kind, commit))
            self._files[repo, commit] = {
                file.path: File(
                    file.path, file.size, file.blob_id, file.lfs.sha256 if file.lfs else None
                )
                for file in listed
            }
        return self._files[repo, commit]

    def download(self, repo: RepoId, commit: str, file: File, moved: Moved | None = None) -> Path:
        """Download a file; return its path. The caller checks a large one, which it hashes anyway.

        moved: is told the bytes as they arrive. Raises Damaged if size or git id differ after
        several tries."""

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
                    tqdm_class=None if moved is None else _bar_that_calls(moved),
                )

        for _ in range(_COPIES):
            path = Path(retry_transient(get))
            if path.stat().st_size == file.size and (
                file.sha256 is not None or git_blob_id(path.read_bytes()) == file.blob
            ):
                return path
            self.discard(path)
        raise Damaged(f"{file.path} of {repo} does not arrive as {self.called} says it is")

    def discard(self, path: Path) -> None:
        """Delete a downloaded file, so that the next try starts anew. Nothing outside of the
        staging folder is deleted, wherever a link leads."""
        staging = self.staging.resolve()
        for file in (path.resolve(), path.parent.resolve() / path.name):
            if staging in file.parents:
                file.unlink(missing_ok=True)

    def sha256(self, repo: RepoId, commit: str, file: File) -> str:
        """Return the sha256 of a file. A hub lists it for large files; others are downloaded."""
        return file.sha256 or file_sha256(self.download(repo, commit, file))

    def damaged(self, repo: RepoId, commit: str) -> list[str]:
        """Return the files at a commit that are not what its manifest records; none without one."""
        files = self.files(repo, commit)
        if MANIFEST not in files:
            return []
        try:
            text = self.download(repo, commit, files[MANIFEST]).read_bytes()
            manifest = Manifest.model_validate_json(text)
        except ValueError:
            return []  # somebody else's factory.json
        recorded = [file for file in manifest.files if file.path in files]
        hashes = {f.path: self.sha256(repo, commit, files[f.path]) for f in recorded}
        return manifest.damaged(hashes)

    def collection(self, slug: str) -> Collection:
        """Return a collection with all its items."""
        collection = retry_transient(lambda: self.api.get_collection(slug))
        untrusted.slug(collection.slug), untrusted.text(collection.title)
        untrusted.text(collection.description)
        for item in collection.items:
            if item.item_type in ("model", "dataset"):
                untrusted.repo(item.item_id), untrusted.text(item.note)
        return collection

    def collections(self, owner: str | None = None) -> list[Collection]:
        """Return the collections of an owner, or all, each with its first few items."""
        with self.explained("the collections"):
            collections = retry_transient(lambda: list(self.api.list_collections(owner=owner)))
            for collection in collections:
                untrusted.slug(collection.slug), untrusted.text(collection.title)
            return collections

    def repos(self) -> list[RepoId]:
        """Return all repos that the token may see. Only for the user's own hub: it lists all."""
        with self.explained("the repos"):
            models = retry_transient(lambda: list(self.api.list_models()))
            datasets = retry_transient(lambda: list(self.api.list_datasets()))
        return [
            RepoId(kind, untrusted.repo(info.id))
            for kind, infos in (("model", models), ("dataset", datasets))
            for info in infos
        ]

    def kinds(self, name: str) -> list[RepoId]:
        """Return the repos of this name: a model, a dataset, both, or none."""
        repos = (RepoId("model", name), RepoId("dataset", name))
        return [repo for repo in repos if self.refs(repo) is not None]


def retry_transient(call: Callable[[], T], also: Sequence[int] = ()) -> T:
    """Call, with retries after transient errors and after the statuses in `also`."""

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
            status = status_of(error)
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


def git_blob_id(content: bytes) -> str:
    """Return the git id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _patience(state: RetryCallState) -> float:
    """Return the seconds that the hub asks to wait (http_guard limits them), else a backoff."""
    error: Any = state.outcome.exception() if state.outcome else None
    headers = getattr(getattr(error, "response", None), "headers", {})
    seconds = headers.get("Retry-After", "")
    return float(seconds) if seconds.isdigit() else _WAIT(state)

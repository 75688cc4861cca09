"""Write to a hub by ordinary commits: branches, tags, files, collections."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import (
    CollectionItem,
    CommitOperationAdd,
    CommitOperationDelete,
)
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.utils import _xet
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from factory.errors import HubError
from factory.hub.connection import status_of
from factory.hub.sync.plan import CommitStep
from factory.hub.sync.side import (
    Copies,
    Damaged,
    File,
    FileProgress,
    HubReader,
    Moved,
    RepoCommit,
    RepoId,
    T,
    retry_transient,
)

# Above this every hub keeps a file as a large one, so it is not needed again once it was sent.
_LARGE = 10_000_000
AT_ONCE = 4


class ConcurrentUpdate(Exception):
    """Another client moved a branch or set a tag meanwhile: plan again."""


def contradiction(repo: RepoId, commit: str) -> HubError:
    """Return the error for a commit that has other content at the destination under its id."""
    return HubError(
        f"the two hubs have different content under commit {commit} of {repo}",
        "find out which one is right, delete the repo at the other (hf repos delete), then run it"
        " again",
    )


class _CountedFile(io.BufferedReader):
    """A file that tells how many bytes were read of it."""

    def __init__(self, path: Path, moved: Moved) -> None:
        super().__init__(io.FileIO(path))
        self._moved = moved

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        self._moved(len(chunk))
        return chunk


class _CountedAdd(CommitOperationAdd):
    """A file to upload that tells how much of it was sent."""

    moved: Moved | None = None

    @contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
        if not with_tqdm or self.moved is None:  # it is read to be hashed, not to be sent
            with super().as_file(with_tqdm) as file:
                yield file
            return
        with _CountedFile(Path(str(self.path_or_fileobj)), self.moved) as counted:
            yield counted


# Of the file that this thread sends: the client's Xet path reads it by itself.
_sending: ContextVar[Moved | None] = ContextVar("sending", default=None)


class _CountedXet:
    """A Xet session of the client that tells how much of a file was sent."""

    def __init__(self, session: Any, moved: Moved) -> None:
        self._session, self._moved = session, moved

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def new_upload_commit(self, **options: Any) -> Any:
        reported = 0

        def tell(report: Any, _files: Any = None) -> None:
            nonlocal reported
            sent = report.total_bytes_completed  # read and cut into chunks; new ones are sent
            if report.total_transfer_bytes:
                sent *= report.total_transfer_bytes_completed / report.total_transfer_bytes
            self._moved(max(0, int(sent) - reported))
            reported = max(reported, int(sent))

        return self._session.new_upload_commit(**{**options, "progress_callback": tell})


@cache
def _count_xet() -> None:
    """Have Xet sessions that the client opens count for the file that is sent: by itself it shows
    bars, or nothing."""
    if (opened := getattr(_xet, "get_xet_session", None)) is None:
        return  # another version of the client: a file counts once it is there

    def counted() -> Any:
        moved = _sending.get()
        return opened() if moved is None else _CountedXet(opened(), moved)

    _xet.get_xet_session = counted


class Destination(HubReader):
    """A hub written to by the public API alone."""

    keeps_ids = False

    def __init__(self, *place: Any) -> None:
        super().__init__(*place)
        _count_xet()

    def create(self, repo: RepoId, private: bool) -> None:
        """Create a repo, if it does not exist."""
        retry_transient(
            lambda: self.api.create_repo(
                repo.name, repo_type=repo.kind, private=private, exist_ok=True
            )
        )

    def create_tag(self, repo: RepoId, tag: str, commit: str) -> None:
        """Set a tag. Raises ConcurrentUpdate if it was just set on another commit."""
        self._create_ref(repo, tag, commit, self.api.create_tag, tag=tag)

    def create_branch(self, repo: RepoId, branch: str, commit: str) -> None:
        """Create a branch. Raises ConcurrentUpdate if it was just created at another commit."""
        self._create_ref(repo, branch, commit, self.api.create_branch, branch=branch)

    def delete_branch(self, repo: RepoId, branch: str) -> None:
        """Delete a branch, if it exists."""
        with suppress(RevisionNotFoundError):
            retry_transient(
                lambda: self.api.delete_branch(repo.name, branch=branch, repo_type=repo.kind)
            )

    def write_collection(
        self,
        title: str,
        namespace: str,
        description: str,
        private: bool,
        items: list[tuple[RepoId, str | None]],
    ) -> str:
        """Put these repos into a collection, in this order, with their notes; return its slug.

        The collection is created if missing. Other items come after these.
        """
        slug = retry_transient(
            lambda: self.api.create_collection(
                title,
                namespace=namespace,
                description=description,
                private=private,
                exists_ok=True,
            )
        ).slug
        for repo, note in items:
            if not any(_is(item, repo) for item in self.collection(slug).items):
                add = partial(self.api.add_collection_item, slug, repo.name, exists_ok=True)
                retry_transient(partial(add, item_type=repo.kind, note=note))
        for place, (repo, note) in enumerate(items):
            present = self.collection(slug).items
            at, item = next((n, item) for n, item in enumerate(present) if _is(item, repo))
            change = partial(self.api.update_collection_item, slug, item.item_object_id)
            if item.note != note:
                retry_transient(partial(change, note=note or ""))
            if at != place:
                retry_transient(partial(change, position=place))
        return slug

    def replay(
        self,
        repo: RepoId,
        branch: str | None,
        parent: str | None,
        step: CommitStep,
        copies: Copies,
        moved: Moved,
    ) -> str:
        """Repeat a commit on top of `parent`; return its id here. Raises ConcurrentUpdate."""
        assert branch is not None and parent is not None
        if not (step.put or step.drop):
            return parent

        def read(file: File) -> tuple[Path, _CountedAdd]:
            path = copies.fetch(file)
            add = _CountedAdd(file.path, str(path))
            if file.sha256 not in (None, add.upload_info.sha256.hex()):
                copies.discard(path)
                raise Damaged(f"{file.path} of {repo} did not arrive as it should")
            return path, add

        def send(file: File) -> CommitOperationAdd:
            path, add = retry_corrupt(lambda: read(file))
            progress = FileProgress(file.size, moved)
            add.moved = progress.add
            _sending.set(progress.add)
            upload = partial(self.api.preupload_lfs_files, repo.name, [add], revision=branch)
            retry_transient(partial(upload, repo_type=repo.kind, free_memory=False))
            if file.size > _LARGE:
                copies.discard(path)
            progress.finish()
            return add

        operations: list[Any] = [CommitOperationDelete(path) for path in step.drop]
        again = False

        def commit() -> str:
            nonlocal again
            if again and (arrived := self._arrived(repo, branch, step.commit)):
                return arrived
            again = True
            try:
                info = self.api.create_commit(
                    repo.name,
                    operations,
                    commit_message=step.commit.title or "(no title)",
                    commit_description=_with_origin(step.commit),
                    repo_type=repo.kind,
                    revision=branch,
                    parent_commit=parent,
                )
            except HfHubHTTPError as error:
                if status_of(error) == 412:
                    raise ConcurrentUpdate from None
                raise
            return info.oid

        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                operations += pool.map(send, step.put)
            return retry_transient(commit, also=(409,))
        except RevisionNotFoundError:  # the branch is gone
            raise ConcurrentUpdate from None

    def _arrived(self, repo: RepoId, branch: str, original: RepoCommit) -> str | None:
        """Return the head of the branch if it repeats `original`: an earlier try did arrive."""
        head = self.log(repo, branch)[-1]
        return head.id if original.id in head.names else None

    def _create_ref(
        self, repo: RepoId, name: str, commit: str, create: Callable[..., None], **named: str
    ) -> None:
        try:
            retry_transient(
                lambda: create(repo.name, revision=commit, repo_type=repo.kind, **named)
            )
        except HfHubHTTPError as error:
            if status_of(error) != 409:
                raise
            if self.commit_of(repo, name) != commit:
                raise ConcurrentUpdate from None


def _is(item: CollectionItem, repo: RepoId) -> bool:
    return (item.item_type, item.item_id) == (repo.kind, repo.name)


def retry_corrupt(call: Callable[[], T]) -> T:
    """Call, with retries after Damaged: each downloads a new copy of the file."""
    retrying = Retrying(
        retry=retry_if_exception_type(Damaged), stop=stop_after_attempt(4), reraise=True
    )
    return retrying(call)


def _with_origin(original: RepoCommit) -> str:
    return f"{original.message}\n\nSynced-from: {original.id}".strip()

"""The hub, thinly: fetch, publish, tag, collect, over huggingface_hub and HTTP.

One publish is one commit that holds data, manifest and card; the tag is set last, after the
commit was read back, so that a half-finished publish is never found by its tag. The commit call
is not idempotent: before any second try the head is compared with what was to be sent.
"""

from __future__ import annotations

import hashlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import REGEX_COMMIT_HASH, repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._paths import filter_repo_objects
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from factory.artifacts import untrusted
from factory.artifacts.hashing import MANIFEST, content_digest, file_sha256
from factory.artifacts.manifest import Manifest
from factory.errors import FactoryError, HubError
from factory.hub import http_guard
from factory.hub.connection import (
    address_of,
    announce_retry,
    announced,
    connection_errors,
    resolves,
    root_cause,
    status_of,
    unreachable,
)
from factory.planning.plan import ArtifactRef, Inventory

IGNORED = (".gitattributes",)  # the hub's own file, never part of what we publish
COLLECTION_DESCRIPTION = 150  # characters the Hub allows
_SMALL = 256 * 2**20  # bytes of a file that is read whole, as a manifest or a card
_AT_ONCE = 8  # downloads
_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.msgpack", "*.h5", "*.onnx")


@dataclass(frozen=True)
class PublishedRef:
    """Where an artifact can be found: repo, tag and commit."""

    repo: str
    tag: str
    commit: str


@dataclass(frozen=True)
class CollectionEntry:
    """A repo in a collection, with the note beside it."""

    repo: str
    kind: Literal["model", "dataset"]
    note: str


class Hub:
    """One hub: the local one or any other that speaks the protocol. `cache` is where its files
    are kept, if not where HF_HUB_CACHE says: a cache does not know which hub a repo came from.
    `reachable` is False for what stands in its place where there is none (offline.py)."""

    reachable = True

    def __init__(self, endpoint: str, token: str | None, cache: Path | None = None) -> None:
        self.endpoint = endpoint
        self._token = token
        self._cache = cache
        http_guard.install()
        self._api = HfApi(endpoint=endpoint, token=token, library_name="croco-factory")

    def pin(self, name: str, kind: str, revision: str) -> tuple[str, str] | None:
        """(commit, content digest) of an outside repo; None when the hub does not have it.

        Raises HubError when the hub is out of reach, or the repo is gated or has no `revision`.
        """
        with self.explained(name):
            commit = self._commit_at(name, kind, revision)
            if commit is None:
                return None
            return commit, content_digest(self._contents(name, kind, commit).items())

    def has(self, name: str, kind: str, revision: str) -> bool:
        """Whether the hub has this revision of a repo. Raises HubError when it is out of reach."""
        with self.explained(name):
            try:
                return self._commit_at(name, kind, revision) is not None
            except RevisionNotFoundError:
                return False

    def fetch(
        self,
        name: str,
        kind: str,
        revision: str,
        only: Sequence[str] | None = None,
        but: Sequence[str] = (),
    ) -> Path:
        """The files of a repo at a revision, on this disk: all, or `only` those of these patterns
        `but` for others. Safetensors only, never pickles."""
        with self.explained(name), announced(f"fetching {name} from {self.endpoint}"):
            commit = revision
            if not REGEX_COMMIT_HASH.fullmatch(revision):
                untrusted.ref(revision)
                commit = commit_of(self._api.repo_info(name, repo_type=kind, revision=revision))
            wanted = filter_repo_objects(
                files_at(self._api, name, kind, commit),
                allow_patterns=None if only is None else list(only),
                ignore_patterns=[*_WEIGHTS, *but],
                key=lambda file: file.path,
            )
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for _ in pool.map(lambda file: self._whole(name, kind, commit, file), wanted):
                    pass
            folder = repo_folder_name(repo_id=name, repo_type=kind)
            return Path(self._cache or constants.HF_HUB_CACHE) / folder / "snapshots" / commit

    def holdings(self, repos: Mapping[str, str]) -> Inventory:
        """Every artifact at a fingerprint's tag in these repos (name to type)."""
        found = Inventory()
        for repo, kind in repos.items():
            with self.explained(repo):
                for tag, manifest in self._tagged(repo, kind):
                    found.add(ArtifactRef(manifest, tag=tag))
        return found

    def publish(
        self, directory: Path, manifest: Manifest, repo: str, kind: str, private: bool
    ) -> PublishedRef:
        """Publish an artifact at rest. Raises HubError.

        A second publish of the same content changes nothing; another draw of the same recipe
        gets a tag of its own, since tags never move.
        """
        with self.explained(repo):
            self._api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
            tags = dict(self._tagged(repo, kind))
            for tag, other in tags.items():
                if other.tag == manifest.tag and other.content() == manifest.content():
                    info = self._api.repo_info(repo, repo_type=kind, revision=tag)
                    return PublishedRef(repo, tag, commit_of(info))
            tag = manifest.tag if manifest.tag not in tags else _draw(manifest)
            commit = self._commit(directory, manifest, repo, kind)
            self._verify(directory, repo, kind, commit)
            try:
                self._api.create_tag(repo, tag=tag, revision=commit, repo_type=kind)
            except HfHubHTTPError as error:
                if status_of(error) != 409:
                    raise
                # somebody published the same fingerprint this very moment: theirs stands
                return self.publish(directory, manifest, repo, kind, private)
            return PublishedRef(repo, tag, commit)

    def read(self, name: str, kind: str, revision: str, path: str) -> bytes | None:
        """One file of a repo at a revision; None when it is not there. Raises HubError."""
        with self.explained(name):
            try:
                return self._download(name, kind, revision, path).read_bytes()
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                return None

    def paths(self, name: str, kind: str, revision: str) -> list[str]:
        """The paths of all files of a repo at a revision. Raises HubError."""
        with self.explained(name):
            untrusted.revision(revision)
            return [file.path for file in files_at(self._api, name, kind, revision)]

    def siblings(self, repo: str, kind: str) -> list[tuple[str, str]]:
        """The other models and datasets (name and kind) of the collections that hold a repo."""
        found: dict[tuple[str, str], None] = {}
        with self.explained(repo):
            for shelf in self._api.list_collections(item=f"{kind}s/{repo}"):
                for item in self._api.get_collection(untrusted.slug(shelf.slug)).items:
                    if item.item_type in ("model", "dataset"):
                        found[untrusted.repo(item.item_id), item.item_type] = None
        return [one for one in found if one != (repo, kind)]

    def refresh_card(self, repo: str, kind: str, card: str) -> str | None:
        """Put a new card on main: the one commit that may follow a publish. Data and tags stay as
        they are. Returns the commit; None when that card is there already."""
        new = card.encode()

        def attempt() -> str:
            head = commit_of(self._api.repo_info(repo, repo_type=kind))
            if self.read(repo, kind, head, "README.md") == new:
                return ""
            return str(
                self._api.create_commit(
                    repo,
                    operations=[CommitOperationAdd("README.md", new)],
                    commit_message="card: refreshed",
                    repo_type=kind,
                    parent_commit=head,
                ).oid
            )

        with self.explained(repo):
            return _retrying(attempt) or None

    def collect(
        self, title: str, org: str, private: bool, about: str, items: Sequence[CollectionEntry]
    ) -> str:
        """Make a collection hold these repos, each with its note, in this order and in front of
        whatever a person put there; it is made if missing. `{slug}` in `about` is filled in.

        Asked again with the same it changes nothing. Returns the slug. Raises HubError.
        """
        with self.explained(f"the collection {title}"):
            found = self._api.create_collection(
                title, namespace=org, private=private, exists_ok=True
            )
            said = about.replace("{slug}", found.slug)[:COLLECTION_DESCRIPTION]
            if found.description != said:
                self._api.update_collection_metadata(found.slug, description=said)
            there = {(item.item_id, item.item_type): item for item in found.items}
            for item in items:
                present = there.get((item.repo, item.kind))
                if present is None:
                    self._api.add_collection_item(
                        found.slug,
                        item_id=item.repo,
                        item_type=item.kind,
                        note=item.note,
                        exists_ok=True,
                    )
                elif present.note != item.note:
                    self._api.update_collection_item(
                        found.slug, item_object_id=present.item_object_id, note=item.note
                    )
            self._arrange(found.slug, [item.repo for item in items])
            return found.slug

    def _arrange(self, slug: str, order: Sequence[str]) -> None:
        """Move items until those of `order` come first and in it; no request when they do."""
        rank = {repo: place for place, repo in enumerate(order)}
        items = [(i.item_id, i.item_object_id) for i in self._api.get_collection(slug).items]
        for place, item in enumerate(sorted(items, key=lambda i: rank.get(i[0], len(rank)))):
            if items[place] != item:
                self._api.update_collection_item(slug, item_object_id=item[1], position=place)
                items.remove(item)
                items.insert(place, item)

    def collections(self, org: str) -> dict[str, str]:
        """The collections of an org, slug to title. Raises HubError."""
        with self.explained(f"the collections of {org}"):
            there = self._api.list_collections(owner=org)
            return {untrusted.slug(one.slug): untrusted.text(one.title) for one in there}

    def find_collection(self, slug: str) -> tuple[str, str]:
        """(slug, title) of a collection. One that was pulled is found by the slug that it had
        elsewhere: only the number at its end differs. Raises HubError."""
        there = self.collections(slug.split("/")[0])
        same = [found for found in there if found.rpartition("-")[0] == slug.rpartition("-")[0]]
        if slug not in there and not same:
            raise HubError(
                f"{self.endpoint} has no collection {slug}",
                f"there is {', '.join(there)}" if there else "factory pull it first",
            )
        here = slug if slug in there else same[0]
        return here, there[here]

    def collection(self, slug: str) -> dict[str, str]:
        """The repos in a collection (as `shelf` finds it), in its order, with their types.

        Raises HubError.
        """
        here, _ = self.find_collection(slug)
        with self.explained(f"the collection {slug}"):
            items = self._api.get_collection(here).items
            return {
                untrusted.repo(i.item_id): i.item_type
                for i in items
                if i.item_type in ("model", "dataset")
            }

    def _commit_at(self, name: str, kind: str, revision: str) -> str | None:
        """The commit of a repo at a revision; None when the hub has no such repo."""
        untrusted.repo(name), untrusted.revision(revision)
        try:
            return commit_of(self._api.repo_info(name, repo_type=kind, revision=revision))
        except GatedRepoError:  # a RepositoryNotFoundError too
            raise
        except RepositoryNotFoundError:
            return None

    def _tagged(self, repo: str, kind: str) -> Iterator[tuple[str, Manifest]]:
        try:
            refs = self._api.list_repo_refs(repo, repo_type=kind)
        except RepositoryNotFoundError:
            return
        for ref in refs.tags:
            tag, commit = untrusted.ref(ref.name), untrusted.commit(ref.target_commit)
            if not tag.startswith("fp-"):
                continue
            try:
                # by commit: a second look costs nothing
                path = self._download(repo, kind, commit, MANIFEST)
            except EntryNotFoundError:
                continue  # a tag without our manifest is not an artifact of ours
            try:
                manifest = Manifest.model_validate_json(path.read_bytes())
            except ValueError:
                continue  # nor is one with another's
            if tag.startswith(manifest.tag):
                yield tag, manifest

    def _commit(self, directory: Path, manifest: Manifest, repo: str, kind: str) -> str:
        """One commit that makes the repo's main hold just what `directory` holds."""
        files = _files(directory)

        def attempt() -> str:
            head = commit_of(self._api.repo_info(repo, repo_type=kind))
            there = self._contents(repo, kind, head)
            if there == {path: file_sha256(file) for path, file in files.items()}:
                return head  # an earlier try did arrive
            adds = [CommitOperationAdd(path, str(file)) for path, file in files.items()]
            drops = [CommitOperationDelete(path) for path in there if path not in files]
            for add in adds:  # one by one: memory stays flat, and a retry sends only the rest
                self._api.preupload_lfs_files(repo, [add], repo_type=kind)
            return str(
                self._api.create_commit(
                    repo,
                    operations=[*adds, *drops],
                    commit_message=f"{manifest.step}: {manifest.tag}",
                    repo_type=kind,
                    parent_commit=head,
                ).oid
            )

        return _retrying(attempt)

    def _verify(self, directory: Path, repo: str, kind: str, commit: str) -> None:
        there = self._contents(repo, kind, commit)
        for path, file in _files(directory).items():
            if there.get(path) != file_sha256(file):
                raise HubError(
                    f"{repo}: {path} did not arrive as it was sent", "publish again; see the log"
                )

    def _contents(self, repo: str, kind: str, revision: str) -> dict[str, str]:
        """sha256 of every file. The hub knows it for large files; small ones are read."""
        found = {}
        for file in files_at(self._api, repo, kind, revision):
            if file.path in IGNORED:
                continue
            if file.lfs is not None:
                found[file.path] = file.lfs.sha256
            else:
                found[file.path] = file_sha256(self._whole(repo, kind, revision, file))
        return found

    def _whole(self, repo: str, kind: str, commit: str, file: RepoFile) -> Path:
        """A file that a listing names, on this disk, as large as that says. Raises HubError."""
        path = self._download(repo, kind, commit, file.path, file.size)
        if path.stat().st_size != file.size:
            raise HubError(
                f"{file.path} of {repo} did not arrive whole: {path.stat().st_size} bytes, and "
                f"{self.endpoint} lists {file.size}",
                "run it again; if it stays, that copy is damaged",
            )
        return path

    def _download(self, repo: str, kind: str, revision: str, path: str, size: int = _SMALL) -> Path:
        """One file of a repo at a revision, on this disk, of `size` bytes at most."""
        untrusted.repo(repo), untrusted.revision(revision), untrusted.path(path)
        with http_guard.at_most(size):
            return Path(
                hf_hub_download(
                    repo,
                    path,
                    repo_type=kind,
                    revision=revision,
                    endpoint=self.endpoint,
                    token=self._token,
                    cache_dir=self._cache,
                )
            )

    @contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Turn what the client raises into one line and its fix."""
        try:
            yield
        except Exception as error:
            explained = self._explain(root_cause(error), name) or self._unreadable(error, name)
            if explained is None:
                raise
            raise explained from None

    def _unreadable(self, error: BaseException, name: str) -> HubError | None:
        """An answer that the client itself could not make anything of."""
        disk = isinstance(error, OSError) and error.errno is not None
        if isinstance(error, FactoryError) or disk or not _raised_by_client(error):
            return None
        said = str(error).strip().splitlines() or [""]
        return HubError(
            f"{name}: {self.endpoint} gave an answer that cannot be read "
            f"({type(error).__name__}: {said[0][:200]})",
            "try again; if it stays, that hub is damaged or no hub at all",
        )

    def _explain(self, error: BaseException, name: str) -> HubError | None:
        match error:
            case GatedRepoError():
                fix = f"accept its terms at {self.endpoint}/{name} and run again"
                return HubError(f"{name} is gated", fix)
            case RepositoryNotFoundError():
                return HubError(
                    f"{self.endpoint} has no {name}, or hides it", "check the name and your token"
                )
            case RevisionNotFoundError():
                fix = "check it, or remove its line from the lock"
                return HubError(f"{name} has no such revision", fix)
            case HfHubHTTPError():
                status = status_of(error)
                message = error.server_message or f"asked for {address_of(error)}"
                fix = _FIXES.get(status, "try again; finished work is kept")
                return HubError(f"{name}: {self.endpoint} answered {status}: {message}", fix)
        if isinstance(error, (*connection_errors(), LocalEntryNotFoundError)):
            return unreachable(self.endpoint, error)
        return None


def commit_of(info: Any) -> str:
    """The commit that a repo's description names."""
    return untrusted.commit(info.sha)


def files_at(api: HfApi, repo: str, kind: str, revision: str) -> list[RepoFile]:
    """The files of a repo at a revision. Raises Untrusted for a listing that cannot be one."""
    untrusted.repo(repo), untrusted.revision(revision)
    found = [
        entry
        for entry in api.list_repo_tree(repo, recursive=True, revision=revision, repo_type=kind)
        if isinstance(entry, RepoFile)
    ]
    untrusted.paths(file.path for file in found)
    for file in found:
        untrusted.size(file.size)
        untrusted.blob(file.blob_id)
        if file.lfs is not None:
            untrusted.sha256(file.lfs.sha256)
    return found


def _raised_by_client(error: BaseException) -> bool:
    """Whether an error comes out of the Hub client, and not out of the factory."""
    last = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in ("factory", "huggingface_hub", "httpx", "httpx2"):
            last = package
    return last not in ("", "factory")


_FIXES = {
    401: "check your token (HF_TOKEN, or hf auth login)",
    403: "your token may not write there",
    404: "check that this is the address of a Hugging Face hub, and the name",
    507: "the hub's disk is full: free some space",
}


def _files(directory: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(directory)): path
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _draw(manifest: Manifest) -> str:
    content = hashlib.sha256(manifest.content().encode()).hexdigest()[:8]
    return f"{manifest.tag}-{content}"


def _retrying(call: Callable[[], str]) -> str:
    """Again after a lost race (409, 412), a server's bad moment (5xx) or a lost connection."""

    def passing(raised: BaseException) -> bool:
        error = root_cause(raised)
        if isinstance(error, HfHubHTTPError):
            status = status_of(error)
            return status in (409, 412, 429) or (status >= 500 and status not in (501, 507))
        return isinstance(error, connection_errors()) and resolves(error)

    for attempt in Retrying(
        retry=retry_if_exception(passing),
        stop=stop_after_attempt(6),
        wait=wait_exponential_jitter(multiplier=0.2, max=20),
        before_sleep=announce_retry,
        reraise=True,
    ):
        with attempt:
            return call()
    raise AssertionError("unreachable")

"""Client of one hub: fetch, publish, tag, collect, over huggingface_hub and HTTP.

One publish is one commit that holds data, manifest and card; the tag is set last, after the
commit was read back, so that a half-finished publish never has a tag. The commit call is not
idempotent: before a retry the head is compared with the files to send.
"""

from __future__ import annotations

import hashlib
import os
import re
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
from factory.artifacts.hashing import MANIFEST, content_digest, file_sha256, weights_digest
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
from factory.hub.environment import called
from factory.planning.plan import ArtifactRef, Inventory

IGNORED = (".gitattributes",)  # the hub's own file, never part of what we publish
COLLECTION_DESCRIPTION = 150  # characters the Hub allows
_SMALL = 256 * 2**20  # bytes of a file that is read whole, as a manifest; hubs allow it less
_AT_ONCE = 8  # downloads
_QUOTED = 500  # characters of what a hub says
_SLUG = re.compile(r"-[0-9a-f]{24}$")  # the end of a collection's slug
_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.msgpack", "*.h5", "*.onnx")


@dataclass(frozen=True)
class PublishedRef:
    """A published artifact: repo, tag and commit."""

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
    """One hub, local or remote. `cache` is the directory of its files, by default HF_HUB_CACHE.
    Each hub needs its own, since a cache does not record which hub a repo came from. `reachable` is
    False for the replacement on nodes without a network (execution/offline_hub.py)."""

    reachable = True

    def __init__(self, endpoint: str, token: str | None, cache: Path | None = None) -> None:
        self.endpoint = endpoint
        # False, not None: a client without a token of its own would send the one it finds.
        self._token: str | bool = token or False
        self._cache = cache
        http_guard.install()
        self._api = HfApi(endpoint=endpoint, token=self._token, library_name="croco-factory")

    @property
    def called(self) -> str:
        """Return the name of this hub in messages: its address, or the home of a local one."""
        return called(self.endpoint)

    @property
    def local(self) -> bool:
        """Whether this is the local hub."""
        return called(self.endpoint) != self.endpoint

    def names(self, kind: str) -> list[str]:
        """Return the names of all repos of a kind on the local hub; of another, which may have
        millions, none. Raises HubError."""
        if not self.local:
            return []
        with self.explained(f"the {kind}s"):
            return [untrusted.repo(repo.id) for repo in getattr(self._api, f"list_{kind}s")()]

    def size(self, name: str, kind: str, revision: str) -> int | None:
        """Return the bytes of a repo at a revision; None where there is none. Raises HubError."""
        with self.explained(name):
            commit = self._commit_at(name, kind, revision)
            if commit is None:
                return None
            return sum(file.size for file in files_at(self._api, name, kind, commit))

    def pin(self, name: str, kind: str, revision: str) -> tuple[str, str] | None:
        """Return (commit, content digest) of an outside repo; None when the hub does not have it.

        Raises HubError when the hub is out of reach, or the repo is gated or has no `revision`.
        """
        with self.explained(name):
            commit = self._commit_at(name, kind, revision)
            if commit is None:
                return None
            return commit, content_digest(self.contents(name, kind, commit).items())

    def weights(self, name: str, revision: str) -> str | None:
        """Return the digest of the weights of a model repo; None where it has none. Nothing is
        downloaded. Raises HubError when the hub is out of reach."""
        with self.explained(name):
            files = files_at(self._api, name, "model", revision)
            return weights_digest((file.path, file.lfs.sha256) for file in files if file.lfs)

    def has(self, name: str, kind: str, revision: str) -> bool:
        """Return whether the hub has this revision of a repo. Raises HubError if out of reach."""
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
        """Download the files of a repo at a revision; return their directory.

        only: patterns of the files to download, all by default.
        but: patterns of files to leave out. Pickled weights are never downloaded.
        Raises HubError."""
        with self.explained(name), announced(f"fetching {name} from {self.called}"):
            commit = revision
            if not REGEX_COMMIT_HASH.fullmatch(revision):
                untrusted.ref(revision)
                commit = commit_of(self._api.repo_info(name, repo_type=kind, revision=revision))
            files = filter_repo_objects(
                files_at(self._api, name, kind, commit),
                allow_patterns=None if only is None else list(only),
                ignore_patterns=[*_WEIGHTS, *but],
                key=lambda file: file.path,
            )
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for _ in pool.map(lambda file: self._whole(name, kind, commit, file), files):
                    pass
            folder = repo_folder_name(repo_id=name, repo_type=kind)
            return Path(self._cache or constants.HF_HUB_CACHE) / folder / "snapshots" / commit

    def holdings(self, repos: Mapping[str, str]) -> Inventory:
        """Return every artifact at a fingerprint's tag in these repos (name to type)."""
        inventory = Inventory()
        for repo, kind in repos.items():
            with self.explained(repo):
                for tag, manifest in self._tagged(repo, kind):
                    inventory.add(ArtifactRef(manifest, tag=tag))
        return inventory

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
                # a concurrent publish of the same fingerprint was first: keep that one
                return self.publish(directory, manifest, repo, kind, private)
            return PublishedRef(repo, tag, commit)

    def release(self, directory: Path, repo: str, adapter: str | None) -> str:
        """Publish a model without a manifest in one commit, as private as the repo `adapter`, and
        put it into the collections of that. Return the commit. Raises HubError."""
        with self.explained(repo):
            private = bool(adapter and self._api.repo_info(adapter).private)
            self._api.create_repo(repo, private=private, exist_ok=True)
            commit = self._api.upload_folder(
                repo_id=repo,
                folder_path=directory,
                delete_patterns="*",
                commit_message="a form of a released model",
            ).oid
            for shelf in self._api.list_collections(item=f"models/{adapter}") if adapter else ():
                slug = untrusted.slug(shelf.slug)
                self._api.add_collection_item(slug, repo, "model", exists_ok=True)
            return str(commit)

    def publish_space(self, repo: str, files: Mapping[str, str]) -> str:
        """Publish the files of a static Space in one commit. Return its name. Raises HubError."""
        with self.explained(repo):
            self._api.create_repo(repo, repo_type="space", space_sdk="static", exist_ok=True)
            adds = [CommitOperationAdd(path, text.encode()) for path, text in files.items()]
            self._api.create_commit(repo, adds, commit_message="results", repo_type="space")
            return repo

    def read(self, name: str, kind: str, revision: str, path: str) -> bytes | None:
        """Return one file of a repo at a revision; None when it does not exist. Raises HubError."""
        with self.explained(name):
            try:
                return self._download(name, kind, revision, path).read_bytes()
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                return None

    def paths(self, name: str, kind: str, revision: str) -> list[str]:
        """Return the paths of all files of a repo at a revision. Raises HubError."""
        with self.explained(name):
            untrusted.revision(revision)
            return [file.path for file in files_at(self._api, name, kind, revision)]

    def siblings(self, repo: str, kind: str) -> list[tuple[str, str]]:
        """Return the other models and datasets, (name, kind), in the collections of a repo."""
        repos: dict[tuple[str, str], None] = {}
        with self.explained(repo):
            for shelf in self._api.list_collections(item=f"{kind}s/{repo}"):
                for item in self._api.get_collection(untrusted.slug(shelf.slug)).items:
                    if item.item_type in ("model", "dataset"):
                        repos[untrusted.repo(item.item_id), item.item_type] = None
        return [sibling for sibling in repos if sibling != (repo, kind)]

    def refresh_card(
        self, repo: str, kind: str, card: str, results: Mapping[str, str | None] | None = None
    ) -> str | None:
        """Commit a new card to main, the one commit that may follow a publish, with files of
        evaluation `results` by path (None: there is none any more). Data and tags do not change.
        Return the commit; None when main has all of it already. Raises HubError."""
        files = {"README.md": card, **(results or {})}

        def attempt() -> str:
            head = commit_of(self._api.repo_info(repo, repo_type=kind))
            operations: list[CommitOperationAdd | CommitOperationDelete] = []
            for path, text in files.items():
                now = self.read(repo, kind, head, path)
                if text is None and now is not None:
                    operations.append(CommitOperationDelete(path))
                elif text is not None and text.encode() != now:
                    operations.append(CommitOperationAdd(path, text.encode()))
            if not operations:
                return ""
            return str(
                self._api.create_commit(
                    repo,
                    operations=operations,
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
        """Put these repos into a collection, in this order, with their notes; return its slug.

        The collection is created if missing. Items that a person added come after these. `{slug}`
        in `about` is replaced. A second call with the same items changes nothing. Raises HubError.
        """
        with self.explained(f"the collection {title}"):
            collection = self._api.create_collection(
                title, namespace=org, private=private, exists_ok=True
            )
            description = about.replace("{slug}", collection.slug)[:COLLECTION_DESCRIPTION]
            if collection.description != description:
                self._api.update_collection_metadata(collection.slug, description=description)
            existing = {(item.item_id, item.item_type): item for item in collection.items}
            for item in items:
                present = existing.get((item.repo, item.kind))
                if present is None:
                    self._api.add_collection_item(
                        collection.slug,
                        item_id=item.repo,
                        item_type=item.kind,
                        note=item.note,
                        exists_ok=True,
                    )
                elif present.note != item.note:
                    self._api.update_collection_item(
                        collection.slug, item_object_id=present.item_object_id, note=item.note
                    )
            self._arrange(collection.slug, [item.repo for item in items])
            return collection.slug

    def _arrange(self, slug: str, order: Sequence[str]) -> None:
        """Move the items of `order` to the front, in that order. No request if they are there."""
        rank = {repo: place for place, repo in enumerate(order)}
        items = [(i.item_id, i.item_object_id) for i in self._api.get_collection(slug).items]
        for place, item in enumerate(sorted(items, key=lambda i: rank.get(i[0], len(rank)))):
            if items[place] != item:
                self._api.update_collection_item(slug, item_object_id=item[1], position=place)
                items.remove(item)
                items.insert(place, item)

    def collections(self, org: str) -> dict[str, str]:
        """Return the collections of an org, slug to title. Raises HubError."""
        with self.explained(f"the collections of {org}"):
            listed = self._api.list_collections(owner=org)
            return {untrusted.slug(item.slug): untrusted.text(item.title) for item in listed}

    def every_collection(self) -> dict[str, dict[str, str]]:
        """Return the repos of every collection of the local hub with their types, by slug. Raises
        HubError."""
        with self.explained("the collections"):
            slugs = [untrusted.slug(listed.slug) for listed in self._api.list_collections()]
            return {
                slug: {
                    untrusted.repo(item.item_id): item.item_type
                    for item in self._api.get_collection(slug).items
                }
                for slug in slugs
            }

    def find_collection(self, slug: str) -> tuple[str, str]:
        """Return (slug, title) of a collection, given by its slug or by a repo in it. A pulled one
        is also matched by its slug on the source hub, of which only the number at the end differs.
        Raises HubError."""
        kinds = () if _SLUG.search(slug) else ("model", "dataset")
        kind = next((kind for kind in kinds if self.has(slug, kind, "main")), None)
        if kind is None:
            return self._by_slug(slug)
        with self.explained(slug):
            shelves = list(self._api.list_collections(item=f"{kind}s/{slug}"))
        if len(shelves) != 1:
            named = ", ".join(untrusted.slug(shelf.slug) for shelf in shelves)
            raise HubError(
                f"{slug} is in {len(shelves)} collections",
                f"name one: {named}" if named else "name a collection by its slug",
            )
        return untrusted.slug(shelves[0].slug), untrusted.text(shelves[0].title)

    def _by_slug(self, slug: str) -> tuple[str, str]:
        titles = self.collections(slug.split("/")[0])
        same = [other for other in titles if other.rpartition("-")[0] == slug.rpartition("-")[0]]
        if slug not in titles and not same:
            raise HubError(
                f"{self.called} has no collection {slug}",
                f"there is {', '.join(titles)}" if titles else "factory pull it first",
            )
        here = slug if slug in titles else same[0]
        return here, titles[here]

    def collection(self, slug: str) -> dict[str, str]:
        """Return the repos of a collection, in its order, with their types.

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
        """Return the commit of a repo at a revision; None when the hub has no such repo."""
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
        """Commit the files of `directory` to main and delete all others; return the commit."""
        files = _files(directory)

        def attempt() -> str:
            head = commit_of(self._api.repo_info(repo, repo_type=kind))
            published = self.contents(repo, kind, head)
            if published == {path: file_sha256(file) for path, file in files.items()}:
                return head  # an earlier try did arrive
            adds = [CommitOperationAdd(path, str(file)) for path, file in files.items()]
            drops = [CommitOperationDelete(path) for path in published if path not in files]
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
        published = self.contents(repo, kind, commit)
        for path, file in _files(directory).items():
            if published.get(path) != file_sha256(file):
                raise HubError(
                    f"{repo}: {path} did not arrive as it was sent", "publish again; see the log"
                )

    def contents(self, repo: str, kind: str, revision: str) -> dict[str, str]:
        """Return the sha256 of every file. A hub lists it for large files; small ones are read."""
        digests = {}
        for file in files_at(self._api, repo, kind, revision):
            if file.path in IGNORED:
                continue
            if file.lfs is not None:
                digests[file.path] = file.lfs.sha256
            else:
                digests[file.path] = file_sha256(self._whole(repo, kind, revision, file))
        return digests

    def _whole(self, repo: str, kind: str, commit: str, file: RepoFile) -> Path:
        """Download a listed file and check its size. Raises HubError."""
        path = self._download(repo, kind, commit, file.path, file.size)
        if path.stat().st_size != file.size:
            raise HubError(
                f"{file.path} of {repo} did not arrive whole: {path.stat().st_size} bytes, and "
                f"{self.called} lists {file.size}",
                "run it again; if it stays, that copy is damaged",
            )
        return path

    def _download(self, repo: str, kind: str, revision: str, path: str, size: int = _SMALL) -> Path:
        """Download one file of a repo at a revision, of `size` bytes at most."""
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
        """Turn errors of the client inside the block into a HubError: one line and its fix."""
        try:
            yield
        except Exception as error:
            explained = self._explain(root_cause(error), name) or self._unreadable(error, name)
            if explained is None:
                raise
            raise explained from None

    def _unreadable(self, error: BaseException, name: str) -> HubError | None:
        """Return the error for an answer that the client could not parse."""
        disk = isinstance(error, OSError) and error.errno is not None
        if isinstance(error, FactoryError) or disk or not _raised_by_client(error):
            return None
        lines = str(error).strip().splitlines() or [""]
        return HubError(
            f"{name}: {self.called} gave an answer that cannot be read "
            f"({type(error).__name__}: {lines[0][:200]})",
            "try again; if it stays, that hub is damaged or no hub at all",
        )

    def _explain(self, error: BaseException, name: str) -> HubError | None:
        match error:
            case GatedRepoError():
                fix = f"accept its terms at {self.endpoint}/{name} and run again"
                return HubError(f"{name} is gated", fix)
            case RepositoryNotFoundError():
                return HubError(
                    f"{self.called} has no {name}, or hides it", "check the name and your token"
                )
            case RevisionNotFoundError():
                fix = "check it, or remove its line from the lock"
                return HubError(f"{name} has no such revision", fix)
            case HfHubHTTPError():
                status = status_of(error)
                message = (error.server_message or f"asked for {address_of(error)}")[:_QUOTED]
                fix = _FIXES.get(status, "try again; finished work is kept")
                return HubError(f"{name}: {self.called} answered {status}: {message}", fix)
        if isinstance(error, (*connection_errors(), LocalEntryNotFoundError)):
            return unreachable(self.endpoint, error)
        return None


def commit_of(info: Any) -> str:
    """Return the commit in a repo's description, checked."""
    return untrusted.commit(info.sha)


def files_at(api: HfApi, repo: str, kind: str, revision: str) -> list[RepoFile]:
    """Return the files of a repo at a revision. Raises Untrusted for an invalid listing."""
    untrusted.repo(repo), untrusted.revision(revision)
    files = [
        entry
        for entry in api.list_repo_tree(repo, recursive=True, revision=revision, repo_type=kind)
        if isinstance(entry, RepoFile)
    ]
    untrusted.paths(file.path for file in files)
    for file in files:
        untrusted.blob(file.blob_id)
        if file.lfs is None:  # it is read whole
            untrusted.size(file.size, _SMALL)
        else:
            untrusted.size(file.size), untrusted.sha256(file.lfs.sha256)
    return files


def _raised_by_client(error: BaseException) -> bool:
    """Return whether an error comes from the Hub client, not from the factory."""
    last = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in ("factory", "huggingface_hub", "httpx", "httpx2"):
            last = package
    return last not in ("", "factory")


_FIXES = {
    401: "check your token (HF_TOKEN, or hf auth login): it goes only to the hub that HF_ENDPOINT "
    "names, huggingface.co by default",
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
    """Retry after a concurrent update (409, 412), a server error (5xx) or a lost connection."""

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

"""The hub, thinly: fetch, publish, tag, collect, over huggingface_hub and HTTP.

One publish is one commit that holds data, manifest and card; the tag is set last, after the
commit was read back, so that a half-finished publish is never found by its tag. The commit call
is not idempotent: before any second try the head is compared with what was to be sent.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from factory.artifacts.hashing import MANIFEST, content_digest, file_sha256
from factory.artifacts.manifest import Manifest
from factory.errors import HubError
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
_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.msgpack", "*.h5", "*.onnx")


@dataclass(frozen=True)
class PublishedRef:
    """Reference to a published artifact: repo, tag and commit."""

    repo: str
    tag: str
    commit: str


@dataclass(frozen=True)
class CollectionEntry:
    """A repo in a collection, with its note."""

    repo: str
    kind: Literal["model", "dataset"]
    note: str


class Hub:
    """One hub: the local one or any other that speaks the protocol. `cache` is the directory of its
    files, by default HF_HUB_CACHE: a cache does not know which hub a repo came from. `reachable` is
    False for the stand-in without a hub (execution/offline_hub.py)."""

    reachable = True

    def __init__(self, endpoint: str, token: str | None, cache: Path | None = None) -> None:
        self.endpoint = endpoint
        self._token = token
        self._cache = cache
        self._api = HfApi(endpoint=endpoint, token=token, library_name="croco-factory")

    def pin(self, name: str, kind: str, revision: str) -> tuple[str, str] | None:
        """Return (commit, content digest) of an outside repo; None when the hub does not have it.

        Raises HubError when the hub is out of reach, or the repo is gated or has no `revision`.
        """
        with self.explained(name):
            commit = self._commit_at(name, kind, revision)
            if commit is None:
                return None
            return commit, content_digest(self._contents(name, kind, commit).items())

    def has(self, name: str, kind: str, revision: str) -> bool:
        """Return whether the hub has this revision of a repo. Raises HubError when it is out of
        reach."""
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
        """Download the files of a repo at a revision and return their directory. All files, or
        `only` those of these patterns, `but` for others. Safetensors only, never pickles.
        """
        with self.explained(name), announced(f"fetching {name} from {self.endpoint}"):
            return Path(
                snapshot_download(
                    name,
                    repo_type=kind,
                    revision=revision,
                    endpoint=self.endpoint,
                    token=self._token,
                    cache_dir=self._cache,
                    allow_patterns=None if only is None else list(only),
                    ignore_patterns=[*_WEIGHTS, *but],
                )
            )

    def holdings(self, repos: Mapping[str, str]) -> Inventory:
        """List every artifact at a fingerprint's tag in these repos (name to type)."""
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
                    commit = self._api.repo_info(repo, repo_type=kind, revision=tag).sha
                    return PublishedRef(repo, tag, str(commit))
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
        """Read one file of a repo at a revision; None when it is not there. Raises HubError."""
        with self.explained(name):
            try:
                return self._download(name, kind, revision, path).read_bytes()
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                return None

    def paths(self, name: str, kind: str, revision: str) -> list[str]:
        """List the paths of all files of a repo at a revision. Raises HubError."""
        with self.explained(name):
            return self._api.list_repo_files(name, repo_type=kind, revision=revision)

    def siblings(self, repo: str, kind: str) -> list[tuple[str, str]]:
        """Return the other models and datasets (name and kind) of the collections that have a
        repo."""
        repos: dict[tuple[str, str], None] = {}
        with self.explained(repo):
            for collection in self._api.list_collections(item=f"{kind}s/{repo}"):
                for item in self._api.get_collection(collection.slug).items:
                    if item.item_type in ("model", "dataset"):
                        repos[item.item_id, item.item_type] = None
        return [key for key in repos if key != (repo, kind)]

    def refresh_card(self, repo: str, kind: str, card: str) -> str | None:
        """Commit a new card to main: the one commit that may follow a publish. Data and tags are
        unchanged. Returns the commit; None when that card is there already."""
        new = card.encode()

        def attempt() -> str:
            head = str(self._api.repo_info(repo, repo_type=kind).sha)
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
        """Make a collection list these repos, each with its note, in this order and before the
        items that a person added; it is created if missing. `{slug}` in `about` is filled in.

        Idempotent. Returns the slug. Raises HubError.
        """
        with self.explained(f"the collection {title}"):
            collection = self._api.create_collection(
                title, namespace=org, private=private, exists_ok=True
            )
            description = about.replace("{slug}", collection.slug)[:COLLECTION_DESCRIPTION]
            if collection.description != description:
                self._api.update_collection_metadata(collection.slug, description=description)
            present_items = {(item.item_id, item.item_type): item for item in collection.items}
            for item in items:
                entry = present_items.get((item.repo, item.kind))
                if entry is None:
                    self._api.add_collection_item(
                        collection.slug,
                        item_id=item.repo,
                        item_type=item.kind,
                        note=item.note,
                        exists_ok=True,
                    )
                elif entry.note != item.note:
                    self._api.update_collection_item(
                        collection.slug, item_object_id=entry.item_object_id, note=item.note
                    )
            self._arrange(collection.slug, [item.repo for item in items])
            return collection.slug

    def _arrange(self, slug: str, order: Sequence[str]) -> None:
        """Move items until those of `order` come first, in that order; no request when they do."""
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
            return {item.slug: item.title for item in self._api.list_collections(owner=org)}

    def find_collection(self, slug: str) -> tuple[str, str]:
        """Return (slug, title) of a collection. One that was pulled is looked up by its slug on the
        source hub: only the number at its end differs. Raises HubError."""
        titles = self.collections(slug.split("/")[0])
        matches = [
            candidate
            for candidate in titles
            if candidate.rpartition("-")[0] == slug.rpartition("-")[0]
        ]
        if slug not in titles and not matches:
            raise HubError(
                f"{self.endpoint} has no collection {slug}",
                f"use one of {', '.join(titles)}" if titles else "factory pull it first",
            )
        here = slug if slug in titles else matches[0]
        return here, titles[here]

    def collection(self, slug: str) -> dict[str, str]:
        """Return the repos in a collection (see `find_collection`), in its order, with their
        types.

        Raises HubError.
        """
        here, _ = self.find_collection(slug)
        with self.explained(f"the collection {slug}"):
            items = self._api.get_collection(here).items
            return {i.item_id: i.item_type for i in items if i.item_type in ("model", "dataset")}

    def _commit_at(self, name: str, kind: str, revision: str) -> str | None:
        """Return the commit of a repo at a revision; None when the hub has no such repo."""
        try:
            return self._api.repo_info(name, repo_type=kind, revision=revision).sha
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
            if not ref.name.startswith("fp-"):
                continue
            try:
                # by commit: a second look costs nothing
                path = self._download(repo, kind, ref.target_commit, MANIFEST)
                manifest = Manifest.model_validate_json(path.read_bytes())
            except (EntryNotFoundError, ValueError):
                continue  # a tag without our manifest is not an artifact of ours
            if ref.name.startswith(manifest.tag):
                yield ref.name, manifest

    def _commit(self, directory: Path, manifest: Manifest, repo: str, kind: str) -> str:
        """Make the repo's main hold exactly the files of `directory`, in one commit. Returns it."""
        files = _files(directory)

        def attempt() -> str:
            head = self._api.repo_info(repo, repo_type=kind).sha
            assert head is not None
            current = self._contents(repo, kind, head)
            if current == {path: file_sha256(file) for path, file in files.items()}:
                return head  # an earlier try did arrive
            adds = [CommitOperationAdd(path, str(file)) for path, file in files.items()]
            drops = [CommitOperationDelete(path) for path in current if path not in files]
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
        received = self._contents(repo, kind, commit)
        for path, file in _files(directory).items():
            if received.get(path) != file_sha256(file):
                raise HubError(
                    f"{repo}: {path} arrived with other content than was sent",
                    "publish again; see the log",
                )

    def _contents(self, repo: str, kind: str, revision: str) -> dict[str, str]:
        """Return the sha256 of every file. The hub has it for large files; small ones are read."""
        digests = {}
        for entry in self._api.list_repo_tree(
            repo, recursive=True, revision=revision, repo_type=kind
        ):
            if not isinstance(entry, RepoFile) or entry.path in IGNORED:
                continue
            if entry.lfs is not None:
                digests[entry.path] = entry.lfs.sha256
            else:
                digests[entry.path] = file_sha256(self._download(repo, kind, revision, entry.path))
        return digests

    def _download(self, repo: str, kind: str, revision: str, path: str) -> Path:
        """Download one file of a repo at a revision and return its path."""
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
        """Translate the client's errors into HubError with a fix."""
        try:
            yield
        except Exception as error:
            explained = self._explain(root_cause(error), name)
            if explained is None:
                raise
            raise explained from None

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
    """Retry `call` after a lost race (409, 412), a server error (5xx) or a lost connection."""

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

"""All of the hub that one reader may see: collections, repos, manifests and tables of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from starlette.datastructures import QueryParams

from factory.artifacts.hashing import MANIFEST
from factory.artifacts.manifest import InputRecord, Manifest
from factory.localhub.accounts import FIRST_USER, Account
from factory.localhub.collection import Collection
from factory.localhub.errors import NotFound, ProtocolError
from factory.localhub.git_objects import Commit, Entry
from factory.localhub.hub import LocalHub
from factory.localhub.refs import BRANCH, MAIN, TAG
from factory.localhub.repos import Repo

_MANIFEST_LIMIT = 32 * 2**20  # bytes


@dataclass(frozen=True)
class Version:
    """A repo at a revision, as a page shows it."""

    repo: Repo
    revision: str
    commit: Commit
    manifest: Manifest | None

    @property
    def address(self) -> str:
        """The path of the repo's own page."""
        return f"/{self.repo.web_path}"

    @property
    def files(self) -> str:
        """The path below which its files lie as they are."""
        kind, at = f"{self.repo.kind}s", quote(self.revision, safe="")
        return f"/-/files/{kind}/{self.repo.id}/{at}"

    def link(self, page: str = "", revision: str | None = None) -> str:
        """Return the path of one of its pages, at this or another revision."""
        at = self.revision if revision is None else revision
        if not page:
            return self.address if at == MAIN else f"{self.address}?revision={quote(at, safe='')}"
        return f"{self.address}/{page}/{quote(at, safe='')}"


@dataclass(frozen=True)
class Visit:
    """One request of one reader."""

    hub: LocalHub
    account: Account
    params: Mapping[str, str]
    query: QueryParams

    @property
    def owns_hub(self) -> bool:
        """Whether this is whose home the hub lies in."""
        return self.account.user == FIRST_USER

    @property
    def home(self) -> Path:
        """The home that the hub lies in."""
        return self.hub.database.path.parent.parent

    def number(self, key: str, most: int = 10**12) -> int:
        """Return a number of the query; 0 for what is none."""
        text = self.query.get(key, "")
        return min(int(text), most) if text.isascii() and text.isdigit() and len(text) < 13 else 0

    def shelf(self) -> Collection:
        """Return the collection that the path names. Raises NotFound."""
        return self.hub.collections.find(
            self.params["namespace"], self.params["slug"], self.account
        )

    def repo(self) -> Repo:
        """Return the repo that the path names. Raises RepoNotFound."""
        kind = self.params["kind"].removesuffix("s")
        return self.hub.repos.find(
            kind, self.params["namespace"], self.params["name"], self.account
        )

    def version(self, repo: Repo | None = None, revision: str | None = None) -> Version:
        """Return a repo, by default that of the path, at a revision. Raises NotFound."""
        repo = repo or self.repo()
        named = revision or self.params.get("revision") or self.query.get("revision") or MAIN
        commit = self.hub.history.resolve(repo, named)
        return Version(repo, named, commit, self._manifest(commit))

    def entry(self, version: Version, path: str) -> Entry:
        """Return the file or folder at a path. Raises NotFound."""
        return self.hub.history.find(version.repo, version.commit, tuple(path.split("/")))

    def source(self, read: InputRecord) -> Version | None:
        """Return the artifact that was read; None where it is not here, or hides."""
        if read.repo is None or read.tag is None:
            return None
        namespace, _, name = read.repo.partition("/")
        for kind in ("dataset", "model"):
            try:
                repo = self.hub.repos.find(kind, namespace, name, self.account)
                return self.version(repo, read.tag)
            except ProtocolError:
                continue
        return None

    def refs(self, repo: Repo, prefix: str = TAG) -> dict[str, str]:
        """Return the tags (or branches) of a repo with their commits, main first."""
        named = self.hub.refs.all(repo).items()
        short = {n.removeprefix(prefix): oid for n, oid in named if n.startswith(prefix)}
        return dict(sorted(short.items(), key=lambda item: (item[0] != MAIN, item[0])))

    def artifacts(self, collection: Collection) -> Iterator[Version]:
        """Yield what lies in a collection: each repo at main, and at each tag with a manifest."""
        for item in collection.items:
            namespace, _, name = item.repo_id.partition("/")
            try:
                repo = self.hub.repos.find(item.kind, namespace, name, self.account)
                refs = self.refs(repo, BRANCH) | self.refs(repo)
            except ProtocolError:
                continue
            for revision in refs:
                with_manifest = self.version(repo, revision)
                if revision == MAIN or with_manifest.manifest is not None:
                    yield with_manifest

    def shelves(self, repo: Repo) -> list[Collection]:
        """Return the collections that hold a repo."""
        return self.hub.collections.visible(self.account, holding=[f"{repo.kind}s/{repo.id}"])

    def beside(self, version: Version, kind: str) -> list[Version]:
        """Return the artifacts of a kind in the collections that hold this one, at main."""
        versions = {
            (matching.repo.key, matching.commit.oid): matching
            for shelf in self.shelves(version.repo)
            for matching in self.artifacts(shelf)
            if matching.manifest is not None and matching.manifest.kind == kind
        }
        return list(versions.values())

    def tables(self, version: Version) -> dict[str, list[Path]]:
        """Return the parquet files of a repo by what they are rows of: the folder below data/, and
        the beginning of the name where that tells a split."""
        tables: dict[str, list[Path]] = {}
        for path, entry in self.hub.trees.walk(version.commit.tree):
            if not path.endswith(".parquet") or entry.sha256 is None:
                continue
            folder, _, file = path.rpartition("/")
            split = file.removesuffix(".parquet").partition("-")[0]
            parts = [folder.removeprefix("data").strip("/"), "" if split == "part" else split]
            with self.hub.blobs.open(entry.sha256) as opened:
                place = Path(opened.name)
            tables.setdefault("/".join(filter(None, parts)) or "rows", []).append(place)
        return tables

    def slice(self, version: Version, name: str) -> list[Path]:
        """Return the files of one slice. Raises NotFound."""
        files = self.tables(version).get(name)
        if not files:
            raise NotFound(f"{version.repo.id} has no rows of {name!r}")
        return files

    def _manifest(self, commit: Commit) -> Manifest | None:
        entry = self.hub.trees.find(commit.tree, (MANIFEST,))
        if entry is None or entry.sha256 is None or entry.size > _MANIFEST_LIMIT:
            return None
        return _parsed(self.hub, entry.sha256)


@lru_cache(maxsize=512)
def _parsed(hub: LocalHub, sha256: str) -> Manifest | None:
    try:
        return Manifest.model_validate_json(hub.blobs.read(sha256))
    except (OSError, ValueError):
        return None  # somebody else's factory.json


def languages(names: Iterable[str]) -> list[str]:
    """Return the slices of single languages: those over all of them are left out."""
    return [name for name in names if name.partition("/")[0] not in ("all", "all_lang")]

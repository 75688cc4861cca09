"""A hub without a network: it answers from provisions on disk and opens no socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from factory.artifacts.manifest import Manifest
from factory.errors import HubError
from factory.execution import bundle
from factory.execution.bundle import Provisions
from factory.hub.client import Hub, PublishedRef
from factory.planning.plan import ArtifactRef, Inventory


class _Nobody:
    """Client that refuses every request, because there is no hub."""

    def __getattr__(self, name: str) -> NoReturn:
        raise _refusal("a step sent a request to the hub")


class Offline(Hub):
    """Hub that has what is in the provisions and refuses the rest."""

    reachable = False

    def __init__(self, provisions: Provisions) -> None:
        self.endpoint = "offline"
        self._token = False
        self._api = _Nobody()  # type: ignore[assignment]
        self._provisions = provisions
        self._paths = {
            (repo.name, repo.kind, repo.revision): repo.path for repo in provisions.repos
        }

    def has(self, name: str, kind: str, revision: str) -> bool:
        return self._paths.get((name, kind, revision)) is not None

    def pin(self, name: str, kind: str, revision: str) -> tuple[str, str] | None:
        for repo in self._provisions.repos:
            if (repo.name, repo.kind) == (name, kind) and repo.content and repo.path:
                return repo.revision, repo.content
        return None

    def fetch(
        self,
        name: str,
        kind: str,
        revision: str,
        only: Sequence[str] | None = None,
        but: Sequence[str] = (),
    ) -> Path:
        path = self._paths.get((name, kind, revision))
        if path is None:
            raise _refusal(f"{name} at {revision[:12]} is not among the provisions")
        if not path.is_dir():
            raise HubError(
                f"{name} was fetched to {path}, which is gone",
                "submit again to fetch it; the path must be on a shared file system",
            )
        return path

    def holdings(self, repos: Mapping[str, str]) -> Inventory:
        """Return every artifact that was published or fetched, whatever its repo."""
        inventory = Inventory(
            [
                ArtifactRef(artifact.manifest, tag=artifact.tag)
                for artifact in self._provisions.known
            ]
        )
        for manifest, tag, directory in bundle.artifacts(self._provisions):
            inventory.add(ArtifactRef(manifest, directory, tag))
        return inventory

    def collection(self, slug: str) -> dict[str, str]:
        return {}

    def _download(self, repo: str, kind: str, revision: str, path: str, size: int = 0) -> Path:
        return self.fetch(repo, kind, revision) / path

    def publish(
        self, directory: Path, manifest: Manifest, repo: str, kind: str, private: bool
    ) -> PublishedRef:
        raise _refusal(f"{repo} cannot be published from here")


def _refusal(what: str) -> HubError:
    return HubError(
        f"{what}, and there is no hub on this node",
        "submit again to fetch inputs; to publish: factory publish RECIPE",
    )

"""Where a page's manifests come from: a collection on a hub, a recipe's repos, or a disk.

To know whether a name is a directory, this is imported before a hub is chosen, and the hub's client
reads its settings when it is imported: so what imports it stands inside functions here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from factory.artifacts.hashing import MANIFEST
from factory.artifacts.manifest import Manifest, read_manifest
from factory.errors import InputError

if TYPE_CHECKING:
    from factory.artifacts.workdir import Home
    from factory.hub.client import Hub
    from factory.planning.recipe import Recipe


@dataclass(frozen=True)
class Source:
    """Manifests, and what their collection is called: the recipe that they are mainly of, and the
    collection's slug where it is on a hub."""

    manifests: tuple[Manifest, ...]
    title: str
    recipe: str | None
    slug: str | None = None


def collection(hub: Hub, slug: str) -> Source:
    """What a collection on a hub holds. Raises HubError, or InputError for one without an artifact
    of ours."""
    here, title = hub.find_collection(slug)
    held = [found.manifest for found in hub.holdings(hub.collection(here)).found]
    return _source(held, slug, title, here)


def recipe(made: Recipe, hub: Hub, home: Home) -> Source:
    """What there is of a recipe: in its collection, in its repos, and at rest in this home.
    Raises HubError, or InputError where there is nothing."""
    from factory.hub import collection as shelf
    from factory.planning.plan import repos

    title = shelf.title(made)
    slug = next((one for one, name in hub.collections(made.org).items() if name == title), None)
    where = (hub.collection(slug) if slug else {}) | repos(made)
    held = [found.manifest for found in hub.holdings(where).found]
    for work in home.all_work(made.org):
        manifest = work.manifest()
        if manifest is not None and manifest.recipe == made.name:
            held.append(manifest)
    return _source(held, made.name, title, slug)


def directory(path: Path) -> Source:
    """What lies on a disk: in a home's work directories, or in a directory of artifacts. Raises
    InputError where there is nothing."""
    held = []
    for file in _files(path):
        try:
            held.append(read_manifest(file.parent))
        except ValueError:
            continue  # somebody else's factory.json
    return _source(held, str(path), None, None)


def has_artifacts(path: Path) -> bool:
    """Whether a directory is one that `directory` reads."""
    return bool(_files(path))


def _files(path: Path) -> list[Path]:
    # not all below it: a home has a cache, with copies of what was on a hub
    places = ("", "*/", "*/artifact/", "work/*/*/artifact/")
    return sorted(file for place in places for file in path.glob(place + MANIFEST))


def _source(
    manifests: Sequence[Manifest], asked: str, title: str | None, slug: str | None
) -> Source:
    from factory.hub import collection as shelf

    if not manifests:
        raise InputError(
            f"{asked} holds no artifact with a manifest",
            "make one with factory run, or name another collection",
        )
    newest = max(manifests, key=lambda m: (m.created, m.repo))
    name = shelf.recipe_of(title) if title else newest.recipe
    ours = name if any(m.recipe == name for m in manifests) else None
    return Source(tuple(manifests), title or shelf.title_for(newest.recipe), ours, slug)

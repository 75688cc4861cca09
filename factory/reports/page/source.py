"""Find a page's manifests: in a collection on a hub, a recipe's repos, or a directory.

This module is imported before a hub is chosen, to test whether a name is a directory. The hub's
client reads its settings at import: so imports of it are inside functions here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from factory.artifacts.hashing import MANIFEST
from factory.artifacts.manifest import Manifest, read_manifest
from factory.errors import InputError
from factory.reports.page.lineage import choose
from factory.reports.questions import Place, ReadQuestion, questions

if TYPE_CHECKING:
    from factory.artifacts.workdir import Home
    from factory.hub.client import Hub
    from factory.planning.recipe import Recipe


@dataclass(frozen=True)
class Source:
    """Manifests and their collection: its title, the main recipe, its slug on a hub, and held-out
    questions with the answers to them, of the artifacts that the page shows."""

    manifests: tuple[Manifest, ...]
    title: str
    recipe: str | None
    slug: str | None = None
    questions: tuple[ReadQuestion, ...] = ()


def collection(hub: Hub, slug: str) -> Source:
    """Read the manifests of a collection. Raises HubError, or InputError for one without
    artifacts."""
    from factory.reports.cards.refresh import from_hub

    full_slug, title = hub.find_collection(slug)
    manifests = [artifact.manifest for artifact in hub.holdings(hub.collection(full_slug)).found]
    return _source(manifests, slug, title, full_slug, from_hub(hub))


def recipe(recipe_: Recipe, hub: Hub, home: Home) -> Source:
    """Read the manifests of a recipe: in its collection, its repos and this home. Raises
    HubError, or InputError where there are none."""
    from factory.hub import collection as shelf
    from factory.planning.plan import repos
    from factory.reports.cards.refresh import from_hub

    slug = shelf.slug_of(recipe_, hub.collections(recipe_.org))
    where = (hub.collection(slug) if slug else {}) | repos(recipe_)
    manifests = [artifact.manifest for artifact in hub.holdings(where).found]
    published, here = from_hub(hub), {}
    for work in home.all_work(recipe_.org):
        manifest = work.manifest()
        if manifest is not None and manifest.recipe == recipe_.name:
            manifests.append(manifest)
            here[manifest.repo, manifest.tag] = work.artifact

    def place(repo: str, tag: str, name: str) -> Path | None:
        return here.get((repo, tag)) or published(repo, tag, name)

    return _source(manifests, recipe_.name, shelf.title(recipe_), slug, place)


def directory(path: Path) -> Source:
    """Read manifests on disk: a home's work directories, or a directory of artifacts. Raises
    InputError where there are none."""
    here = {}
    for file in _files(path):
        try:
            here[file.parent] = read_manifest(file.parent)
        except ValueError:
            continue  # somebody else's factory.json
    places = {(manifest.repo, manifest.tag): folder for folder, manifest in here.items()}
    return _source(
        [*here.values()], str(path), None, None, lambda repo, tag, name: places.get((repo, tag))
    )


def has_artifacts(path: Path) -> bool:
    """Return whether `directory` can read this path."""
    return bool(_files(path))


def _files(path: Path) -> list[Path]:
    # not all below it: a home has a cache, with copies of what was on a hub
    places = ("", "*/", "*/artifact/", "work/*/*/artifact/")
    return sorted(file for place in places for file in path.glob(place + MANIFEST))


def _source(
    manifests: Sequence[Manifest], name: str, title: str | None, slug: str | None, place: Place
) -> Source:
    from factory.hub import collection as shelf

    if not manifests:
        raise InputError(
            f"{name} holds no artifact with a manifest",
            "make one with factory run, or name another collection",
        )
    newest = max(manifests, key=lambda m: (m.created, m.repo))
    recipe_name = shelf.recipe_of(title) if title else newest.recipe
    own_recipe = recipe_name if any(m.recipe == recipe_name for m in manifests) else None
    read = questions(choose(manifests, own_recipe).manifests, place)
    called = title or shelf.title_for(newest.recipe)
    return Source(tuple(manifests), called, own_recipe, slug, tuple(read))

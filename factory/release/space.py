"""The results page of a collection as a static Space."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from factory.artifacts import licenses
from factory.artifacts.manifest import Manifest
from factory.hub.client import Hub
from factory.hub.collection import space_name
from factory.reports.page.gather import MODELS, gather
from factory.reports.page.lineage import choose
from factory.reports.page.page import render
from factory.reports.page.source import Source


@dataclass(frozen=True)
class SpaceHub:
    """Another hub, and the names of repos there: namespaces and full names, old to new."""

    hub: str
    token: str | None
    names: Mapping[str, str]


def publish(source: Source, to: SpaceHub) -> str:
    """Publish the page under the name that cards link to, in one commit with a card that names the
    models, the datasets and their licence. Returns the Space. Raises HubError."""
    chain = choose(source.manifests, source.recipe)
    manifests = tuple(_renamed(manifest, to.names) for manifest in chain.manifests)
    report = gather(
        replace(chain, manifests=manifests), source.title, None, to.hub, source.questions
    )
    head: dict[str, Any] = {"title": source.title, "sdk": "static", "app_file": "index.html"}
    if terms := next((m.license for m in reversed(manifests) if m.license), None):
        head |= licenses.header(terms)
    for kind, are_models in (("models", True), ("datasets", False)):
        head[kind] = sorted({m.repo for m in manifests if (m.kind in MODELS) is are_models})
    readme = f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"
    namespace = manifests[-1].repo.partition("/")[0]
    files = {"README.md": readme, "index.html": render(report)}
    return Hub(to.hub, to.token).publish_space(f"{namespace}/{space_name(source.title)}", files)


def _renamed(manifest: Manifest, names: Mapping[str, str]) -> Manifest:
    """Return a manifest in which repos have their names on the other hub."""
    text = manifest.model_dump_json()
    for old, new in sorted(names.items(), key=lambda pair: -pair[0].count("/")):
        end = r"(?![\w-])" if "/" in old else r"(?=/[\w.-])"
        text = re.sub(rf"(?<![\w./-]){re.escape(old)}{end}", new, text)
    return Manifest.model_validate_json(text)

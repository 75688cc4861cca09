"""Lineage: choose artifacts of a collection that belong together, and order them.

A repo may hold several artifacts, each at its tag. A page shows one chain: the newest artifact,
its inputs, and the other artifacts that fit. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from factory.artifacts.hashing import FINGERPRINT_LENGTH
from factory.artifacts.manifest import InputRecord, Manifest

Key = tuple[str, str]  # repo, fingerprint


@dataclass(frozen=True)
class LeftOut:
    """An artifact that the page does not show: its inputs are others than those shown."""

    step: str
    repo: str
    tag: str
    why: str


@dataclass(frozen=True)
class Chain:
    """Artifacts in an order in which they can be made, and those left out."""

    manifests: tuple[Manifest, ...]
    left_out: tuple[LeftOut, ...] = ()


def choose(manifests: Iterable[Manifest], recipe: str | None = None) -> Chain:
    """Choose one artifact of each repo, all made from one another.

    Those of `recipe` (by default that of the newest artifact) come first, newest first, each
    with its inputs: a repo of another recipe may have newer artifacts. An artifact whose inputs
    are not shown is left out."""
    newest = sorted(
        manifests, key=lambda m: (m.created, m.repo, m.fingerprint, m.content()), reverse=True
    )
    recipe = newest[0].recipe if newest and recipe is None else recipe
    by_key: dict[Key, list[Manifest]] = {}
    for manifest in newest:
        by_key.setdefault((manifest.repo, manifest.fingerprint), []).append(manifest)
    chosen: dict[str, Manifest] = {}
    refused: dict[str, LeftOut] = {}
    for manifest in sorted(newest, key=lambda m: m.recipe != recipe):  # stable: newest first
        if manifest.repo in chosen:
            continue
        upstream = _upstream(manifest, by_key)
        clash = _clash(upstream.values(), chosen)
        if clash is None:
            chosen |= upstream
        else:
            why = f"made from {clash}, of which this page shows another artifact"
            refused.setdefault(
                manifest.repo, LeftOut(manifest.step, manifest.repo, manifest.tag, why)
            )
    left_out = [artifact for repo, artifact in sorted(refused.items()) if repo not in chosen]
    return Chain(tuple(_in_order(chosen.values())), tuple(left_out))


def reads(manifest: Manifest) -> list[InputRecord]:
    """Return the inputs of an artifact, each artifact or outside source once for a role."""
    records: dict[tuple[str, str, str], InputRecord] = {}
    for record in manifest.slices.values():
        for read in record.inputs:
            records.setdefault((read.role, origin(read), str(read.tag or read.revision)), read)
    return list(records.values())


def origin(read: InputRecord) -> str:
    """Return the name of an input: its repo, its outside name, or its step."""
    return read.repo or read.source or str(read.step)


def read_by(manifest: Manifest) -> list[str]:
    """Return the names of an artifact's inputs: steps by name, others by origin."""
    return list(dict.fromkeys(read.step or origin(read) for read in reads(manifest)))


def _upstream(manifest: Manifest, by_key: Mapping[Key, list[Manifest]]) -> dict[str, Manifest]:
    """Return an artifact and those that it was made from, by repo, as far as they exist. Of
    several draws of one fingerprint this takes the one whose content was read."""
    upstream = {manifest.repo: manifest}
    pending = [manifest]
    while pending:
        for read in reads(pending.pop()):
            draws = by_key.get((read.repo or "", _fingerprint(read)), [])
            first = draws[0] if draws else None
            source = next((m for m in draws if _holds(m, read)), first)
            if source is not None and source.repo not in upstream:
                upstream[source.repo] = source
                pending.append(source)
    return upstream


def _clash(upstream: Iterable[Manifest], chosen: Mapping[str, Manifest]) -> str | None:
    """Return an input, at its tag, whose repo is shown with another artifact; None if there is
    none."""
    for manifest in upstream:
        if manifest.repo in chosen and chosen[manifest.repo] != manifest:
            return f"{manifest.repo} at {manifest.tag}"
        for read in reads(manifest):
            shown = chosen.get(read.repo or "")
            if shown is not None and shown.fingerprint != _fingerprint(read):
                return f"{read.repo} at {read.tag}"
    return None


def _fingerprint(read: InputRecord) -> str:
    return (read.tag or "").removeprefix("fp-")[:FINGERPRINT_LENGTH]


def _holds(manifest: Manifest, read: InputRecord) -> bool:
    return any(record.digest == read.digest for record in manifest.slices.values())


def _in_order(manifests: Iterable[Manifest]) -> Iterator[Manifest]:
    """Yield each artifact after its inputs; of several possible ones the oldest first."""
    pending = {m.repo: m for m in sorted(manifests, key=lambda m: (m.created, m.repo))}
    while pending:
        ready = next(
            (
                m
                for m in pending.values()
                if not any(read.repo in pending and read.repo != m.repo for read in reads(m))
            ),
            next(iter(pending.values())),  # a circle is no order; a page is better than none
        )
        yield pending.pop(ready.repo)

"""Which artifacts of a collection belong together, in which order, and what each was made from.

A repo may hold several artifacts of ours, each at its tag. A page shows one line: the newest
artifact of all, what it was made from, and then whatever else fits to that. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from factory.artifacts.hashing import FINGERPRINT_LENGTH
from factory.artifacts.manifest import InputRecord, Manifest

Key = tuple[str, str]  # repo, fingerprint


@dataclass(frozen=True)
class LeftOut:
    """An artifact that the page does not show, since it was made from others than those shown."""

    step: str
    repo: str
    tag: str
    why: str


@dataclass(frozen=True)
class Chain:
    """Artifacts in an order in which they can be made, and what was left out."""

    manifests: tuple[Manifest, ...]
    left_out: tuple[LeftOut, ...] = ()


def choose(found: Iterable[Manifest], recipe: str | None = None) -> Chain:
    """The line that these manifests show: of each repo one artifact, all made from one another.

    Those of `recipe` (of the newest artifact's, if None) come first, newest first, each with what
    it was made from: a repo of another recipe may have gone on since. An artifact that was made
    from another one than is shown is left out, with what it read.
    """
    newest = sorted(
        found, key=lambda m: (m.created, m.repo, m.fingerprint, m.content()), reverse=True
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
        wanted = _upstream(manifest, by_key)
        clash = _clash(wanted.values(), chosen)
        if clash is None:
            chosen |= wanted
        else:
            why = f"made from {clash}, of which this page shows another"
            refused.setdefault(
                manifest.repo, LeftOut(manifest.step, manifest.repo, manifest.tag, why)
            )
    left = [one for repo, one in sorted(refused.items()) if repo not in chosen]
    return Chain(tuple(_in_order(chosen.values())), tuple(left))


def reads(manifest: Manifest) -> list[InputRecord]:
    """Everything that an artifact read, each artifact or outside source once for a role."""
    found: dict[tuple[str, str, str], InputRecord] = {}
    for record in manifest.slices.values():
        for read in record.inputs:
            found.setdefault((read.role, origin(read), str(read.tag or read.revision)), read)
    return list(found.values())


def origin(read: InputRecord) -> str:
    """What an input is called: its repo, its name outside, or its step."""
    return read.repo or read.source or str(read.step)


def read_by(manifest: Manifest) -> list[str]:
    """What an artifact read, in words: steps by their names, the rest as it is called."""
    return list(dict.fromkeys(read.step or origin(read) for read in reads(manifest)))


def _upstream(manifest: Manifest, by_key: Mapping[Key, list[Manifest]]) -> dict[str, Manifest]:
    """An artifact and all that it was made from, by repo, as far as it is there. Of several draws
    of one fingerprint it is the one whose content was read."""
    found = {manifest.repo: manifest}
    waiting = [manifest]
    while waiting:
        for read in reads(waiting.pop()):
            draws = by_key.get((read.repo or "", _fingerprint(read)), [])
            first = draws[0] if draws else None
            made = next((m for m in draws if _holds(m, read)), first)
            if made is not None and made.repo not in found:
                found[made.repo] = made
                waiting.append(made)
    return found


def _clash(wanted: Iterable[Manifest], chosen: Mapping[str, Manifest]) -> str | None:
    """What was read, at its tag, where another artifact of that repo is shown; whether or not
    what was read is there."""
    for manifest in wanted:
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
    """Each after what it reads; among those that could come next, the one made first."""
    left = {m.repo: m for m in sorted(manifests, key=lambda m: (m.created, m.repo))}
    while left:
        ready = next(
            (
                m
                for m in left.values()
                if not any(read.repo in left and read.repo != m.repo for read in reads(m))
            ),
            next(iter(left.values())),  # a circle is no order; a page is better than none
        )
        yield left.pop(ready.repo)

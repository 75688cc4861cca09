"""Reproduce a published collection: run its recipe again and compare.

Steps before the first one to run are taken as published. The others go into repos of their own, so
that nothing published is changed or mistaken for the reproduction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from factory.artifacts.workdir import Home
from factory.errors import RecipeError
from factory.execution.diff import Difference, compare
from factory.execution.log import LogReporter
from factory.execution.run import Run, select
from factory.execution.verdict import Claim, claims
from factory.hub.client import Hub
from factory.planning import lock
from factory.planning.lock import Lock
from factory.planning.plan import ArtifactRef, State, Step, plan, repo_type
from factory.planning.recipe import LoadedRecipe, load
from factory.stage.inputs import ExternalInput, StepInput
from factory.stage.readers import is_file

AGAIN = "-again"  # after the org, for what is made again


@dataclass(frozen=True)
class PublishedCollection:
    """Published collection: recipe, lock, and the planned steps with their artifacts."""

    loaded: LoadedRecipe
    pins: Lock
    steps: list[Step]


def read(hub: Hub, slug: str, directory: Path) -> PublishedCollection:
    """Read a collection from its newest artifact; its recipe is written into `directory`.

    Raises HubError, or RecipeError for a collection without an artifact of ours.
    """
    repos = hub.collection(slug)
    inventory = hub.holdings(repos)
    if not inventory.found:
        raise RecipeError(f"{slug} holds no artifact with a manifest", "name another collection")
    newest = max(inventory.found, key=lambda artifact: artifact.manifest.created)
    root = hub.fetch(newest.manifest.repo, repo_type(newest.manifest.kind), str(newest.tag))
    if not newest.manifest.recipe or not (root / "recipe.yaml").is_file():
        raise RecipeError(f"{newest.manifest.repo} holds no recipe", "it cannot be made again")
    path = directory / f"{newest.manifest.recipe}.yaml"
    path.write_bytes((root / "recipe.yaml").read_bytes())
    loaded = load(str(path))
    if loaded.folders:  # a published recipe is whole: the other one would be a file of this machine
        raise RecipeError(
            f"the recipe of {newest.manifest.repo} extends another", "it cannot be made again"
        )
    pins = lock.read(root / "recipe.lock.yaml")
    if pins is None:
        raise RecipeError(f"{newest.manifest.repo} holds no lock", "it cannot be reproduced")
    return PublishedCollection(loaded, pins, plan(loaded.recipe, pins, inventory))


def models(published: PublishedCollection, start: str | None) -> list[str]:
    """Return the models and datasets that a run from `start` needs, as `org/name@commit`."""
    kinds = {}
    for step in _anew(published, start):
        for need in step.needs:
            if isinstance(need, ExternalInput) and not is_file(need.source):
                revision = _revision(published.pins, need)
                kinds[f"{need.source.partition('@')[0]}@{revision}"] = need.kind
    return [f"datasets/{name}" if kind == "dataset" else name for name, kind in kinds.items()]


@dataclass(frozen=True)
class Reproduction:
    """Differences by step that was run, and a finding for every claim of the original."""

    differences: dict[str, Difference]
    claims: list[Claim]


def reproduce(
    published: PublishedCollection, start: str | None, hub: Hub, home: Home, reporter: LogReporter
) -> Reproduction:
    """Run from `start` on (None: all that can be run) and compare with what was published. A second
    call after a stop resumes.

    Steps that read files stay as published: of a file, only its rows are published.
    """
    anew = [step.name for step in _anew(published, start)]
    recipe = published.loaded.recipe
    copy = recipe.model_copy(
        update={"org": recipe.org + AGAIN, "description": f"{recipe.name}, made again"}
    )
    loaded = LoadedRecipe(copy, published.loaded.path, packaged=False)
    second = Run(loaded, published.pins, hub, home, reporter)
    for step in published.steps:
        if step.name not in anew and step.found is not None:
            second.plan.add(step.found)
    second.execute(anew)
    done = second.plan.done
    again = {name: done[name] for name in anew if name in done}
    originals = {step.name: step.found for step in published.steps if step.found is not None}
    return Reproduction(
        {
            name: compare(_directory(originals[name], hub), _directory(artifact, hub))
            for name, artifact in again.items()
            if name in originals
        },
        claims(
            (first.manifest, again[name].manifest if name in again else None)
            for name, first in originals.items()
        ),
    )


def _anew(published: PublishedCollection, start: str | None) -> list[Step]:
    """Return the steps to run. Raises RecipeError for a step that cannot be run."""
    steps = {step.name: step for step in published.steps if step.slices}
    names = list(steps)
    first = 0 if start is None else names.index(select(names, [start], None)[0])
    anew = {name: steps[name] for name in names[first:] if not _reads_file(steps[name])}
    if start is not None and _reads_file(steps[names[first]]):
        raise RecipeError(
            f"{names[first]} was read from a file that was not published, only its rows",
            f"leave out --from, or start from one of {', '.join(anew)}",
        )
    if not anew:
        raise RecipeError("every step was read from files that were not published", "run it there")
    for step in anew.values():
        for need in step.needs:
            if isinstance(need, StepInput) and need.step not in anew:
                _must_be_there(steps, need.step, step.name)
            if isinstance(need, ExternalInput) and not _revision(published.pins, need):
                raise RecipeError(
                    f"{step.name} reads {need.source}, which the collection's lock does not pin",
                    "start from another step with --from",
                )
    return list(anew.values())


def _revision(pins: Lock, need: ExternalInput) -> str | None:
    """Return the commit that a lock pins an outside repo to."""
    pin = pins.pins.get(need.source)
    return pin.revision if pin else None


def _reads_file(step: Step) -> bool:
    """Return whether a step reads a local file, of which only the rows are published."""
    return any(isinstance(need, ExternalInput) and is_file(need.source) for need in step.needs)


def _must_be_there(steps: Mapping[str, Step], name: str, asked_by: str) -> None:
    if name not in steps or steps[name].state is not State.REUSE:
        raise RecipeError(
            f"{asked_by} reads {name}, which the collection lacks in the version of its recipe",
            f"start from {name} or earlier with --from",
        )


def _directory(artifact: ArtifactRef, hub: Hub) -> Path:
    kind = repo_type(artifact.manifest.kind)
    return artifact.directory or hub.fetch(artifact.manifest.repo, kind, str(artifact.tag))

"""Where what a step reads lies on this disk: fetched from the hub if it must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from factory.artifacts import checkpoints
from factory.artifacts.reuse import ReusableSlice
from factory.artifacts.tables import slice_directory
from factory.errors import FactoryError, RecipeError
from factory.hub.client import Hub
from factory.planning.lock import Lock
from factory.planning.plan import Plan, Slice, State, Step
from factory.planning.recipe import LoadedRecipe
from factory.stage.inputs import ExternalInput, Need, ServedModel, StepInput
from factory.stage.job import Place
from factory.stage.readers import View, is_file


def find(
    loaded: LoadedRecipe,
    pins: Lock,
    plan: Plan,
    hub: Hub,
    needs: Sequence[Need],
    reader: str,
) -> dict[Need, Place]:
    """Return the paths of inputs on this disk, fetched if needed. A served model has none.

    `reader` is named in the error for an artifact that is not made yet. Raises RecipeError for
    that, HubError for what cannot be fetched.
    """
    for need in needs:
        if isinstance(need, StepInput) and need.step not in plan.done:
            raise RecipeError(
                f"{reader} needs {need.step}, which is not made yet: {plan.step(need.step).reason}",
                f"run factory run {loaded.recipe.name} --until {need.step} first",
            )
    return {
        need: _place(need, loaded, pins, plan, hub)
        for need in needs
        if not isinstance(need, ServedModel)
    }


def _place(
    need: StepInput | ExternalInput, loaded: LoadedRecipe, pins: Lock, plan: Plan, hub: Hub
) -> Place:
    """Return the path of one input on this disk, fetched from the hub if needed."""
    if isinstance(need, StepInput):
        artifact, step = plan.done[need.step], plan.step(need.step)
        tag = artifact.tag or artifact.manifest.tag
        root = artifact.directory or hub.fetch(step.repo, step.repo_type, tag)
        inside = checkpoints.folder(need.checkpoint) if need.checkpoint else ""
        return Place(root / inside, step.repo, tag, inside)
    if is_file(need.source):
        return Place(loaded.file(need.source))
    name, revision = need.source.partition("@")[0], pins.pins[need.source].revision
    assert revision is not None
    return Place(hub.fetch(name, need.kind, revision), name, revision)


def earlier(made: Slice, kind: str, hub: Hub) -> tuple[ReusableSlice, ...]:
    """Where the rows of earlier artifacts for a slice lie on this disk, fetched if need be."""
    found = []
    for stands in made.earlier:
        manifest = stands.found.manifest
        tag = stands.found.tag or manifest.tag
        root = stands.found.directory or hub.fetch(manifest.repo, kind, tag)
        path = slice_directory(root, made.spec.name)
        found.append(ReusableSlice(path, f"{manifest.repo}@{tag}", stands.whole))
        if stands.whole:
            break  # nothing more is asked for
    return tuple(found)


def counted(
    loaded: LoadedRecipe, steps: Sequence[Step], here: Mapping[str, Path]
) -> dict[tuple[str, str], int]:
    """How many rows come from outside, by step and slice, where their files are here to be read:
    beside the recipe, or `here` by the name of their repo. Of steps that must run alone."""
    found: dict[tuple[str, str], int] = {}
    for step in steps:
        for made in step.slices if step.state is State.RUN else ():
            need = made.spec.need("source")
            if not isinstance(step.stage, View) or not isinstance(need, ExternalInput):
                continue
            local = is_file(need.source)
            path = loaded.file(need.source) if local else here.get(need.source.partition("@")[0])
            if path is None:
                continue
            try:
                rows = (row for _, row in step.stage.rows(path, str(made.spec.language)) if row)
                taken = islice(rows, getattr(step.stage, "first", None))
                found[step.name, made.spec.name] = sum(1 for _ in taken)
            except FactoryError:
                continue  # the step itself says what is wrong with it
    return found

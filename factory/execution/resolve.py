"""Resolve the inputs of a run: pin and import outside names, list existing artifacts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from factory.artifacts.hashing import MANIFEST
from factory.artifacts.workdir import Home
from factory.errors import HubError
from factory.execution import builtin_models
from factory.hub.client import Hub
from factory.planning import lock
from factory.planning.lock import Lock, Pin
from factory.planning.plan import ArtifactRef, Inventory, Plan, repo_type, repos
from factory.planning.recipe import LoadedRecipe
from factory.stage.inputs import ExternalInput


def resolve(
    loaded: LoadedRecipe,
    hub: Hub,
    home: Home,
    note: Callable[[str], None] | None,
    frozen: bool = False,
    update: bool = False,
) -> tuple[Lock, list[str]]:
    """Return the recipe's lock and the sources that it could not pin; a changed lock is written
    beside the recipe.

    With `note`, built-in models that the hub lacks are imported, and `note` reports it; without,
    they stay unpinned, as for a plan. `update` pins what the hub has now; `frozen` refuses whatever
    is not pinned or differs. Raises HubError for a name that the hub does not have, RecipeError for
    a frozen lock that would change.
    """
    path = lock.path_of(loaded)
    old = None if update else lock.read(path)

    def ask(need: ExternalInput, pinned: Pin | None) -> Pin | None:
        name, _, revision = need.source.partition("@")
        if pinned and pinned.revision and hub.has(name, need.kind, pinned.revision):
            return pinned
        if name in builtin_models.POCKET and not hub.holdings({name: "model"}).found:
            # by its tag: an import that was cut off leaves a repo, but no tag
            if note is None:
                return None
            note(f"importing {name}")
            _import(name, hub, home)
        pin = hub.pin(name, need.kind, revision or "main")
        if pin is None:
            raise HubError(
                f"{hub.endpoint} has no {need.kind} {name}",
                f"check the name and, for a private repo, the token; or fetch it where there is "
                f"a network: factory pull {name}",
            )
        if pinned and pinned.digest != pin[1]:
            raise HubError(
                f"{path.name} pins {name} to content that {hub.endpoint} does not have",
                f"fetch it (factory pull {name}@{pinned.revision}), or remove its lines from "
                f"{path} to take what is there",
            )
        return Pin(revision=pin[0], digest=pin[1])  # the same content, as this hub calls it

    new, absent = lock.resolve(loaded, old, ask)
    if frozen:
        lock.hold(old, new, absent, path)
    if not absent and (old is None or old.says() != new.says()):
        lock.write(new, path)
    return new, absent


def _import(name: str, hub: Hub, home: Home) -> None:
    from factory.execution import record
    from factory.reports.cards import (
        card,  # not for a plan, which imports nothing it can do without
    )

    model = builtin_models.POCKET[name]
    home.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.root, prefix="import-") as directory:
        out = Path(directory)
        origin = model.build(out)
        manifest = record.imported(
            name,
            origin,
            out,
            license=model.license,
            base_model=model.base_model,
            relation=model.relation,
        )
        (out / "README.md").write_text(card.render(manifest), encoding="utf-8")
        (out / MANIFEST).write_text(manifest.dump(), encoding="utf-8")
        hub.publish(out, manifest, name, "model", private=False)


def plan(loaded: LoadedRecipe, pins: Lock, hub: Hub, home: Home) -> Plan:
    """Return the plan of a recipe for what exists of it. Raises HubError."""
    steps = Plan(loaded.recipe, pins, Inventory())  # their fingerprints say what to look for
    steps.take(inventory(loaded, {step.fingerprint for step in steps.steps}, hub, home))
    return steps


def inventory(
    loaded: LoadedRecipe, fingerprints: Collection[str], hub: Hub, home: Home
) -> Inventory:
    """Return what exists of a recipe: published, in work directories, and begun.

    Artifacts of another recipe of the same org count if their fingerprint is among `fingerprints`
    (of steps). So do those of the recipes that it extends, and of the collections under `reuse:`.
    Raises HubError.
    """
    recipe = loaded.recipe
    at_rest = Inventory()
    for work in home.all_work(recipe.org):
        manifest = work.manifest()
        if manifest is None:
            if (progress := work.progress()) is not None:
                at_rest.partial[work.fingerprint] = progress
        elif manifest.recipe == recipe.name or manifest.fingerprint in fingerprints:
            at_rest.add(ArtifactRef(manifest, directory=work.artifact))
    repo_types: dict[str, str] = {
        artifact.manifest.repo: repo_type(artifact.manifest.kind) for artifact in at_rest.found
    }
    for org, name in loaded.extends:
        repo_types |= repos(recipe.model_copy(update={"org": org, "name": name}))
    for slug in recipe.reuse:
        repo_types |= hub.collection(slug)
    existing = hub.holdings(repo_types | repos(recipe))
    for artifact in at_rest.found:
        existing.add(artifact)
    existing.partial = at_rest.partial
    return existing

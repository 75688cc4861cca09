"""Resolve the inputs of a run: pin and import outside names, list existing artifacts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from factory.artifacts.hashing import MANIFEST
from factory.artifacts.workdir import Home
from factory.errors import Check, HubError, nearest
from factory.execution import builtin_models
from factory.hub.client import Hub
from factory.planning import lock
from factory.planning.lock import Lock, Pin
from factory.planning.plan import (
    ArtifactRef,
    Inventory,
    Plan,
    State,
    Step,
    repo_of,
    repo_type,
    repos,
)
from factory.planning.recipe import LoadedRecipe, Recipe
from factory.stage.inputs import ExternalInput
from factory.stage.readers import is_file


def resolve(
    loaded: LoadedRecipe,
    hub: Hub,
    home: Home,
    note: Callable[[str], None] | None,
    frozen: bool = False,
    update: bool = False,
) -> tuple[Lock, list[str]]:
    """Return the recipe's lock and the sources that it could not pin; see `require`.

    With `note`, built-in models that the hub lacks are imported, `note` reports it, and a changed
    lock is written; without, nothing is written, as for a plan. A file that is not here keeps the
    pin of the lock or, without one, of what was published. `update` pins what the hub has now;
    `frozen` refuses whatever is not pinned or differs. Raises HubError for a pinned content that
    the hub does not have, RecipeError for a frozen lock that would change.
    """
    path = lock.path_of(loaded, home.root)
    old = None if update else lock.read(path)

    def ask(need: ExternalInput, pinned: Pin | None) -> Pin | None:
        if is_file(need.source):
            return pinned or _published_pin(loaded.recipe, need, hub)
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
            return None
        if pinned and pinned.digest != pin[1]:
            raise HubError(
                f"{path.name} pins {name} to content that {hub.called} does not have",
                f"fetch it (factory pull {name}@{pinned.revision}), or remove its lines from "
                f"{path} to take what is there",
            )
        return Pin(revision=pin[0], digest=pin[1])  # the same content, as this hub calls it

    new, absent = lock.resolve(loaded, old, ask)
    if frozen:
        lock.hold(old, new, absent, path)
    if note is not None and not absent and (old is None or old.says() != new.says()):
        home.root.mkdir(parents=True, exist_ok=True)
        lock.write(new, path)
    return new, absent


def _published_pin(recipe: Recipe, need: ExternalInput, hub: Hub) -> Pin | None:
    """Return the pin of a file that is not here: of the newest artifact that was made from it."""
    readers = {
        spec.name: (repo_of(recipe, stage, spec.step), repo_type(stage.kind))
        for stage, spec in recipe.slices()
        if need in spec.needs
    }
    artifacts = hub.holdings(dict(readers.values())).found
    for artifact in sorted(artifacts, key=lambda a: a.manifest.created, reverse=True):
        for name, (repo, _) in readers.items():
            record = artifact.manifest.slices.get(name)
            if record is None or artifact.manifest.repo != repo:
                continue
            for read in record.inputs:
                if (read.role, read.source) == (need.role, need.source):
                    return Pin(digest=read.digest)
    return None


def missing(
    loaded: LoadedRecipe, absent: Collection[str], steps: Collection[Step]
) -> list[ExternalInput]:
    """Return the sources that `steps` are due to read and that are not here: of `absent`, those
    that nothing brings in by itself, as built-in models are, and files known by their pin alone."""
    due = {
        need.source: need
        for step in steps
        if step.state is State.RUN
        for need in step.needs
        if isinstance(need, ExternalInput)
    }
    return [
        need
        for need in due.values()
        if (
            not loaded.file(need.source).is_file()
            if is_file(need.source)
            else need.source in absent
            and need.source.partition("@")[0] not in builtin_models.POCKET
        )
    ]


def unmet(loaded: LoadedRecipe, needs: Iterable[ExternalInput], hub: Hub) -> list[Check]:
    """Return what is to be said of each source that is not here: its place in the recipe, the
    nearest name that there is, and how to bring it in."""
    findings = []
    for need in needs:
        where = loaded.places.get(need.source, loaded.path.name)
        name = need.source.partition("@")[0]
        path = loaded.file(name)
        if is_file(need.source):
            near = nearest(path.name, [p.name for p in path.parent.glob("*")])
            problem = f"no file at {need.source}{near}"
            fix = f"paths are relative to the recipe, so it should lie at {path}"
        else:
            names = [*hub.names(need.kind), *(builtin_models.POCKET if hub.local else ())]
            problem = f"{hub.called} has no {need.kind} {name}{nearest(name, names)}"
            fix = f"factory pull {loaded.called} brings in all that it names"
            if not hub.local:
                fix = "check the name and, for a private repo, the token"
            elif path.is_dir():
                problem += ", and it is a directory here"
                fix = f"bring it in: factory hub exec -- hf upload local/{path.name} {path}"
                if need.kind == "dataset":
                    fix = "name one .jsonl, .json or .parquet file in it"
        findings.append(Check(where, "failed", problem, fix))
    return findings


def require(findings: Sequence[Check]) -> None:
    """Raise one HubError for sources that are not here, as `unmet` returns them."""
    if findings:
        listed = "; ".join(f"{finding.name}: {finding.seen}" for finding in findings)
        raise HubError(listed, "; ".join(dict.fromkeys(finding.fix for finding in findings)))


def _import(name: str, hub: Hub, home: Home) -> None:
    # not for a plan, which imports nothing it can do without
    from factory.execution import record
    from factory.reports.cards import card

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

"""Provisions of a run without a hub: the recipe, its lock, and the paths of all inputs on a shared
disk.

Written where there is a hub; read by offline_hub.py where there is none.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from factory.artifacts.files import write_atomically
from factory.artifacts.hashing import file_sha256
from factory.artifacts.manifest import Manifest, Record, RepoId, Revision, Tag, Word, read_manifest
from factory.artifacts.workdir import Home
from factory.errors import HubError, WorkError
from factory.hub.client import Hub
from factory.planning.lock import Lock, outside
from factory.planning.plan import ArtifactRef, Inventory, Step
from factory.planning.recipe import LoadedRecipe, Recipe
from factory.stage.inputs import ExternalInput, StepInput
from factory.stage.readers import is_file

FILE = "provisions.json"


class ProvidedRepo(Record):
    """A repo at a revision and its directory; `content` is its digest in the lock, None for an
    artifact of ours. `path` is None until it is fetched."""

    name: RepoId
    kind: Word
    revision: Revision
    content: str | None = None
    path: Path | None = None


class ProvidedArtifact(Record):
    """An artifact that was on the hub when this was written, whether or not it was fetched."""

    manifest: Manifest
    tag: Tag


class Provisions(Record):
    """Everything that steps of one recipe need from a hub."""

    provisions_version: int = 1
    recipe: Recipe
    path: Path  # of the recipe's file, for what people read
    packaged: bool
    extends: tuple[tuple[str, str], ...] = ()
    lock: Lock
    home: Path
    files: dict[str, Path] = Field(default_factory=dict)
    repos: tuple[ProvidedRepo, ...] = ()
    known: tuple[ProvidedArtifact, ...] = ()

    def loaded(self) -> LoadedRecipe:
        """Return the recipe as it was when this was written, whatever its file says now."""
        return LoadedRecipe(self.recipe, self.path, self.packaged, self.extends, self.files)

    def write(self, directory: Path) -> None:
        """Write into a directory, atomically."""
        write_atomically(directory / FILE, self.model_dump_json(indent=1, by_alias=True).encode())

    def wanting(self) -> list[ProvidedRepo]:
        """Return the repos that are not fetched yet."""
        return [repo for repo in self.repos if repo.path is None]


def read(directory: Path) -> Provisions:
    """Read the provisions in a directory. Raises WorkError."""
    try:
        return Provisions.model_validate_json((directory / FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise WorkError(
            f"no provisions in {directory}: {str(error).splitlines()[0]}",
            "submit again: factory submit RECIPE --site NAME",
        ) from None


def gather(
    loaded: LoadedRecipe,
    pins: Lock,
    inventory: Inventory,
    home: Home,
    steps: Sequence[Step],
    names: Collection[str],
    directory: Path,
) -> Provisions:
    """List what the steps `names` of all `steps` need; `bring` fetches it.

    Local files are copied into `directory`, so that an edit during the wait changes nothing. Raises
    HubError for a name that is not pinned, WorkError for a file that changes while it is copied.
    """
    used = {
        need.source
        for stage, spec in loaded.recipe.slices()
        if spec.step in names
        for need in spec.needs
        if isinstance(need, ExternalInput)
    }
    files = {}
    repos: dict[tuple[str, str, str], ProvidedRepo] = {}
    for need in outside(loaded.recipe):
        if need.source not in used:
            continue
        if is_file(need.source):
            files[need.source] = _copy(loaded.file(need.source), directory / "files")
            continue
        pin = pins.pins.get(need.source)
        if pin is None or pin.revision is None:
            raise HubError(
                f"{need.source} is not on this hub", f"fetch it: factory pull {need.source}"
            )
        name = need.source.partition("@")[0]
        key: tuple[str, str, str] = (name, need.kind, pin.revision)
        repos[key] = ProvidedRepo(
            name=name, kind=need.kind, revision=pin.revision, content=pin.digest
        )
    for artifact, kind in _artifacts(steps, names, inventory):
        if artifact.directory is None and artifact.tag is not None:
            key = (artifact.manifest.repo, kind, artifact.tag)
            repos[key] = ProvidedRepo(name=key[0], kind=kind, revision=artifact.tag)
    return Provisions(
        recipe=loaded.recipe,
        path=loaded.path,
        packaged=loaded.packaged,
        extends=loaded.extends,
        lock=pins,
        home=home.root,
        files=files,
        repos=tuple(repos.values()),
        known=tuple(
            ProvidedArtifact(manifest=step.found.manifest, tag=step.found.tag)
            for step in steps
            if step.found is not None and step.found.tag is not None
        ),
    )


def bring(provisions: Provisions, hub: Hub, directory: Path) -> Provisions:
    """Fetch everything that is missing onto the shared disk and record its path. Raises HubError;
    what was fetched stays."""
    for repo in provisions.wanting():
        brought = repo.model_copy(update={"path": hub.fetch(repo.name, repo.kind, repo.revision)})
        repos = tuple(brought if other == repo else other for other in provisions.repos)
        provisions = provisions.model_copy(update={"repos": repos})
        provisions.write(directory)
    provisions.write(directory)
    return provisions


def artifacts(provisions: Provisions) -> list[tuple[Manifest, str, Path]]:
    """Return the fetched artifacts of ours: manifest, tag and directory."""
    return [
        (read_manifest(repo.path), repo.revision, repo.path)
        for repo in provisions.repos
        if repo.content is None and repo.path is not None
    ]


def _artifacts(
    steps: Sequence[Step], names: Collection[str], inventory: Inventory
) -> list[tuple[ArtifactRef, str]]:
    """Return existing artifacts that the steps `names` read or may reuse rows of."""
    read = {
        need.step
        for step in steps
        if step.name in names
        for need in step.needs
        if isinstance(need, StepInput)
    }
    artifacts: list[tuple[ArtifactRef, str]] = []
    for step in steps:
        if step.found is not None and step.name in read:
            artifacts.append((step.found, step.repo_type))
        if step.name not in names:
            continue
        keys = {part.row_key for part in step.slices}
        for other in inventory.found:
            rows = {record.row_key for record in other.manifest.slices.values()}
            if other.manifest.kind == step.stage.kind and keys & rows:
                artifacts.append((other, step.repo_type))
    return artifacts


def _copy(path: Path, directory: Path) -> Path:
    digest = file_sha256(path)
    copy = directory / digest[:12] / path.name  # its name goes into rows, and into their ids
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary = copy.with_name(f".{copy.name}")
        shutil.copyfile(path, temporary)
        temporary.rename(copy)
    if file_sha256(copy) != digest:
        raise WorkError(f"{path} changed while it was copied", "submit again")
    return copy

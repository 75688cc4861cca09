"""What a run takes with it to where there is no hub: the recipe, its lock, and where everything
from outside lies on the shared disk. Written where the hub is; read by offline_hub.py where it is
not.
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


class Lying(Record):
    """A repo at a revision and the directory that its files are in; `content` is what the lock
    says of it, None for an artifact of ours. No `path` until it is brought there."""

    name: RepoId
    kind: Word
    revision: Revision
    content: str | None = None
    path: Path | None = None


class Known(Record):
    """An artifact that was on the hub when this was written, whether or not it was brought."""

    manifest: Manifest
    tag: Tag


class Provisions(Record):
    """Everything that steps of one recipe need and that the hub would have told or given them."""

    provisions_version: int = 1
    recipe: Recipe
    path: Path  # of the recipe's file, for what people read
    packaged: bool
    extends: tuple[tuple[str, str], ...] = ()
    lock: Lock
    home: Path
    files: dict[str, Path] = Field(default_factory=dict)
    repos: tuple[Lying, ...] = ()
    known: tuple[Known, ...] = ()

    def loaded(self) -> LoadedRecipe:
        """The recipe as it was when this was written, whatever its file says now."""
        return LoadedRecipe(self.recipe, self.path, self.packaged, self.extends, self.files)

    def write(self, directory: Path) -> None:
        """Into a directory, whole or not at all."""
        write_atomically(directory / FILE, self.model_dump_json(indent=1, by_alias=True).encode())

    def wanting(self) -> list[Lying]:
        """What is still to be brought."""
        return [one for one in self.repos if one.path is None]


def read(directory: Path) -> Provisions:
    """What was written into a directory. Raises WorkError."""
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
    held: Inventory,
    home: Home,
    steps: Sequence[Step],
    names: Collection[str],
    directory: Path,
) -> Provisions:
    """What of all `steps` those of these `names` need, named and not yet brought (`bring`). Local
    files are copied into `directory`, so that one that is edited meanwhile changes nothing. Raises
    HubError for a name that is not pinned, WorkError for a file that changed under our hands.
    """
    used = {
        need.source: need
        for stage, spec in loaded.recipe.slices()
        if spec.step in names
        for need in spec.needs
        if isinstance(need, ExternalInput)
    }
    files = {}
    repos: dict[tuple[str, str, str], Lying] = {}
    for need in outside(loaded.recipe):
        if is_file(need.source) and need.source in used:
            files[need.source] = _copy(loaded.file(need.source), directory / "files")
        pin = pins.pins.get(need.source)
        if is_file(need.source) or need.source not in used:
            continue
        if pin is None or pin.revision is None:
            raise HubError(
                f"{need.source} is not on this hub", f"bring it in: factory pull {need.source}"
            )
        name = need.source.partition("@")[0]
        key: tuple[str, str, str] = (name, need.kind, pin.revision)
        repos[key] = Lying(name=name, kind=need.kind, revision=pin.revision, content=pin.digest)
    for found, kind in _artifacts(steps, names, held):
        if found.directory is None and found.tag is not None:
            key = (found.manifest.repo, kind, found.tag)
            repos[key] = Lying(name=key[0], kind=kind, revision=found.tag)
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
            Known(manifest=step.found.manifest, tag=step.found.tag)
            for step in steps
            if step.found is not None and step.found.tag is not None
        ),
    )


def bring(provisions: Provisions, hub: Hub, directory: Path) -> Provisions:
    """Bring everything that is wanting onto the shared disk and write down where it lies. Raises
    HubError; what was brought before stays brought."""
    for one in provisions.wanting():
        lying = one.model_copy(update={"path": hub.fetch(one.name, one.kind, one.revision)})
        repos = tuple(lying if other == one else other for other in provisions.repos)
        provisions = provisions.model_copy(update={"repos": repos})
        provisions.write(directory)
    provisions.write(directory)
    return provisions


def artifacts(provisions: Provisions) -> list[tuple[Manifest, str, Path]]:
    """The artifacts of ours that were brought: manifest, tag and directory."""
    return [
        (read_manifest(one.path), one.revision, one.path)
        for one in provisions.repos
        if one.content is None and one.path is not None
    ]


def _artifacts(
    steps: Sequence[Step], names: Collection[str], held: Inventory
) -> list[tuple[ArtifactRef, str]]:
    """What is made already and is read by the steps of these names, or has rows for them."""
    read = {
        need.step
        for step in steps
        if step.name in names
        for made in step.slices
        for need in made.spec.needs
        if isinstance(need, StepInput)
    }
    found: list[tuple[ArtifactRef, str]] = []
    for step in steps:
        if step.found is not None and step.name in read:
            found.append((step.found, step.repo_type))
        if step.name not in names:
            continue
        keys = {made.row_key for made in step.slices}
        for other in held.found:
            rows = {record.row_key for record in other.manifest.slices.values()}
            if other.manifest.kind == step.stage.kind and keys & rows:
                found.append((other, step.repo_type))
    return found


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

"""The lock: every outside name in a recipe, resolved to a revision and a content digest.

Commit ids differ from hub to hub, so a revision pins but does not identify; the digest does.
Local files have no revision and are hashed anew each time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from pydantic import Field, ValidationError

from factory import config
from factory.artifacts.files import write_atomically
from factory.artifacts.hashing import content_digest, file_sha256
from factory.artifacts.manifest import Record, Revision
from factory.errors import RecipeError
from factory.planning.recipe import LoadedRecipe, Recipe
from factory.stage.inputs import ExternalInput
from factory.stage.readers import is_file


class Pin(Record):
    """Pin of one source: the digest of its content, and its commit on a hub (None for a file)."""

    digest: str
    revision: Revision | None = None


class Lock(Record):
    """All pins of a recipe, by the source as the recipe writes it."""

    lock_version: int = 1
    recipe: str
    pins: dict[str, Pin] = Field(default_factory=dict)

    def says(self) -> dict[str, str]:
        """Return the digest of each source. Equal ones may pin commits of different hubs."""
        return {source: pin.digest for source, pin in self.pins.items()}

    def dump(self) -> str:
        """Return the lock as YAML, to be committed beside the recipe."""
        pins = dict(sorted(self.pins.items()))
        return config.dump(self.model_copy(update={"pins": pins}).model_dump(exclude_none=True))


Resolve = Callable[[ExternalInput, Pin | None], Pin | None]


def outside(recipe: Recipe) -> list[ExternalInput]:
    """Return all inputs from outside that the recipe reads, each source once."""
    inputs: dict[str, ExternalInput] = {}
    for _, spec in recipe.slices():
        for need in spec.needs:
            if isinstance(need, ExternalInput):
                inputs.setdefault(need.source, need)
    return list(inputs.values())


def path_of(loaded: LoadedRecipe, home: Path) -> Path:
    """Return the path of the lock: beside the recipe, or for a packaged one under `home`."""
    directory = home / "locks" if loaded.packaged else loaded.path.parent
    return directory / f"{loaded.path.stem}.lock.yaml"


def read(path: Path) -> Lock | None:
    """Return the lock in a file, or None if there is none. Raises RecipeError if it is damaged."""
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        return Lock.model_validate(config.parse(text, path.name).data)
    except ValueError as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise RecipeError(f"{path} is not a lock: {what}", "remove it and run again") from None


def write(lock: Lock, path: Path) -> None:
    """Write the lock, whole or not at all."""
    write_atomically(path, lock.dump().encode())


def hold(old: Lock | None, new: Lock, absent: Collection[str], path: Path) -> None:
    """Raise RecipeError if `new` pins anything that `old`, the lock at `path`, does not."""
    if old is None:
        raise RecipeError(f"there is no lock at {path}", "make one with factory lock")
    for source, pin in new.pins.items():
        if source not in old.pins:
            raise RecipeError(f"{path.name} does not pin {source}", "run factory lock")
        if pin.digest != old.pins[source].digest:
            raise RecipeError(
                f"{source} has changed since {path.name} was written "
                f"({old.pins[source].digest[:12]} -> {pin.digest[:12]})",
                "bring the old content back, or run factory lock --update",
            )
    if absent:
        raise RecipeError(
            f"{next(iter(absent))} is pinned and not here", "run once without --frozen to bring it"
        )


def resolve(loaded: LoadedRecipe, old: Lock | None, ask_hub: Resolve) -> tuple[Lock, list[str]]:
    """Return the lock for a recipe, and the sources that could not be pinned.

    `ask_hub` is called with each Hub name, and each file that is not here, and its pin in `old`. It
    returns a pin of the same content or, for a new name, of what the hub has; None if the hub has
    nothing.
    """
    pins: dict[str, Pin] = {}
    absent = []
    for need in outside(loaded.recipe):
        if is_file(need.source) and (path := loaded.file(need.source)).is_file():
            pins[need.source] = Pin(digest=content_digest([("rows", file_sha256(path))]))
            continue
        pin = ask_hub(need, old.pins.get(need.source) if old else None)
        if pin is None:
            absent.append(need.source)
        else:
            pins[need.source] = pin
    return Lock(recipe=loaded.recipe.name, pins=pins), absent

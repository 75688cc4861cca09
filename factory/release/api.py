"""The Python API: load released models, read artifacts, run a recipe.

    import factory

    model, tokenizer = factory.load_adapter("org/recipe-dpo-da", hub="https://huggingface.co")
    pairs = factory.load_artifact("org/recipe-pair").table("da")
    manifests = factory.run("my.yaml", until="pair")

Without `hub` all three work with the local hub of $FACTORY_HOME (else ./.factory), which is
started if needed. Every error is a factory.errors.FactoryError with `what` and `fix`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factory.artifacts.manifest import Manifest, read_manifest
from factory.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Artifact:
    """Artifact of a recipe: its manifest and its directory."""

    manifest: Manifest
    directory: Path

    def table(self, name: str) -> pa.Table:
        """Return the rows of one slice: a language, or `language/model` for answers and verdicts.
        `datasets.Dataset(table)` makes a dataset of it. Raises InputError."""
        from factory.artifacts.tables import read_slice

        if name not in self.manifest.slices or self.manifest.kind in ("adapter", "model"):
            names = ", ".join(self.manifest.slices)
            raise InputError(
                f"{self.manifest.repo} has no rows called {name!r}",
                f"it is of kind {self.manifest.kind}, with {names}",
            )
        return read_slice(self.directory, name, self.manifest.kind)

    def tables(self) -> dict[str, pa.Table]:
        """Return the rows of every slice, by name. Raises InputError for a model or an adapter."""
        return {name: self.table(name) for name in self.manifest.slices}


def load_adapter(
    name: str,
    *,
    hub: str | None = None,
    base: str | None = None,
    dtype: str | None = None,
    merge: bool = False,
) -> tuple[Any, Any]:
    """Return a released model and its tokenizer.

    name: `org/name`, `org/name@revision` or a directory; an adapter, ours or anybody's, or a
    whole model. An adapter is put on the very base that it was made on, at that revision: the
    manifest or the adapter's config says which. `base` may say where that base lies (a repo or a
    directory); one of other content is refused. `dtype` is that of the training where it is not
    given (bfloat16, float16 or float32). `merge` folds the adapter into the weights.

    The model is transformers' (PEFT's with an adapter on it), on the CPU and in evaluation mode.
    Raises InputError for a wrong base or what is no model, HubError for what the hub lacks.
    """
    from factory.hub.session import visit

    with visit(hub) as (_, the_hub):
        from factory.engines import chat_template
        from factory.release import adapter
        from factory.training import adapters, trainers

        released = adapter.find(name, the_hub, base)
        kind = dtype or released.dtype
        if kind not in ("bfloat16", "float16", "float32"):
            raise InputError(f"no dtype {kind!r}", "use bfloat16, float16 or float32")
        if released.adapter is None:
            model = trainers.load_base(released.base, kind).eval()
        else:
            model = adapters.load(released.base, released.adapter, kind)
            model = model.merge_and_unload(safe_merge=True) if merge else model
        return model, chat_template.load_tokenizer(str(released.speech))


def load_artifact(name: str, *, hub: str | None = None) -> Artifact:
    """Load an artifact with its manifest and, for a dataset, its rows as Arrow tables.

    name: `org/name`, `org/name@tag`, or a directory that holds a factory.json. Raises HubError
    for what the hub lacks, InputError for what holds no manifest.
    """
    from factory.hub.session import visit

    if Path(name).is_dir():
        return _artifact(name, Path(name))
    repo, _, revision = name.partition("@")
    with visit(hub) as (_, the_hub):
        from factory.errors import HubError

        for kind in ("dataset", "model"):
            if repo.count("/") == 1 and the_hub.has(repo, kind, revision or "main"):
                return _artifact(name, the_hub.fetch(repo, kind, revision or "main"))
        raise HubError(
            f"{the_hub.called} has no {name}", "write org/name or org/name@tag; see factory pull"
        )


def _artifact(name: str, directory: Path) -> Artifact:
    try:
        return Artifact(read_manifest(directory), directory)
    except (OSError, ValueError):
        raise InputError(
            f"{name} holds no factory.json that can be read",
            "load it with datasets or transformers",
        ) from None


def run(
    recipe: str,
    *,
    set: Sequence[str] = (),
    only: Sequence[str] = (),
    until: str | None = None,
    hub: str | None = None,
    frozen: bool = False,
    quiet: bool = False,
) -> dict[str, Manifest]:
    """Run a recipe here, as `factory run` does: do the steps that are not done, and publish them.

    recipe: a path, or the name of a packaged recipe. `set` are overrides like
    `stages.generate.n=12`; `only` and `until` name steps. Progress goes to stdout unless `quiet`.
    Returns the manifest of every step that exists afterwards, by its name. Call it again after
    any failure: what is finished is kept. Raises FactoryError.
    """
    from factory.hub.session import visit
    from factory.planning.recipe import load

    loaded = load(recipe, set)
    with visit(hub) as (home, the_hub):
        from factory.execution.log import LogReporter
        from factory.execution.run import run as execute

        steps = execute(loaded, the_hub, home, LogReporter(quiet), only, until, frozen)
    return {step.name: step.found.manifest for step in steps if step.found is not None}

"""A transfer between two hubs, from options to the printed result."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from factory.artifacts.files import file_lock
from factory.artifacts.resources import home_path, prepare_home
from factory.errors import HubError, RecipeError
from factory.hub.environment import PAGES, configure_clients, name_local_hub
from factory.localhub.launcher import Connection, HubStartError, connect

if TYPE_CHECKING:
    from factory.hub.sync.side import RepoId
    from factory.hub.sync.transfer import CollectionOutcome, RepoOutcome, RepoTransfer
    from factory.planning.recipe import LoadedRecipe

# A collection, as against a repo.
SLUG = re.compile(r"[^/@]+/[^/@]*-[0-9a-f]{24}")


@dataclass(frozen=True)
class TransferOptions:
    """Options of a transfer."""

    what: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()
    adopt: bool = False
    squash: bool = False
    private: bool = False
    dry: bool = False
    as_json: bool = False
    quiet: bool = False


@contextmanager
def local_hub(root: Path | None = None) -> Iterator[Connection]:
    """Serve the local hub, or another store, while the block lasts."""
    if root is None:
        prepare_home(home_path())
    try:
        with connect(root or home_path() / "hub", PAGES) as connection:
            if root is None:
                name_local_hub(connection.url, home_path())
            yield connection
    except HubStartError as error:
        from factory.hub.session import not_started

        raise not_started(error) from None


@contextmanager
def transfer(
    source: tuple[str, str | None],
    destination: tuple[str, str | None],
    options: TransferOptions,
    *,
    staging: Path,
    keeps_ids: bool,
) -> Iterator[RepoTransfer]:
    """Open a transfer between two hubs, each an address and its own token, via a folder."""
    configure_clients(source[0] if keeps_ids else destination[0])
    from factory.cli.bar import Bar
    from factory.hub.sync import transfer as transfers
    from factory.hub.sync.destination import Destination
    from factory.hub.sync.mirror import Mirror
    from factory.hub.sync.plan import Options
    from factory.hub.sync.side import HubReader

    bar = Bar(options.quiet)
    in_use = HubError(f"another push or pull is using {staging}", "wait until it is done")
    with file_lock(staging, "lock", in_use):
        to = (Mirror if keeps_ids else Destination)(*destination, staging / "destination")
        try:
            yield transfers.RepoTransfer(
                HubReader(*source, staging / "source"),
                to,
                Options(adopt=options.adopt, squash=options.squash, private=options.private),
                bar,
                transfers.rename(list(options.rename)),
            )
        finally:
            bar.stop()
        # What a run that failed had fetched is of use to the next one.
        shutil.rmtree(staging / "source", ignore_errors=True)
        shutil.rmtree(staging / "destination", ignore_errors=True)


def carry(work: RepoTransfer, options: TransferOptions) -> None:
    """Transfer the selected repos and collections and print the result. Raises HubError for
    conflicts."""
    slugs, repos = select(work, options.what)
    done = [work.preview(*repo) if options.dry else work.repo(*repo) for repo in repos]
    for outcome in () if options.dry else done:
        outcome.notes += work.dead_names(outcome.repo)
    collections = [work.collection(slug, dry=options.dry) for slug in slugs]
    _print(done, collections, options)
    if blocked := [outcome for outcome in done if outcome.conflicts]:
        raise HubError(
            "; ".join(conflict for outcome in blocked for conflict in outcome.conflicts),
            "--adopt-remote keeps the destination's content; --rename OLD=NEW uses another name",
        )


def sources(word: str) -> tuple[str, ...] | None:
    """Return the models and datasets that a recipe names, as repos to pull at their revisions; None
    for a word that is no recipe. Raises RecipeError."""
    loaded = _recipe(word)
    if loaded is None:
        return None
    from factory.execution.builtin_models import POCKET
    from factory.planning import lock
    from factory.stage.readers import is_file

    pins = lock.read(lock.path_of(loaded, home_path()))
    repos = []
    for need in lock.outside(loaded.recipe):
        name, _, revision = need.source.partition("@")
        if is_file(need.source) or name in POCKET:
            continue
        pin = pins.pins.get(need.source) if pins else None
        at = (pin.revision if pin else None) or revision or "main"
        repos.append(f"{need.kind}s/{name}@{at}")
    if not repos:
        raise RecipeError(f"{word} names no model or dataset of a hub", "there is nothing to pull")
    return tuple(repos)


def collection_of(word: str, collections: Callable[[str], Mapping[str, str]]) -> str | None:
    """Return the slug of a recipe's collection; None for a word that is no recipe.

    collections: gives those of an org, slug to title. Raises RecipeError, or HubError for a recipe
    without a collection."""
    loaded = _recipe(word)
    if loaded is None:
        return None
    from factory.hub.collection import slug_of

    if slug := slug_of(loaded.recipe, collections(loaded.recipe.org)):
        return slug
    raise HubError(
        f"{word} has no collection yet",
        f"factory run {loaded.called} makes one; see factory hub ls",
    )


def _recipe(word: str) -> LoadedRecipe | None:
    """Return the recipe that a word names; None for a repo or a slug. Raises RecipeError."""
    if "/" in word and not word.endswith((".yaml", ".yml")):
        return None
    from factory.planning.recipe import load

    return load(word)


def everything(work: RepoTransfer) -> tuple[str, ...]:
    """Return all collections and repos of the source."""
    collections = (collection.slug for collection in work.source.collections())
    return (*collections, *(str(repo) for repo in work.source.repos()))


def select(
    work: RepoTransfer, what: tuple[str, ...]
) -> tuple[list[str], list[tuple[RepoId, str | None]]]:
    """Return the slugs of collections, and repos with revisions, that `what` names.

    A recipe stands for its collection. Empty `what` means the only collection of the source. Raises
    HubError, RecipeError.
    """
    if not what:
        what = tuple(collection.slug for collection in work.source.collections())
        if len(what) != 1:
            raise HubError(
                f"{len(what)} collections at {work.source.called}",
                "name one: " + ", ".join(what) if what else "name a repo",
            )
    what = tuple(
        collection_of(word, lambda org: {c.slug: c.title for c in work.source.collections(org)})
        or word
        for word in what
    )
    slugs = [word for word in what if SLUG.fullmatch(word)]
    repos: dict[tuple[RepoId, str | None], None] = {}
    for slug in slugs:
        repos |= dict.fromkeys((repo, None) for repo in work.repos_of(slug))
    for word in what:
        if word not in slugs:
            name, _, revision = word.partition("@")
            repos |= dict.fromkeys((repo, revision or None) for repo in work.find(name))
    return slugs, list(repos)


def _print(
    done: list[RepoOutcome], collections: list[CollectionOutcome], options: TransferOptions
) -> None:
    if options.as_json:
        record: dict[str, Any] = {
            "repos": [
                {**vars(outcome), "repo": str(outcome.repo), "target": str(outcome.target)}
                for outcome in done
            ],
            "collections": [vars(collection) for collection in collections],
        }
        typer.echo(json.dumps(record))
        return
    if options.quiet:
        return
    from factory.cli.bar import format_bytes
    from factory.cli.console import console
    from factory.cli.tables import titled

    columns = ("repo", "commits", "files", "size", "tags", "notes")
    table = titled("Dry run" if options.dry else "Done", columns)
    for outcome in done:
        remarks = [f"conflict: {conflict}" for conflict in outcome.conflicts] + outcome.notes
        name = str(outcome.repo)
        if outcome.target != outcome.repo:
            name += f" as {outcome.target}"
        numbers = (str(n) for n in (outcome.commits, outcome.files))
        table.add_row(
            name, *numbers, format_bytes(outcome.size), str(outcome.tags), "; ".join(remarks)
        )
    console.print(table)
    verb = "to change" if options.dry else "changed"
    for collection in collections:
        remarks = [f"{collection.changes} items {verb}", *collection.notes]
        console.print(f"collection {collection.slug}: {'; '.join(remarks)}")

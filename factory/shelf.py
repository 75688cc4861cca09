"""The collection of a recipe: what it is called, what it says of itself, and what lies in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from factory.cards import card, refresh
from factory.errors import HubError
from factory.hub import COLLECTION_DESCRIPTION, Hub, Item
from factory.plan import Step, repo_of
from factory.recipe import Recipe


def title(recipe: Recipe) -> str:
    """What the recipe's collection is called."""
    return titled(recipe.name)


def titled(name: str) -> str:
    """What the collection of a recipe of this name is called."""
    return f"CroCo {name}"


def recipe_of(title: str) -> str:
    """The name of the recipe that a collection of this title is of."""
    return title.removeprefix(titled(""))


def description(recipe: Recipe) -> str:
    """What it is and how it is made again, in the 150 characters that the Hub allows; the slug is
    to be filled in."""
    again = "Made again by: factory reproduce {slug}"
    about = " ".join(recipe.description.split())
    slug = len(recipe.org) + len(title(recipe)) + 26
    room = COLLECTION_DESCRIPTION - (len(again) - len("{slug}") + slug) - 1
    if len(about) > room:
        about = about[: max(room - 1, 0)].rstrip() + "…"
    return f"{about} {again}".strip()


def put(recipe: Recipe, steps: Sequence[Step], hub: Hub) -> None:
    """Put every step that is on the hub into the collection, in the order of the line: the repos
    of other recipes too, where they made the very same thing. Raises HubError."""
    items = [
        Item(step.repo, step.repo_type, card.note(step.found.manifest, step.found.tag))
        for step in steps
        if step.found is not None and step.found.tag is not None
    ]
    if items:
        hub.collect(title(recipe), recipe.org, recipe.private, description(recipe), items)


def tell_models(recipe: Recipe, hub: Hub, tell: Callable[[str], None]) -> None:
    """Put what judges found onto the cards of the adapters that they judged."""
    adapters = {
        repo_of(recipe, stage, spec.step): None
        for stage, spec in recipe.slices()
        if stage.kind == "adapter"
    }
    for repo in adapters:
        try:
            if hub.has(repo, "model", "main"):
                refresh.refresh(hub, refresh.Subject(repo, "model", "main"))
        except HubError as error:  # a card can wait: factory card REPO --refresh
            tell(f"the card of {repo} is as it was: {error.what}")

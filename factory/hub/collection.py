"""Title and description of the collection of a recipe."""

from __future__ import annotations

from factory.hub.client import COLLECTION_DESCRIPTION
from factory.planning.recipe import Recipe


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

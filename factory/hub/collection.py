"""Title and description of the collection of a recipe."""

from __future__ import annotations

from collections.abc import Mapping

from factory.hub.client import COLLECTION_DESCRIPTION
from factory.planning.recipe import Recipe


def title(recipe: Recipe) -> str:
    """Return the title of the recipe's collection."""
    return title_for(recipe.name)


def slug_of(recipe: Recipe, collections: Mapping[str, str]) -> str | None:
    """Return the slug of the recipe's collection among those of its org (slug to title), if it has
    one."""
    return next((slug for slug, name in collections.items() if name == title(recipe)), None)


def title_for(name: str) -> str:
    """Return the title of the collection of a recipe with this name."""
    return f"CroCo {name}"


def space_name(title: str) -> str:
    """Return the name of the Space with the results page of a collection with this title."""
    return f"{file_name(title)}-results"


def file_name(title: str) -> str:
    """Return the name of a file for the collection with this title, without an ending."""
    characters = [char if char.isalnum() and char.isascii() else "-" for char in title.lower()]
    return "-".join(filter(None, "".join(characters).split("-"))) or "report"


def recipe_of(title: str) -> str:
    """Return the name of the recipe of a collection with this title."""
    return title.removeprefix(title_for(""))


def description(recipe: Recipe) -> str:
    """Describe the recipe and the command that reproduces it, in the 150 characters that the Hub
    allows; `{slug}` is left to be filled in."""
    again = "Made again by: factory reproduce {slug}"
    about = " ".join(recipe.description.split())
    slug = len(recipe.org) + len(title(recipe)) + 26
    room = COLLECTION_DESCRIPTION - (len(again) - len("{slug}") + slug) - 1
    if len(about) > room:
        about = about[: max(room - 1, 0)].rstrip() + "…"
    return f"{about} {again}".strip()

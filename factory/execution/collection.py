"""The collection of a recipe on the hub: title, description and items."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from factory.errors import HubError
from factory.hub.client import CollectionEntry, Hub
from factory.hub.collection import description, title
from factory.planning.plan import Step, repo_of
from factory.planning.recipe import Recipe
from factory.reports.cards import card, refresh


def put(recipe: Recipe, steps: Sequence[Step], hub: Hub) -> None:
    """Put every published step into the collection, in the order of the line. A step that another
    recipe made is listed with that recipe's repo. Raises HubError."""
    items = [
        CollectionEntry(step.repo, step.repo_type, card.note(step.found.manifest, step.found.tag))
        for step in steps
        if step.found is not None and step.found.tag is not None
    ]
    if items:
        hub.collect(title(recipe), recipe.org, recipe.private, description(recipe), items)


def refresh_cards(recipe: Recipe, hub: Hub, tell: Callable[[str], None]) -> None:
    """Write evaluation results onto the cards of the adapters that they are about."""
    adapters = {
        repo_of(recipe, stage, spec.step): None
        for stage, spec in recipe.slices()
        if stage.kind == "adapter"
    }
    for repo in adapters:
        try:
            if hub.has(repo, "model", "main"):
                refresh.refresh(hub, refresh.EvaluatedRepo(repo, "model", "main"))
        except HubError as error:  # a card can wait: factory card REPO --refresh
            tell(f"the card of {repo} is as it was: {error.what}")

"""The fingerprints of all shipped recipes, as they are pinned in tests/fingerprints.json.

`python -m tools.fingerprints` writes the file anew. It refuses where a fingerprint moved although
neither the recipe nor the version of a stage on the way to it changed: that would make every
published artifact look like another one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from factory.artifacts.hashing import fingerprint
from factory.artifacts.resources import recipes
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import Recipe, load
from factory.stage.inputs import StepInput
from tests.support.builders import lock_of
from tests.support.stand_ins import UNSAID

FILE = Path(__file__).parents[1] / "tests" / "fingerprints.json"
Pins = dict[str, dict[str, Any]]


def current() -> Pins:
    """By recipe: what it says, and by step the versions behind it and its slices' fingerprints.
    Everything from outside is pinned to a digest made of its name."""
    return {name: _pins(load(name, UNSAID.get(name, ())).recipe) for name in sorted(recipes())}


def _pins(recipe: Recipe) -> dict[str, Any]:
    said = recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    steps = plan(recipe, lock_of(recipe), Inventory())
    versions: dict[str, dict[str, int]] = {}
    for step in steps:  # in the order of the line, so what is read stands already
        mine = {step.stage.name: step.stage.version}
        for made in step.slices:
            for need in made.spec.needs:
                if isinstance(need, StepInput):
                    mine |= versions[need.step]
        versions[step.name] = dict(sorted(mine.items()))
    return {
        "recipe": fingerprint(_semantic(said)),
        "steps": {
            step.name: {
                "versions": versions[step.name],
                "slices": {made.spec.name: made.fingerprint for made in step.slices},
            }
            for step in steps
        },
    }


def _semantic(said: dict[str, Any]) -> dict[str, Any]:
    """A recipe without what changes no row."""
    stages = {
        name: {key: value for key, value in stage.items() if key != "how"}
        for name, stage in said["stages"].items()
        if stage is not None
    }
    return {key: said[key] for key in ("languages", "seed", "models") if key in said} | {
        "stages": stages
    }


def moved(old: Pins, new: Pins) -> list[str]:
    """Slices whose fingerprint moved although nothing says that it should."""
    found = []
    for name, recipe in new.items():
        if old.get(name, {}).get("recipe") != recipe["recipe"]:
            continue
        for step, pinned in recipe["steps"].items():
            before = old[name]["steps"].get(step, {})
            if before.get("versions") != pinned["versions"]:
                continue
            found += [
                f"{name}: {step} {one}"
                for one, mark in pinned["slices"].items()
                if before["slices"].get(one) not in (mark, None)
            ]
    return found


def main() -> None:
    """Write the file anew, or say why not."""
    new = current()
    if FILE.exists() and (wrong := moved(json.loads(FILE.read_text()), new)):
        sys.exit("raise the version of the stage that changed: " + ", ".join(wrong))
    FILE.write_text(json.dumps(new, indent=1) + "\n")


if __name__ == "__main__":
    main()

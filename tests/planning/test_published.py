"""The as-published recipes, laid out to their slices, against the facts of the published scripts.

`tests/published.json` has a fact of a script a row: where it stands in ours (`at`), its value, the
recipes that it is `of`, and the file and line that it was read from. Where a recipe does otherwise,
`declared` names the key of departures: that says so, and `says` words of it.
"""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.resources import recipes
from factory.evaluation.euroeval.stage import Euroeval
from factory.evaluation.judging.stage import Judge
from factory.planning.recipe import Recipe, load
from factory.stage.inputs import model_of

PUBLISHED = json.loads((Path(__file__).parents[1] / "published.json").read_text(encoding="utf-8"))
NAMES = sorted(PUBLISHED["recipes"])


@cache
def recipe_of(name: str, *overrides: str) -> Recipe:
    return load(name, overrides).recipe


def facts_of(name: str) -> list[dict[str, Any]]:
    kind = PUBLISHED["recipes"][name]
    return [
        fact
        for fact in PUBLISHED["facts"]
        if all(kind.get(key) == value for key, value in fact.get("of", {}).items())
    ]


def ours(recipe: Recipe, at: str) -> Any:
    """What stands at a place of a recipe."""
    first, _, rest = at.partition(".")
    if first in ("languages", "seed"):
        return recipe.model_dump(mode="json")[first]
    if first == "models":
        return recipe.models[rest].name
    if first in ("runs", "count"):
        names = [spec.name for _, spec in recipe.slices() if spec.step == rest]
        return len(names) if first == "count" else runs(recipe, names)
    steps = recipe.steps()
    if first == "suite":
        stage = steps["euroeval"]
        assert isinstance(stage, Euroeval)
        return list(stage.suite(rest))
    if first == "wording":
        return wording(steps["judge"], rest)
    value: Any = steps[first].model_dump(mode="json")
    for part in rest.split("."):
        value = value[part]
    return value


def runs(recipe: Recipe, names: list[str]) -> dict[str, Any]:
    """Languages of the policy, and of the adapters: `own` where each has that of its training."""
    by_model: dict[str, list[str]] = {}
    for name in names:
        by_model.setdefault(model_of(name), []).append(name.partition("/")[0])
    adapters = {label: codes for label, codes in by_model.items() if label != "policy"}
    own = all(codes == [label.rpartition("-")[2]] for label, codes in adapters.items())
    one = next(iter(adapters.values()))
    assert own or all(codes == one for codes in adapters.values())
    policy = {"policy": by_model["policy"]} if "policy" in by_model else {}
    return policy | {"adapter": "own" if own else one}


def wording(stage: Any, what: str) -> Any:
    assert isinstance(stage, Judge)
    text = stage.ask.wording().text
    if what == "marks":
        return list(dict.fromkeys(re.findall(r"\[\[(\w+)\]\]", text)))
    if what == "places":
        return re.findall(r"\{(\w+)\}", text)
    if what == "tokens":
        return next((int(number) for number in re.findall(r"(\d+) tokens", text)), None)
    stems = next(fact["is"] for fact in PUBLISHED["facts"] if fact.get("at") == "wording.criteria")
    return [stem for stem in stems if stem in text]


def complaints(recipe: Recipe, facts: list[dict[str, Any]]) -> list[str]:
    """Facts of the scripts that a recipe does not keep and does not declare, and declarations of a
    departure that there is none of."""
    found = []
    for fact in facts:
        at = fact.get("at", fact.get("fact"))
        departs = "at" not in fact or ours(recipe, at) != fact["is"]
        said = recipe.departures.get(fact.get("declared", at))
        told = bool(said) and fact.get("says", "") in " ".join(str(said).split())
        if departs and not told:
            found.append(f"{at}: {fact['read']} is not kept, and no departure says so")
        if not departs and "declared" in fact:
            found.append(f"{at}: is kept, take its declaration out")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_keeps_every_fact_of_the_scripts_or_declares_its_departure(name: str) -> None:
    assert not complaints(recipe_of(name), facts_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_departure_of_an_as_published_recipe_is_one_from_a_fact(name: str) -> None:
    known = {fact["declared"] for fact in facts_of(name) if "declared" in fact}
    said = {at for at, text in recipe_of(name).departures.items() if text}
    assert said == known


def test_all_as_published_recipes_are_compared() -> None:
    assert [name for name in sorted(recipes()) if "as-published" in name] == NAMES


@pytest.mark.parametrize(
    "override",
    [
        "seed=7",
        "languages=[nl, da, en, fr, de, it, es]",
        "models.judge=Qwen/Qwen3-8B",
        "stages.generate.stops=all",
        "stages.translate.code=keep",
        "stages.dpo.over=drop",
        "stages.dpo.lora.r=8",
        "stages.euroeval.languages=own",
        "stages.arena.languages=own",
        "stages.judge.languages=own",
        "stages.judge.ask={template: ties, orders: random, temperature: 0.7, max_tokens: 4096}",
        "stages.pair.keep.chosen.language=match",
    ],
)
def test_a_departure_that_is_not_declared_is_found(override: str) -> None:
    name = "eurollm-9b-as-published"
    assert complaints(recipe_of(name, override), facts_of(name))


def test_a_declaration_that_was_taken_out_is_missed() -> None:
    name = "tiny-aya-as-published"
    for at in ("judge.ask", "euroeval", "generate"):
        recipe = copy.copy(recipe_of(name))
        said = {key: text for key, text in recipe.departures.items() if key != at}
        assert complaints(recipe.model_copy(update={"departures": said}), facts_of(name)), at


def test_a_fact_names_the_file_and_the_line_that_it_was_read_from() -> None:
    for fact in PUBLISHED["facts"]:
        assert re.fullmatch(r"(scripts|src)/[\w.]+:\d+|README\.md:\d+", fact["read"]), fact
        assert ("at" in fact) == ("is" in fact) and ("fact" in fact) == ("at" not in fact)
        assert len(fact.get("fact", "")) < 80

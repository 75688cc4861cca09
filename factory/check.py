"""Check a recipe with its real tokenizers and no weights: every template's contract, every prompt's
length. What was found is kept by content, so a second look costs nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from factory import chat, preflight, templates
from factory.artifact import fingerprint
from factory.cards import licenses
from factory.errors import FactoryError, InputError, RecipeError
from factory.hub import Hub
from factory.lock import Lock
from factory.plan import Step
from factory.preflight import Asked, Finding
from factory.reading import is_file
from factory.recipe import Loaded, Recipe
from factory.shards import write_atomically
from factory.stages.contract import Stage
from factory.stages.needs import Outside, Served, SliceSpec
from factory.stages.sources import Prompts
from factory.work import Home

_VERSION = 1  # raise it when a check changes: what was found before is looked for again
_TOKENIZER = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")  # weights are none of these
_INDEX = "*.index.json"


def check(
    loaded: Loaded, pins: Lock, hub: Hub, home: Home, only: frozenset[str] | None = None
) -> list[Finding]:
    """All that is found about a recipe (or `only` these steps of it), errors first.

    Raises HubError when a tokenizer cannot be fetched, InputError without transformers.
    """
    found: list[Finding] = []
    for asked in preflight.asked(loaded.recipe, only):
        if asked.model.source not in pins.pins:
            found.append(
                Finding(
                    "warning",
                    asked.model.source,
                    "not on this hub yet, so not checked",
                    f"the first run brings it in: factory run {loaded.recipe.name} --until prompts",
                )
            )
            continue
        key = home.root / "check" / f"{_key(asked, loaded, pins)}.json"
        if not key.exists():
            made = [asdict(finding) for finding in _look(asked, loaded, pins, hub)]
            write_atomically(key, json.dumps(made).encode())
        found += [Finding(**said) for said in json.loads(key.read_text(encoding="utf-8"))]
    return sorted(found, key=lambda finding: finding.level != "error")


def lacking(recipe: Recipe, only: Collection[str] | None = None) -> list[Finding]:
    """What the steps of a recipe (or `only` these) need of this machine and it does not have."""
    specs: dict[str, tuple[Stage, list[SliceSpec]]] = {}
    for stage, spec in recipe.slices():
        if only is None or spec.step in only:
            specs.setdefault(stage.name, (stage, []))[1].append(spec)
    return unsettled(recipe, only) + [
        Finding("error", f"stages.{name}", error.what, error.fix)
        for name, (stage, mine) in specs.items()
        for error in stage.lacks(mine)
    ]


def unsettled(recipe: Recipe, only: Collection[str] | None = None) -> list[Finding]:
    """Served models whose words cannot be passed on as the recipe says. Of what is on a hub a card
    says it, which is read when it is fetched; of these nobody but the recipe can, and nobody should
    be told after everything else is made."""
    found = {}
    for stage, spec in recipe.slices():
        for need in spec.needs:
            if isinstance(need, Served) and (only is None or spec.step in only):
                under = [(need.model, recipe.licenses.get(need.model))]
                try:
                    licenses.settle(stage.name, stage.kind, under, recipe.license)
                except RecipeError as error:
                    found[spec.step] = Finding("error", "licenses", error.what, error.fix)
    return list(found.values())


def gate(
    loaded: Loaded,
    pins: Lock,
    hub: Hub,
    home: Home,
    tell: Callable[[str], None],
    only: list[str],
    going: Collection[str] = (),
) -> Callable[[Step], None]:
    """What a run calls with every step that it is about to work on: before the first, all that the
    steps in `going` need of this machine must be there; before the first that needs a model, all
    of `only` are checked, warnings told and an error raised."""
    looked = done = False

    def before(step: Step) -> None:
        nonlocal looked, done
        if not looked:
            looked = True
            for finding in lacking(loaded.recipe, going):
                raise InputError(f"{finding.about}: {finding.what}", finding.fix)
        needs_model = bool(preflight.asked(loaded.recipe, frozenset({step.name})))
        if done or not needs_model:
            return
        done = True
        for finding in check(loaded, pins, hub, home, frozenset(only)):
            if finding.level == "error":
                raise InputError(f"{finding.about}: {finding.what}", finding.fix)
            tell(finding.line())

    return before


def _key(asked: Asked, loaded: Loaded, pins: Lock) -> str:
    """The content of everything that is looked at, and what looks at it."""
    prompts = {
        f"{use.stage} {spec.name}": [use.does, use.limit, _digest(spec, pins)]
        for use in asked.uses
        for spec in use.prompts
    }
    reads = {
        name: stage.model_dump(mode="json", exclude={"how"})
        for name, stage in loaded.recipe.steps().items()
        if isinstance(stage, Prompts)
    }
    return fingerprint(
        {
            "check": _VERSION,
            "transformers": _transformers(),
            "name": asked.model.source,
            "model": pins.pins[asked.model.source].digest,
            "answers": asked.answers,
            "prompts": prompts,
            "read": reads,
        }
    )


def _digest(spec: SliceSpec, pins: Lock) -> str | None:
    need = spec.need("source")
    pin = pins.pins.get(need.source) if isinstance(need, Outside) else None
    return pin.digest if pin else None


def _transformers() -> str:
    if importlib.util.find_spec("transformers") is None:
        raise InputError(
            "tokenizers are read with transformers, which is not installed",
            "pip install 'croco-factory[train]'",
        )
    return importlib.metadata.version("transformers")


def _look(asked: Asked, loaded: Loaded, pins: Lock, hub: Hub) -> Iterator[Finding]:
    name = asked.model.source
    revision = pins.pins[name].revision
    assert revision is not None
    directory = hub.fetch(name.partition("@")[0], "model", revision, _TOKENIZER, (_INDEX,))
    try:
        tokenizer = chat.load_tokenizer(str(directory))
    except InputError as error:
        # a path of this machine's says nothing to people; the name does
        yield Finding("error", name, error.what.replace(str(directory), name), error.fix)
        return
    generation = SimpleNamespace(**_json(directory / "generation_config.json"))
    found = (
        templates.breaches(tokenizer, generation) if asked.answers else templates.opening(tokenizer)
    )
    for breach in found:
        yield Finding("error" if breach.fatal else "warning", name, breach.what, breach.fix)
    if any(breach.fatal for breach in found):
        return
    config = _json(directory / "config.json")
    context = (config.get("text_config") or config).get("max_position_embeddings")
    measured: dict[SliceSpec, dict[str, int]] = {}
    for use in asked.uses:
        for spec in use.prompts:
            if spec not in measured:
                try:
                    measured[spec] = dict(_lengths(tokenizer, spec, loaded, pins, hub))
                except FactoryError as error:
                    about = f"{name}, {spec.name}"
                    yield Finding("error", about, error.what, error.fix)
                    measured[spec] = {}
            yield from preflight.over_long(use, name, spec.name, measured[spec], context)


def _lengths(
    tokenizer: Any, spec: SliceSpec, loaded: Loaded, pins: Lock, hub: Hub
) -> Iterator[tuple[str, int]]:
    """The tokens of every prompt of a slice that comes from outside, by id. Prompts that are made
    here (translations) are not there yet."""
    stage, need = loaded.recipe.steps().get(spec.step), spec.need("source")
    if not isinstance(stage, Prompts) or not isinstance(need, Outside):
        return
    name, pin = need.source.partition("@")[0], pins.pins[need.source]
    path = (
        loaded.file(need.source)
        if is_file(need.source)
        else hub.fetch(name, "dataset", str(pin.revision))
    )
    if is_file(need.source) and not path.exists():
        return  # a published line made again: its prompts are there as rows, their file is not
    language = str(spec.language)
    taken = 0
    for where, row in stage.rows(path, language):
        made = row and stage.row(row, where, need.source, language)
        if not made:
            continue
        if taken == stage.first:
            return
        taken += 1
        try:
            yield made["prompt_id"], len(chat.prompt_ids(tokenizer, made["messages"]))
        except InputError as error:
            raise InputError(f"{where}: {error.what}", error.fix) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found

"""Read the card of a repo: the YAML at the top of its README, implied tags, and mistakes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

PATH = "README.md"
# Longer cards are kept, but not read for their metadata.
SIZE_LIMIT = 5_000_000
_FRONT_MATTER = re.compile(
    r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE
)
# Of the metadata once its aliases are expanded: values, characters in them, and how deep they lie.
_NODE_LIMIT = 50_000
_TEXT_LIMIT = SIZE_LIMIT
_DEPTH_LIMIT = 64
_DIGITS_LIMIT = 100
# Keys of a dataset card whose values become tags of the form key:value.
_DATASET_KEYS = (
    "annotations_creators",
    "language_creators",
    "language",
    "license",
    "multilinguality",
    "size_categories",
    "source_datasets",
    "task_categories",
    "task_ids",
)
# Keys that hold one text or several; anything else there is a mistake.
_TEXT_KEYS = (*_DATASET_KEYS, "tags", "datasets", "base_model", "metrics")
_SINGLE_KEYS = (
    "pipeline_tag",
    "library_name",
    "pretty_name",
    "base_model_relation",
    "license_name",
)
_RELATIONS = ("adapter", "finetune", "merge", "quantized")


@dataclass(frozen=True)
class Card:
    """The metadata of a README; None when it has none that can be read."""

    data: dict[str, Any] | None = None
    errors: list[str] = field(default_factory=list)

    def text(self, key: str) -> str | None:
        """The value of a key that holds one text."""
        value = (self.data or {}).get(key)
        return value if isinstance(value, str) else None

    def texts(self, key: str) -> list[str]:
        """The values of a key that holds one text or several."""
        value = (self.data or {}).get(key)
        values = value if isinstance(value, list) else [value]
        return [item for item in values if isinstance(item, str)]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as the Hub reads it: `no` is a language, not a refusal."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"true|false|True|False|TRUE|FALSE"), list("tTfF")
)


def _construct_number(loader: Any, node: yaml.ScalarNode) -> object:
    if len(node.value) > _DIGITS_LIMIT:  # the time to read them grows with their square
        raise yaml.constructor.ConstructorError(
            None, None, "a number of too many digits", node.start_mark
        )
    is_integer = node.tag == "tag:yaml.org,2002:int"
    return loader.construct_yaml_int(node) if is_integer else loader.construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_number)


def load_yaml(text: str) -> Any:
    """The value of a YAML text from anybody, of bounded size, depth and effort.

    Raises ValueError, in one line, for what is not valid and for what is too large once its aliases
    are expanded: that is counted before anything is made of it.
    """
    try:
        _measure(text)
        return yaml.load(text, Loader=_Loader)
    except OverflowError:
        raise ValueError("it is too large or too deep once its YAML aliases are expanded") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        # The last three: what PyYAML raises for a tag on a value that does not go with it.
        raise ValueError(f"it is not valid YAML: {' '.join(str(error).split())}") from None


def _measure(text: str) -> None:
    """Count values and characters as if every alias were written out. Raises OverflowError.

    What merge keys bring in is counted with their aliases, as often as it would be copied.
    """
    around = [[0, 0]]  # of each collection that is open: values and characters so far
    names: list[str | None] = []
    anchors: dict[str | None, list[int]] = {}
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            if len(names) >= _DEPTH_LIMIT:
                raise OverflowError
            # Not known by its name until it is complete: a value cannot hold itself.
            anchors.pop(event.anchor, None)
            around.append([1, 0])
            names.append(event.anchor)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            size, anchor = around.pop(), names.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size, anchor = [1, len(event.value)], event.anchor
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in names:
                raise OverflowError
            size, anchor = anchors.get(event.anchor, [1, 0]), None
        else:
            continue
        if anchor is not None:
            anchors[anchor] = size
        around[-1] = [around[-1][0] + size[0], around[-1][1] + size[1]]
        if around[-1][0] > _NODE_LIMIT or around[-1][1] > _TEXT_LIMIT:
            raise OverflowError


def read_card(text: str) -> Card:
    """The card that a README holds, with the mistakes in it."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return Card()
    try:
        data = load_yaml(match[1])
    except ValueError as error:
        return Card(errors=[f"the metadata cannot be read: {error}"])
    if data is None:
        return Card()
    if not isinstance(data, dict):
        return Card(errors=["the metadata must be a YAML mapping"])
    plain = {str(key): _plain(value) for key, value in data.items()}
    return Card(plain, _mistakes(plain))


def model_tags(card: Card) -> list[str]:
    """The tags of a model, in the words by which clients filter."""
    languages = card.texts("language")
    tags = [t for t in (card.text("library_name"), card.text("pipeline_tag")) if t]
    tags += [*card.texts("tags"), *languages, *(f"language:{code}" for code in languages)]
    tags += [f"license:{name}" for name in card.texts("license")]
    tags += [f"dataset:{name}" for name in card.texts("datasets")]
    bases = card.texts("base_model")
    tags += [f"base_model:{base}" for base in bases]
    tags += [f"base_model:{_relation(card, bases)}:{base}" for base in bases]
    return list(dict.fromkeys(tags))


def dataset_tags(card: Card) -> list[str]:
    """The tags of a dataset, in the words by which clients filter."""
    tags = [f"{key}:{value}" for key in _DATASET_KEYS for value in card.texts(key)]
    return list(dict.fromkeys([*tags, *card.texts("tags")]))


def _relation(card: Card, bases: list[str]) -> str:
    """Return the relation of a model to its base, guessed as the Hub does if the card has none."""
    relation = card.text("base_model_relation")
    if relation in _RELATIONS:
        return relation
    if card.text("library_name") in ("peft", "adapter-transformers") or "lora" in card.texts(
        "tags"
    ):
        return "adapter"
    return "merge" if len(bases) > 1 else "finetune"


def _mistakes(data: dict[str, Any]) -> list[str]:
    mistakes = []
    for key in _TEXT_KEYS:
        value = data.get(key)
        values = value if isinstance(value, list) else [value]
        for index, item in enumerate(values):
            if item is not None and not isinstance(item, str):
                where = f'"{key}[{index}]"' if isinstance(value, list) else f'"{key}"'
                mistakes.append(f"{where} must be a string, not {item!r}: put it in quotes")
    for key in _SINGLE_KEYS:
        if not isinstance(data.get(key), str | None):
            mistakes.append(f'"{key}" must be a string')
    if not isinstance(data.get("configs"), list | None):
        mistakes.append('"configs" must be a list')
    return mistakes + _mistakes_of_results(data.get("model-index"))


def _mistakes_of_results(index: Any) -> list[str]:
    """Return what a model-index lacks for huggingface.co to take it."""
    mistakes: list[str] = []

    def items(holder: Any, where: str) -> list[tuple[Any, str]]:
        if not isinstance(holder, list):
            mistakes.append(f'"{where}" must be a list')
            return []
        return [(item, f"{where}[{number}]") for number, item in enumerate(holder)]

    def require(holder: Any, where: str, *keys: str) -> bool:
        missing = [key for key in keys if not isinstance(holder, dict) or holder.get(key) is None]
        mistakes.extend(f'"{where}.{key}" is required' for key in missing)
        return not missing

    if index is None:
        return []
    for model, where in items(index, "model-index"):
        if not require(model, where, "name", "results"):
            continue
        for result, here in items(model["results"], f"{where}.results"):
            if not require(result, here, "task", "dataset", "metrics"):
                continue
            require(result["task"], f"{here}.task", "type")
            require(result["dataset"], f"{here}.dataset", "type", "name")
            for metric, there in items(result["metrics"], f"{here}.metrics"):
                require(metric, there, "type", "value")
    return mistakes


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)

"""What a README says about its repo: the YAML at its top, the tags it implies, and its mistakes."""

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
_NODE_LIMIT = 50_000
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


def read_card(text: str) -> Card:
    """The card that a README holds, with the mistakes in it."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return Card()
    try:
        data = yaml.load(match[1], Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return Card(errors=[f"the metadata is not valid YAML: {' '.join(str(error).split())}"])
    if data is None:
        return Card()
    if not isinstance(data, dict):
        return Card(errors=["the metadata must be a YAML mapping"])
    try:
        plain = {str(key): _plain(value, [_NODE_LIMIT]) for key, value in data.items()}
    except (OverflowError, RecursionError):
        return Card(errors=["the metadata is too large once its YAML aliases are expanded"])
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
    """How a model comes from its base, guessed as the Hub does where the card does not say."""
    said = card.text("base_model_relation")
    if said in _RELATIONS:
        return said
    if card.text("library_name") in ("peft", "adapter-transformers") or "lora" in card.texts(
        "tags"
    ):
        return "adapter"
    return "merge" if len(bases) > 1 else "finetune"


def _mistakes(data: dict[str, Any]) -> list[str]:
    found = []
    for key in _TEXT_KEYS:
        value = data.get(key)
        values = value if isinstance(value, list) else [value]
        for index, item in enumerate(values):
            if item is not None and not isinstance(item, str):
                where = f'"{key}[{index}]"' if isinstance(value, list) else f'"{key}"'
                found.append(f"{where} must be a string, not {item!r}: put it in quotes")
    for key in _SINGLE_KEYS:
        if not isinstance(data.get(key), str | None):
            found.append(f'"{key}" must be a string')
    if not isinstance(data.get("configs"), list | None):
        found.append('"configs" must be a list')
    return found


def _plain(value: Any, budget: list[int]) -> Any:
    """`value` as JSON can hold it. Raises OverflowError for YAML that unfolds without end."""
    budget[0] -= 1
    if budget[0] < 0:
        raise OverflowError
    if isinstance(value, dict):
        return {str(key): _plain(item, budget) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item, budget) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)

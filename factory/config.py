"""Base classes of the configuration, with marks on fields; a reader of YAML 1.2.

A field without a mark is semantic: it is hashed into the fingerprint of what is made with it.

YAML is read with 1.2 scalars, every value with its line: `no` is Norwegian, `48:00:00` a string,
`5e-6` a number; only true and false are booleans. Duplicate keys, tags and several documents are
refused, and so is a text that is too large or too deep once its aliases are expanded: a few hundred
bytes could stand for more than a machine can hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from factory.errors import RecipeError


class Mark:
    """A mark on a field, read where a stage sorts its fields."""

    def __init__(self, name: str) -> None:
        self.name = name


# EXTENT: how much, not what (n samples): in the fingerprint, not in the row key
# REFERENCE: the name of another stage or model: what it resolves to is hashed, not the name
# GATE: when to refuse to run: it changes no row that is made
EXTENT, REFERENCE, GATE = Mark("extent"), Mark("reference"), Mark("gate")


class Knobs(BaseModel):
    """Base of every part of a recipe: immutable, unknown keys refused, no number from a string."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _not_coerced(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse "5" or yes for a number and 1 for a boolean, which pydantic would convert."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if kind in (int, float) and isinstance(value, str | bool):
            raise ValueError(f"must be a number, not {value!r}")
        if kind is bool and not isinstance(value, bool):
            raise ValueError(f"must be true or false, not {value!r}")
        return value


Path = tuple[str | int, ...]

# Characters of a text, and of all its values once aliases are expanded; how many values those are,
# and how deep they lie.
_SIZE_LIMIT = 2_000_000
_TEXT_LIMIT = 5_000_000
_NODE_LIMIT = 50_000
_DEPTH_LIMIT = 64
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass
class Document:
    """Plain data with the place of each value: `places[path]` is `file:line`."""

    data: Any
    places: dict[Path, str] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """Return the place of `path`, or of the nearest value around it that has one."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "the command line")


def parse(text: str, name: str) -> Document:
    """Parse `text` as one YAML document; `name` stands for the file in places. Raises
    RecipeError."""
    if len(text) > _SIZE_LIMIT:
        raise _too_large(name, f"over {_SIZE_LIMIT} characters")
    try:
        _refuse_tags_and_excess(text, name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{name}:{mark.line + 1}" if mark else name
        problem, fix = _in_plain_words(str(getattr(error, "problem", None) or error))
        raise RecipeError(f"{line}: not YAML: {problem}", fix) from None
    document = Document(None)
    if node is not None:
        document.data = _build(node, (), name, document.places)
    return document


# What the parser calls a fault of a text, what it is, and what to do about it.
_FAULTS = (
    (r"mapping values are not allowed", "a second ': ' on one line, or a line indented too far",
     "put a text with ': ' into quotes, and each key on a line of its own"),
    (r"found character '(\\t|\t)'", "a tab", "indent with spaces"),
    (r"found character '(.)'", r"a value begins with \1", "put it into quotes"),
    (r"expected ',' or '\]'", "a list [ is not closed, or lacks a comma", "write [a, b]"),
    (r"expected ',' or '\}'", "a brace { is not closed, or lacks a comma", "write {a: 1, b: 2}"),
    (r"could not find expected ':'", "a line without a colon", "write key: value"),
    (r"unexpected end of stream", "a quote or bracket is not closed", "close it"),
    (r"undefined alias '?([^'\s]+)", r"*\1 stands for nothing", "put a text with * into quotes"),
    (r"expected <block end>|but found '?<?block", "a line is not indented as those around it",
     "give keys of one map the same indentation"),
)  # fmt: skip


def _in_plain_words(problem: str) -> tuple[str, str]:
    """Return what is wrong with a text that is not YAML, and the fix."""
    for pattern, what, fix in _FAULTS:
        if match := re.search(pattern, problem):
            return match.expand(what), fix
    return "this line cannot be read", "check indentation, quotes and brackets"


def _refuse_tags_and_excess(text: str, name: str) -> None:
    """Refuse tags, and what is too much once its aliases are expanded, before it is composed.

    By event: the composer gives untagged nodes tags of its own, and the depth of its recursion is
    that of the text. Raises RecipeError, yaml.YAMLError.
    """
    around = [(0, 0)]  # of each collection that is open: values and characters so far
    names: list[str | None] = []
    anchors: dict[str | None, tuple[int, int]] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        place = f"{name}:{event.start_mark.line + 1}" if event.start_mark else name
        if getattr(event, "tag", None) is not None:
            raise RecipeError(
                f"{place}: YAML tags are not read", "write the value without its !tag"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            if len(names) >= _DEPTH_LIMIT:
                raise _too_large(place, f"over {_DEPTH_LIMIT} levels deep")
            anchors.pop(event.anchor, None)  # known by its name again when it is complete
            around.append((1, 0))
            names.append(event.anchor)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            size, anchor = around.pop(), names.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size, anchor = (1, len(event.value)), event.anchor
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in names:
                raise RecipeError(f"{place}: a value that holds itself", "remove the *alias")
            size, anchor = anchors.get(event.anchor, (1, 0)), None
        else:
            continue
        if anchor is not None:
            anchors[anchor] = size
        around[-1] = (around[-1][0] + size[0], around[-1][1] + size[1])
        if around[-1][0] > _NODE_LIMIT:
            raise _too_large(place, f"over {_NODE_LIMIT} values")
        if around[-1][1] > _TEXT_LIMIT:
            raise _too_large(place, f"over {_TEXT_LIMIT} characters")


def _too_large(place: str, how: str) -> RecipeError:
    return RecipeError(
        f"{place}: too large, {how} once its aliases are expanded",
        "write less, without *aliases inside of aliases",
    )


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes every string that a YAML 1.1 or 1.2 reader would read as another type."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(scalar(text), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump(data: Any) -> str:
    """Dump plain data as YAML that `parse`, and any other reader, reads back unchanged."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False))


def scalar(text: str) -> Any:
    """Parse an unquoted scalar."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _build(node: yaml.Node, path: Path, name: str, places: dict[Path, str]) -> Any:
    place = f"{name}:{node.start_mark.line + 1}"
    places[path] = place
    if isinstance(node, yaml.ScalarNode):
        try:
            return node.value if node.style else scalar(node.value)
        except ValueError:
            raise RecipeError(
                f"{place}: a number with too many digits", "write fewer digits"
            ) from None
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, i), name, places) for i, item in enumerate(node.value)]
    built: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value
        where = f"{name}:{key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            raise RecipeError(f"{where}: a key must be text", "write `key: value`")
        if key in built:
            raise RecipeError(f"{where}: the key {key!r} is defined twice", "remove one of them")
        built[key] = _build(value_node, (*path, key), name, places)
        places[(*path, key)] = where
    return built

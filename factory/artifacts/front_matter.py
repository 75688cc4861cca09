"""Read the metadata at the top of a README."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from factory import config
from factory.errors import InputError, RecipeError

_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)


def front_matter(text: str) -> tuple[dict[str, Any] | None, str]:
    """Split a README into (metadata, body); the metadata is None where there is none.

    Read as YAML 1.2, as the Hub reads it: `no` is Norwegian. Raises InputError with the line.
    """
    match = _FRONT.match(text)
    if match is None:
        return None, text
    try:
        data = config.parse(match[1], "README.md").data
    except RecipeError as error:
        raise InputError(f"the metadata is not valid YAML: {error.what}", error.fix) from None
    if data is None:
        return None, text[match.end() :]
    if not isinstance(data, Mapping):
        raise InputError("the metadata is not a mapping of keys", "write `key: value` lines")
    return dict(data), text[match.end() :]

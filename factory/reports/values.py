"""Typed reading of single values in a manifest's statistics. Pure.

A manifest may hold anything under `stats`: another version of the factory wrote other figures. A
value of another type reads as none, so that a page or a card shows less and nothing that is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def number(value: Any) -> float | None:
    """Return `value` as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        finite = float(value)
    except OverflowError:
        return None
    return finite if math.isfinite(finite) else None


def integer(value: Any) -> int:
    """Return `value` as a count; 0 if it is not a number."""
    return int(number(value) or 0)


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: Any) -> Sequence[Mapping[str, Any]]:
    """Return the mappings in a list; nothing for any other value."""
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def texts(value: Any) -> tuple[str, ...]:
    """Return the items of a list as text; nothing for any other value."""
    return tuple(str(item) for item in value) if isinstance(value, list | tuple) else ()

"""Knobs: the base of everything that a recipe may say, and the marks on its fields.

A field without a mark is semantic: it is hashed into the fingerprint of what is made with it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


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
        """pydantic takes "5", yes and 1 for numbers and booleans alike; people mean one."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if kind in (int, float) and isinstance(value, str | bool):
            raise ValueError(f"must be a number, not {value!r}")
        if kind is bool and not isinstance(value, bool):
            raise ValueError(f"must be true or false, not {value!r}")
        return value

"""One of several sets of preferences."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from factory.stage import presets
from factory.stage.rows_from import RowsFrom


class PreferenceSet(RowsFrom):
    """One more set of preference pairs. `weight`: see Preferences."""

    weight: float = Field(1.0, gt=0)
    first: int | None = Field(None, ge=1)  # rows to take of each language, from the top

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        short = isinstance(value, str)
        return {"source": value} if short else presets.expanded(value, "preferences")

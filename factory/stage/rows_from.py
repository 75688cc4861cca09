"""Rows of somebody else that a stage reads beside its own."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from factory.stage.inputs import ExternalInput
from factory.stage.stage import From, filled


class RowsFrom(From):
    """Base of sources of rows. Which rows there are is how much, not what."""

    @field_validator("base")
    @classmethod
    def _no_base(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("base is for adapters: rows have no base")
        return value

    def need(self, role: str, code: str) -> ExternalInput:
        """Return the need of the rows of a language, read as `role`."""
        return ExternalInput(role, filled(self.source, {"language": code}), "dataset", extent=True)

    def how_read(self) -> dict[str, Any]:
        """Return the settings beside its name, as they are hashed."""
        return self.model_dump(mode="json", exclude={"source", "bad_rows"}, exclude_defaults=True)

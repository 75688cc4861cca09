"""JSON from a client, field by field: what has not the type asked for is refused in words."""

from __future__ import annotations

import json
from typing import Any

from factory.localhub.errors import BadRequest


class Fields:
    """A JSON object from a client. What has not the type asked for raises BadRequest."""

    def __init__(self, values: object) -> None:
        if not isinstance(values, dict):
            raise BadRequest("a JSON object is needed here")
        self._values: dict[str, Any] = values

    def text(self, key: str) -> str:
        """The text under `key`, which must be there."""
        value = self.text_or_none(key)
        if value is None:
            raise BadRequest(f"{key!r} is missing")
        return value

    def text_or_none(self, key: str) -> str | None:
        """The text under `key`, or None."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            raise BadRequest(f"{key!r} must be a string")
        return value

    def value(self, key: str) -> object:
        """Whatever is under `key`, or None."""
        return self._values.get(key)

    def number_or_none(self, key: str) -> int | None:
        """The whole number under `key`, or None."""
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not -(2**62) < value < 2**62:
            raise BadRequest(f"{key!r} must be a whole number")
        return value

    def flag_or_none(self, key: str) -> bool | None:
        """The truth value under `key`, or None."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, bool):
            raise BadRequest(f"{key!r} must be true or false")
        return value

    def inner(self, key: str) -> Fields:
        """The object under `key`, which must be there."""
        return Fields(self._values.get(key))

    def objects(self, key: str) -> list[Fields]:
        """The list of objects under `key`, which must be there."""
        value = self._values.get(key)
        if not isinstance(value, list):
            raise BadRequest(f"{key!r} must be a list")
        return [Fields(item) for item in value]


def read_json(text: bytes) -> object:
    """A JSON value. Raises BadRequest."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not valid JSON") from error

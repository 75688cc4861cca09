"""Requests to an engine that serves several callers from one queue."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any


class Batch:
    """Requests that came together and leave together, however the engine mixes them with others.
    `done` holds their outputs in order when all are there, or what went wrong."""

    def __init__(self, count: int) -> None:
        self._outputs: list[Any] = [None] * count
        self._left = count
        self.done: Future[list[Any]] = Future()

    def put(self, number: int, output: Any) -> None:
        """Take in the answer to one request."""
        self._outputs[number] = output
        self._left -= 1
        if not self._left:
            self.done.set_result(self._outputs)

    def fail(self, error: BaseException) -> None:
        """Raise this where the answers are awaited, unless they are all there."""
        if not self.done.done():
            self.done.set_exception(error)

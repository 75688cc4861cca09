"""Connections to the server: how many, and how long one may be silent, half said or unread.

A connection costs a file handle, and a store needs some too. When there are too many, the one that
has been idle longest gives way. Whoever stops in the middle of a request, or never begins one, is
let go after a time, and so is whoever does not take what was asked for.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from factory.localhub.errors import BadRequest, Busy, ProtocolError, Timeout
from factory.localhub.replies import error_answer

# Seconds for the first line and the headers, from the first byte (or from connecting) to the last.
HEAD_SECONDS = 30.0
# Seconds without a byte of a body that was announced, or without a byte of an answer being taken.
SILENT_SECONDS = 60.0
# Bytes of a first line with its headers. (More may pass if all of it comes in one piece.)
HEAD_LIMIT = 64 * 1024
SWEEP_SECONDS = 1.0
_MOST = 1000
# Handles that are not connections: database, lock, log, contents being read and written.
_SPARE_HANDLES = 128


class Protocol(H11Protocol):
    """HTTP, with limits; also what is no HTTP at all is refused in the words of the hub.

    Always h11, so that one parser with one set of limits is what runs and what was tested.
    """

    most = _MOST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take in a connection; if there are too many, let the longest idle one go."""
        super().connection_made(transport)
        now = self.loop.time()
        self.heard = now
        self._head_since: float | None = now
        self._unread = (0, now)
        if len(self.connections) > self.most:
            peers = [peer for peer in protocols(self.connections) if peer is not self]
            idle = [peer for peer in peers if peer.is_idle]
            if idle:
                # Those that never said anything go first: no client counts on them.
                min(idle, key=lambda peer: (peer.cycle is not None, peer.heard)).end()
            else:
                self.refuse(Busy("too many connections: try again", headers={"Retry-After": "1"}))

    def data_received(self, data: bytes) -> None:
        """Take in what has arrived, and note since when a head has been incomplete."""
        self.heard = self.loop.time()
        super().data_received(data)
        half = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        self._head_since = (self._head_since or self.heard) if half else None

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way: none has come yet, or the last one was answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def look(self) -> None:
        """Let go of a connection whose time is over."""
        now = self.loop.time()
        waiting = self.transport.get_write_buffer_size()
        if waiting != self._unread[0]:
            self._unread = (waiting, now)
        if waiting and now - self._unread[1] > SILENT_SECONDS:
            self.end()
        elif self._head_since is not None and now - self._head_since > HEAD_SECONDS:
            if self.conn.trailing_data[0]:
                self.refuse(Timeout("the request did not arrive in time"))
            else:
                self.end()
        elif (
            self.conn.their_state is h11.SEND_BODY
            and not self.flow.read_paused
            and now - self.heard > SILENT_SECONDS
        ):
            self.end()

    def refuse(self, error: ProtocolError) -> None:
        """Answer with an error and hang up."""
        answer = error_answer(error)
        head = [b"HTTP/1.1 %d Refused" % error.status, b"connection: close"]
        head += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join([*head, b"", bytes(answer.body)]))
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP. (uvicorn itself would answer in plain text.)"""
        self.refuse(BadRequest(msg))

    def end(self) -> None:
        """Hang up at once, whatever is still to be sent."""
        self.transport.abort()


def protocols(connections: Iterable[object]) -> list[Protocol]:
    """Return those of uvicorn's connections that are of this kind: all of them."""
    return [connection for connection in connections if isinstance(connection, Protocol)]


async def sweep(connections: set[Any]) -> None:
    """Look at all connections again and again, until cancelled."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        for connection in protocols(connections):
            connection.look()


def allow_connections() -> None:
    """Take all file handles that this process may have, and limit connections to what they bear.

    Each connection may have a content open besides itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    handles = 2 * _MOST + 2 * _SPARE_HANDLES
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < handles:
        soft = handles if hard == unlimited else min(handles, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != unlimited:
        Protocol.most = max(min(_MOST, (soft - _SPARE_HANDLES) // 2), 8)

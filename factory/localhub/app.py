"""The hub as an ASGI application: all routes, and how its errors are told."""

from __future__ import annotations

import re
import sqlite3
import uuid

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from factory.localhub import replies
from factory.localhub.errors import ProtocolError
from factory.localhub.hub import LocalHub
from factory.localhub.routes import (
    collections,
    commits,
    discussions,
    files,
    git,
    lfs,
    people,
    refs,
    repos,
    upkeep,
)

_REQUEST_ID = re.compile(rb"[\w=;:.-]{1,200}")


def build(hub: LocalHub) -> ASGIApp:
    """The application over a hub."""
    app = Starlette(
        # In order: the addresses that are fixed come before those with a kind and a name in them.
        routes=[
            *people.ROUTES,
            *upkeep.ROUTES,
            *collections.ROUTES,
            *repos.ROUTES,
            *refs.ROUTES,
            *commits.ROUTES,
            *discussions.ROUTES,
            *lfs.ROUTES,
            *git.ROUTES,
            *files.ROUTES,
        ],
        exception_handlers={
            ProtocolError: replies.on_hub_error,
            HTTPException: replies.on_http_error,
            UnicodeEncodeError: replies.on_bad_text,
            ClientDisconnect: replies.on_disconnect,
            sqlite3.DatabaseError: replies.on_damage,
            UnicodeDecodeError: replies.on_damage,
            Exception: replies.on_unknown_error,
        },
    )
    app.router.redirect_slashes = False
    app.state.hub = hub
    return _RawPath(app)


class _RawPath:
    """Routes on the path as it was sent: in `refs%2Fpr%2F1` the slashes are part of a name.

    Each answer carries the id that the client gave its request, or one of our own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id") or headers.get(b"x-amzn-trace-id") or b""
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        await self._app(scope, receive, send_with_id)

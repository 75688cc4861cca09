"""The hub as an ASGI application: all routes, and how its errors are told."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import uuid
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
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

# Builds pages for people over a hub; whoever starts the server may have some (see server.main).
Pages = Callable[[LocalHub], ASGIApp]
# Where pages lie that have no address of their own on other hubs: no namespace is called so.
_PAGES = "/-/"
_REQUEST_ID = re.compile(rb"[\w=;:.-]{1,200}")


def build(hub: LocalHub, pages: Pages | None = None) -> ASGIApp:
    """The application over a hub; with pages, browsers are shown them where clients read JSON."""
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
    return _RawPath(app, None if pages is None else _Mounted(hub, pages))


class _Mounted:
    """Pages that are built when the first of them is asked for: clients never wait for it."""

    def __init__(self, hub: LocalHub, pages: Pages) -> None:
        self._hub, self._pages = hub, pages
        self._building = asyncio.Lock()
        self._app: ASGIApp | None = None

    def take(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        """Whether a request is for a page: a browser asks for HTML, outside of the API."""
        path: str = scope["path"]
        if path.startswith(_PAGES):
            return True
        reads = scope["method"] in ("GET", "HEAD") and not path.startswith("/api/")
        return reads and b"text/html" in headers.get(b"accept", b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._building:
            if self._app is None:
                self._app = await run_in_threadpool(self._pages, self._hub)
        await self._app(scope, receive, send)


class _RawPath:
    """Routes on the path as it was sent: in `refs%2Fpr%2F1` the slashes are part of a name.

    Each answer carries the id that the client gave its request, or one of our own.
    """

    def __init__(self, app: ASGIApp, pages: _Mounted | None) -> None:
        self._app, self._pages = app, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        header = headers.get(b"x-request-id") or headers.get(b"x-amzn-trace-id") or b""
        request_id = header if _REQUEST_ID.fullmatch(header) else uuid.uuid4().hex.encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        if self._pages is not None and self._pages.take(scope, headers):
            await self._pages(scope, receive, send_with_id)
        else:
            await self._app(scope, receive, send_with_id)

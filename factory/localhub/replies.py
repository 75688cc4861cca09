"""Answers on the wire: JSON, and the two headers by which clients know an error."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from factory.localhub.errors import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    ProtocolError,
    RepoNotFound,
)
from factory.localhub.hub import LocalHub

# Paths about a repo that no route takes, such as those of spaces or of names without a namespace.
_ABOUT_A_REPO = re.compile(r"/api/(models|datasets|spaces|kernels)/.|/.*/resolve/|/.*\.git/")
# What lies below a repo with a name and a namespace.
_OF_A_REPO = re.compile(r"/api/(model|dataset)s/([^/]+)/([^/]+)/.")
_NOT_IN_HEADERS = re.compile(r"[^\x20-\x7e]")


def answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as a JSON response."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Response(text.encode("utf-8", "replace"), status, headers, media_type="application/json")


def error_answer(error: ProtocolError) -> Response:
    """An error as the clients expect it: JSON, and two headers that they go by."""
    line = " ".join(error.message.split())
    headers = {"X-Error-Message": _NOT_IN_HEADERS.sub("?", line), **error.headers}
    return answer({"error": line, **error.fields}, error.status, headers)


async def on_hub_error(request: Request, error: Exception) -> Response:
    """Answer a request that the hub refuses."""
    assert isinstance(error, ProtocolError)
    return error_answer(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer a request that has no route."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        headers = dict(error.headers or {})
        return error_answer(MethodNotAllowed(f"{request.method} is not for this", headers=headers))
    path = request.scope["path"]
    if (match := _OF_A_REPO.match(path)) and _is_readable(request, *match.groups()):
        return error_answer(NotFound(f"this hub has no address {path}"))
    if _ABOUT_A_REPO.match(path):
        return error_answer(RepoNotFound("there is no such repo on this hub"))
    return error_answer(NotFound("there is nothing at this address"))


def _is_readable(request: Request, kind: str, namespace: str, name: str) -> bool:
    """Whether there is such a repo, and the caller may read it."""
    hub: LocalHub = request.app.state.hub
    try:
        account = hub.accounts.identify(request.headers.get("authorization"))
        hub.repos.find(kind, unquote(namespace), unquote(name), account)
    except ProtocolError:
        return False
    return True


async def on_bad_text(request: Request, error: Exception) -> Response:
    """Text with half a surrogate pair, which neither SQLite nor git can hold."""
    return error_answer(BadRequest("the request holds text that is not valid Unicode"))


async def on_disconnect(request: Request, error: Exception) -> Response:
    """The client left in the middle; nobody reads this."""
    return Response(status_code=499)


async def on_damage(request: Request, error: Exception) -> Response:
    """A database that cannot be read where it was damaged."""
    logging.error("the database is damaged", exc_info=error)
    return error_answer(
        ProtocolError("the database of the local hub is damaged: see factory hub fsck")
    )


async def on_unknown_error(request: Request, error: Exception) -> Response:
    """A mistake of ours: the client gets one line, the log gets the rest."""
    return error_answer(ProtocolError("internal error of the local hub: see its server.log"))

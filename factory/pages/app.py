"""The pages as an application: addresses, and who reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from factory.artifacts.resources import shipped
from factory.localhub.errors import BadRequest, Forbidden, ProtocolError, Unauthorized
from factory.localhub.hub import LocalHub
from factory.localhub.repos import KINDS, web_path
from factory.pages import marks, render, views
from factory.pages.login import COOKIE_SECONDS, Logins
from factory.pages.visit import Visit

_AT_ONCE = 4  # pages that are being made: clients of the hub come first
_FORM_LIMIT = 64 * 1024  # bytes
Page = Callable[[Visit], Response]
# Of a repo, below its own address.
_PAGES: dict[str, Page] = {
    "": views.card_page,
    "/tree/{revision}": views.files,
    "/tree/{revision}/{path:path}": views.files,
    "/commit/{revision}": views.files,
    "/blob/{revision}/{path:path}": views.file,
    "/resolve/{revision}/{path:path}": views.raw,
    "/commits/{revision}": views.commits,
    "/discussions/{number}": views.pull_request,
    "/viewer": views.rows_page,
    "/viewer/{revision}": views.rows_page,
    "/manifest/{revision}": views.manifest,
    "/compare": views.compare,
    "/read/{revision}": views.read,
}


def build(hub: LocalHub) -> ASGIApp:
    """Build the pages over a hub."""
    logins, turns = Logins(hub), asyncio.Semaphore(_AT_ONCE)

    def visit(request: Request, params: Mapping[str, str]) -> Visit:
        account = logins.account(request.cookies.get(logins.cookie))
        return Visit(hub, account, params, request.query_params)

    def shown(path: str, page: Page, kind: str = "models") -> Route:
        async def endpoint(request: Request) -> Response:
            params = {key: unquote(value) for key, value in request.path_params.items()}
            params["kind"] = kind
            guest = visit(request, params)
            async with turns:
                return await run_in_threadpool(page, guest)

        return Route(path, endpoint, methods=["GET"])

    async def sign_in(request: Request) -> Response:
        if request.method == "POST" and "authorization" in request.headers:  # factory hub open
            once = logins.invite(request.headers["authorization"])
            return JSONResponse({"once": once})
        if request.method == "POST":
            fields = await _form(request)
            cookie, to = logins.exchange(fields.get("token", "")), fields.get("to", "")
        elif request.method == "GET" and "once" in request.query_params:
            cookie = logins.redeem(request.query_params["once"])
            to = request.query_params.get("to", "")
        else:
            return _sign_in_page(request, "")
        answer = RedirectResponse(_inside(to), 303)
        answer.set_cookie(
            logins.cookie, cookie, COOKIE_SECONDS, path="/", httponly=True, samesite="strict"
        )
        return answer

    async def marked(request: Request) -> Response:
        params = {key: unquote(value) for key, value in request.path_params.items()}
        params["kind"] = "datasets"
        guest, fields = visit(request, params), await _form(request)
        version = await run_in_threadpool(guest.version)
        await run_in_threadpool(
            marks.mark, guest, version, fields.get("slice", ""), fields.get("prompt", ""),
            fields.get("mark", ""),
        )  # fmt: skip
        return RedirectResponse(_inside(fields.get("to", "")), 303)

    async def styled(request: Request) -> Response:
        return Response(render.style(), media_type="text/css", headers=render.HEADERS)

    async def icon(request: Request) -> Response:
        return FileResponse(shipped("cards/pages/icon.svg"), media_type="image/svg+xml")

    async def failed(request: Request, error: Exception) -> Response:
        if isinstance(error, Unauthorized):
            return _sign_in_page(request, error.message)
        if isinstance(error, HTTPException) and request.url.path.endswith("/"):
            return RedirectResponse(_inside(request.url.path.rstrip("/")))
        status = int(getattr(error, "status", 0) or getattr(error, "status_code", 500))
        message = getattr(error, "message", "there is no such page")
        return render.page("error", None, status=status, why=message)

    async def broken(request: Request, error: Exception) -> Response:
        why = "this page could not be made: see the log of the local hub, hub/server.log"
        return render.page("error", None, status=500, why=why)

    repo = "/{namespace}/{name}"
    app = Starlette(
        routes=[
            Route("/-/style.css", styled, methods=["GET"]),
            Route("/-/icon.svg", icon, methods=["GET"]),
            Route("/-/login", sign_in, methods=["GET", "POST"]),
            shown("/", views.home, ""),
            shown("/collections", views.home, ""),
            shown("/collections/{namespace}", views.home, ""),
            *(shown(f"/{kind}s", views.home, f"{kind}s") for kind in KINDS),
            shown("/-/live", views.live_page),
            shown("/-/board", views.board_page),
            shown("/collections/{namespace}/{slug}", views.collection),
            shown("/collections/{namespace}/{slug}/results", views.results),
            Route(f"/-/mark/datasets{repo}/{{revision}}", marked, methods=["POST"]),
            # a browser that wants a picture asks for no HTML, and would be taken for a client
            *(
                shown(f"/-/files/{kind}s{repo}/{{revision}}/{{path:path}}", views.raw, f"{kind}s")
                for kind in KINDS
            ),
            *(
                shown(f"/{web_path(kind, '')}{repo[1:]}{rest}", page, f"{kind}s")
                for kind in reversed(KINDS)
                for rest, page in _PAGES.items()
            ),
            shown("/{namespace}", views.home, ""),
        ],
        exception_handlers={ProtocolError: failed, HTTPException: failed, Exception: broken},
    )
    app.router.redirect_slashes = False  # it would add some too
    return app


async def _form(request: Request) -> dict[str, str]:
    """Read a form that a page of this server sent. Raises Forbidden, BadRequest."""
    origin = request.headers.get("origin", "")
    if urlsplit(origin).netloc != request.headers.get("host"):  # ports of a host share cookies
        raise Forbidden("this form comes from elsewhere")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _FORM_LIMIT:
            raise BadRequest("this form is too long")
    return dict(parse_qsl(body.decode("utf-8", "replace")))


def _inside(address: str) -> str:
    """Return an address on this server; its home for any other."""
    parts = urlsplit(address)
    inside = address.startswith("/") and not address.startswith("//") and "\\" not in address
    return address if inside and not parts.scheme and not parts.netloc else "/"


def _sign_in_page(request: Request, why: str) -> Response:
    to = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    to = "/" if request.url.path == "/-/login" else to
    return render.page("login", None, status=401, why=why, to=to)

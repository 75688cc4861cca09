"""Between HTTP and the hub: who calls, with what, and how a route reads its body."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from factory.localhub.accounts import Account
from factory.localhub.errors import (
    BadRequest,
    Busy,
    NotFound,
    ProtocolError,
    RepoNotFound,
    TooLarge,
    Unauthorized,
)
from factory.localhub.fields import Fields, read_json
from factory.localhub.git_objects import Commit
from factory.localhub.hub import LocalHub
from factory.localhub.repos import Kind, Repo

_BODY_LIMIT = 16 * 1024 * 1024
# Of callers without a token.
_OPEN_BODY_LIMIT = 1024 * 1024
# Of all bodies held in memory at once; callers without a token share a room of their own.
_BODIES_LIMIT = 256 * 1024 * 1024
_OPEN_BODIES_LIMIT = 32 * 1024 * 1024
# What is read and dropped of a body that was refused, so that its sender sees why.
_DRAIN_LIMIT = 256 * 1024 * 1024
_DRAIN_SECONDS = 60.0
KIND_OF_WORD: dict[str, Kind] = {"models": "model", "datasets": "dataset", "spaces": "space"}
_HOST = re.compile(r"[A-Za-z0-9.\-_:\[\]]+")


@dataclass(frozen=True)
class Call:
    """One request, from somebody we know; `params` are the decoded parts of its path."""

    hub: LocalHub
    account: Account
    method: str
    base: str
    params: Mapping[str, str]
    query: QueryParams
    headers: Mapping[str, str]
    body: bytes = b""

    def kind(self) -> Kind:
        """The kind of repo that the path speaks of. Raises NotFound."""
        word = self.params.get("kind", "models")
        if word in KIND_OF_WORD:
            return KIND_OF_WORD[word]
        if word == "kernels":
            raise RepoNotFound(f"this hub holds models, datasets and static Spaces, no {word}")
        raise NotFound("there is nothing at this address")

    def repo(self) -> Repo:
        """The repo that the path names. Raises RepoNotFound."""
        return self.hub.repos.find(
            self.kind(), self.params["namespace"], self.params["name"], self.account
        )

    def repo_to_write(self) -> Repo:
        """Return the repo that the path names, to change it. Raises RepoNotFound, Forbidden."""
        repo = self.repo()
        self.account.require_write()
        return repo

    def commit(self, repo: Repo) -> Commit:
        """The commit that the path names, of main where it names none. Raises RevisionNotFound."""
        return self.hub.history.resolve(repo, self.params.get("revision", "main"))

    def knows(self, words: str, what: str) -> None:
        """Raises BadRequest for a query parameter that is none of these words: it would else be
        passed over."""
        for key in self.query:
            if key not in words.split():
                raise BadRequest(f"this hub cannot {what} by {key!r}")

    def flag(self, key: str) -> bool:
        """Whether a query parameter says yes, as clients in several languages write it. Raises
        BadRequest."""
        word = self.query.get(key, "").lower()
        if word not in ("true", "1", "yes", "false", "0", "no", ""):
            raise BadRequest(f"query parameter {key!r} must be true or false, not {word!r}")
        return word in ("true", "1", "yes")

    def count(self, key: str, default: int, most: int) -> int:
        """A whole number from the query, between 0 and `most`. Raises BadRequest."""
        text = self.query.get(key, "")
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 12:
            raise BadRequest(f"query parameter {key!r} must be a whole number")
        return min(int(text), most)

    def json(self) -> Fields:
        """The body as a JSON object; an empty body is an empty one. Raises BadRequest."""
        return Fields(read_json(self.body or b"{}"))

    def form(self) -> dict[str, list[str]]:
        """The body as a form. Raises BadRequest."""
        try:
            return parse_qs(self.body.decode(), keep_blank_values=True)
        except ValueError as error:
            raise BadRequest("the body is not a form") from error


def route(
    method: str,
    path: str,
    handle: Callable[[Call], Response],
    *,
    open_to_all: bool = False,
) -> Route:
    """A route whose whole body is read first and whose handler runs in a thread."""

    async def endpoint(request: Request) -> Response:
        call = identify(request, open_to_all=open_to_all)
        bodies = _named_bodies if call.account.user else _open_bodies
        body = bytearray()
        try:
            async for chunk in request.stream():
                bodies.hold(len(body), len(chunk))
                body += chunk
            return await run_in_threadpool(handle, _with_body(call, bytes(body)))
        except (TooLarge, Busy):
            await drain(request)
            raise
        finally:
            bodies.let_go(len(body))

    return Route(path, endpoint, methods=[method])


class _Bodies:
    """Memory for bodies that are being read: so much for one, so much for all at once, in bytes."""

    def __init__(self, each: int, together: int) -> None:
        self._each = each
        self._remaining = together

    def hold(self, size: int, more: int) -> None:
        """Let a body of this size grow. Raises TooLarge, Busy."""
        if size + more > self._each:
            raise TooLarge(f"the body is over {self._each} bytes")
        if more > self._remaining:
            raise Busy("too much is being sent at once: try again", headers={"Retry-After": "1"})
        self._remaining -= more

    def let_go(self, size: int) -> None:
        """Give back what a body took."""
        self._remaining += size


_named_bodies = _Bodies(_BODY_LIMIT, _BODIES_LIMIT)
_open_bodies = _Bodies(_OPEN_BODY_LIMIT, _OPEN_BODIES_LIMIT)


def stream_route(method: str, path: str, handle: Callable[[Request], Awaitable[Response]]) -> Route:
    """A route whose handler takes the body as it comes.

    What it leaves unread when it raises is read and dropped: a client that is still sending would
    see a broken connection instead of the error.
    """

    async def endpoint(request: Request) -> Response:
        try:
            return await handle(request)
        except ProtocolError:
            await drain(request)
            raise

    return Route(path, endpoint, methods=[method])


def identify(request: Request, *, open_to_all: bool = False) -> Call:
    """The call that a request makes, its body aside. Raises Unauthorized, BadRequest."""
    hub = hub_of(request)
    try:
        account = hub.accounts.identify(request.headers.get("authorization"))
    except Unauthorized as error:
        if open_to_all:
            account = Account("", "read")
        elif "authorization" not in request.headers and "name" in request.path_params:
            # To those without a token every repo is absent.
            headers = {**error.headers, "X-Error-Code": "RepoNotFound"}
            raise Unauthorized(error.message, headers=headers) from error
        else:
            raise
    return Call(
        hub=hub,
        account=account,
        method=request.method,
        base=base_url(request),
        params={key: decode(value) for key, value in request.path_params.items()},
        query=request.query_params,
        headers=request.headers,
    )


def hub_of(request: Request) -> LocalHub:
    """The hub behind the server."""
    hub: LocalHub = request.app.state.hub
    return hub


def base_url(request: Request) -> str:
    """The address by which the client reached us: all links it is given start with it."""
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        raise BadRequest("the Host header is missing or malformed")
    return f"{request.url.scheme}://{host}"


def decode(part: str) -> str:
    """A part of a raw path, decoded. Raises BadRequest."""
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError as error:
        raise BadRequest("the address is not valid UTF-8") from error


async def drain(request: Request) -> None:
    """Read and drop the rest of the body, within limits."""
    dropped = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for chunk in request.stream():
                dropped += len(chunk)
                if dropped > _DRAIN_LIMIT:
                    return
    except (ClientDisconnect, RuntimeError, TimeoutError):  # it left, or all was read, or too slow
        pass


def _with_body(call: Call, body: bytes) -> Call:
    return Call(**{**call.__dict__, "body": body})

"""Check every answer of a hub before its client uses it.

The client joins headers into paths, follows pages and redirects, and waits as long as a hub asks.
One hook on the HTTP client that all Hub calls of this process share refuses answers that could
lead out of the cache or never end. It checks the answer that is then used, so a hub gains nothing
by answering differently later.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from huggingface_hub import set_client_factory
from huggingface_hub.utils import _http as client_room

from factory.artifacts import untrusted
from factory.errors import HubError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    import httpx2 as http
else:  # the client's own: a machine may have both
    http = getattr(client_room, "httpx2", None) or client_room.httpx

NO_ANSWER: type[Exception] = http.TransportError  # what the client raises then
NOT_DECODED: type[Exception] = http.DecodingError  # and for a body that is not what it says
_API_BYTES = 64 * 2**20  # of one answer of an API
_LISTING_BYTES = 2**30  # of all pages of one listing
_ERROR_BYTES = 2**20
_PAGES = 10_000  # of one listing
_LISTINGS = 64  # that are remembered at once
_API_SECONDS = 600.0  # for one answer of an API
_SILENCE = 600.0  # seconds without a byte
_HEAD_SECONDS = 60.0  # from the first byte of an answer to the end of its headers
_PATIENCE = 300.0  # seconds of waiting without a good answer in between
_ALL_PATIENCE = 3600.0  # seconds of waiting for one host, all together
_LOGGED = 2.0  # seconds; longer waits are logged
_COMMIT = "X-Repo-Commit"
_LINKED = "X-Linked-Etag"
_PUBLIC = ("huggingface.co", "hf.co")  # hubs with a Xet store

log = logging.getLogger("factory")
_size: ContextVar[int | None] = ContextVar("size", default=None)
# The request whose headers this thread waits for, and when they are to be complete.
_head: ContextVar[tuple[http.Request, float] | None] = ContextVar("head", default=None)


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Limit each body that this thread reads inside the block, in bytes. The call that reads a
    larger one raises HubError."""
    before = _size.set(size)
    try:
        yield
    finally:
        _size.reset(before)


def install() -> None:
    """Check all answers that Hub clients of this process get from now on."""
    before = client_room._GLOBAL_CLIENT_FACTORY
    if isinstance(before, _Guarded):
        return
    set_client_factory(_Guarded(before))


@contextmanager
def meanwhile() -> Iterator[None]:
    """Check answers inside the block only: afterwards the Hub clients of the user's program are as
    they were."""
    before = client_room._GLOBAL_CLIENT_FACTORY
    install()
    try:
        yield
    finally:
        set_client_factory(before)


@dataclass(frozen=True)
class _Guarded:
    """A factory of HTTP clients that adds our hooks to those of the factory `before`."""

    before: Callable[[], Any]

    def __call__(self) -> Any:
        client = self.before()
        hooks = client.event_hooks
        hooks["request"] = [*hooks["request"], _on_request]
        hooks["response"] = [_on_response, *hooks["response"]]
        client.event_hooks = hooks
        for transport in (client._transport, *client._mounts.values()):
            pool: Any = getattr(transport, "_pool", None)
            if (network := getattr(pool, "_network_backend", None)) is not None:
                pool._network_backend = _Timed(network)
        return client


@dataclass(frozen=True)
class _Timed:
    """A network, or a connection of it, with a limit of time for the headers of an answer: its
    client waits for any number of bytes of them, each within its own limit."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def connect_tcp(self, *arguments: Any, **options: Any) -> _Timed:
        return _Timed(self.inner.connect_tcp(*arguments, **options))

    def start_tls(self, *arguments: Any, **options: Any) -> _Timed:
        return _Timed(self.inner.start_tls(*arguments, **options))

    def read(self, *arguments: Any, **options: Any) -> bytes:
        """Read some bytes. Raises HubError if it is too late for them."""
        found: bytes = self.inner.read(*arguments, **options)
        if (waiting := _head.get()) is not None:
            request, end = waiting
            if time.monotonic() > end:
                what = f"takes more than {_HEAD_SECONDS:.0f} s for the headers of an answer"
                raise _refused(request, what)
            _head.set((request, min(end, time.monotonic() + _HEAD_SECONDS)))
        return found


def _on_request(request: http.Request) -> None:
    """Request an uncompressed body, whose size can be checked, and set missing timeouts."""
    request.headers["Accept-Encoding"] = "identity"
    limits = dict(request.extensions.get("timeout") or {})
    limits |= {key: limits.get(key) or _SILENCE for key in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": limits}
    _head.set((request, math.inf))


def _on_response(response: http.Response) -> None:
    """Refuse a harmful answer. Raises HubError."""
    _head.set(None)
    try:
        _ids(response)
    except untrusted.Untrusted as error:
        raise HubError(f"{response.url.host}: {error.what}", error.fix) from None
    _xet(response)
    _redirect(response)
    listing = _pages(response)
    _wait(response)
    _bound(response, listing)


def _ids(response: http.Response) -> None:
    """Check the headers that the client uses as file names. Raises Untrusted."""
    headers = response.headers
    for name in (_COMMIT, "X-Linked-Commit"):
        if name in headers:
            untrusted.commit(headers[name])
    if _LINKED in headers:
        untrusted.etag(headers[_LINKED])
    if "ETag" in headers:
        try:
            untrusted.etag(headers["ETag"])
        except untrusted.Untrusted:
            # Only answers about files give file names; others may have a slash in their ETag.
            if response.request.method == "HEAD" or "/resolve/" in response.request.url.path:
                raise
            del headers["ETag"]


def _xet(response: http.Response) -> None:
    """Drop Xet headers except on public hubs: a Xet store has its own client, without checks."""
    if response.url.host in _PUBLIC and response.url.scheme == "https":
        return
    for name in [name for name in response.headers if name.lower().startswith("x-xet-")]:
        del response.headers[name]


def _redirect(response: http.Response) -> None:
    """Refuse a redirect to anything but HTTP, or from HTTPS to plain HTTP. Raises HubError.

    The client itself ends loops and sends no token to another host."""
    if not response.has_redirect_location:
        return
    location = response.headers["Location"]
    try:
        target = response.url.join(location)
    except Exception:  # noqa: BLE001  (whatever makes it unreadable)
        target = None
    if target is None or target.scheme not in ("http", "https") or not target.host:
        raise _refusal(response, f"redirects to {location[:80]!r}, which is not a valid address")
    if response.url.scheme == "https" and target.scheme == "http":
        raise _refusal(response, f"redirects from HTTPS to plain HTTP at {target.host}")


@dataclass
class _Listing:
    """Addresses of the pages of one listing so far, and the bytes that the rest may have."""

    pages: set[str] = field(default_factory=set)
    remaining: int = _LISTING_BYTES


_lock = threading.Lock()
_listings: OrderedDict[str, _Listing] = OrderedDict()  # by the address of their next page


def _pages(response: http.Response) -> _Listing | None:
    """Return the listing that an answer is a page of. Raises HubError if its next page is on
    another host, was read already, or exceeds the limit of pages."""
    here = str(response.request.url)
    try:
        link = response.links.get("next", {}).get("url")
        following = None if link is None else response.request.url.join(link)
    except Exception:  # noqa: BLE001  (whatever makes it unreadable)
        raise _refusal(response, "gives an invalid address for the next page") from None
    with _lock:
        listing = _listings.pop(here, None)
        if following is None:
            return listing
        if _origin(following) != _origin(response.request.url):
            raise _refusal(response, f"continues a listing on another host, {following.host}")
        listing = listing or _Listing()
        listing.pages.add(here)
        if str(following) in listing.pages:
            raise _refusal(response, "repeats a page of a listing")
        if len(listing.pages) >= _PAGES:
            raise _refusal(response, f"returns a listing of more than {_PAGES} pages")
        _listings[str(following)] = listing
        while len(_listings) > _LISTINGS:
            _listings.popitem(last=False)
        return listing


def _origin(url: http.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


@dataclass
class _Waiting:
    """Waits for one host, on the monotonic clock in seconds: start of the current series without a
    good answer, end of the last wait, and their total."""

    since: float | None = None
    until: float = 0.0
    total: float = 0.0


_waiting: dict[str, _Waiting] = {}


def _wait(response: http.Response) -> None:
    """Log the wait that a hub asks for. Raises HubError if it is too long."""
    host, status = response.url.netloc.decode(), response.status_code
    with _lock:
        state = _waiting.setdefault(host, _Waiting())
        if status < 400:
            state.since = None
            return
        seconds = _seconds(response.headers)
        if seconds is None or not (status in (408, 425, 429) or status >= 500):
            return
        now = time.monotonic()
        state.since = now if state.since is None else state.since
        more = max(0.0, now + seconds - max(now, state.until))
        waited = now - state.since
        if waited + seconds > _PATIENCE or state.total + more > _ALL_PATIENCE:
            raise HubError(
                f"{host} asks to wait {seconds} seconds (status {status}), after {waited:.0f} "
                f"seconds without a good answer and {state.total:.0f} seconds of waiting in total",
                "run the same command again later; finished work is kept",
            )
        state.until, state.total = max(state.until, now + seconds), state.total + more
    if more >= _LOGGED:
        log.warning("%s asks to wait %d seconds (status %d)", host, seconds, status)


def _seconds(headers: MutableMapping[str, str]) -> int | None:
    """Return the seconds that a hub asks to wait, None if none; leave them in one plain header."""
    value = headers.get("Retry-After", "").strip()
    limit = client_room.parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        value = str(limit.reset_in_seconds)
    for name in ("Retry-After", "ratelimit"):
        if name in headers:
            del headers[name]
    if not (value.isascii() and value.isdigit()):
        return None
    seconds = int(value[:9]) if len(value) > 9 else int(value)
    headers["Retry-After"] = str(seconds)
    return seconds


def _bound(response: http.Response, listing: _Listing | None) -> None:
    """Limit the size of a body. Raises HubError, here or from the call that reads the body."""
    if response.request.method == "HEAD":
        return
    size, path, good = _size.get(), response.url.path, response.status_code < 300
    encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
    if encoded and good:
        raise _refusal(response, "sends a compressed body, which was not requested")
    api = "/api/" in path or path.endswith("/info/lfs/objects/batch")
    if not good:
        most = _ERROR_BYTES // 16 if encoded else _ERROR_BYTES
    elif size is not None:
        most = size
    elif api:
        most = _API_BYTES
    else:
        return
    length = response.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > most):
        raise _too_much(response, most)
    body: Any = response.stream
    response.stream = _Bound(body, response, most, None if size is not None else listing)


class _Bound(http.SyncByteStream):  # type: ignore[misc]  # it has no types
    """A body with a limit of bytes and, for an API, of time."""

    def __init__(
        self, body: Any, response: http.Response, most: int, listing: _Listing | None
    ) -> None:
        self._body, self._response, self._most, self._listing = body, response, most, listing
        self._end = None if _size.get() is not None else time.monotonic() + _API_SECONDS

    def __iter__(self) -> Iterator[bytes]:
        remaining = self._most
        for chunk in self._body:
            remaining -= len(chunk)
            if self._listing is not None:
                self._listing.remaining -= len(chunk)
            if remaining < 0:
                raise _too_much(self._response, self._most)
            if self._listing is not None and self._listing.remaining < 0:
                raise _too_much(self._response, _LISTING_BYTES)
            if self._end is not None and time.monotonic() > self._end:
                raise _refusal(self._response, f"takes more than {_API_SECONDS:.0f} s to answer")
            yield chunk

    def close(self) -> None:
        self._body.close()


def _too_much(response: http.Response, most: int) -> HubError:
    return _refusal(response, f"sends more than the {most} bytes allowed")


def _refusal(response: http.Response, what: str) -> HubError:
    return _refused(response.request, what)


def _refused(request: http.Request, what: str) -> HubError:
    return HubError(
        f"{request.url.host} {what} (request: {request.method} {request.url.path[:120]})",
        "try again; if it happens again, do not trust this hub",
    )

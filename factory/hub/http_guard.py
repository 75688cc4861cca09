"""Every answer of a hub is looked at before its client uses it.

The client joins headers into paths, follows pages and redirects, and waits as long as it is told.
One hook on the HTTP client that all Hub calls of this process share refuses what could lead out of
the cache or never end. It sees the very answer that is used: a hub that says one thing now and
another later gains nothing.
"""

from __future__ import annotations

import logging
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
_API_BYTES = 64 * 2**20  # of one answer of an API
_LISTING_BYTES = 2**30  # of all pages of one listing
_ERROR_BYTES = 2**20
_PAGES = 10_000  # of one listing
_LISTINGS = 64  # that are remembered at once
_API_SECONDS = 600.0  # for one answer of an API
_SILENCE = 600.0  # seconds without a byte
_PATIENCE = 300.0  # seconds of waiting without a good answer in between
_ALL_PATIENCE = 3600.0  # seconds of waiting for one host, all together
_TOLD = 2.0  # seconds of waiting from which on it is said
_COMMIT = "X-Repo-Commit"
_LINKED = "X-Linked-Etag"
_PUBLIC = ("huggingface.co", "hf.co")  # hubs with a Xet store

log = logging.getLogger("factory")
_size: ContextVar[int | None] = ContextVar("size", default=None)


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No body that comes in meanwhile, in this thread, may have more bytes. Raises HubError from
    the call that reads it."""
    before = _size.set(size)
    try:
        yield
    finally:
        _size.reset(before)


def install() -> None:
    """Look at all answers that Hub clients of this process get from now on."""
    before = client_room._GLOBAL_CLIENT_FACTORY
    if isinstance(before, _Guarded):
        return
    set_client_factory(_Guarded(before))


@contextmanager
def meanwhile() -> Iterator[None]:
    """Look at answers inside a block of somebody else's program, whose Hub clients are afterwards
    what they were."""
    before = client_room._GLOBAL_CLIENT_FACTORY
    install()
    try:
        yield
    finally:
        set_client_factory(before)


@dataclass(frozen=True)
class _Guarded:
    """A maker of HTTP clients that adds the hooks to those of another maker."""

    before: Callable[[], Any]

    def __call__(self) -> Any:
        made = self.before()
        hooks = made.event_hooks
        hooks["request"] = [*hooks["request"], _asked]
        hooks["response"] = [_answered, *hooks["response"]]
        made.event_hooks = hooks
        return made


def _asked(request: http.Request) -> None:
    """Ask for plain bytes, whose number can be held against what was announced, and not without
    end."""
    request.headers["Accept-Encoding"] = "identity"
    limits = dict(request.extensions.get("timeout") or {})
    limits |= {key: limits.get(key) or _SILENCE for key in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": limits}


def _answered(response: http.Response) -> None:
    """Refuse an answer that could do harm. Raises HubError."""
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
    """Headers of which the client makes names of files."""
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
            # Of other answers nobody makes a file name, and theirs may hold a slash.
            if response.request.method == "HEAD" or "/resolve/" in response.request.url.path:
                raise
            del headers["ETag"]


def _xet(response: http.Response) -> None:
    """A Xet store is asked by a client of its own, which is not looked at: for public hubs only."""
    if response.url.host in _PUBLIC and response.url.scheme == "https":
        return
    for name in [name for name in response.headers if name.lower().startswith("x-xet-")]:
        del response.headers[name]


def _redirect(response: http.Response) -> None:
    """A redirect stays with HTTP, and with TLS. A token does not go to another host: the client
    sees to that. It ends loops, too."""
    if not response.has_redirect_location:
        return
    there = response.headers["Location"]
    try:
        target = response.url.join(there)
    except Exception:  # noqa: BLE001  (whatever makes it unreadable)
        target = None
    if target is None or target.scheme not in ("http", "https") or not target.host:
        raise _refusal(response, f"sends to {there[:80]!r}, which is no address")
    if response.url.scheme == "https" and target.scheme == "http":
        raise _refusal(response, f"sends to {target.host} without encryption")


@dataclass
class _Listing:
    """The pages of one listing so far."""

    seen: set[str] = field(default_factory=set)
    left: int = _LISTING_BYTES


_lock = threading.Lock()
_listings: OrderedDict[str, _Listing] = OrderedDict()  # by the address of their next page


def _pages(response: http.Response) -> _Listing | None:
    """The listing that an answer is a page of. Raises HubError where it leads elsewhere or has no
    end."""
    here = str(response.request.url)
    try:
        found = response.links.get("next", {}).get("url")
        following = None if found is None else response.request.url.join(found)
    except Exception:  # noqa: BLE001  (whatever makes it unreadable)
        raise _refusal(response, "names a next page that is no address") from None
    with _lock:
        listing = _listings.pop(here, None)
        if following is None:
            return listing
        if _origin(following) != _origin(response.request.url):
            raise _refusal(response, f"goes on with a page of {following.host}, another host")
        listing = listing or _Listing()
        listing.seen.add(here)
        if str(following) in listing.seen:
            raise _refusal(response, "has a listing that leads back to a page that was read")
        if len(listing.seen) >= _PAGES:
            raise _refusal(response, f"has a listing of more than {_PAGES} pages")
        _listings[str(following)] = listing
        while len(_listings) > _LISTINGS:
            _listings.popitem(last=False)
        return listing


def _origin(url: http.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


@dataclass
class _Waiting:
    """How long one host made us wait, in seconds of the clock: since its last good answer, until
    when, and all together."""

    since: float | None = None
    until: float = 0.0
    total: float = 0.0


_waiting: dict[str, _Waiting] = {}


def _wait(response: http.Response) -> None:
    """Say how long a hub makes us wait, and refuse to wait for ever. Raises HubError."""
    host, status = response.url.netloc.decode(), response.status_code
    with _lock:
        state = _waiting.setdefault(host, _Waiting())
        if status < 400:
            state.since = None
            return
        asked = _seconds(response.headers)
        if asked is None or not (status in (408, 425, 429) or status >= 500):
            return
        now = time.monotonic()
        state.since = now if state.since is None else state.since
        more = max(0.0, now + asked - max(now, state.until))
        waited = now - state.since
        if waited + asked > _PATIENCE or state.total + more > _ALL_PATIENCE:
            raise HubError(
                f"{host} asks to wait {asked} seconds (status {status}); it had {waited:.0f}, and "
                f"{state.total:.0f} in all",
                "run the same command again later; finished work is kept",
            )
        state.until, state.total = max(state.until, now + asked), state.total + more
    if more >= _TOLD:
        log.warning("%s asks to wait %d seconds (status %d)", host, asked, status)


def _seconds(headers: MutableMapping[str, str]) -> int | None:
    """For how long a client is asked to wait; the header is all that it reads of that then."""
    asked = headers.get("Retry-After", "").strip()
    limit = client_room.parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        asked = str(limit.reset_in_seconds)
    for name in ("Retry-After", "ratelimit"):
        if name in headers:
            del headers[name]
    if not (asked.isascii() and asked.isdigit()):
        return None
    seconds = int(asked[:9]) if len(asked) > 9 else int(asked)
    headers["Retry-After"] = str(seconds)
    return seconds


def _bound(response: http.Response, listing: _Listing | None) -> None:
    """Cut a body off where it is larger than it may be. Raises HubError, or lets the reading."""
    if response.request.method == "HEAD":
        return
    size, path, good = _size.get(), response.url.path, response.status_code < 300
    encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
    if encoded and good:
        raise _refusal(response, "sends compressed what was asked for as it is")
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
    """A body that may have so many bytes and, if it is of an API, take so long."""

    def __init__(
        self, body: Any, response: http.Response, most: int, listing: _Listing | None
    ) -> None:
        self._body, self._response, self._most, self._listing = body, response, most, listing
        self._end = None if _size.get() is not None else time.monotonic() + _API_SECONDS

    def __iter__(self) -> Iterator[bytes]:
        left = self._most
        for chunk in self._body:
            left -= len(chunk)
            if self._listing is not None:
                self._listing.left -= len(chunk)
            if left < 0:
                raise _too_much(self._response, self._most)
            if self._listing is not None and self._listing.left < 0:
                raise _too_much(self._response, _LISTING_BYTES)
            if self._end is not None and time.monotonic() > self._end:
                raise _refusal(self._response, f"takes over {_API_SECONDS:.0f} seconds to answer")
            yield chunk

    def close(self) -> None:
        self._body.close()


def _too_much(response: http.Response, most: int) -> HubError:
    return _refusal(response, f"sends more than the {most} bytes that it may")


def _refusal(response: http.Response, what: str) -> HubError:
    asked = f"{response.request.method} {response.request.url.path[:120]}"
    return HubError(
        f"{response.url.host} {what} (asked: {asked})",
        "do not use that hub unless you know why; on a genuine one, try again",
    )

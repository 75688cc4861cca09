"""Network errors between us and a hub: their causes, which are transient, and waiting.

Lines about waiting go to the logger `factory`, which prints on stderr where nobody configured it.
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
)

from factory.errors import HubError
from factory.hub import http_guard
from factory.hub.environment import called

_PATIENCE = 2.0  # seconds before waiting is logged
_TRIES = 4  # of a first contact, after 1, 2 and 4 s
_ANSWER = 10.0  # seconds that each of them may take
UNREADABLE: tuple[type[Exception], ...] = (json.JSONDecodeError, http_guard.NOT_DECODED)
log = logging.getLogger("factory")


def connection_errors() -> tuple[type[Exception], ...]:
    """Return what the client and its HTTP library raise when there is no answer, or one that
    cannot be read: a page of a proxy, a body cut short."""
    return (http_guard.NO_ANSWER, ConnectionError, TimeoutError, *UNREADABLE)


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an answer; 0 where there was none."""
    response = getattr(error, "response", None)
    return 0 if response is None else int(response.status_code)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def root_cause(error: BaseException) -> BaseException:
    """Return the answer or the lost connection behind an error: the client wraps both in others
    (RuntimeError for an upload, LocalEntryNotFoundError for a download)."""
    for link in chain(error):
        if isinstance(link, connection_errors()) or status_of(link):
            return link
    return error


def resolves(error: BaseException) -> bool:
    """Return whether the hub's name had an address: if not, trying again is of no use."""
    return not any(isinstance(link, socket.gaierror) for link in chain(error))


def reason(error: BaseException) -> str:
    """Return in a few words why there was no answer."""
    for link in chain(error):
        if isinstance(link, socket.gaierror):
            return f"its name does not resolve ({link.strerror})"
        if isinstance(link, ssl.SSLError):
            return f"no secure connection ({link.reason or link})"
        if isinstance(link, ConnectionRefusedError):
            return "connection refused"
        if isinstance(link, TimeoutError) or "Timeout" in type(link).__name__:
            return "no answer in time"
        if isinstance(link, UNREADABLE):
            return "its answer cannot be read"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def unreachable(endpoint: str, error: BaseException) -> HubError:
    """Return the error for a hub that does not answer, with its cause and a fix for it."""
    if resolves(error):
        fix = "check that it runs, the port, and the network or proxy; finished work is kept"
    else:
        fix = "check the address, and that this machine has a network; finished work is kept"
    return HubError(f"{called(endpoint)} cannot be reached: {reason(error)}", fix)


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Log one line, `what`, if the block takes longer than two seconds."""
    timer = Timer(_PATIENCE, log.warning, ("%s", what))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def announce_retry(state: RetryCallState) -> None:
    """Log why a call is tried again, once the wait for it gets long."""
    error = root_cause(state.outcome.exception()) if state.outcome else None  # type: ignore[arg-type]
    pause = state.next_action.sleep if state.next_action else 0.0
    if error is None or (state.seconds_since_start or 0.0) + pause < _PATIENCE:
        return
    status = status_of(error)
    cause = f"answered {status}" if status else reason(error)
    log.warning("%s: %s; trying again in %.0f s", host_of(error) or "the hub", cause, pause)


def host_of(error: BaseException) -> str:
    """Return the address of the hub that was asked, if the error knows it: https://host:port."""
    url = address_of(error)
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if rest else ""


def address_of(error: BaseException) -> str:
    """Return the URL that was asked for when an error came up, if any in its chain knows it."""
    for link in chain(error):
        try:
            return str(link.request.url)  # type: ignore[attr-defined]
        except (AttributeError, RuntimeError):
            continue
    return ""


def await_hub(endpoint: str) -> None:
    """Ask a hub for its front page until it answers anything at all. Raises HubError."""
    http_guard.install()

    def passing(error: BaseException) -> bool:
        return isinstance(error, connection_errors()) and resolves(error)

    def ask() -> None:
        with announced(f"waiting for {endpoint}"):
            get_session().head(endpoint, timeout=_ANSWER)

    try:
        Retrying(
            retry=retry_if_exception(passing),
            stop=stop_after_attempt(_TRIES) | stop_after_delay(2 * _ANSWER),
            wait=wait_exponential(multiplier=1),
            before_sleep=announce_retry,
            reraise=True,
        )(ask)
    except HfHubHTTPError:
        return  # an answer
    except connection_errors() as error:
        raise unreachable(endpoint, error) from None

"""Open a session with a hub: the local one, started if needed, or the one named by --hub."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from factory.artifacts.resources import home_path, prepare_home
from factory.artifacts.workdir import Home
from factory.errors import HubError
from factory.hub.environment import (
    PAGES,
    PUBLIC,
    configure_clients,
    is_public,
    name_local_hub,
    restored_settings,
)
from factory.localhub.launcher import HubStartError, connect, environment, own_place

if TYPE_CHECKING:
    from factory.hub.client import Hub

PLAIN_HTTP = "FACTORY_PLAIN_HTTP"  # set to 1 by factory --plain-http
_LOCAL_TOKEN = "hf_local_"  # how tokens of local hubs begin


@contextmanager
def session(endpoint: str | None) -> Iterator[tuple[Home, Hub]]:
    """Yield the home directory and a hub, for as long as the block lasts. Raises HubError."""
    home = Home(home_path())
    prepare_home(home.root)
    if endpoint is None:
        try:
            with connect(home.hub, PAGES) as connection:
                place = own_place(home.hub)
                cache = home.cache if place == home.hub else place / "cache"
                os.environ.update(environment(connection, cache))
                configure_clients(connection.url)
                name_local_hub(connection.url, home.root)
                from factory.hub.client import Hub

                yield home, Hub(connection.url, connection.token, cache / "hub")
        except HubStartError as error:
            raise not_started(error) from None
        return
    endpoint = address(endpoint)
    token = remote_token(endpoint)  # before this hub becomes that of the environment
    os.environ["HF_ENDPOINT"] = endpoint
    # A client's cache does not know which hub a repo came from: one cache a hub.
    cache = home.root / "caches" / urlsplit(endpoint).netloc
    os.environ["HF_HUB_CACHE"] = str(cache)
    if token is None:  # then no library may find one either
        os.environ.pop("HF_TOKEN", None)
        os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    from factory.hub.client import Hub
    from factory.hub.connection import await_hub

    await_hub(endpoint)

    yield home, Hub(endpoint, token, cache)


@contextmanager
def visit(endpoint: str | None) -> Iterator[tuple[Home, Hub]]:
    """Open a session inside somebody's own program, and leave its environment and its Hub clients
    as they were. Raises HubError."""
    with restored_settings():
        from factory.hub.http_guard import meanwhile

        with meanwhile(), session(endpoint) as opened:
            yield opened


def address(endpoint: str) -> str:
    """Return a hub's address in its normal form. Raises HubError if it is invalid or has a password
    in it, which would end in logs, names of caches and links."""
    if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).netloc:
        raise HubError(
            f"{endpoint!r} is not a hub's address", "write it like https://huggingface.co"
        )
    if "@" in urlsplit(endpoint).netloc:
        raise HubError(
            f"a hub's address must not contain a user or password: {endpoint}",
            "leave them out, and give a token as HF_TOKEN or by hf auth login",
        )
    return endpoint.rstrip("/")


def remote_token(endpoint: str) -> str | None:
    """Return the user's own token (HF_TOKEN, or hf auth login) if it is for this hub.

    It belongs to the hub that HF_ENDPOINT names, huggingface.co by default, and goes to no other;
    a local hub's token is known by its beginning. Raises HubError for a token that would go over
    plain http to another machine.
    """
    configure_clients(endpoint)  # before the client is imported
    import huggingface_hub

    token = huggingface_hub.get_token()
    if token is None:
        return None
    owner = os.environ.get("HF_ENDPOINT") or PUBLIC
    local = token.startswith(_LOCAL_TOKEN)
    own = _origin(endpoint) == _origin(owner) and not (local and is_public(endpoint))
    if not own and not (local and not is_public(endpoint)):
        return None  # what that hub then refuses names the fix: see client.py
    if _crosses_network(endpoint) and os.environ.get(PLAIN_HTTP) != "1":
        raise HubError(
            f"{endpoint} is plain http: anybody on the way could read your token",
            "use https, or an ssh tunnel to 127.0.0.1; factory --plain-http sends it nevertheless",
        )
    return token


def _origin(endpoint: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(endpoint)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _crosses_network(endpoint: str) -> bool:
    """Return whether what is sent to a hub can be read on the way to it."""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return parts.scheme == "http" and not loopback


def not_started(error: HubStartError) -> HubError:
    """Return the error for a local hub that does not start, with the fix for its cause."""
    return HubError(f"the local hub did not start: {error}", error.fix)

"""A hub to work with: the local one, started if need be, or the one named by --hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from factory.cli.app import home_path
from factory.errors import HubError
from factory.localhub.launcher import HubStartError, connect, environment
from factory.quiet import QUIET
from factory.work import Home

if TYPE_CHECKING:
    from factory.hub import Hub


@contextmanager
def session(endpoint: str | None) -> Iterator[tuple[Home, Hub]]:
    """The home directory and a hub, for as long as the block lasts. Raises HubError.

    The clients read their settings when they are imported, so nothing that imports them may be
    imported before this.
    """
    home = Home(home_path())
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    if endpoint is None:
        try:
            with connect(home.hub) as connection:
                os.environ.update(environment(connection, home.cache))
                from factory.hub import Hub

                yield home, Hub(connection.url, connection.token, home.cache / "hub")
        except HubStartError as error:
            from factory.cli.transfer import not_started

            raise not_started(error) from None
        return
    endpoint = address(endpoint)
    os.environ["HF_ENDPOINT"] = endpoint
    # A client's cache does not know which hub a repo came from: one cache a hub.
    cache = home.root / "caches" / urlsplit(endpoint).netloc
    os.environ["HF_HUB_CACHE"] = str(cache)
    from factory.hub import Hub

    yield home, Hub(endpoint, remote_token(), cache)


@contextmanager
def visit(endpoint: str | None) -> Iterator[tuple[Home, Hub]]:
    """A session inside somebody's own program, whose environment and Hub clients are afterwards
    what they were. Raises HubError."""
    before = dict(os.environ)
    try:
        remote_token()  # imports the client now, with the settings that it is to keep
        from factory.http_guard import meanwhile
        from factory.hub import without_xet

        off = without_xet() if endpoint is None else nullcontext()
        with meanwhile(), session(endpoint) as found, off:
            yield found
    finally:
        os.environ.clear()
        os.environ.update(before)


def address(endpoint: str) -> str:
    """A hub's address as people give it, made even. Raises HubError for what is none, and for one
    with a password in it, which would end in logs, names of caches and links."""
    if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).netloc:
        raise HubError(
            f"{endpoint!r} is not a hub's address", "write it like https://huggingface.co"
        )
    if "@" in urlsplit(endpoint).netloc:
        raise HubError(
            f"a hub's address holds no user or password: {endpoint}",
            "leave them out, and give a token as HF_TOKEN or by hf auth login",
        )
    return endpoint.rstrip("/")


def remote_token() -> str | None:
    """The user's own token, for hubs other than the local one: HF_TOKEN, or hf auth login."""
    for key, value in QUIET.items():  # before the client is imported for the first time
        os.environ.setdefault(key, value)
    import huggingface_hub

    return huggingface_hub.get_token()

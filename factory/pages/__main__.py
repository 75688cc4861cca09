"""The local hub's server with pages mounted on it: python -m factory.pages."""

from __future__ import annotations

from starlette.types import ASGIApp

from factory.localhub import server
from factory.localhub.hub import LocalHub


def pages(hub: LocalHub) -> ASGIApp:
    """Build the pages. They are slow to import, so a server does it when the first is asked for."""
    from factory.pages.app import build

    return build(hub)


if __name__ == "__main__":
    server.end(server.main(pages))

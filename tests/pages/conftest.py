"""A hub with the story in it, served with its pages, and readers who are signed in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import httpx
import pytest

from factory.localhub.hub import LocalHub
from factory.localhub.launcher import Connection, connect
from tests.support.story import put, tell

HTML = {"Accept": "text/html,application/xhtml+xml"}
_LINK = re.compile(r'(?:href|src|action)="(/[^"]*)"')


@dataclass(frozen=True)
class Story:
    """A served hub: its address and token, its home, its collection, and a guest's token."""

    connection: Connection
    home: Path
    slug: str
    guest: str

    @contextmanager
    def reader(self, token: str | None = None) -> Iterator[httpx.Client]:
        """A browser that is signed in with a token, by default the owner's."""
        with httpx.Client(base_url=self.connection.url, headers=HTML, timeout=30) as client:
            assert client.get(self.invitation(token)).status_code == 303
            yield client

    def invitation(self, token: str | None = None) -> str:
        """The path of a link that signs in."""
        bearer = {"Authorization": f"Bearer {token or self.connection.token}"}
        answer = httpx.post(f"{self.connection.url}/-/login", headers=bearer, timeout=30)
        return f"/-/login?once={answer.json()['once']}"


def links(text: str) -> list[str]:
    """The addresses on a page that lead to this hub."""
    return list(dict.fromkeys(unescape(link).partition("#")[0] for link in _LINK.findall(text)))


@pytest.fixture(scope="package")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    home = tmp_path_factory.mktemp("pages") / "home"
    slug = tell(home / "hub")
    hub = LocalHub(home / "hub")
    put(hub, "dataset", "local/secret", {"README.md": b"# Nobody else reads this"}, private=True)
    guest = hub.accounts.create_token("guest", "read")
    hub.close()
    with connect(home / "hub", "factory.pages") as connection:
        yield Story(connection, home, slug, guest)
    log = (home / "hub" / "server.log").read_text()
    assert "Traceback" not in log, log


@pytest.fixture
def reader(story: Story) -> Iterator[httpx.Client]:
    with story.reader() as client:
        yield client


@pytest.fixture
def page(reader: httpx.Client) -> Callable[[str], str]:
    """The text of a page that the owner reads, its markup in it."""

    def get(path: str) -> str:
        answer = reader.get(path, follow_redirects=True)
        assert answer.status_code == 200, answer.text
        return unescape(answer.text)

    return get

"""A hub of its own for these tests, and clients to use it: unmodified ones, from the registry."""

from __future__ import annotations

import os

# Clients read these when they are imported.
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from localhub_client import Reply, new_token, send

from factory.localhub.launcher import Connection, connect, environment

constants.HF_HUB_DISABLE_XET = True  # if another test imported it before us
_numbers = itertools.count()


@dataclass(frozen=True)
class Guests:
    """Tokens of others: one user who may write, one who may only read."""

    writer: str
    reader: str


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub") / "root"


@pytest.fixture(scope="session")
def guests(root: Path) -> Guests:
    return Guests(new_token(root, "eve", "write"), new_token(root, "rob", "read"))


@pytest.fixture(scope="session")
def hub(root: Path, guests: Guests) -> Iterator[Connection]:
    with connect(root) as connection:
        yield connection
    # Nothing in any test may have been a surprise to the server.
    assert "Traceback" not in (root / "server.log").read_text()


@pytest.fixture(scope="session")
def api(hub: Connection) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def repo(api: HfApi) -> str:
    """A new dataset repo."""
    return api.create_repo(f"org/data-{next(_numbers)}", repo_type="dataset").repo_id


@pytest.fixture
def raw(hub: Connection) -> Callable[..., Reply]:
    """Send a request with our token."""

    def ask(method: str, path: str, **options: Any) -> Reply:
        return send(hub.url, method, path, **{"token": hub.token, **options})

    return ask


@pytest.fixture
def client_env(hub: Connection, tmp_path: Path) -> dict[str, str]:
    """The environment of a process that knows of this hub only."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {**kept, **environment(hub, tmp_path / "cache")}

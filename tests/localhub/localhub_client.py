"""Raw requests to a hub, and its server's command line, for tests that no client would do."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SOURCE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Reply:
    """A raw HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def send(
    url: str,
    method: str,
    path: str,
    *,
    token: str | None = None,
    body: bytes | str | Iterator[bytes] | None = None,
    headers: dict[str, str] | None = None,
) -> Reply:
    """One request with its path exactly as given."""
    address = urlsplit(url)
    client = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    try:
        auth = {"Authorization": f"Bearer {token}"} if token else {}
        client.request(method, path, body=body, headers={**auth, **(headers or {})})
        response = client.getresponse()
        found = {key.lower(): value for key, value in response.getheaders()}
        return Reply(response.status, found, response.read())
    finally:
        client.close()


def server_command(root: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "factory.localhub.server", "--root", str(root), *options]


def new_token(root: Path, user: str, role: str) -> str:
    command = server_command(root, "--new-token", user, "--role", role)
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=True)
    return done.stdout.strip()

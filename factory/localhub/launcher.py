"""The one door to the hub for the rest of the project: find its server, or start it, and use it.

A server lives as long as some process holds a shared lock on `<root>/users.lock`, which the kernel
lets go of however that process ends. So nobody has to stop a server, and none is left behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

_START_SECONDS = 30.0
_PROBE_SECONDS = 5.0
_POLL_SECONDS = 0.02
_TAKEN_SECONDS = 0.5
_LOG_LINES = 8
# How a server ends when another has the store open, here or on another host; as in server.py, which
# is slow to import.
_EXIT_TAKEN, _EXIT_ELSEWHERE, _EXIT_DAMAGED = 3, 4, 5
# Servers that this process started: kept, so that they are waited for when they end before it does.
_started: list[subprocess.Popen[bytes]] = []


class HubStartError(RuntimeError):
    """The local hub could not be started; the message says why and ends with its log."""

    fix = "set FACTORY_HOME to a folder that you can write to; factory doctor says what is wrong"


class HubDamagedError(HubStartError):
    """The database of the local hub cannot be read."""

    fix = "put a backup in the place of the hub's folder: see factory hub backup --help"


class HubTakenError(HubStartError):
    """Another host has the store open; the message says which."""

    fix = "work on that host, or end what uses the hub there; set FACTORY_HOME for a hub of its own"


class HubFullError(HubStartError):
    """The disk of the local hub is full."""

    fix = "free some space, or set FACTORY_HOME to a folder on another disk"


@dataclass(frozen=True)
class Connection:
    """A server that is alive, and the token it wants."""

    url: str
    token: str
    root: Path


@contextlib.contextmanager
def connect(root: Path, program: str = "factory.localhub.server") -> Iterator[Connection]:
    """A server for the hub under `root`, found or started; it stays at least as long as the block.

    `program` is the module that is run as the server: this one, or one that mounts pages on it.

    Raises HubStartError.
    """
    root = root.absolute()
    deadline = time.monotonic() + _START_SECONDS
    with contextlib.ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            place = own_place(root)
            # Open to read and write: network file systems ask for both.
            users = stack.enter_context((place / "users.lock").open("a+b"))
            # In this order: a server that is about to leave holds the first lock until it is gone.
            _wait_for(users, fcntl.LOCK_SH, deadline, place)
            with (place / "start.lock").open("a+b") as starting:
                _wait_for(starting, fcntl.LOCK_EX, deadline, place)
                connection = _find(root, place) or _start(root, place, deadline, program)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise HubFullError(f"no space is left on the disk of {root}") from error
            raise HubStartError(f"the local hub in {root} cannot be used: {error}") from error
        yield connection


def await_end(root: Path) -> None:
    """Wait until no server has the store under `root` open. Raises HubStartError."""
    with (root / "store.lock").open("a+b") as store:
        _wait_for(store, fcntl.LOCK_EX, time.monotonic() + _START_SECONDS, root)


def running(root: Path) -> Connection | None:
    """The live server of the hub under `root`, if there is one; it is not kept alive by this."""
    root = root.absolute()
    try:
        return _find(root, own_place(root))
    except (OSError, HubStartError):
        return None


def _find(root: Path, place: Path) -> Connection | None:
    """The live server whose own files lie in `place`."""
    try:
        facts = json.loads((place / "server.json").read_text())
        url, store = facts["url"], facts["store"]
        token = (place / "token").read_text().strip()
        if store != identity(root):  # of a folder that this one is a copy of
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    connection = Connection(url, token, root)
    return connection if _answers(connection) else None


def identity(root: Path) -> list[int]:
    """Return device and inode: they differ between copies of a folder and survive a rename."""
    facts = root.stat()
    return [facts.st_dev, facts.st_ino]


def environment(connection: Connection, cache: Path) -> dict[str, str]:
    """Return environment variables that make the Hub clients of a process use this server.

    Clients read it when they are imported. `cache` must belong to this hub alone: the names in a
    client's cache do not tell from which hub a repo came.
    """
    cache = cache.absolute()
    hosts = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    hosts_without_proxy = [host.strip() for host in hosts.split(",") if host.strip()]
    host = urlsplit(connection.url).hostname or "127.0.0.1"
    no_proxy = ",".join(dict.fromkeys([*hosts_without_proxy, "127.0.0.1", host]))
    return {
        "HF_ENDPOINT": connection.url,
        "HF_TOKEN": connection.token,
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_DATASETS_CACHE": str(cache / "datasets"),
        "HF_ASSETS_CACHE": str(cache / "assets"),
        # With Xet on, clients would look for a server that only huggingface.co has.
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Clusters set it to keep clients off the internet; it would keep them off this hub too.
        "HF_HUB_OFFLINE": "0",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }


def request(
    connection: Connection,
    method: str,
    path: str,
    body: dict[str, object] | None = None,
    timeout: float | None = None,
) -> tuple[int, dict[str, Any]]:
    """Ask a server something without a Hub client. Answers status and JSON; raises OSError."""
    from http.client import HTTPConnection, HTTPException  # slow to import

    address = urlsplit(connection.url)
    client = HTTPConnection(address.hostname or "", address.port, timeout=timeout)
    try:
        headers = {"Authorization": f"Bearer {connection.token}"}
        client.request(method, path, json.dumps(body) if body else None, headers)
        response = client.getresponse()
        return response.status, json.loads(response.read() or b"{}")
    except HTTPException as error:
        raise OSError(f"{connection.url} gave no answer: {error!r}") from error
    finally:
        client.close()


def _may_write(root: Path) -> bool:
    """Whether the store may be written; one that is not there yet may be made."""
    database = root / "hub.sqlite"
    return not database.exists() or (os.access(root, os.W_OK) and os.access(database, os.W_OK))


def _other_place(root: Path) -> Path:
    """A folder of this user alone for what a server needs beside a store that is only read.

    Raises HubStartError if somebody else may write there.
    """
    import tempfile  # slow to import

    above = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    own = above / f"factory-hub-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    facts = own.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise HubStartError(f"{own} is not a folder of yours alone: take it away")
    device, inode = identity(root)
    place = own / f"{device}-{inode}"
    place.mkdir(mode=0o700, exist_ok=True)
    return place


def _start(root: Path, place: Path, deadline: float, program: str) -> Connection:
    """A server of our own, in its own session, ready to answer."""
    server = _spawn(root, place, program)
    while time.monotonic() < deadline:
        if connection := _find(root, place):
            return connection
        if (status := server.poll()) is not None:
            if status == _EXIT_ELSEWHERE:
                raise _taken(root)
            if status == _EXIT_DAMAGED:
                raise HubDamagedError((_log(place) or ["its database is damaged"])[-1])
            if status != _EXIT_TAKEN:
                raise _failure(place, f"its server ended with status {status}")
            # By one that is starting, for a user who was killed, or by one that is just ending.
            time.sleep(_TAKEN_SECONDS)
            server = _spawn(root, place, program)
        time.sleep(_POLL_SECONDS)
    raise _failure(place, f"its server did not answer within {_START_SECONDS:.0f} s")


def _spawn(root: Path, place: Path, program: str) -> subprocess.Popen[bytes]:
    _started[:] = [server for server in _started if server.poll() is None]
    source = Path(__file__).resolve().parents[2]
    path = os.environ.get("PYTHONPATH", "")
    if source.name not in ("site-packages", "dist-packages"):  # run from a checkout
        path = os.pathsep.join(filter(None, [str(source), path]))
    handle = os.open(place / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    command = [sys.executable, "-P", "-m", program, "--root", str(root)]
    if place != root:
        command += ["--place", str(place)]
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            cwd=root,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
    finally:
        os.close(handle)
    _started.append(server)
    return server


def _wait_for(lock: BinaryIO, kind: int, deadline: float, place: Path) -> None:
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise _failure(
                    place, f"{lock.name} was not free in {_START_SECONDS:.0f} s"
                ) from None
            time.sleep(_POLL_SECONDS)


def _answers(connection: Connection) -> bool:
    try:
        return request(connection, "GET", "/api/whoami-v2", timeout=_PROBE_SECONDS)[0] == 200
    except (OSError, ValueError):
        return False


def _taken(root: Path) -> HubTakenError:
    """The error for a store that another host has open, by the lease that it holds."""
    try:
        lease = json.loads((root / "lease.json").read_text())
        holder = f": process {lease['pid']} on host {lease['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        holder = ""
    return HubTakenError(f"another host has the store {root} open{holder}")


def own_place(root: Path) -> Path:
    """Return a folder for what clients keep beside a store: its own folder, or one of this user
    where the store is only read. Raises HubStartError, OSError."""
    return root if _may_write(root) else _other_place(root)


def _failure(place: Path, why: str) -> HubStartError:
    with contextlib.suppress(OSError):
        if os.statvfs(place).f_bavail == 0:  # then the log may lack the reason
            return HubFullError(f"no space is left on the disk of {place}")
    return HubStartError("\n  ".join([f"{place}: {why}", *_log(place)]))


def _log(place: Path) -> list[str]:
    """Return the last lines of a server's log."""
    try:
        return (place / "server.log").read_text(errors="replace").splitlines()[-_LOG_LINES:]
    except OSError:
        return []

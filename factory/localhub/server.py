"""The server process: one hub, one port, alive as long as somebody uses it.

    python -m factory.localhub.server --root DIR [--host 127.0.0.1] [--port 0] [--stay]

Files under the root that are not the hub's own:

    store.lock   held by the server that has the store open; there is never a second one
    lease.json   the same for other hosts, which may not see the lock: host, process, heartbeat
    users.lock   held, shared, by every process that uses the hub; when the server gets it for
                 itself, nobody does, and it leaves
    server.json  where the server listens, and for which folder; there while it does
    token        what users show to it
    server.log   what went wrong
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from factory.localhub.accounts import FIRST_USER
from factory.localhub.app import build
from factory.localhub.errors import BadRequest
from factory.localhub.hub import LocalHub
from factory.localhub.launcher import identity
from factory.localhub.lease import BEAT_SECONDS, HeldElsewhere, Lease
from factory.localhub.replies import error_answer

# How the process ends when another server has the store open, here or on another host.
EXIT_TAKEN = 3
EXIT_ELSEWHERE = 4
_WATCH_SECONDS = 1.0
# Clients keep idle connections for up to a minute and do not repeat a commit that met a closed one.
_KEEP_ALIVE_SECONDS = 120
_GOODBYE_SECONDS = 5


class Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """HTTP, where also what is no HTTP at all is refused in the words of the hub."""

    def send_400_response(self, msg: str) -> None:
        """Refuse and hang up. (uvicorn itself would answer in plain text.)"""
        refusal = error_answer(BadRequest(msg))
        head = [b"HTTP/1.1 400 Bad Request", b"connection: close"]
        head += [name + b": " + value for name, value in refusal.raw_headers]
        self.transport.write(b"\r\n".join([*head, b"", bytes(refusal.body)]))
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn, which says where it listens and leaves when nobody is left."""

    def __init__(
        self, config: uvicorn.Config, root: Path, url: str, lease: Lease, *, stay: bool
    ) -> None:
        super().__init__(config)
        self._root = root
        self._lease = lease
        self._url = url
        self._stay = stay
        self._watches: list[asyncio.Task[None]] = []
        self._users: BinaryIO | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, say where, and begin to watch for users."""
        await super().startup(sockets)
        facts = {"url": self._url, "pid": os.getpid(), "started": time.time()}
        facts["store"] = identity(self._root)
        temporary = self._root / f"server.json.{os.getpid()}"
        temporary.write_text(json.dumps(facts))
        temporary.rename(self._root / "server.json")
        self._watches.append(asyncio.create_task(self._keep_lease()))
        if not self._stay:
            self._watches.append(asyncio.create_task(self._leave_when_alone()))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop being found, then finish what is under way."""
        for watch in self._watches:
            watch.cancel()
        # First, so that whoever comes now starts a new server instead of meeting this one's end.
        (self._root / "server.json").unlink(missing_ok=True)
        await super().shutdown(sockets)

    async def _keep_lease(self) -> None:
        while not self.should_exit:
            await asyncio.sleep(BEAT_SECONDS)
            if not await asyncio.to_thread(self._lease.is_ours):
                # Stopped for so long that another host took over: what it writes must stand.
                logging.error("another process has taken the store: this one leaves")
                os._exit(EXIT_ELSEWHERE)
            await asyncio.to_thread(self._lease.renew)

    async def _leave_when_alone(self) -> None:
        # Kept open to the end of the process: while we hold it, newcomers wait.
        self._users = (self._root / "users.lock").open("a+b")
        while not self.should_exit:
            await asyncio.sleep(_WATCH_SECONDS)
            if _lock(self._users):
                self.should_exit = True


def serve(root: Path, host: str, port: int, *, stay: bool) -> int:
    """Serve the hub under `root` until it is no longer needed. Answers the exit status."""
    with _sole_opener(root) as alone:
        if not alone:
            print(
                f"another server has the hub in {root} open: {_whereabouts(root)}", file=sys.stderr
            )
            return EXIT_TAKEN
        with _held(root) as (hub, lease):
            hub.accounts.adopt_token_file(root / "token")
            listener = socket.create_server((host, port), backlog=512)
            url = f"http://{_reachable(host)}:{listener.getsockname()[1]}"
            config = uvicorn.Config(
                build(hub),
                http=Protocol,
                access_log=False,
                log_config=None,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_GOODBYE_SECONDS,
            )
            if stay:
                print(f"local hub at {url}, token in {root / 'token'}", flush=True)
            # uvicorn raises the signal that ended it once more; the end has been orderly by then.
            signal.signal(signal.SIGTERM, lambda number, frame: None)
            signal.signal(signal.SIGINT, lambda number, frame: None)
            Server(config, root, url, lease, stay=stay).run(sockets=[listener])
    return 0


def create_token(root: Path, user: str, role: str) -> int:
    """Print a new token for `user`; the server must not be running."""
    with _sole_opener(root) as alone:
        if not alone:
            print(f"stop the server first: {_whereabouts(root)}", file=sys.stderr)
            return EXIT_TAKEN
        with _held(root) as (hub, _):
            print(hub.accounts.create_token(user, "write" if role == "write" else "read"))
    return 0


def main() -> int:
    """The command line. Answers the exit status."""
    parser = argparse.ArgumentParser(prog="python -m factory.localhub.server", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--root", type=Path, required=True, help="the folder of the hub")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--stay", action="store_true", help="until SIGTERM, even if nobody uses it")
    parser.add_argument(
        "--new-token",
        metavar="USER",
        help=f"print a token for USER (yours is {FIRST_USER!r}) and end",
    )
    parser.add_argument(
        "--role", choices=("read", "write"), default="read", help="of the new token"
    )
    options = parser.parse_args()
    os.umask(0o077)
    root: Path = options.root.absolute()
    root.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=root / "server.log",
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        if options.new_token:
            return create_token(root, options.new_token, options.role)
        return serve(root, options.host, options.port, stay=options.stay)
    except HeldElsewhere as error:
        print(error, file=sys.stderr)
        return EXIT_ELSEWHERE
    except Exception as error:
        logging.exception("the server could not go on")
        print(f"the local hub in {root} could not start: {error}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _held(root: Path) -> Iterator[tuple[LocalHub, Lease]]:
    """The store, open, with the lease on it. Raises HeldElsewhere."""
    lease = Lease(root)
    lease.take()
    try:
        hub = LocalHub(root)
        try:
            yield hub, lease
        finally:
            hub.database.close()
    finally:
        lease.give_back()


@contextlib.contextmanager
def _sole_opener(root: Path) -> Iterator[bool]:
    with (root / "store.lock").open("ab") as lock:
        yield _lock(lock)


def _lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _reachable(host: str) -> str:
    """The address by which processes on this machine reach what listens at `host`."""
    return "127.0.0.1" if host in ("", "0.0.0.0") else f"[{host}]" if ":" in host else host


def _whereabouts(root: Path) -> str:
    try:
        facts = json.loads((root / "server.json").read_text())
        return f"process {facts['pid']} at {facts['url']}"
    except (OSError, ValueError, KeyError):
        return "it is starting or ending"


if __name__ == "__main__":
    sys.exit(main())

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
    port         where the last server listened
    ballast      room set aside, let go of when the disk is full, so that the server can start

A store that cannot be written is served to be read; then these files, but for the first, lie in
another folder (--place).
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
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

import uvicorn

from factory.localhub.accounts import FIRST_USER
from factory.localhub.app import Pages, build
from factory.localhub.connections import HEAD_LIMIT, Protocol, allow_connections, sweep
from factory.localhub.errors import FULL_DISK
from factory.localhub.hub import LocalHub
from factory.localhub.launcher import identity
from factory.localhub.lease import HeldElsewhere, Lease

# How the process ends when another server has the store open, here or on another host.
EXIT_TAKEN = 3
EXIT_ELSEWHERE = 4
# And when its database cannot be read at all.
EXIT_DAMAGED = 5
_WATCH_SECONDS = 1.0
# Clients keep idle connections for up to a minute and do not repeat a commit that met a closed one.
_KEEP_ALIVE_SECONDS = 120
_GOODBYE_SECONDS = 5
_BALLAST_BYTES = 4 * 1024 * 1024


class Server(uvicorn.Server):
    """uvicorn, which says where it listens and leaves when nobody is left."""

    def __init__(self, config: uvicorn.Config, store: Store, url: str, *, stay: bool) -> None:
        super().__init__(config)
        self._store = store
        self._url = url
        # Kept open to the end of the process: while we hold it, newcomers wait.
        self._users = None if stay else (store.place / "users.lock").open("a+b")
        self._watches: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, say where, and begin to watch for users."""
        await super().startup(sockets)
        facts = {"url": self._url, "pid": os.getpid(), "started": time.time()}
        facts["store"] = identity(self._store.root)
        temporary = self._store.place / f"server.json.{os.getpid()}"
        self._store.insist(lambda: temporary.write_text(json.dumps(facts)))
        temporary.rename(self._store.place / "server.json")
        self._watches.append(asyncio.create_task(sweep(self.server_state.connections)))
        if self._users is not None:
            self._watches.append(asyncio.create_task(self._leave_when_alone(self._users)))
        if self._store.read_only:
            self._watches.append(asyncio.create_task(self._leave_when_written()))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop being found, then finish what is under way."""
        for watch in self._watches:
            watch.cancel()
        # First, so that whoever comes now starts a new server instead of meeting this one's end.
        (self._store.place / "server.json").unlink(missing_ok=True)
        await super().shutdown(sockets)

    async def _leave_when_alone(self, users: BinaryIO) -> None:
        while not self.should_exit:
            await asyncio.sleep(_WATCH_SECONDS)
            if _lock(users):
                self.should_exit = True

    async def _leave_when_written(self) -> None:
        """A store that is only read must stay as it is; the next server sees what it became."""
        begun = self._store.state()
        while not self.should_exit:
            await asyncio.sleep(_WATCH_SECONDS)
            if self._store.state() != begun:
                self.should_exit = True


class Store:
    """The folder of a hub while this process has it open: the lease, and room on its disk."""

    def __init__(self, root: Path, place: Path, lease: Lease | None) -> None:
        self.root = root
        self.place = place
        self.lease = lease
        self._ballast = root / "ballast"

    @property
    def read_only(self) -> bool:
        """Whether the store is only read; then nobody needs a lease."""
        return self.lease is None

    def insist(self, write: Callable[[], object]) -> None:
        """Write something small that the server cannot do without, also on a full disk.

        Raises OSError if the room that was set aside does not help either.
        """
        try:
            write()
        except OSError as error:
            if error.errno not in FULL_DISK or self.read_only:
                raise
            self._ballast.unlink(missing_ok=True)
            logging.warning("the disk is full: the room set aside in %s is used", self._ballast)
            write()

    def set_aside(self) -> None:
        """Set room aside, if there is room; a hub that fills its disk can be started with it."""
        if self.read_only or self._ballast.exists():
            return
        try:
            with self._ballast.open("wb") as file:
                file.write(bytes(_BALLAST_BYTES))
        except OSError:
            self._ballast.unlink(missing_ok=True)

    def state(self) -> tuple[int, int, bool]:
        """Return what changes when somebody writes the database."""
        facts = (self.root / "hub.sqlite").stat()
        return facts.st_mtime_ns, facts.st_size, (self.root / "hub.sqlite-wal").exists()


def serve(
    root: Path,
    place: Path,
    host: str,
    port: int,
    *,
    stay: bool,
    anonymous: bool = False,
    pages: Pages | None = None,
) -> int:
    """Serve the hub under `root` until it is no longer needed. Answers the exit status."""
    with _sole_opener(place) as alone:
        if not alone:
            print(
                f"another server has the hub in {root} open: {_whereabouts(place)}", file=sys.stderr
            )
            return EXIT_TAKEN
        allow_connections()
        with _held(root, place) as (hub, store):
            hub.accounts.adopt_token_file(place / "token")
            hub.accounts.anonymous = anonymous
            listener = _listen(host, port, place / "port")
            url = f"http://{_reachable(host)}:{listener.getsockname()[1]}"
            config = uvicorn.Config(
                build(hub, pages),
                http=Protocol,
                access_log=False,
                log_config=None,
                lifespan="off",
                ws="none",
                server_header=False,
                backlog=128,
                h11_max_incomplete_event_size=HEAD_LIMIT,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_GOODBYE_SECONDS,
            )
            if stay:
                print(f"local hub at {url}, token in {place / 'token'}", flush=True)
            # uvicorn raises the signal that ended it once more; the end has been orderly by then.
            signal.signal(signal.SIGTERM, lambda number, frame: None)
            signal.signal(signal.SIGINT, lambda number, frame: None)
            Server(config, store, url, stay=stay).run(sockets=[listener])
    return 0


def create_token(root: Path, user: str, role: str) -> int:
    """Print a new token for `user`; the server must not be running."""
    with _sole_opener(root) as alone:
        if not alone:
            print(f"stop the server first: {_whereabouts(root)}", file=sys.stderr)
            return EXIT_TAKEN
        with _held(root, root) as (hub, _):
            print(hub.accounts.create_token(user, "write" if role == "write" else "read"))
    return 0


def main(pages: Pages | None = None) -> int:
    """The command line. `pages` are mounted for people. Answers the exit status."""
    parser = argparse.ArgumentParser(prog="python -m factory.localhub.server", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--root", type=Path, required=True, help="the folder of the hub")
    parser.add_argument(
        "--place", type=Path, help="only read the store, and keep the server's own files here"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument(
        "--anonymous", action="store_true", help="without a token, what is not private may be read"
    )
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
    place: Path = (options.place or root).absolute()
    place.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=place / "server.log",
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        if options.new_token:
            return create_token(root, options.new_token, options.role)
        return serve(
            root, place, options.host, options.port,
            stay=options.stay, anonymous=options.anonymous, pages=pages,
        )  # fmt: skip
    except HeldElsewhere as error:
        print(error, file=sys.stderr)
        return EXIT_ELSEWHERE
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        logging.exception("the database cannot be read")
        print(f"{root / 'hub.sqlite'} is damaged: {error}", file=sys.stderr)
        return EXIT_DAMAGED
    except Exception as error:
        logging.exception("the server could not go on")
        print(f"the local hub in {root} could not start: {error}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _held(root: Path, place: Path) -> Iterator[tuple[LocalHub, Store]]:
    """The store, open; with the lease on it if it may be written. Raises HeldElsewhere."""
    if place != root:
        hub = LocalHub(root, read_only=True)
        try:
            yield hub, Store(root, place, None)
        finally:
            hub.close()
        return
    lease, stop = Lease(root), threading.Event()
    store = Store(root, place, lease)
    store.insist(lease.take)
    # In a thread: a heartbeat does not wait for requests.
    guard = threading.Thread(target=lease.guard, args=(stop, _leave), name="lease", daemon=True)
    guard.start()
    try:
        hub = LocalHub(root)
        try:
            store.set_aside()
            yield hub, store
        finally:
            hub.close()
    finally:
        stop.set()
        guard.join(timeout=_GOODBYE_SECONDS)
        lease.give_back()


def _listen(host: str, port: int, last: Path) -> socket.socket:
    """Listen at a port; where any will do at the one of last time if it is free, so that addresses
    of pages go on being right."""
    if port == 0 and last.exists():
        with contextlib.suppress(OSError, ValueError, OverflowError):
            return socket.create_server((host, int(last.read_text())), backlog=512)
    listener = socket.create_server((host, port), backlog=512)
    with contextlib.suppress(OSError):  # a full disk
        last.write_text(str(listener.getsockname()[1]))
    return listener


def _leave(why: str) -> NoReturn:
    """End this process at once: what another one writes from now on must stand."""
    logging.error("%s: this one leaves", why)
    os._exit(EXIT_ELSEWHERE)


@contextlib.contextmanager
def _sole_opener(place: Path) -> Iterator[bool]:
    with (place / "store.lock").open("ab") as lock:
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


def _whereabouts(place: Path) -> str:
    try:
        facts = json.loads((place / "server.json").read_text())
        return f"process {facts['pid']} at {facts['url']}"
    except (OSError, ValueError, KeyError):
        return "it is starting or ending"


def end(status: int) -> NoReturn:
    """End the process, also while a thread still works for a request that nobody waits for."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    end(main())

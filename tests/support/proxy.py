"""A bad network: a proxy in front of a hub that fails on purpose, as often as it is told to."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose method and path hold `where`.

    500, 503, 429: that answer, the request is not passed on; 403 is that of a gated repo.
    "reset": the connection breaks before the request is passed on; "lost": after it was, so the
    answer is lost. "page": an HTML page with status 200, as of a login or a proxy; the request is
    not passed on. "cut": the body ends half way; "flip": a byte of it is wrong. A function: called
    before it is passed on.
    """

    where: str
    what: int | str | Callable[[], None]
    times: int = 1


@dataclass
class Reply:
    """An answer on its way to a client. A body that comes bit by bit has no announced length."""

    status: int
    headers: dict[str, str]
    body: bytes | Iterator[bytes]


@dataclass
class Proxy:
    """Where it listens, what went through it, and what is to go wrong. `twist` makes another
    answer of each, given the request's method and path."""

    url: str
    twist: Callable[[str, Reply], Reply] | None = None
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)

    def count(self, where: str) -> int:
        return sum(where in line for line in self.seen)


@contextlib.contextmanager
def proxy_of(upstream: str) -> Iterator[Proxy]:
    """A proxy in front of the hub at `upstream`, on a port of its own."""
    lock = threading.Lock()
    address = urlsplit(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one(self) -> None:
            line = f"{self.command} {self.path}"
            body = self._body()
            with lock:
                proxy.seen.append(line)
                proxy.tokens += self.headers.get_all("Authorization") or []
                fault = next((f for f in proxy.faults if f.where in line and f.times), None)
                if fault is not None:
                    fault.times -= 1
                    proxy.happened.append(f"{fault.what} {line}")
            what = fault.what if fault else None
            if callable(what):
                what()
            if isinstance(what, int):
                self.send_response(what)
                self.send_header("Content-Length", "0")
                if what == 403:
                    self.send_header("X-Error-Code", "GatedRepo")
                if what == 429:
                    self.send_header("Retry-After", "1")
                self.end_headers()
                return
            if what == "page":
                page = b"<!doctype html><title>One moment</title>"
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)
                return
            if what == "reset":
                self._break()
                return
            upstream = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
            upstream.request(self.command, self.path, body, dict(self.headers.items()))
            reply = upstream.getresponse()
            content = reply.read()
            upstream.close()
            if what == "flip":
                content = bytes([content[0] ^ 1]) + content[1:] if content else content
            if what == "lost":
                self._break()
                return
            if proxy.twist is not None:
                headers = {
                    key: value
                    for key, value in reply.getheaders()
                    if key.lower() not in ("transfer-encoding", "connection", "date")
                }
                self._send(proxy.twist(line, Reply(reply.status, headers, content)))
                return
            self.send_response(reply.status)
            for key, value in reply.getheaders():
                if key.lower() not in ("transfer-encoding", "connection", "date"):
                    self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if what == "cut" else content)
            if what == "cut":
                self._break()

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = handle_one

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            del self.headers["Transfer-Encoding"]
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        def _send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            if not isinstance(reply.body, bytes):
                reply.headers["Transfer-Encoding"] = "chunked"
                reply.headers.pop("content-length", None)
            for key, value in reply.headers.items():
                plain = value.encode(errors="replace").decode("latin-1")
                self.send_header(key, plain.replace("\r", "").replace("\n", ""))
            self.end_headers()
            if self.command == "HEAD":
                return
            if isinstance(reply.body, bytes):
                self.wfile.write(reply.body)
                return
            for chunk in reply.body:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")

        def _break(self) -> None:
            self.wfile.flush()
            # no farewell: the client sees a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # clients that left

    server = Quiet(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

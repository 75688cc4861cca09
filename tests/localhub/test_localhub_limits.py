"""What one client, one request or one full disk does, others hardly notice."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from localhub_client import SOURCE, send

from factory.localhub import lease
from factory.localhub.launcher import Connection, connect, own_place, request, running

# A server whose times are short, so that tests are.
HASTY = """
from factory.localhub import connections, lease
connections.HEAD_SECONDS = connections.SILENT_SECONDS = 1.5
connections.SWEEP_SECONDS = lease.BEAT_SECONDS = 0.2
lease._PROOF_SECONDS = 1.5
from factory.localhub.server import end, main
"""


@contextlib.contextmanager
def hasty(
    root: Path, code: str = "", files: int | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Connection]]:
    """A server with short times, and with as many file handles as told."""

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    command = [sys.executable, "-c", f"{HASTY}\n{code}\nend(main())", "--root", str(root), "--stay"]
    server = subprocess.Popen(command, cwd=SOURCE, stdout=subprocess.DEVNULL, preexec_fn=limit)
    try:
        deadline = time.monotonic() + 20
        while (connection := running(root)) is None:
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield server, connection
    finally:
        server.kill()
        server.wait()


def plug(hub: Connection, text: bytes = b"") -> socket.socket:
    address = urlsplit(hub.url)
    line = socket.create_connection((address.hostname, address.port), timeout=20)
    line.sendall(text)
    return line


def the_end(line: socket.socket) -> bytes:
    """What the server says until it hangs up."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while chunk := line.recv(65536):
            found += chunk
    line.close()
    return found


def memory(pid: int) -> float:
    """The most memory that a process ever had, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    raise AssertionError("no such process")


def whoami(hub: Connection) -> bytes:
    head = f"GET /api/whoami-v2 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {hub.token}\r\n"
    return head.encode()


def test_idle_connections_do_no_harm(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    with hasty(tmp_path, "connections.HEAD_SECONDS = 60", files=1024) as (server, hub):
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("org/busy")
        idle = [plug(hub) for _ in range(1100)]
        for number in range(5):
            content = os.urandom(2000)
            api.upload_file(path_or_fileobj=content, path_in_repo="x.bin", repo_id="org/busy")
            assert request(hub, "GET", "/api/whoami-v2", timeout=10)[0] == 200, number
            time.sleep(0.3)
        assert server.poll() is None
        assert len(list(Path(f"/proc/{server.pid}/fd").iterdir())) < 700
        for line in idle:
            line.close()
    assert "taken" not in (tmp_path / "server.log").read_text()


def test_a_request_that_stops_in_the_middle_is_let_go(tmp_path):
    with hasty(tmp_path) as (_, hub):
        began = time.monotonic()
        silent = plug(hub)
        half = plug(hub, whoami(hub))
        body = (
            f"POST /api/repos/create HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {hub.token}\r\n"
        )
        stopped = plug(hub, f"{body}Content-Length: 100\r\n\r\n{{".encode())
        trickle = plug(hub)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 10:
                trickle.sendall(b"G" if time.monotonic() - began < 0.1 else b"E")
                time.sleep(0.1)
        assert time.monotonic() - began < 6
        assert the_end(silent) == b"" and the_end(stopped) == b""
        answer = the_end(half)
        assert answer.startswith(b"HTTP/1.1 408 ") and b"X-Error-Code: Timeout".lower() in (
            answer.lower()
        )
        # What is only slow, or idle between two requests, is not.
        address = urlsplit(hub.url)
        kept = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
        for pause in (2.5, 0):
            kept.request("GET", "/api/whoami-v2", headers={"Authorization": f"Bearer {hub.token}"})
            assert kept.getresponse().read()
            line = kept.sock
            time.sleep(pause)
        assert kept.sock is line
        kept.close()


def test_headers_without_end_are_refused(tmp_path):
    with hasty(tmp_path) as (server, hub):
        before = memory(server.pid)
        with contextlib.suppress(ConnectionError):
            line = plug(hub, b"GET / HTTP/1.1\r\n")
            for number in range(300):
                line.sendall(b"X-%d: " % number + b"x" * 100_000 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            plug(hub).sendall(b"G" * 20_000_000)
        assert memory(server.pid) - before < 40
        assert request(hub, "GET", "/api/whoami-v2")[0] == 200


def test_an_answer_that_nobody_takes_is_given_up(tmp_path):
    with hasty(tmp_path) as (server, hub):
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("org/r")
        api.upload_file(path_or_fileobj=os.urandom(30_000_000), path_in_repo="x.bin",
                        repo_id="org/r")  # fmt: skip
        ask = whoami(hub).replace(b"/api/whoami-v2", b"/org/r/resolve/main/x.bin") + b"\r\n"
        line = plug(hub, ask)

        def contents() -> int:
            handles = Path(f"/proc/{server.pid}/fd").iterdir()
            return sum("/blobs/" in str(handle.readlink()) for handle in handles)

        time.sleep(0.7)
        assert contents() == 1
        deadline = time.monotonic() + 10
        while contents() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert contents() == 0 and len(the_end(line)) < 30_000_000


def test_bodies_are_bounded_one_by_one_and_together(tmp_path):
    with hasty(tmp_path, "connections.SILENT_SECONDS = 8") as (server, hub):
        assert send(hub.url, "POST", "/api/telemetry/x", body=b"x" * 2_000_000).status == 413
        head = (
            f"POST /api/repos/create HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {hub.token}\r\n"
        )
        size = 15_000_000
        start = f"{head}Content-Length: {size + 10}\r\n\r\n".encode()
        lines = []
        for _ in range(16):
            lines.append(plug(hub, start))
            lines[-1].sendall(b" " * size)
        time.sleep(1)
        over = send(hub.url, "POST", "/api/repos/create", token=hub.token, body=b" " * size * 2)
        assert over.status == 413
        lines.append(plug(hub, start))
        lines[-1].sendall(b" " * size)
        time.sleep(0.5)
        busy = send(hub.url, "POST", "/api/repos/create", token=hub.token, body=b" " * size)
        assert busy.status == 503 and busy.headers["x-error-code"] == "Busy"
        assert memory(server.pid) < 900
        for line in lines:
            line.close()
        time.sleep(0.5)
        assert request(hub, "POST", "/api/repos/create", {"name": "after"})[0] == 200


def test_a_request_that_works_on_delays_neither_others_nor_the_end(tmp_path):
    slow = (
        "import time\nfrom factory.localhub.routes import people\n"
        "def read_card(text):\n"
        "    end = time.monotonic() + 40\n"
        "    while time.monotonic() < end: sum(range(1000))\n"
        "people.read_card = read_card"
    )
    with hasty(tmp_path, slow) as (server, hub):

        def ask() -> None:
            with contextlib.suppress(OSError, ValueError):
                request(hub, "POST", "/api/validate-yaml", {"content": "x"})

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.5)
        began = time.monotonic()
        assert request(hub, "GET", "/api/whoami-v2", timeout=5)[0] == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=15) == 0
        assert time.monotonic() - began < 12
        asking.join()
    assert not (tmp_path / "lease.json").exists()


def test_a_path_and_a_pattern_of_any_length_delay_nobody(tmp_path):
    with hasty(tmp_path) as (_, hub):
        request(hub, "POST", "/api/repos/create", {"name": "org/a"})
        replies = []

        def ask(path: str) -> None:
            body = {
                "files": [{"path": path, "size": 1}],
                "gitIgnore": "*" + "a" * 4000 + "b*",
            }
            replies.append(request(hub, "POST", "/api/models/org/a/preupload/main", body)[0])

        asking = [
            threading.Thread(target=ask, args=(path,)) for path in ("a" * 600_000, "a/" * 2500)
        ]
        for thread in asking:
            thread.start()
        time.sleep(0.3)
        assert request(hub, "GET", "/api/whoami-v2", timeout=2)[0] == 200
        for thread in asking:
            thread.join()
        assert replies == [422, 422]


def test_without_a_free_file_handle_the_lease_is_still_ours(tmp_path):
    """Real EMFILE, in a process of its own."""
    code = """
import resource, sys
from pathlib import Path
from factory.localhub.lease import Lease
root = Path(sys.argv[1])
lease, other = Lease(root), Lease(root)
lease.take()
before = (root / "lease.json").stat().st_mtime_ns
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
try:
    (root / "lease.json").open()
except OSError as error:
    assert error.errno == 24
assert not lease.is_lost() and lease.is_ours()
lease.renew()
assert (root / "lease.json").stat().st_mtime_ns > before
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
other.renew()
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
try:
    lost = lease.is_lost()
except OSError:
    lost = None
assert lost is None, "a file that is not the one we wrote tells nothing"
try:
    lease.renew()
    raise SystemExit("it renewed the lease of another")
except OSError:
    pass
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
assert lease.is_lost()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_lease_that_is_gone_is_written_again_and_one_taken_ends_the_server(tmp_path):
    with hasty(tmp_path) as (server, _):
        path = tmp_path / "lease.json"
        path.unlink()
        time.sleep(1)
        assert server.poll() is None and json.loads(path.read_text())["pid"] == server.pid
        facts = {"host": "login-2", "pid": 7, "mark": "theirs", "beat": 1}
        (tmp_path / "lease.new").write_text(json.dumps(facts))
        (tmp_path / "lease.new").rename(path)
        assert server.wait(timeout=10) == 4
    assert "another process has taken the store" in (tmp_path / "server.log").read_text()


def test_a_server_whose_store_went_away_leaves_and_says_so(tmp_path):
    with hasty(tmp_path / "store") as (server, _):
        (tmp_path / "store").rename(tmp_path / "elsewhere")
        assert server.wait(timeout=10) == 4
    log = (tmp_path / "elsewhere" / "server.log").read_text()
    assert "cannot be renewed" in log and "was not renewed for" in log


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Something mounted at a folder, where this user may mount."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs mount(8): {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC


def test_the_lease_is_kept_on_a_full_disk_and_the_hub_can_be_started_and_cleaned(
    tmp_path, monkeypatch
):
    disk = tmp_path / "disk"
    monkeypatch.setattr(lease, "_WATCH_SECONDS", 1.0)
    with mounted(disk, "-t", "tmpfs", "-o", "size=24m", "tmpfs"):
        root = disk / "hub"
        root.mkdir()
        with hasty(root) as (server, hub):
            api = HfApi(endpoint=hub.url, token=hub.token)
            api.create_repo("org/r")
            api.upload_file(path_or_fileobj=b"kept", path_in_repo="a.txt", repo_id="org/r")
            api.create_repo("org/unwanted")
            api.upload_file(path_or_fileobj=os.urandom(5_000_000), path_in_repo="x.bin",
                            repo_id="org/unwanted")  # fmt: skip
            api.delete_repo("org/unwanted")
            fill(disk / "filler")
            time.sleep(2)  # longer than others wait
            assert server.poll() is None
            other = lease.Lease(root)
            monkeypatch.setattr(other, "_host", "login-2")
            with pytest.raises(lease.HeldElsewhere, match=f"process {server.pid} "):
                other.take()
            assert request(hub, "GET", "/api/whoami-v2")[0] == 200
        (root / "lease.json").unlink()  # as after an orderly end
        (root / "server.json").unlink()
        fill(disk / "rest")
        with connect(root) as hub:
            api = HfApi(endpoint=hub.url, token=hub.token)
            assert api.list_repo_files("org/r") == [".gitattributes", "a.txt"]
            assert Path(api.hf_hub_download("org/r", "a.txt", cache_dir=tmp_path / "cache")
                        ).read_bytes() == b"kept"  # fmt: skip
            for path in (root / "blobs").glob("??/*"):
                os.utime(path, (0, 0))
            fill(disk / "more")
            with pytest.raises((HfHubHTTPError, RuntimeError)):
                api.upload_file(path_or_fileobj=os.urandom(50_000), path_in_repo="b.txt",
                                repo_id="org/r")  # fmt: skip
            status, found = request(hub, "POST", "/api/local/gc", {"remove": True, "grace": 60})
            assert status == 200 and found["size"] >= 5_000_000
            api.upload_file(path_or_fileobj=b"new", path_in_repo="b.txt", repo_id="org/r")
            assert request(hub, "POST", "/api/local/fsck")[1]["problems"] == []


def test_a_store_that_may_not_be_written_can_be_read(tmp_path, monkeypatch):
    root = tmp_path / "store"
    with connect(root) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("org/r")
        api.upload_file(path_or_fileobj=b"text", path_in_repo="a.txt", repo_id="org/r")
        server = json.loads((root / "server.json").read_text())["pid"]
    deadline = time.monotonic() + 10
    while (root / "server.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(server, 0)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with contextlib.ExitStack() as undo:
        if os.geteuid() == 0:  # whom no permission holds back
            undo.enter_context(mounted(root, "--bind", "-o", "ro", str(root)))
        else:
            for path in (root, root / "hub.sqlite"):
                undo.callback(path.chmod, path.stat().st_mode)
                path.chmod(0o500)
        with connect(root) as hub, connect(root) as again:
            assert again == hub == running(root)
            api = HfApi(endpoint=hub.url, token=hub.token)
            assert [model.id for model in api.list_models()] == ["org/r"]
            path = api.hf_hub_download("org/r", "a.txt", cache_dir=tmp_path / "cache")
            assert Path(path).read_text() == "text"
            assert request(hub, "POST", "/api/local/fsck") == (
                200,
                {"contents": 2, "directories": 2, "commits": 2, "trusted": 0, "problems": []},
            )
            for call in (
                lambda: api.create_repo("org/new"),
                lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="b", repo_id="org/r"),
                lambda: api.delete_repo("org/r"),
                lambda: api.create_collection("new"),
            ):
                with pytest.raises(HfHubHTTPError) as refused:
                    call()
                assert refused.value.response.status_code == 403
            status, found = request(hub, "POST", "/api/local/gc", {"remove": True})
            assert status == 403 and "only be read" in found["error"]
        left = own_place(root) / "server.json"
        deadline = time.monotonic() + 20
        while left.exists():  # nobody uses it any longer
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with connect(root) as hub:
        assert hub.token == (root / "token").read_text()
        HfApi(endpoint=hub.url, token=hub.token).create_repo("org/new")


def test_a_store_that_is_only_read_is_left_when_it_changes(tmp_path, monkeypatch):
    """Its server takes the database for unchanging, and would give wrong answers."""
    root, place = tmp_path / "store", tmp_path / "place"
    place.mkdir()
    with connect(root) as hub:
        HfApi(endpoint=hub.url, token=hub.token).create_repo("org/r")
    deadline = time.monotonic() + 10
    while (root / "server.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    command = [sys.executable, "-m", "factory.localhub.server", "--root", str(root), "--stay",
               "--place", str(place)]  # fmt: skip
    reader = subprocess.Popen(command, cwd=SOURCE, stdout=subprocess.DEVNULL)
    try:
        while not (place / "server.json").exists():
            assert reader.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        with connect(root) as hub:
            HfApi(endpoint=hub.url, token=hub.token).create_repo("org/s")
            assert reader.wait(timeout=15) == 0
            beside = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True)
            assert beside.returncode == 1 and "is being written" in beside.stderr
    finally:
        reader.kill()
        reader.wait()

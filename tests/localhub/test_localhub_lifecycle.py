"""A server lives as long as it is used, one at a time, and says why when it cannot start."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from localhub_client import SOURCE, send, server_command

from factory.localhub import lease
from factory.localhub.launcher import (
    Connection,
    HubStartError,
    connect,
    environment,
    identity,
    running,
)

USER = """
import sys, time
from pathlib import Path
from factory.localhub.launcher import connect
with connect(Path(sys.argv[1])) as connection:
    print(connection.url, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def user(root: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that uses the hub until its stdin is closed."""
    command = [sys.executable, "-c", USER, str(root)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=SOURCE, stdin=pipe, stdout=pipe, text=True)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def server_facts(root: Path) -> dict[str, object]:
    return json.loads((root / "server.json").read_text())


def alive(pid: int) -> bool:
    try:
        # A server whose user still runs may wait there to be reaped.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 8.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_killed_user_takes_the_server_along(tmp_path):
    with user(tmp_path) as (process, url):
        facts = server_facts(tmp_path)
        assert facts["url"] == url and running(tmp_path).url == url
        os.kill(process.pid, signal.SIGKILL)
        assert eventually(lambda: not alive(facts["pid"]))
    assert not (tmp_path / "server.json").exists() and running(tmp_path) is None
    assert (tmp_path / "server.log").read_text() == ""
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    token = (tmp_path / "token").read_text()
    assert token.encode() not in (tmp_path / "hub.sqlite").read_bytes()
    with connect(tmp_path) as connection:  # and the next user finds all as it was
        assert connection.token == token


@pytest.mark.slow
def test_two_users_share_a_server(tmp_path):
    with user(tmp_path) as (_, second_url):
        with user(tmp_path) as (first, first_url):
            pid = server_facts(tmp_path)["pid"]
            assert first_url == second_url
            first.stdin.close()
            first.wait()
        time.sleep(1.7)  # longer than the server waits between looks
        assert alive(pid) and running(tmp_path).url == second_url
    assert eventually(lambda: not alive(pid))


def test_many_users_at_once_start_one_server(tmp_path):
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-c", USER, str(tmp_path)]
        pipe = subprocess.PIPE
        users = [
            stack.enter_context(
                subprocess.Popen(command, cwd=SOURCE, stdin=pipe, stdout=pipe, text=True)
            )
            for _ in range(4)
        ]
        assert len({process.stdout.readline() for process in users}) == 1
        for process in users:
            process.stdin.close()


@pytest.mark.slow
def test_a_killed_server_is_replaced(tmp_path):
    with connect(tmp_path) as first:
        pid = server_facts(tmp_path)["pid"]
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not alive(pid))
        assert running(tmp_path) is None
        with connect(tmp_path) as second:
            assert second.token == first.token and running(tmp_path) == second
        time.sleep(1.5)
        assert running(tmp_path) == second  # the outer block still needs it


def test_a_start_that_was_given_up_does_not_stand_in_the_way(tmp_path):
    """A user killed while it starts a server leaves one that still holds the store for a moment."""
    with (tmp_path / "users.lock").open("ab"):
        orphan = subprocess.Popen(server_command(tmp_path), cwd=SOURCE)
        assert eventually(lambda: (tmp_path / "store.lock").exists())
        with connect(tmp_path) as connection:
            assert running(tmp_path) == connection
        orphan.wait(timeout=10)


@pytest.mark.slow
def test_a_staying_server_and_only_one(tmp_path):
    command = server_command(tmp_path, "--stay")
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, cwd=SOURCE, stdout=pipe, stderr=pipe, text=True)
    try:
        line = server.stdout.readline()
        assert eventually(lambda: running(tmp_path) is not None)
        url = running(tmp_path).url
        assert url in line
        second = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True)
        assert second.returncode == 3
        assert (
            f"process {server.pid} at {url}" in second.stderr and "Traceback" not in second.stderr
        )
        with connect(tmp_path) as connection:
            assert connection.url == url
        time.sleep(1.5)
        assert server.poll() is None
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=10) == 0
        assert not (tmp_path / "server.json").exists()
    finally:
        server.kill()
        server.communicate()


def test_a_start_that_fails_says_why(tmp_path):
    (tmp_path / "hub.sqlite").write_text(
        "this is not a database, and long enough to be sure of it\n" * 9
    )
    with pytest.raises(HubStartError, match="file is not a database") as caught, connect(tmp_path):
        pass
    assert "server.log" not in str(caught.value)


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HubStartError, match="cannot be used"), connect(tmp_path / "file"):
        pass


@pytest.mark.slow
def test_a_new_token_replaces_the_old(tmp_path):
    with connect(tmp_path) as first:
        pid = server_facts(tmp_path)["pid"]
    assert eventually(lambda: not alive(pid))
    (tmp_path / "token").write_text("")
    with connect(tmp_path) as second:
        assert len(second.token) > 30 and second.token != first.token
        for token, status in ((second.token, 200), (first.token, 401), ("", 401), (" ", 401)):
            headers = {"Authorization": f"Bearer {token}"}
            assert send(second.url, "GET", "/api/whoami-v2", headers=headers).status == status


@pytest.mark.slow
def test_the_port_of_another_is_not_taken_for_ours(tmp_path):
    """server.json may be old, and its port now another hub's."""
    with connect(tmp_path / "theirs") as theirs:
        ours = tmp_path / "ours"
        ours.mkdir()
        (ours / "token").write_text("hf_another")
        facts = {"url": theirs.url, "pid": 1, "started": 0, "store": identity(ours)}
        (ours / "server.json").write_text(json.dumps(facts))
        assert running(ours) is None
        with connect(ours) as connection:
            assert connection.url != theirs.url and connection.token == "hf_another"


def test_a_copy_of_a_live_store_has_a_server_of_its_own(tmp_path):
    """The copy carries the token and the server.json of the first, whose server must not answer."""
    body = '{"name": "x"}'
    with connect(tmp_path / "first") as first:
        assert (
            send(first.url, "POST", "/api/repos/create", token=first.token, body=body).status == 200
        )
        shutil.copytree(tmp_path / "first", tmp_path / "copy")
        assert running(tmp_path / "first") == first and running(tmp_path / "copy") is None
        with connect(tmp_path / "copy") as copy:
            assert copy.url != first.url and copy.token == first.token
            assert send(copy.url, "GET", "/api/models/local/x", token=copy.token).status == 200
        (tmp_path / "first").rename(tmp_path / "moved")
        assert running(tmp_path / "moved") is not None  # the same folder under another name
        (tmp_path / "moved").rename(tmp_path / "first")


def test_users_hold_no_lock_through_their_children(tmp_path):
    """A program run by a user does not keep the lock, and so not the server, by inheritance."""
    with connect(tmp_path):
        child = subprocess.Popen(["sleep", "60"])
    try:
        with (tmp_path / "users.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        child.kill()
        child.wait()


@pytest.mark.slow
def test_an_idle_connection_is_not_closed_under_a_client(hub):
    """Clients keep one for five seconds, which is when uvicorn by itself would close it."""
    address = urlsplit(hub.url)
    line = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    for pause in (6, 0):
        line.request("GET", "/api/whoami-v2", headers={"Authorization": f"Bearer {hub.token}"})
        reply = line.getresponse()
        assert reply.read() and reply.status == 200
        socket = line.sock
        time.sleep(pause)
    assert line.sock is socket
    line.close()


def test_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "example.org")
    values = environment(Connection("http://127.0.0.1:1", "hf_x", tmp_path), tmp_path / "cache")
    assert values["HF_ENDPOINT"] == "http://127.0.0.1:1" and values["HF_TOKEN"] == "hf_x"
    assert values["HF_HUB_DISABLE_XET"] == "1"
    assert values["NO_PROXY"] == values["no_proxy"] == "example.org,127.0.0.1"
    assert Path(values["HF_HUB_CACHE"]).is_relative_to(values["HF_HOME"])


def test_the_launcher_imports_little():
    code = "import sys, factory.localhub.launcher; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True)
    assert not {"starlette", "uvicorn", "yaml", "sqlite3"} & set(done.stdout.split())


def test_no_traceback_reaches_a_client(tmp_path):
    """A mistake of ours, here a content gone from the disk, is told briefly and logged in full."""
    with connect(tmp_path) as hub:
        body = '{"name": "x"}'
        assert send(hub.url, "POST", "/api/repos/create", token=hub.token, body=body).status == 200
        for folder in (tmp_path / "blobs").iterdir():
            for blob in folder.iterdir():
                blob.unlink()
        path = "/local/x/resolve/main/.gitattributes"
        reply = send(hub.url, "GET", path, token=hub.token)
        assert reply.status == 500 and b"Traceback" not in reply.body
        assert reply.json()["error"].startswith("internal error")
        log = tmp_path / "server.log"
        assert eventually(lambda: "FileNotFoundError" in log.read_text())


def lease_of(root: Path, beat: int) -> None:
    facts = {"host": "login-2", "pid": 7, "mark": "theirs", "beat": beat}
    (root / "lease.new").write_text(json.dumps(facts))
    (root / "lease.new").rename(root / "lease.json")


def test_another_hosts_live_lease_is_an_error_that_names_it(tmp_path):
    stop = threading.Event()

    def beat() -> None:
        number = 0
        while not stop.wait(0.1):
            number += 1
            lease_of(tmp_path, number)

    lease_of(tmp_path, 0)
    other = threading.Thread(target=beat)
    other.start()
    try:
        with pytest.raises(HubStartError, match="process 7 on host login-2"), connect(tmp_path):
            pass
    finally:
        stop.set()
        other.join()
    assert not (tmp_path / "hub.sqlite").exists()


def test_a_dead_hosts_lease_is_taken_over_and_one_lost_ends_the_server(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_WATCH_SECONDS", 0.5)
    lease_of(tmp_path, 1)
    ours = lease.Lease(tmp_path)
    ours.take()
    assert ours.is_ours()
    ours.give_back()
    with connect(tmp_path):
        facts = server_facts(tmp_path)
        assert json.loads((tmp_path / "lease.json").read_text())["pid"] == facts["pid"]
        lease_of(tmp_path, 2)  # as after a long sleep of this host
        assert eventually(lambda: not alive(facts["pid"]))
        assert json.loads((tmp_path / "lease.json").read_text())["host"] == "login-2"

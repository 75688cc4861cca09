"""What was acknowledged survives a kill -9, and a full disk costs nothing but the one request."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from localhub_client import SOURCE, server_command

from factory.localhub.launcher import Connection, await_end, connect, request, running


def started(root: Path, command: list[str]) -> tuple[subprocess.Popen[bytes], Connection]:
    server = subprocess.Popen(command, cwd=SOURCE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if connection := running(root):
            return server, connection
        time.sleep(0.05)
    raise AssertionError("no server")


@pytest.mark.parametrize(
    ("kills", "writers"), [(3, 2), pytest.param(25, 4, marks=pytest.mark.slow)]
)
def test_no_acknowledged_commit_is_lost_when_the_server_is_killed(tmp_path, kills, writers):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = server_command(tmp_path, "--stay", "--port", str(port))
    server, hub = started(tmp_path, command)
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("org/crash")
    kept: list[tuple[str, str, bytes]] = []
    stop = threading.Event()

    def write(name: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            content = os.urandom(500_000 if number % 3 == 0 else 100)
            suffix = "bin" if number % 3 == 0 else "txt"
            path = f"{name}/{number}.{suffix}"
            try:
                made = api.create_commit(
                    "org/crash", [CommitOperationAdd(path, content)], commit_message=path
                )
                kept.append((made.oid, path, content))
            except Exception:  # whatever a client raises while there is no server
                time.sleep(0.02)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"[:writers]]
    for thread in threads:
        thread.start()
    moments = random.Random(7)
    try:
        for _ in range(kills):
            count = len(kept)
            deadline = time.monotonic() + 10
            while len(kept) < count + 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.25))
            server.send_signal(signal.SIGKILL)
            server.wait()
            server, _ = started(tmp_path, command)
        stop.set()
        for thread in threads:
            thread.join()
        history = {commit.commit_id for commit in api.list_repo_commits("org/crash")}
        files = {
            item.rfilename: item
            for item in api.model_info("org/crash", files_metadata=True).siblings
        }
        assert len(kept) >= 3 * kills
        for oid, path, content in kept:
            assert oid in history
            lfs = files[path].lfs
            expected = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            assert (lfs.sha256 == hashlib.sha256(content).hexdigest()) if lfs else (
                files[path].blob_id == expected
            )  # fmt: skip
            assert (
                tmp_path / "blobs" / (sha := hashlib.sha256(content).hexdigest())[:2] / sha
            ).exists()
    finally:
        stop.set()
        server.terminate()
        server.wait()
    with connect(tmp_path) as again:
        assert request(again, "POST", "/api/local/fsck")[1]["problems"] == []
        assert list((tmp_path / "blobs" / "tmp").iterdir()) == []
    await_end(tmp_path)
    with sqlite3.connect(tmp_path / "hub.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []


@pytest.fixture
def small_disk(tmp_path):
    """A server whose root lies on a disk of 12 MB, in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    allowed = unshare and subprocess.run(
        [unshare, "-rm", "mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(tmp_path)],
        capture_output=True,
    )
    if not allowed or allowed.returncode:
        pytest.skip("needs unshare(1) and user namespaces to make a small disk")
    script = 'mount -t tmpfs -o size=12m tmpfs "$0" && exec "$@"'
    command = [
        unshare,
        "-rm",
        "sh",
        "-c",
        script,
        str(tmp_path),
        *server_command(tmp_path, "--stay"),
    ]
    server = subprocess.Popen(command, cwd=SOURCE, stdout=subprocess.PIPE, text=True)
    server.stdout.readline()
    inside = Path(f"/proc/{server.pid}/root{tmp_path}")
    deadline = time.monotonic() + 10
    while not (inside / "server.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    url = json.loads((inside / "server.json").read_text())["url"]
    yield HfApi(endpoint=url, token=(inside / "token").read_text()), inside
    server.terminate()
    server.communicate()


def test_a_full_disk(small_disk):
    api, root = small_disk
    api.create_repo("org/full")

    def add(path: str, content: bytes) -> None:
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="org/full")

    def refused(path: str, content: bytes) -> None:
        with pytest.raises((HfHubHTTPError, RuntimeError)) as caught:
            add(path, content)
        error = caught.value
        while not isinstance(error, HfHubHTTPError):
            error = error.__cause__
        assert error.response.status_code == 507
        assert "disk of the local hub is full" in error.response.json()["error"]

    add("before.txt", b"x" * 1000)
    head = api.model_info("org/full").sha
    refused("large.bin", os.urandom(15_000_000))
    assert list((root / "blobs" / "tmp").iterdir()) == []
    filler = root / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    refused("small.txt", os.urandom(50_000))
    assert list((root / "blobs" / "tmp").iterdir()) == []
    assert api.model_info("org/full").sha == head
    filler.unlink()
    add("after.txt", b"y" * 50_000)
    assert api.list_repo_files("org/full") == [".gitattributes", "after.txt", "before.txt"]

"""A backup is whole, whatever is written while it is made."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from factory.localhub.launcher import Connection, connect, request


def back_up(hub: Connection, folder: Path) -> dict[str, object]:
    status, found = request(hub, "POST", "/api/local/backup", {"folder": str(folder)})
    assert status == 200, found
    return found


def commit(api: HfApi, path: str, content: bytes) -> str:
    operations = [CommitOperationAdd(path, content)]
    return api.create_commit("org/r", operations, commit_message=path).oid


def test_a_backup_made_under_writers_is_whole(tmp_path):
    stop = threading.Event()
    acknowledged: list[tuple[str, str]] = []
    with connect(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("org/r")

        def write(name: str) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                path = f"{name}/{number}.{'bin' if number % 2 else 'txt'}"
                acknowledged.append((commit(api, path, os.urandom(20_000)), path))

        writers = [threading.Thread(target=write, args=(name,)) for name in "abc"]
        for writer in writers:
            writer.start()
        before = {}
        try:
            for number in range(4):
                time.sleep(0.5)
                # One folder is brought up to date again and again.
                folder = tmp_path / ("again" if number % 2 else f"copy-{number}")
                before[folder] = list(acknowledged)
                assert back_up(hub, folder)["problems"] == []
        finally:
            stop.set()
            for writer in writers:
                writer.join()
    assert len(acknowledged) > 10
    for folder, expected in before.items():
        with connect(folder) as hub:
            api = HfApi(endpoint=hub.url, token=hub.token)
            assert request(hub, "POST", "/api/local/fsck")[1]["problems"] == []
            history = {item.commit_id for item in api.list_repo_commits("org/r")}
            files = set(api.list_repo_files("org/r"))
            assert {oid for oid, _ in expected} <= history
            assert {path for _, path in expected} <= files


def test_a_backup_is_brought_up_to_date_by_what_is_new(tmp_path):
    with connect(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("org/r")
        commit(api, "a.bin", os.urandom(50_000))
        first = back_up(hub, tmp_path / "copy")
        assert first["copied"] > 50_000
        commit(api, "b.bin", os.urandom(30_000))
        second = back_up(hub, tmp_path / "copy")
        assert 30_000 <= second["copied"] < 40_000
        assert second["contents"] == first["contents"] + 1
        assert {path.name for path in (tmp_path / "copy").iterdir()} == {"hub.sqlite", "blobs"}


@pytest.mark.parametrize("where", ["hub/inside", "full", "file", "relative"])
def test_a_folder_that_is_no_backup_is_left_alone(tmp_path, where):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    folder = where if where == "relative" else str(tmp_path / where)
    with connect(tmp_path / "hub") as hub:
        status, found = request(hub, "POST", "/api/local/backup", {"folder": folder})
        assert status in (400, 409) and "internal" not in found["error"]
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    assert list((tmp_path / "full").iterdir()) == [tmp_path / "full" / "thesis.txt"]


def test_a_damaged_content_is_left_out_and_named(tmp_path):
    with connect(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("org/r")
        commit(api, "a.bin", b"\0" * 5000)
        sha256 = api.model_info("org/r", files_metadata=True).siblings[-1].lfs.sha256
        path = tmp_path / "hub" / "blobs" / sha256[:2] / sha256
        path.chmod(0o600)
        path.write_bytes(b"\1" * 5000)
        found = back_up(hub, tmp_path / "copy")
        assert len(found["problems"]) == 1 and sha256 in found["problems"][0]
        assert not list((tmp_path / "copy").rglob(f"{sha256}*"))

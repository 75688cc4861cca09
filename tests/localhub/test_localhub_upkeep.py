"""gc takes away what nothing names and nothing else; fsck finds what is damaged."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import BadRequestError, HfHubHTTPError
from localhub_client import send

from factory.localhub.launcher import Connection, connect, request


@pytest.fixture
def store(tmp_path: Path):
    with connect(tmp_path) as hub:
        yield hub, HfApi(endpoint=hub.url, token=hub.token)


def age(root: Path, *contents: bytes) -> None:
    """Make contents, or all of them, look a week old."""
    week = time.time() - 7 * 86400
    wanted = {hashlib.sha256(content).hexdigest() for content in contents}
    for path in (root / "blobs").glob("??/*"):
        if not wanted or path.name in wanted:
            os.utime(path, (week, week))


def gc(hub: Connection, *, remove: bool = True, grace: int = 3600) -> dict[str, object]:
    status, found = request(hub, "POST", "/api/local/gc", {"remove": remove, "grace": grace})
    assert status == 200, found
    return found


def fsck(hub: Connection) -> list[str]:
    return request(hub, "POST", "/api/local/fsck")[1]["problems"]


def commit(api: HfApi, *files: tuple[str, bytes], **options: object) -> str:
    operations = [CommitOperationAdd(path, content) for path, content in files]
    return api.create_commit("org/r", operations, commit_message="c", **options).oid


def test_gc_takes_old_history_that_nothing_leads_to(tmp_path):
    kept, lost = os.urandom(5000), os.urandom(7000)
    with connect(tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("org/r")
        commit(api, ("kept.bin", kept), ("lost.bin", lost), ("dir/lost.txt", b"lost"))
        api.create_tag("org/r", tag="v0", revision=commit(api, ("t.txt", b"t")))
        api.delete_file("lost.bin", "org/r")
        api.delete_folder("dir", "org/r")
        age(tmp_path)
        nothing = {"commits": 0, "trees": 0, "contents": 0, "size": 0}
        assert gc(hub) == nothing | {"removed": True}  # the history still names them
        api.super_squash_history("org/r")
        api.delete_tag("org/r", tag="v0")
        assert gc(hub) == nothing | {"removed": True}  # and somebody may be looking at it yet
    while (tmp_path / "server.json").exists():
        time.sleep(0.05)
    with contextlib.closing(sqlite3.connect(tmp_path / "hub.sqlite")) as database, database:
        database.execute(
            "UPDATE commits SET date = date - 9999 WHERE oid NOT IN (SELECT target FROM refs)"
        )
    with connect(tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        dry = gc(hub, remove=False)
        assert (dry["commits"], dry["contents"], dry["removed"]) == (5, 2, False)
        assert dry["size"] == len(lost) + len(b"lost")
        assert gc(hub) == dry | {"removed": True} and gc(hub) == nothing | {"removed": True}
        assert sorted(api.list_repo_files("org/r")) == [".gitattributes", "kept.bin", "t.txt"]
        assert fsck(hub) == []


def test_a_deleted_repo_is_swept_and_shared_content_is_not(store):
    hub, api = store
    shared, own = os.urandom(5000), os.urandom(7000)
    for name in ("org/r", "org/other"):
        api.create_repo(name)
        api.upload_file(path_or_fileobj=shared, path_in_repo="s.bin", repo_id=name)
    commit(api, ("own.bin", own))
    api.delete_repo("org/r")
    young = gc(hub)
    assert young["contents"] == 0 and young["trees"] > 0
    age(hub.root)
    dry = gc(hub, remove=False)
    assert dry["contents"] == 1 and dry["size"] == len(own)
    assert gc(hub) == dry | {"removed": True}
    assert gc(hub)["contents"] == 0
    path = api.hf_hub_download("org/other", "s.bin", cache_dir=hub.root / "cache")
    assert Path(path).read_bytes() == shared and fsck(hub) == []


def test_gc_spares_an_upload_in_flight(store):
    """Content that a batch call said is here stays, though it was old and nothing named it."""
    hub, api = store
    api.create_repo("org/r")
    content = os.urandom(5000)
    sent = CommitOperationAdd("x.bin", content)
    api.preupload_lfs_files("org/r", [sent], free_memory=False)
    age(hub.root, content)
    again = CommitOperationAdd("x.bin", content)
    api.preupload_lfs_files("org/r", [again], free_memory=False)  # present: nothing is sent
    assert gc(hub)["contents"] == 0
    api.create_commit("org/r", [again], commit_message="c")
    assert fsck(hub) == [] and "x.bin" in api.list_repo_files("org/r")


def test_content_that_was_swept_is_asked_for_again(store):
    hub, api = store
    api.create_repo("org/r")
    content = os.urandom(5000)
    sent = CommitOperationAdd("x.bin", content)
    api.preupload_lfs_files("org/r", [sent], free_memory=False)
    age(hub.root, content)
    assert gc(hub)["contents"] == 1
    with pytest.raises(BadRequestError, match="upload it first"):
        api.create_commit("org/r", [sent], commit_message="c")
    commit(api, ("x.bin", content))
    assert fsck(hub) == []


def test_a_grace_that_harms_uploads_is_refused(store, tmp_path):
    hub, _ = store
    status, found = request(hub, "POST", "/api/local/gc", {"remove": True, "grace": 0})
    assert status == 400 and "uploads under way" in found["error"]


def test_only_the_owner_looks_after_the_store(hub, guests):
    for path in ("gc", "fsck"):
        reply = send(hub.url, "POST", f"/api/local/{path}", token=guests.writer, body="{}")
        assert reply.status == 403


def spoil(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.chmod(0o600)
    path.write_bytes(change(path.read_bytes()))


def test_fsck_finds_damage_and_a_second_upload_mends_it(store):
    hub, api = store
    api.create_repo("org/r")
    good, bad = os.urandom(5000), os.urandom(6000)
    commit(api, ("good.bin", good), ("bad.bin", bad))
    assert fsck(hub) == []
    sha = hashlib.sha256(bad).hexdigest()
    spoil(hub.root / "blobs" / sha[:2] / sha, lambda content: bytes([content[0] ^ 1]) + content[1:])
    problems = fsck(hub)
    assert len(problems) == 2 and sha in problems[0] and "'bad.bin'" in problems[1]
    commit(api, ("again.bin", bad))
    assert fsck(hub) == []


def test_large_files_are_listed_and_given_up(store):
    hub, api = store
    api.create_repo("org/r")
    used, unused = os.urandom(5000), os.urandom(6000)
    commit(api, ("used.bin", used))
    api.preupload_lfs_files("org/r", [CommitOperationAdd("unused.bin", unused)])
    found = {item.filename: item for item in api.list_lfs_files("org/r")}
    assert found["used.bin"].size == 5000 and found[""].size == 6000
    with pytest.raises(HfHubHTTPError, match="squash the history"):
        api.permanently_delete_lfs_files("org/r", [found["used.bin"]], rewrite_history=False)
    api.permanently_delete_lfs_files("org/r", [found[""]])
    age(hub.root)
    assert gc(hub)["size"] == 6000

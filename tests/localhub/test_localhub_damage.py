"""Whatever bits flip on the disk: fsck names what is wrong, and does not fall over it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from localhub_client import new_token

from factory.localhub import integrity
from factory.localhub.git_objects import Commit, commit_content, object_id
from factory.localhub.hub import LocalHub
from factory.localhub.launcher import HubDamagedError, await_end, connect, request

EMPTY = object_id("tree", b"")
UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
# A mirrored commit's id that git gives it too.
GIT_S = object_id("commit", commit_content(Commit("", EMPTY, None, "ada", 7, "from afar", "")))
DAMAGED_AT_START = (*UNREADABLE, RuntimeError)  # the last: a version that is not known


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A store with something in each of its tables."""
    root = tmp_path_factory.mktemp("damage") / "hub"
    new_token(root, "eve", "write")
    with connect(root) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        for name in ("a", "b"):
            api.create_repo(f"org/{name}")
            for number in range(12):
                add = [CommitOperationAdd(f"f/{n}.txt", b"%d %d" % (n, number)) for n in range(9)]
                api.create_commit(f"org/{name}", add, commit_message=f"commit {number}")
            api.create_tag(f"org/{name}", tag="v1")
            api.create_branch(f"org/{name}", branch="other")
        api.upload_file(path_or_fileobj=os.urandom(9000), path_in_repo="x.bin", repo_id="org/a")
        collection = api.create_collection("A title", description="of things")
        api.add_collection_item(collection.slug, "org/a", "model", note="a note")
        api.create_discussion("org/a", "a question", token=hub.token, description="of somebody")
        header = {"commit": "c" * 40, "author": "ada", "summary": "from afar", "date": 7,
                  "branch": "mirrored"}  # fmt: skip
        line = {"key": "header", "value": header}
        assert request(hub, "POST", "/api/models/org/b/mirror", line)[0] == 200
        line["value"] = header | {"commit": GIT_S, "branch": "true"}
        assert request(hub, "POST", "/api/models/org/b/mirror", line)[0] == 200
        report = request(hub, "POST", "/api/local/fsck")[1]
        assert (report["problems"], report["commits"], report["trusted"]) == ([], 28, 1)
    await_end(root)
    return root


def everything(path: Path) -> dict[str, object]:
    """All rows of all tables, or why a table cannot be read. Checksums are no content."""
    found: dict[str, object] = {}
    with contextlib.closing(sqlite3.connect(path)) as database:
        tables = database.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
        for name, sql in tables:
            found[name] = sql
            if sql and sql.startswith("CREATE TABLE") and name != "checksums":
                try:
                    found[f"rows of {name}"] = sorted(
                        map(repr, database.execute(f"SELECT * FROM {name} NOT INDEXED"))
                    )
                except UNREADABLE as error:
                    found[f"rows of {name}"] = str(error)
    return found


def flip(path: Path, pick: random.Random, count: int) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(count):
        content[pick.randrange(len(content))] ^= 1 << pick.randrange(8)
    path.chmod(0o600)
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_in_the_database_are_named(store, tmp_path, seed):
    pick = random.Random(seed)
    root = tmp_path / "hub"
    shutil.copytree(store, root)
    before = everything(root / "hub.sqlite")
    flip(root / "hub.sqlite", pick, pick.choice([1, 1, 1, 3, 20, 200]))
    try:
        after: object = everything(root / "hub.sqlite")
    except UNREADABLE as error:
        after = str(error)
    try:
        hub = LocalHub(root)
    except DAMAGED_AT_START:
        return
    try:
        _, problems = integrity.check(hub)
    finally:
        hub.close()
    assert all(line and "\n" not in line for line in problems)
    assert after == before or problems


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bits_in_contents_are_named_and_the_rest_is_whole(store, tmp_path, seed):
    pick = random.Random(seed)
    root = tmp_path / "hub"
    shutil.copytree(store, root)
    hit = pick.sample(sorted((root / "blobs").glob("??/*")), 5)
    for path in hit:
        flip(path, pick, pick.choice([1, 5]))
    before = {path: (store / path.relative_to(root)).read_bytes() for path in hit}
    changed = [path for path in hit if path.read_bytes() != before[path]]
    hub = LocalHub(root)
    whole, problems = integrity.check(hub)
    hub.close()
    for path in changed:
        assert any(f"content {path.name} was damaged" in line for line in problems)
        assert not path.exists()
    assert whole["contents"] == len(list((store / "blobs").glob("??/*"))) - len(changed)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE commits SET title = 'another' WHERE oid = '" + "c" * 40 + "'",
        f"UPDATE commits SET title = 'another' WHERE oid = '{GIT_S}'",
        "UPDATE collections SET title = 'another'",
        "UPDATE collection_items SET note = 'another'",
        "UPDATE discussions SET author = 'another'",
        "UPDATE tokens SET role = 'read'",
        "UPDATE refs SET target = (SELECT MIN(oid) FROM commits) WHERE name = 'refs/tags/v1'",
        "UPDATE repos SET private = 1",
        "UPDATE contents SET size = size + 1",
        "UPDATE path_changes SET path = 'another' WHERE id = 3",
        "DELETE FROM refs WHERE name = 'refs/tags/v1'",
        "DELETE FROM path_changes WHERE id = 3",
        "UPDATE trees SET entries = 'nonsense' WHERE base IS NOT NULL",
        "UPDATE trees SET base = oid WHERE base IS NOT NULL",
        "UPDATE trees SET entries = entries",
        "UPDATE checksums SET sum = 'x' WHERE row GLOB 'refs:*'",
    ],
)
def test_what_somebody_else_wrote_into_the_database_is_named(store, tmp_path, change):
    root = tmp_path / "hub"
    shutil.copytree(store, root)
    with contextlib.closing(sqlite3.connect(root / "hub.sqlite")) as database, database:
        assert database.execute(change).rowcount
    hub = LocalHub(root)
    problems = integrity.check(hub)[1]
    hub.close()
    assert bool(problems) is ("entries = entries" not in change)
    assert (f"commit {GIT_S} is not what its id says" in problems) is (GIT_S in change)


def test_a_database_that_cannot_be_read_at_all_is_named_with_its_cure(store, tmp_path):
    root = tmp_path / "hub"
    shutil.copytree(store, root)
    with contextlib.closing(sqlite3.connect(root / "hub.sqlite")) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_master SET sql = 'nonsense' WHERE name = 'refs'")
    with pytest.raises(HubDamagedError, match=r"hub\.sqlite is damaged") as caught, connect(root):
        pass
    assert "backup" in caught.value.fix


def test_a_request_that_meets_damage_says_so(store, tmp_path):
    root = tmp_path / "hub"
    shutil.copytree(store, root)
    with contextlib.closing(sqlite3.connect(root / "hub.sqlite")) as database:
        page = database.execute("SELECT rootpage FROM sqlite_master WHERE name='refs'").fetchone()
        size = database.execute("PRAGMA page_size").fetchone()[0]
    with (root / "hub.sqlite").open("r+b") as file:
        file.seek((page[0] - 1) * size)
        file.write(b"\xff" * size)
    with connect(root) as hub:
        status, found = request(hub, "GET", "/api/models/org/a/refs")
        assert status == 500 and "factory hub fsck" in found["error"]
        status, found = request(hub, "POST", "/api/local/fsck")
        assert status == 200 and any("refs" in line for line in found["problems"])
        # And nothing is taken for garbage there.
        assert request(hub, "POST", "/api/local/gc", {"remove": True})[0] in (409, 500)


def test_a_quick_check_names_damage_without_reading_contents(store, tmp_path):
    root = tmp_path / "hub"
    shutil.copytree(store, root)
    blob = max(
        (path for path in (root / "blobs").rglob("*") if path.is_file()), key=os.path.getsize
    )
    with connect(root) as hub:
        assert request(hub, "POST", "/api/local/fsck", {"quick": True})[1]["problems"] == []
        blob.unlink()
        [problem] = request(hub, "POST", "/api/local/fsck", {"quick": True})[1]["problems"]
        assert "'x.bin' in directory" in problem and f"lacks its content {blob.name}" in problem

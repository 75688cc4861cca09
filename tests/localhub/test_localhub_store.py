"""What is kept, and in how much room: directories by what changed, histories with an index."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.localhub import garbage, integrity
from factory.localhub.changes import Change, Put, Remove, Words
from factory.localhub.database import Database
from factory.localhub.errors import ProtocolError
from factory.localhub.git_objects import Commit, Entry, object_id
from factory.localhub.hub import LocalHub
from factory.localhub.launcher import await_end, connect, request
from factory.localhub.repos import Repo
from factory.localhub.trees import Trees

NAMES = st.sampled_from([f"n{number}" for number in range(12)])
STEPS = st.lists(st.tuples(NAMES, st.integers(0, 3)), min_size=1, max_size=60)


def file(name: str, content: bytes) -> Entry:
    return Entry(name, object_id("blob", content), len(content), content.hex().rjust(64, "0"))


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_a_directory_is_read_as_it_was_saved(tmp_path_factory, steps):
    database = Database(tmp_path_factory.mktemp("trees") / "hub.sqlite")
    trees, saved = Trees(database), {}
    directory: dict[str, Entry] = {f"k{n}": file(f"k{n}", b"kept") for n in range(20)}
    last: str | None = None
    for name, value in steps:
        directory = {**directory, name: file(name, bytes([value]))}
        if value == 0:
            del directory[name]
        with database.transaction() as connection:
            last = trees.save(connection, directory, last)
        saved[last] = directory
    again = Trees(database)
    for oid, expected in saved.items():
        assert again.read(oid) == expected
    database.close()


def test_no_start_makes_shared_memory(tmp_path):
    for _ in range(2):
        with connect(tmp_path):
            assert [path.name for path in tmp_path.glob("hub.sqlite*") if "shm" in path.name] == []
            assert (tmp_path / "hub.sqlite-wal").exists()
        await_end(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "hub.sqlite")) as database:
        assert database.execute("PRAGMA auto_vacuum").fetchone() == (2,)


def test_a_history_that_goes_round_ends(tmp_path):
    """Only a store from elsewhere has one."""
    with connect(tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("org/a")
        for number in range(2):
            api.upload_file(path_or_fileobj=b"%d" % number, path_in_repo="f", repo_id="org/a")
        head = api.model_info("org/a").sha
    await_end(tmp_path)
    store = LocalHub(tmp_path)
    with store.database.transaction() as connection:
        connection.execute("UPDATE commits SET parent = ? WHERE parent IS NULL", (head,))
    store.close()
    with connect(tmp_path) as hub:
        for page, count in enumerate((2, 1, 0)):
            path = f"/api/models/org/a/commits/main?limit=2&p={page}"
            assert len(request(hub, "GET", path, timeout=5)[1]) == count
        path = "/api/models/org/a/tree/main?expand=true"
        assert request(hub, "GET", path, timeout=5)[0] == 200


def test_a_folder_that_grows_takes_room_for_what_is_new(tmp_path):
    database = Database(tmp_path / "hub.sqlite")
    trees, directory, last = Trees(database), {}, None
    for number in range(1000):
        directory = {**directory, f"{number}": file(f"{number}", b"%d" % number)}
        with database.transaction() as connection:
            last = trees.save(connection, directory, last)
    entries = database.number("SELECT SUM(LENGTH(entries)) FROM trees") / 130
    assert entries < 15_000  # where each directory is whole it would be half a million
    assert database.number("SELECT MAX(steps) FROM trees") < 1000
    assert Trees(database).read(last) == directory
    database.close()


@pytest.fixture
def hub(tmp_path):
    hub = LocalHub(tmp_path / "hub")
    yield hub
    hub.close()


def put(hub: LocalHub, path: str, content: bytes) -> Put:
    parts = tuple(path.split("/"))
    return Put(parts, hub.store_file(parts[-1], content))


def make(hub: LocalHub, name: str = "r") -> Repo:
    return hub.create_repo("model", "org", name, owner="local", private=False)


def paths_of(hub: LocalHub, commit: Commit) -> list[tuple[str, ...]]:
    return [tuple(path.split("/")) for path, _ in hub.trees.walk(commit.tree)]


@pytest.mark.parametrize("seed", range(6))
def test_the_index_finds_the_last_changes_that_a_walk_finds(hub, seed):
    """Over branches, squashes, removed and renewed files, and files that take a folder's place."""
    pick, repo = random.Random(seed), make(hub)
    branches = ["main"]
    for number in range(60):
        branch = pick.choice(branches)
        path = "/".join(pick.choices("abc", k=pick.randint(1, 3)))
        change: Change = put(hub, path, pick.choice([b"x", b"y", b"%d" % number]))
        if pick.random() < 0.3:
            change = Remove(tuple(path.split("/")), directory=pick.random() < 0.5)
        with contextlib.suppress(ProtocolError):  # nothing to remove, or a folder in the way
            hub.history.commit(repo, branch, [change], Words("local", "c"))
        if pick.random() < 0.1:
            start = hub.history.resolve(repo, branch)
            branches.append(f"b{number}")
            hub.refs.create(repo, branches[-1], start.oid, tag=False)
        if pick.random() < 0.05:
            hub.history.squash(repo, branch, Words("local", "s"))
    for branch in branches:
        for commit in hub.history.log(repo, hub.history.resolve(repo, branch), 0, 100):
            paths = paths_of(hub, commit)
            expected = hub.history._walk(repo, commit, paths)
            assert hub.history.last_changes(repo, commit, paths) == expected
    assert integrity.check(hub)[1] == []


FIRST_VERSION = """
CREATE TABLE new_trees (oid TEXT PRIMARY KEY, entries TEXT NOT NULL);
CREATE TABLE new_repos (
  id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, namespace TEXT NOT NULL,
  name TEXT NOT NULL, owner TEXT NOT NULL, private INTEGER NOT NULL, created REAL NOT NULL,
  modified REAL NOT NULL, UNIQUE (kind, namespace, name));
INSERT INTO new_repos
  SELECT id, kind, namespace, name, owner, private, created, modified FROM repos;
"""


def as_first_version(root: Path) -> None:
    """Make a store what the first version of this program would have written."""
    database = Database(root / "hub.sqlite")
    trees = Trees(database)
    whole = [
        (row["oid"], json.dumps([[e.name, e.oid, e.size, e.sha256, e.lfs]
                                 for e in trees.read(row["oid"]).values()]))
        for row in database.rows("SELECT oid FROM trees")
    ]  # fmt: skip
    database.close()
    with contextlib.closing(sqlite3.connect(root / "hub.sqlite")) as plain, plain:
        plain.executescript(FIRST_VERSION)
        plain.executemany("INSERT INTO new_trees VALUES (?, ?)", whole)
        for table in ("trees", "repos"):
            plain.execute(f"DROP TABLE {table}")
            plain.execute(f"ALTER TABLE new_{table} RENAME TO {table}")
        plain.execute("DROP TABLE path_changes")
        plain.execute("DROP TABLE checksums")
        plain.execute("PRAGMA user_version = 1")
        plain.commit()
        plain.execute("PRAGMA auto_vacuum = NONE")
        plain.execute("VACUUM")


def test_a_store_of_the_first_version_is_read_and_goes_on(tmp_path):
    def shown(api: HfApi) -> list[tuple[str, str]]:
        items = api.list_repo_tree("org/r", recursive=True, expand=True)
        return [(item.path, item.last_commit.oid) for item in items]

    with connect(tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("org/r")
        for number in range(30):
            content = b"%d" % number
            add = [CommitOperationAdd(f"f/{number % 20}.txt", content)]
            api.create_commit("org/r", add, commit_message="c")
        expected, head = shown(api), api.model_info("org/r").sha
    await_end(tmp_path)
    as_first_version(tmp_path)
    with connect(tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        add = [CommitOperationAdd("new.txt", b"new")]
        api.create_commit("org/r", add, commit_message="c")  # before anybody asked for the index
        assert api.list_repo_commits("org/r")[1].commit_id == head
        assert [item for item in shown(api) if item[0] != "new.txt"] == expected
        assert request(hub, "POST", "/api/local/fsck")[1]["problems"] == []
        for path in (tmp_path / "blobs").glob("??/*"):
            os.utime(path, (0, 0))
        body = {"remove": True, "grace": 60}
        assert request(hub, "POST", "/api/local/gc", body)[1]["commits"] == 0
        assert request(hub, "POST", "/api/local/fsck")[1]["problems"] == []
    await_end(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "hub.sqlite")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (2,)


def test_content_goes_though_others_build_on_its_directory_and_room_is_given_back(hub):
    repo, old = make(hub), Words("local", "c", date=1)
    changes = [put(hub, f"f/{number}", b"%d" % number) for number in range(200)]
    hub.history.commit(repo, "main", [*changes, put(hub, "f/secret", b"secret")], old)
    for number in range(200):
        hub.history.commit(repo, "main", [put(hub, f"f/{number}", b"new %d" % number)], old)
    head = hub.history.commit(repo, "main", [Remove(("f", "secret"), directory=False)], old)
    kept = dict(hub.trees.walk(head.tree))
    secret = put(hub, "x", b"secret").entry.sha256
    hub.history.squash(repo, "main", Words("local", "s"))
    for sha256 in hub.blobs.names():
        os.utime(hub.database.path.parent / "blobs" / sha256[:2] / sha256, (0, 0))
    size = hub.database.path.stat().st_size
    found = garbage.collect(hub, 60, remove=True)
    assert found.commits == 202 and found.contents > 200 and not hub.blobs.has(secret)
    assert hub.database.path.stat().st_size < size / 2
    assert hub.database.number("PRAGMA freelist_count") == 0
    head = hub.history.resolve(repo, "main")
    assert dict(Trees(hub.database).walk(head.tree)) == kept
    hub.history.commit(repo, "main", [put(hub, "f/more", b"more")], Words("local", "c"))
    assert integrity.check(hub)[1] == []


def test_garbage_is_collected_while_others_write(hub, monkeypatch):
    """Nothing that is committed meanwhile is lost, also where it was garbage a moment before."""
    monkeypatch.setattr(garbage, "LEAST_GRACE", 0)
    stop, failures, expected = threading.Event(), [], {}
    made = [make(hub, name) for name in "abc"]

    def write(repo: Repo) -> None:
        pick = random.Random(repo.name)
        files: dict[str, bytes] = {}
        try:
            while not stop.is_set():
                # Of few contents, so that directories that are gone come back.
                path, content = f"f/{pick.randint(0, 5)}", b"%d" % pick.randint(0, 1)
                hub.history.commit(repo, "main", [put(hub, path, content)], Words("local", "c"))
                files[path] = content
                expected[repo] = dict(files)
                if pick.random() < 0.2:
                    hub.history.squash(repo, "main", Words("local", "s"))
        except Exception as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(repo,)) for repo in made]
    for writer in writers:
        writer.start()
    rounds, removed = 0, 0
    end = time.monotonic() + 8
    while time.monotonic() < end:
        removed += garbage.collect(hub, 2, remove=True).trees
        rounds += 1
    stop.set()
    for writer in writers:
        writer.join()
    assert not failures and rounds > 3 and removed > 0
    assert integrity.check(hub)[1] == []
    for repo, files in expected.items():
        head = hub.history.resolve(repo, "main")
        for path, content in files.items():
            entry = Trees(hub.database).find(head.tree, tuple(path.split("/")))
            assert hub.blobs.read(entry.sha256) == content


def test_others_are_served_while_the_store_is_looked_after(tmp_path):
    with connect(tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        for number in range(3):
            api.create_repo(f"org/r{number}")
            add = [CommitOperationAdd(f"f/{n}", os.urandom(100)) for n in range(300)]
            api.create_commit(f"org/r{number}", add, commit_message="c")
        (tmp_path / "blobs" / "ab").mkdir(exist_ok=True)
        big = tmp_path / "blobs" / "ab" / ("ab" + "0" * 62)
        with big.open("wb") as out:
            out.truncate(400_000_000)  # a second or two to hash
        answers: list[tuple[int, dict]] = []
        looking = threading.Thread(
            target=lambda: answers.append(request(hub, "POST", "/api/local/fsck"))
        )
        looking.start()
        time.sleep(0.2)
        waits, refused = [], 0
        while looking.is_alive():
            began = time.monotonic()
            assert request(hub, "GET", "/api/models/org/r1")[0] == 200
            waits.append(time.monotonic() - began)
            refused += request(hub, "POST", "/api/local/gc", {"remove": True})[0] == 409
            time.sleep(0.05)
        looking.join()
        assert len(waits) > 3 and max(waits) < 1.5 and refused > 0
        assert answers[0][0] == 200 and "damaged" in answers[0][1]["problems"][0]

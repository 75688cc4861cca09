"""factory push, pull and hub, as a user types them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factory.localhub.launcher import Connection, connect
from tests.conftest import FACTORY, run_factory
from tests.hub.sync.test_sync import add, client, commit, contents, targets, written


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Connection]]:
    home = tmp_path_factory.mktemp("ours") / "home"
    with connect(home / "hub") as hub:
        yield home, hub


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    with connect(tmp_path_factory.mktemp("remote")) as hub:
        yield hub


def shelf_of(hub: Connection, *repos: Any) -> str:
    api = client(hub)
    shelf = api.create_collection("All", namespace="org", exists_ok=True)
    for repo in repos:
        api.add_collection_item(shelf.slug, repo.name, repo.kind, note=f"note of {repo.name}")
    return str(shelf.slug)


def test_push_and_its_mistakes(ours: tuple[Path, Connection], remote: Connection) -> None:
    home, hub = ours
    repo = written(hub)
    shelf_of(hub, repo)
    tokens = {"HF_TOKEN": remote.token}

    dry = run_factory("push", "--to", remote.url, "--dry-run", "--json", home=home, **tokens)
    assert dry.returncode == 0, dry.stderr
    assert json.loads(dry.stdout)["repos"][0]["commits"] == 5
    done = run_factory("push", "--to", remote.url, home=home, **tokens)
    assert done.returncode == 0, done.stderr
    assert repo.name in done.stdout and "collection org/all-" in done.stdout
    assert contents(remote, repo) == contents(hub, repo)

    commit(client(hub), repo, add("ours", b"1"))
    commit(client(remote), repo, add("theirs", b"2"))
    stopped = run_factory("push", str(repo), "--to", remote.url, home=home, **tokens)
    assert stopped.returncode == 1
    assert "has commits that" in stopped.stderr and "--adopt-remote" in stopped.stderr


@pytest.mark.slow
def test_what_cannot_be_pushed_is_said(ours: tuple[Path, Connection], remote: Connection) -> None:
    home, _ = ours
    for words, said in (
        (["push", "org/absent", "--to", remote.url], "has no org/absent"),
        (["push", "absent", "--to", remote.url], "no recipe called 'absent'"),
        (["push", "org/x@v1", "--to", remote.url], "takes whole repos"),
        (["push", "--rename", "x", "--to", remote.url], "is not OLD=NEW"),
    ):
        answer = run_factory(*words, home=home, HF_TOKEN=remote.token)
        assert answer.returncode == 1 and said in answer.stderr


def test_neither_hub_sees_the_others_token(
    ours: tuple[Path, Connection], remote: Connection
) -> None:
    home, hub = ours
    refused = run_factory("push", "--to", remote.url, home=home, HF_TOKEN=hub.token)
    assert refused.returncode == 1 and "token" in refused.stderr


@pytest.mark.slow
def test_a_collection_travels_in_a_file(ours: tuple[Path, Connection], tmp_path: Path) -> None:
    home, hub = ours
    repos = [written(hub, "model"), written(hub, "dataset")]
    slug = shelf_of(hub, *repos)
    file = tmp_path / "collection.tar"
    out = run_factory("hub", "export", str(file), slug, home=home)
    assert out.returncode == 0, out.stderr
    other = tmp_path / "other"
    done = run_factory("hub", "import", str(file), home=other)
    assert done.returncode == 0, done.stderr
    with connect(other / "hub") as landed:
        for repo in repos:
            assert targets(landed, repo) == targets(hub, repo)
            assert contents(landed, repo) == contents(hub, repo)
        [shelf] = client(landed).list_collections(owner="org")
        notes = {
            item.item_id: item.note for item in client(landed).get_collection(shelf.slug).items
        }
        assert notes.items() >= {repo.name: f"note of {repo.name}" for repo in repos}.items()
    checked = run_factory("hub", "fsck", home=other).stdout
    assert re.match(r"\d+ contents, \d+ directories and \d+ commits verified\n$", checked)
    assert "removable" in run_factory("hub", "gc", home=other).stdout
    with tarfile.open(file, "a") as tar:
        for name in ("../../beside", "blobs/../../beside", "token"):
            tar.addfile(tarfile.TarInfo(name))
    assert run_factory("hub", "import", str(file), home=tmp_path / "third").returncode == 0
    assert not [path for path in tmp_path.rglob("*") if path.name == "beside"]
    file.write_bytes(file.read_bytes()[:1000])
    broken = run_factory("hub", "import", str(file), home=other)
    assert broken.returncode == 1 and "not a complete export" in broken.stderr


_ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
_HARM = {
    "squeezed": "is not a complete export",
    "holes": "is not stored whole",
    "lacking": "is damaged: 'a.parquet' in directory",
    "ALTER TABLE repos RENAME TO r;"
    f"CREATE VIEW repos AS SELECT r.* FROM r, ({_ENDLESS});": "cannot be opened",
    f"CREATE TRIGGER t AFTER INSERT ON tokens BEGIN {_ENDLESS}; END;": "cannot be opened",
    "UPDATE trees SET entries = replace(entries, '0', '/etc/passwd')": "is damaged: row",
}


def test_a_file_that_means_harm_is_refused_at_once(
    ours: tuple[Path, Connection], tmp_path: Path
) -> None:
    home, hub = ours
    repo, file = written(hub, "model"), tmp_path / "file.tar"
    assert run_factory("hub", "export", str(file), str(repo), home=home).returncode == 0
    with tarfile.open(file) as tar:
        tar.extractall(tmp_path / "good", filter="data")
    for number, (harm, said) in enumerate(_HARM.items()):
        store = shutil.copytree(tmp_path / "good", tmp_path / f"store-{number}")
        if harm == "holes":
            (store / "blobs" / "aa").mkdir(exist_ok=True)
            with (store / "blobs" / "aa" / ("a" * 64)).open("wb") as blob:
                blob.truncate(10**9)
        elif harm == "lacking":
            max(store.rglob("blobs/*/*"), key=lambda path: path.stat().st_size).unlink()
        elif " " in harm:
            with contextlib.closing(sqlite3.connect(store / "hub.sqlite")) as database:
                database.executescript(harm)
        how = "-Sczf" if harm == "squeezed" else "-Scf"
        subprocess.run(["tar", "-C", str(store), how, str(file), "hub.sqlite", "blobs"], check=True)
        done = run_factory("hub", "import", str(file), home=tmp_path / "home", timeout=30)
        assert done.returncode == 1 and said in done.stderr, (harm, done.stderr)
    assert not list(tmp_path.glob("tmp*")), "nothing is left behind"


def test_the_hub_says_where_it_is_and_serves_until_told_to_stop(home: Path) -> None:
    def status() -> Any:
        return json.loads(run_factory("hub", "status", "--json", home=home).stdout)

    assert status() == {"running": False, "store": str(home / "hub")}
    server = subprocess.Popen(
        [*FACTORY, "hub", "serve"],
        env={**os.environ, "FACTORY_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        found = status()
        assert found["running"] and found["url"] in said
        commit_to = client(Connection(found["url"], (home / "hub" / "token").read_text(), home))
        repo = commit_to.create_repo("org/x").repo_id
        commit_to.delete_repo(repo)
        told = run_factory("hub", "gc", home=home).stdout
        assert "removable: --remove" in told
        assert "removed" in run_factory("hub", "gc", "--remove", home=home).stdout
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)
    assert not status()["running"]


def test_a_log_shows_bytes_and_rate_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from factory.cli import bar

    monkeypatch.setattr(bar, "_EVERY", 0.01)
    made = bar.Bar()
    made.begin("datasets/org/x", 5_000_000)
    for _ in range(4):
        time.sleep(0.02)
        made.moved(1_000_000)
    made.stop()
    said = capsys.readouterr()
    lines = (said.out + said.err).splitlines()
    assert len(lines) == 4
    assert lines[3].startswith("datasets/org/x: 4 MB of 5 MB, ") and lines[3].endswith("MB/s")

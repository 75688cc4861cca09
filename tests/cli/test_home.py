"""What lies in a home is the user's alone, and git leaves it out."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
from pathlib import Path

from huggingface_hub import HfApi

from factory.localhub.launcher import await_end, connect
from tests.conftest import run_factory


def test_a_home_is_private_and_ignored_by_git(home: Path) -> None:
    (home / "cache").mkdir(parents=True, mode=0o755)
    assert run_factory("hub", "token", home=home).returncode == 0
    for name in ("work", "cache", "sync", "hub"):
        assert (home / name).stat().st_mode & 0o077 == 0, name
    subprocess.run(["git", "init", "-q", home.parent], check=True)
    status = ["git", "-C", str(home.parent), "status", "--porcelain", "-uall"]
    assert subprocess.run(status, capture_output=True, text=True, check=True).stdout == ""


def test_doctor_names_a_damaged_store(home: Path) -> None:
    with connect(home / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("org/a")
        api.upload_file(path_or_fileobj=b"\0" * 9000, path_in_repo="x.bin", repo_id="org/a")
        for blob in (home / "hub" / "blobs").rglob("*"):
            if blob.is_file() and blob.stat().st_size == 9000:
                blob.unlink()
        shown = run_factory("doctor", home=home)
    [line] = [line for line in shown.stdout.splitlines() if "local hub" in line]
    assert line.startswith("failed") and "its store is damaged: 'x.bin' in directory" in line
    assert "factory hub fsck names all" in shown.stdout
    assert shown.returncode == 1


def test_the_cure_of_a_damaged_database_is_a_backup(home: Path) -> None:
    with connect(home / "hub") as hub:
        HfApi(endpoint=hub.url, token=hub.token).create_repo("org/a")
    await_end(home / "hub")
    file = home / "hub" / "hub.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE repos SET owner = 'another'")
    done = run_factory("hub", "fsck", home=home)
    assert "1 contents, 1 directories and 1 commits verified\n" in done.stdout
    assert "the store has 1 problems" in done.stderr and "put a backup" in done.stderr
    await_end(home / "hub")
    file.write_bytes(b"no database" * 1000)
    done = run_factory("hub", "ls", home=home)
    message, fix = done.stderr.splitlines()
    damaged = f"{file} is damaged: file is not a database"
    assert message == f"error: the local hub did not start: {damaged}"
    assert "put a backup" in fix
    shown = run_factory("doctor", home=home).stdout
    assert f"local hub: {damaged}" in shown and "put a backup" in shown

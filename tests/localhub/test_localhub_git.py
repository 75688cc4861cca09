"""The ids are git's own: a repo rebuilt from the store passes git fsck --strict."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import zlib
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from factory.localhub.blobs import Blobs
from factory.localhub.database import Database
from factory.localhub.git_objects import (
    Commit,
    commit_content,
    lfs_pointer,
    object_id,
    tree_content,
)
from factory.localhub.launcher import connect
from factory.localhub.trees import Trees


def git(repo: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(repo), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def rebuild(root: Path, bare: Path) -> None:
    """Write every object of a hub with one repo as a loose git object."""
    git(bare.parent, "init", "-q", "--bare", str(bare))

    def write(oid: str, kind: str, content: bytes) -> None:
        assert object_id(kind, content) == oid
        path = bare / "objects" / oid[:2] / oid[2:]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(zlib.compress(b"%s %d\0" % (kind.encode(), len(content)) + content))

    blobs = Blobs(root / "blobs")
    database = Database(root / "hub.sqlite")
    trees = Trees(database)
    for (oid,) in database.rows("SELECT oid FROM trees"):
        entries = trees.read(oid).values()
        write(oid, "tree", tree_content(entries))
        for entry in entries:
            if entry.sha256:
                content = (
                    lfs_pointer(entry.sha256, entry.size) if entry.lfs else blobs.read(entry.sha256)
                )
                write(entry.oid, "blob", content)
    for facts in database.rows(
        "SELECT oid, tree, parent, author, date, title, message FROM commits"
    ):
        write(facts[0], "commit", commit_content(Commit(*facts)))
    for name, target in database.rows("SELECT name, target FROM refs"):
        git(bare, "update-ref", name, target)
    database.close()


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_git_finds_nothing_wrong(tmp_path):
    root, bare = tmp_path / "root", tmp_path / "bare.git"
    with connect(root) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("org/g")
        names = ["a.txt", "a/b", "a-b", "a0", "ø/æ å.txt", "deep/er/and/deeper", "big.bin", "empty"]
        files = [CommitOperationAdd(n, os.urandom(50) if n != "empty" else b"") for n in names]
        api.create_commit(
            "org/g", files, commit_message="ünïcode", commit_description="and\n\nmore"
        )
        api.create_tag("org/g", tag="v1")
        api.create_branch("org/g", branch="exp/a")
        gone = [CommitOperationDelete("deep/", is_folder=True)]
        api.create_commit("org/g", gone, commit_message="less", revision="exp/a")
        listed = {
            i.path: i.blob_id
            for i in api.list_repo_tree("org/g", recursive=True)
            if hasattr(i, "size")
        }
    while (root / "server.json").exists():
        time.sleep(0.1)
    rebuild(root, bare)
    assert "error" not in git(bare, "fsck", "--full", "--strict")
    rows = git(bare, "-c", "core.quotepath=off", "ls-tree", "-r", "main").splitlines()
    assert {row.split("\t")[1]: row.split()[2] for row in rows} == listed
    assert git(bare, "log", "--format=%s|%b", "-1", "main").strip() == "ünïcode|and\n\nmore"
    assert git(bare, "diff", "--stat", "main", "exp/a").count("deep/er/and/deeper") == 1
    assert git(bare, "rev-parse", "v1") == git(bare, "rev-parse", "main")

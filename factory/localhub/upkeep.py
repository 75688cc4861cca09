"""The large files of a repo: which it was given, and which of them it gives up."""

from __future__ import annotations

from typing import Any

from factory.localhub.errors import Conflict
from factory.localhub.garbage import Needs
from factory.localhub.hub import LocalHub
from factory.localhub.refs import BRANCH, MAIN
from factory.localhub.repos import Repo

# In the order of the commits, so that from one to the next there is little that differs.
_TREES = "SELECT tree FROM commits WHERE repo = ? ORDER BY rowid"


def large_files(hub: LocalHub, repo: Repo) -> list[dict[str, Any]]:
    """Return the contents that a repo was given as large files: one path of each and, if a ref has
    it today, one ref."""
    refs: dict[str, str] = {}
    for ref, target in sorted(
        hub.refs.all(repo).items(), key=lambda item: item[0] != BRANCH + MAIN
    ):
        for _, item in hub.trees.walk(hub.history.resolve(repo, target).tree):
            if item.lfs and item.sha256:
                refs.setdefault(item.sha256, ref)
    paths: dict[str, str] = {}
    ordinary: set[str] = set()
    last: str | None = None
    for row in hub.database.rows(_TREES, (repo.key,)):
        for path in hub.trees.differences(last, row["tree"]):
            entry = hub.trees.find(row["tree"], tuple(path.split("/")))
            if entry is not None and entry.lfs and entry.sha256:
                paths.setdefault(entry.sha256, path)
            elif entry is not None and entry.sha256:
                ordinary.add(entry.sha256)
        last = row["tree"]
    files = []
    for row in hub.database.rows("SELECT * FROM contents WHERE repo = ?", (repo.key,)):
        sha256 = row["sha256"]
        if sha256 not in ordinary and hub.blobs.has(sha256):
            size, pushed = hub.blobs.state(sha256)
            path = paths.get(sha256, "")
            files.append(
                {"oid": sha256, "path": path, "size": size, "pushed": pushed,
                 "ref": refs.get(sha256)}
            )  # fmt: skip
    return sorted(files, key=lambda item: item["pushed"], reverse=True)


def give_up(hub: LocalHub, repo: Repo, contents: set[str]) -> None:
    """Forget that a repo was given these contents; gc takes them away. Raises Conflict."""
    with hub.database.transaction() as connection:
        needs = Needs()
        for row in connection.execute(_TREES, (repo.key,)).fetchall():
            needs.add(hub, repo.key, row["tree"])
        if used := contents & needs.named():
            raise Conflict(
                f"a commit of {repo.id} holds {min(used)}: delete it with rewrite_history=True, or"
                " delete the file, squash the history and run gc before"
            )
        connection.executemany(
            "DELETE FROM contents WHERE repo = ? AND sha256 = ?",
            [(repo.key, sha256) for sha256 in contents],
        )

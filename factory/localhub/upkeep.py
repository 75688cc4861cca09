"""Looking after the store: gc takes away what nothing names, fsck finds what is not as it was.

What stays: the commits that a branch or tag leads to, those taken in from another hub, and
whatever is younger than a time of grace, because somebody may be about to name it.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

from factory.localhub.errors import BadRequest, Conflict
from factory.localhub.git_objects import (
    Commit,
    Entry,
    commit_content,
    lfs_pointer,
    object_id,
    tree_content,
)
from factory.localhub.hub import LocalHub
from factory.localhub.repos import Repo

# Less could take content away between its upload and the commit that names it.
LEAST_GRACE = 60
_CHUNK = 1024 * 1024
_LIVE = (
    "WITH RECURSIVE live (repo, oid) AS ("
    " SELECT repo, target FROM refs UNION SELECT repo, oid FROM mirrored"
    " UNION SELECT repo, oid FROM commits WHERE date >= ?"
    " UNION SELECT commits.repo, commits.parent FROM commits"
    " JOIN live ON commits.repo = live.repo AND commits.oid = live.oid"
    " WHERE commits.parent IS NOT NULL)"
    " SELECT repo, oid, tree FROM commits JOIN live USING (repo, oid)"
)


@dataclass
class Garbage:
    """What was taken away, or would be."""

    commits: int = 0
    trees: int = 0
    contents: int = 0
    size: int = 0


def collect(hub: LocalHub, grace: int, *, remove: bool) -> Garbage:
    """Find what nothing names and is older than `grace` seconds, and take it away if told to."""
    if grace < LEAST_GRACE:
        raise BadRequest(f"a grace of less than {LEAST_GRACE} s would harm uploads under way")
    before = time.time() - grace
    found = Garbage()
    with hub.database.transaction() as connection:
        live = {(row["repo"], row["oid"]): row["tree"]
                for row in connection.execute(_LIVE, (int(before),))}  # fmt: skip
        trees: set[str] = set()
        needed: dict[int, set[str]] = {}
        seen: dict[str, set[str]] = {}
        for (repo, _), tree in live.items():
            needed.setdefault(repo, set()).update(_contents_below(hub, tree, trees, seen))
        commits = [
            (row["repo"], row["oid"])
            for row in connection.execute("SELECT repo, oid FROM commits")
            if (row["repo"], row["oid"]) not in live
        ]
        dead_trees = [
            (row["oid"],)
            for row in connection.execute("SELECT oid FROM trees")
            if row["oid"] not in trees
        ]
        links = [
            (row["sha256"], row["repo"])
            for row in connection.execute("SELECT sha256, repo FROM contents")
            if row["sha256"] not in needed.get(row["repo"], ())
            and _is_older(hub, row["sha256"], before)
        ]
        named = {
            row["sha256"] for row in connection.execute("SELECT DISTINCT sha256 FROM contents")
        } - {sha256 for sha256, _ in links}
        named = named.union(*needed.values())
        if remove:
            connection.executemany("DELETE FROM commits WHERE repo = ? AND oid = ?", commits)
            connection.executemany("DELETE FROM trees WHERE oid = ?", dead_trees)
            connection.executemany("DELETE FROM contents WHERE sha256 = ? AND repo = ?", links)
    found.commits, found.trees = len(commits), len(dead_trees)
    for sha256 in sorted(set(hub.blobs.names()) - named):
        if not _is_older(hub, sha256, before):
            continue
        size, _ = hub.blobs.state(sha256)
        # Looked at once more under a lock: an upload may have counted on it this very moment.
        if not remove or hub.blobs.drop(sha256, before):
            found.contents += 1
            found.size += size
    if remove:
        hub.blobs.drop_parts(before)
    return found


def check(hub: LocalHub) -> tuple[int, list[str]]:
    """Hash everything anew: how many contents there are, and what is wrong, a line each."""
    problems = [
        f"database: {row[0]}"
        for row in hub.database.rows("PRAGMA integrity_check")
        if row[0] != "ok"
    ]
    problems += [
        f"database: a row of {row['table']} points to nothing"
        for row in hub.database.rows("PRAGMA foreign_key_check")
    ]
    blobs: dict[str, tuple[int, str]] = {}
    for sha256 in sorted(hub.blobs.names()):
        try:
            size, actual, blob = _hashes(hub, sha256)
        except FileNotFoundError:  # taken away by gc since
            continue
        if actual == sha256:
            blobs[sha256] = (size, blob)
        else:
            hub.blobs.set_aside(sha256)
            problems.append(f"content {sha256} was damaged and is set aside: upload it again")
    trees = set()
    for row in hub.database.rows("SELECT oid, entries FROM trees"):
        entries = [Entry(*values) for values in json.loads(row["entries"])]
        trees.add(row["oid"])
        if object_id("tree", tree_content(entries)) != row["oid"]:
            problems.append(f"directory {row['oid']} is not what its id says")
        problems += [problem for entry in entries if (problem := _wrong(entry, blobs, row["oid"]))]
    mirrored = {(row["repo"], row["oid"]) for row in hub.database.rows("SELECT * FROM mirrored")}
    oids = set()
    for row in hub.database.rows("SELECT * FROM commits"):
        repo, *facts = row
        commit = Commit(*facts)
        oids.add((repo, commit.oid))
        own = (repo, commit.oid) not in mirrored
        if own and object_id("commit", commit_content(commit)) != commit.oid:
            problems.append(f"commit {commit.oid} is not what its id says")
        if commit.tree not in trees:
            problems.append(f"commit {commit.oid} lacks its directory {commit.tree}")
    problems += [
        f"{row['name']} of repo {row['repo']} points to no commit"
        for row in hub.database.rows("SELECT * FROM refs")
        if (row["repo"], row["target"]) not in oids
    ]
    return len(blobs), problems


def large_files(hub: LocalHub, repo: Repo) -> list[dict[str, Any]]:
    """The contents that a repo was given as large files, with one path of each if it has one."""
    paths: dict[str, str] = {}
    ordinary: set[str] = set()
    for row in hub.database.rows("SELECT DISTINCT tree FROM commits WHERE repo = ?", (repo.key,)):
        for path, entry in hub.trees.walk(row["tree"]):
            if entry.lfs and entry.sha256:
                paths.setdefault(entry.sha256, path)
            elif entry.sha256:
                ordinary.add(entry.sha256)
    found = []
    for row in hub.database.rows("SELECT * FROM contents WHERE repo = ?", (repo.key,)):
        sha256 = row["sha256"]
        if sha256 not in ordinary and hub.blobs.has(sha256):
            size, pushed = hub.blobs.state(sha256)
            path = paths.get(sha256, "")
            found.append({"oid": sha256, "path": path, "size": size, "pushed": pushed})
    return sorted(found, key=lambda item: item["pushed"], reverse=True)


def give_up(hub: LocalHub, repo: Repo, contents: set[str]) -> None:
    """Forget that a repo was given these contents; gc takes them away. Raises Conflict."""
    with hub.database.transaction() as connection:
        seen: dict[str, set[str]] = {}
        for row in connection.execute("SELECT tree FROM commits WHERE repo = ?", (repo.key,)):
            if used := contents & _contents_below(hub, row["tree"], set(), seen):
                raise Conflict(
                    f"a commit of {repo.id} holds {min(used)}: delete the file, squash the history"
                    " and run gc before"
                )
        connection.executemany(
            "DELETE FROM contents WHERE repo = ? AND sha256 = ?",
            [(repo.key, sha256) for sha256 in contents],
        )


def _contents_below(
    hub: LocalHub, tree: str, trees: set[str], seen: dict[str, set[str]]
) -> set[str]:
    """The contents of all files below a tree; the trees met are added to `trees`."""
    trees.add(tree)
    if tree not in seen:
        found: set[str] = set()
        for entry in hub.trees.read(tree).values():
            if entry.sha256 is not None:
                found.add(entry.sha256)
            else:
                found |= _contents_below(hub, entry.oid, trees, seen)
        seen[tree] = found
    return seen[tree]


def _is_older(hub: LocalHub, sha256: str, moment: float) -> bool:
    try:
        return hub.blobs.state(sha256)[1] < moment
    except FileNotFoundError:
        return True


def _hashes(hub: LocalHub, sha256: str) -> tuple[int, str, str]:
    """Size, sha256 and git id of what lies under a name."""
    size, _ = hub.blobs.state(sha256)
    whole, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with hub.blobs.open(sha256) as file:
        while chunk := file.read(_CHUNK):
            whole.update(chunk)
            git.update(chunk)
    return size, whole.hexdigest(), git.hexdigest()


def _wrong(entry: Entry, blobs: dict[str, tuple[int, str]], tree: str) -> str | None:
    if entry.sha256 is None:
        return None
    if entry.sha256 not in blobs:
        return f"{entry.name!r} in directory {tree} lacks its content {entry.sha256}"
    size, blob = blobs[entry.sha256]
    if entry.lfs:
        blob = object_id("blob", lfs_pointer(entry.sha256, size))
    if (size, blob) != (entry.size, entry.oid):
        return f"{entry.name!r} in directory {tree} is not what its id says"
    return None

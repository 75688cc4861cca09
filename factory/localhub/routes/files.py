"""Reading: lists of files, facts about some of them, and their content, whole or in part."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from factory.localhub.errors import EntryNotFound, RangeNotSatisfiable
from factory.localhub.git_objects import Commit, Entry
from factory.localhub.replies import answer
from factory.localhub.repos import Repo
from factory.localhub.routes.repos import iso_date, lfs_facts
from factory.localhub.wire import Call, route

_PAGE = 1000
# With the last commit of each path, which takes a walk through the history.
_EXPANDED_PAGE = 50
_CHUNK = 1024 * 1024
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def tree(call: Call) -> Response:
    """List a directory, or all below it. Later pages show the commit of the first."""
    call.knows("recursive expand limit cursor", "list files")
    repo = call.repo()
    commit = call.commit(repo)
    path = call.params.get("path", "").strip("/")
    oid = commit.tree
    if path:
        entry = call.hub.history.find(repo, commit, tuple(path.split("/")))
        if not entry.is_directory:
            raise _no_entry(repo, commit, path)
        oid = entry.oid
    prefix = f"{path}/" if path else ""
    entries = list(call.hub.trees.walk(oid, prefix, deep=call.flag("recursive")))
    expand = call.flag("expand")
    limit = _EXPANDED_PAGE if expand else _PAGE
    limit = max(call.count("limit", limit, limit), 1)
    start = call.count("cursor", 0, len(entries))
    headers = {}
    if start + limit < len(entries):
        parameters = [(key, value) for key, value in call.query.multi_items() if key != "cursor"]
        query = urlencode([*parameters, ("cursor", start + limit)])
        below = f"/{quote(path, safe='')}" if path else ""
        address = f"/api/{repo.kind}s/{repo.id}/tree/{commit.oid}{below}"
        headers["Link"] = f'<{call.base}{address}?{query}>; rel="next"'
    return answer(
        _shown(call, repo, commit, entries[start : start + limit], expand), headers=headers
    )


def paths_info(call: Call) -> Response:
    """Facts about some paths; those that are not there are left out."""
    repo = call.repo()
    commit = call.commit(repo)
    form = call.form()
    entries = []
    for path in form.get("paths", []):
        entry = call.hub.trees.find(commit.tree, tuple(path.strip("/").split("/")))
        if entry is not None:
            entries.append((path.strip("/"), entry))
    expand = form.get("expand", [""])[0].lower() in ("true", "1")
    return answer(_shown(call, repo, commit, entries, expand))


def resolve(call: Call) -> Response:
    """The content of a file, or with HEAD only what there is to know about it."""
    repo = call.repo()
    commit = call.commit(repo)
    path = call.params["path"]
    entry = call.hub.history.find(repo, commit, tuple(path.split("/")))
    if entry.sha256 is None:
        raise _no_entry(repo, commit, path)
    headers = {
        "X-Repo-Commit": commit.oid,
        "ETag": f'"{entry.sha256 if entry.lfs else entry.oid}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    if entry.lfs:
        headers["X-Linked-Etag"] = f'"{entry.sha256}"'
        headers["X-Linked-Size"] = str(entry.size)
    return content(call, entry.sha256, entry.size, headers)


def content(call: Call, sha256: str, size: int, headers: dict[str, str]) -> Response:
    """Answer with a content of `size` bytes, or with the part that is asked for."""
    part = _asked_range(call.headers.get("range"), size, headers)
    start, end = part or (0, size)
    if part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    status = 206 if part else 200
    if call.method == "HEAD":
        return Response(status_code=status, headers=headers)
    file = call.hub.blobs.open(sha256)
    if end - start <= _CHUNK:
        with file:
            file.seek(start)
            return Response(file.read(end - start), status, headers)
    return StreamingResponse(_stream(file, start, end), status, headers)


async def _stream(file: BinaryIO, start: int, end: int) -> AsyncIterator[bytes]:
    try:
        await run_in_threadpool(file.seek, start)
        while start < end:
            chunk = await run_in_threadpool(file.read, min(_CHUNK, end - start))
            if not chunk:
                raise EOFError(f"{file.name} is shorter than it was when it was written")
            start += len(chunk)
            yield chunk
    finally:
        file.close()


def _asked_range(text: str | None, size: int, headers: Mapping[str, str]) -> tuple[int, int] | None:
    """Start and end of the part asked for; None is the whole, also for what we do not understand.

    Raises RangeNotSatisfiable if the part begins where the file has ended.
    """
    match = _RANGE.fullmatch((text or "").strip())
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:  # the last so many bytes
        start, end = max(size - int(match[2]), 0), size
    else:
        start = int(match[1])
        end = min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= size:
        raise RangeNotSatisfiable(
            f"the file has {size} bytes, none from byte {start} on",
            headers={**headers, "Content-Range": f"bytes */{size}"},
        )
    return start, end


def _shown(
    call: Call, repo: Repo, commit: Commit, entries: list[tuple[str, Entry]], expand: bool
) -> list[dict[str, Any]]:
    """Files and directories in the words of the protocol."""
    shown = []
    for path, entry in entries:
        item: dict[str, Any] = {
            "type": "directory" if entry.is_directory else "file",
            "oid": entry.oid,
            "size": entry.size,
            "path": path,
        }
        if entry.lfs:
            item["lfs"] = {"oid": entry.sha256, **lfs_facts(entry)}
        shown.append(item)
    if expand:
        paths = {path: tuple(path.split("/")) for path, _ in entries}
        changes = call.hub.history.last_changes(repo, commit, paths.values())
        for item in shown:
            last = changes[paths[item["path"]]]
            item["lastCommit"] = {"id": last.oid, "title": last.title, "date": iso_date(last.date)}
    return shown


def _no_entry(repo: Repo, commit: Commit, path: str) -> EntryNotFound:
    return EntryNotFound(
        f"{path!r} is not of that sort in {repo.id} at {commit.oid}",
        headers={"X-Repo-Commit": commit.oid},
    )


_REPO = "/api/{kind}/{namespace}/{name}"
ROUTES = [
    route("GET", f"{_REPO}/tree/{{revision}}", tree),
    route("GET", f"{_REPO}/tree/{{revision}}/{{path:path}}", tree),
    route("POST", f"{_REPO}/paths-info/{{revision}}", paths_info),
    route("GET", "/{namespace}/{name}/resolve/{revision}/{path:path}", resolve),
    route("GET", "/{kind}/{namespace}/{name}/resolve/{revision}/{path:path}", resolve),
]

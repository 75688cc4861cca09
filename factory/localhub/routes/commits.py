"""Writing: which files are large ones, and the commit itself, read line by line as it comes in.

Besides the protocol's own commit there is `mirror`, which takes in a commit of another hub under
the id it has there, so that a lock or an adapter's config means the same on both.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from factory.localhub import attributes
from factory.localhub.changes import Change, Put, Remove, Words
from factory.localhub.errors import BadRequest, TooLarge
from factory.localhub.fields import Fields, read_json
from factory.localhub.git_objects import (
    SHA256,
    Commit,
    Entry,
    is_lfs_pointer,
    lfs_pointer,
    object_id,
)
from factory.localhub.names import split_path
from factory.localhub.refs import MAIN
from factory.localhub.replies import answer
from factory.localhub.repos import Repo
from factory.localhub.wire import Call, identify, route, stream_route

# An ordinary file of the largest size in base64, and its path.
_LINE_LIMIT = attributes.REGULAR_LIMIT * 4 // 3 + 64 * 1024
_CHANGES_LIMIT = 100_000


def preupload(call: Call) -> Response:
    """For each file: is it a large one, is it ignored, and which content has it now."""
    repo = call.repo_to_write()
    commit = call.commit(repo)
    body = call.json()
    rules = call.hub.text(commit, attributes.PATH)
    ignore = body.text_or_none("gitIgnore")
    if ignore is None:
        ignore = call.hub.text(commit, ".gitignore")
    files = []
    for file in body.objects("files"):
        path, size = file.text("path"), file.number_or_none("size")
        parts = split_path(path)  # before any pattern meets it: the time grows with its length
        if size is None or size < 0:
            raise BadRequest(f"the size of {path!r} is missing")
        shown: dict[str, Any] = {
            "path": path,
            "uploadMode": "lfs" if attributes.is_large(path, size, rules) else "regular",
            "shouldIgnore": attributes.is_ignored(path, ignore),
        }
        entry = call.hub.trees.find(commit.tree, parts)
        if entry is not None and not entry.is_directory:
            # Clients leave out of the commit what has this id already.
            shown["oid"] = entry.sha256 if entry.lfs else entry.oid
        files.append(shown)
    return answer({"files": files})


async def commit(request: Request) -> Response:
    """Put the changes in the body on a branch, all at once, or open a pull request with them."""
    return await _take(request, _commit)


async def mirror(request: Request) -> Response:
    """Take in a commit of another hub; its header says which, made when and by whom."""
    return await _take(request, _mirror)


async def _take(
    request: Request, append: Callable[[Call, Repo, Fields, list[Change]], dict[str, Any]]
) -> Response:
    call = identify(request)
    repo = await run_in_threadpool(call.repo_to_write)
    header: Fields | None = None
    changes: list[Change] = []
    async for lines in _lines(request):
        if header is None:
            header, lines = _header(lines[0]), lines[1:]
        changes += await run_in_threadpool(_read_changes, call, lines)
        if len(changes) > _CHANGES_LIMIT:
            raise TooLarge(f"a commit holds at most {_CHANGES_LIMIT} changes")
    if header is None:
        raise BadRequest("the commit has no header line")
    return answer(await run_in_threadpool(append, call, repo, header, changes))


def _commit(call: Call, repo: Repo, header: Fields, changes: list[Change]) -> dict[str, Any]:
    title = header.text("summary").strip()
    if not title:
        raise BadRequest("a commit needs a summary")
    words = Words(call.account.user, title, header.text_or_none("description") or "")
    revision, parent = call.params["revision"], header.text_or_none("parentCommit")
    if not call.flag("create_pr"):
        commit = call.hub.history.commit(repo, revision, changes, words, parent=parent)
        return _commit_answer(call, repo, commit)
    if revision != MAIN:
        raise BadRequest("a pull request is opened against main")
    discussion, commit = call.hub.discussions.propose(repo, changes, words, parent)
    url = f"{call.base}/{repo.web_path}/discussions/{discussion.number}"
    return {**_commit_answer(call, repo, commit), "pullRequestUrl": url}


def _mirror(call: Call, repo: Repo, header: Fields, changes: list[Change]) -> dict[str, Any]:
    call.account.require_owner()  # author, date and id are as the body says
    words = Words(
        header.text("author"),
        header.text("summary"),
        header.text_or_none("description") or "",
        header.number_or_none("date") or 0,
    )
    commit = call.hub.history.mirror(
        repo,
        header.text_or_none("branch"),
        changes,
        words,
        oid=header.text("commit"),
        parent=header.text_or_none("parentCommit"),
    )
    return _commit_answer(call, repo, commit)


def _commit_answer(call: Call, repo: Repo, commit: Commit) -> dict[str, Any]:
    """Return the answer for a new commit, in the fields of the protocol."""
    return {
        "success": True,
        "commitOid": commit.oid,
        "commitUrl": f"{call.base}/{repo.web_path}/commit/{commit.oid}",
        "hookOutput": "",
    }


async def _lines(request: Request) -> AsyncIterator[list[bytes]]:
    """The lines of the body, in groups as they arrive; memory holds one long line at most."""
    rest = bytearray()
    async for chunk in request.stream():
        first, *later = chunk.split(b"\n")
        rest += first
        if len(rest) > _LINE_LIMIT:
            raise TooLarge(
                f"a file over {attributes.REGULAR_LIMIT} bytes must be sent as a large file (LFS)"
            )
        if later:
            lines = [bytes(rest), *later[:-1]]
            rest = bytearray(later[-1])
            if lines := [line for line in lines if line.strip()]:
                yield lines
    if rest.strip():
        yield [bytes(rest)]


def _header(line: bytes) -> Fields:
    fields = Fields(read_json(line))
    if fields.text("key") != "header":
        raise BadRequest("the first line of a commit must be its header")
    return fields.inner("value")


def _read_changes(call: Call, lines: list[bytes]) -> list[Change]:
    return [_read_change(call, Fields(read_json(line))) for line in lines]


def _read_change(call: Call, line: Fields) -> Change:
    """One line of a commit; the content of an ordinary file is stored at once."""
    key, value = line.text("key"), line.inner("value")
    path = value.text("path")
    if key == "deletedFolder":
        return Remove(split_path(path.rstrip("/")), directory=True)
    parts = split_path(path)
    if key == "deletedFile":
        return Remove(parts, directory=False)
    if key == "file":
        content = _content(path, value)
        return Put(parts, call.hub.store_file(parts[-1], content))
    if key == "lfsFile":
        return Put(parts, _large_entry(call, parts[-1], path, value))
    raise BadRequest(f"a commit cannot hold a line of key {key!r}")


def _content(path: str, value: Fields) -> bytes:
    text = value.text("content")
    if value.text_or_none("encoding") == "base64":
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRequest(f"the content of {path!r} is not valid base64") from error
    else:
        content = text.encode()
    if len(content) > attributes.REGULAR_LIMIT:
        raise TooLarge(f"{path!r} is too big for an ordinary file: send it as a large file (LFS)")
    if is_lfs_pointer(content):
        # Clients could not tell it from the large file it stands for.
        raise BadRequest(f"{path!r} is the Git LFS pointer to a file: send the file itself")
    return content


def _large_entry(call: Call, name: str, path: str, value: Fields) -> Entry:
    sha256, announced = value.text("oid"), value.number_or_none("size")
    if (value.text_or_none("algo") or "sha256") != "sha256" or not SHA256.fullmatch(sha256):
        raise BadRequest(f"{path!r} must be named by its sha256")
    size = call.hub.repos.size_of(sha256, call.account)
    if size is None or not call.hub.blobs.touch(sha256):
        raise BadRequest(f"the content of {path!r} ({sha256}) was not uploaded: upload it first")
    if announced is not None and announced != size:
        raise BadRequest(f"{path!r} has {size} bytes, not {announced}")
    return Entry(name, object_id("blob", lfs_pointer(sha256, size)), size, sha256, lfs=True)


ROUTES = [
    route("POST", "/api/{kind}/{namespace}/{name}/preupload/{revision}", preupload),
    stream_route("POST", "/api/{kind}/{namespace}/{name}/commit/{revision}", commit),
    stream_route("POST", "/api/{kind}/{namespace}/{name}/mirror", mirror),
]

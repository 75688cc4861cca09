"""Large files on their way in: the batch call hands out signed links, and content comes by PUT.

Clients send no token with the content itself, so a link says what it is for (repo, sha256, size),
until when, and carries our signature over that. A very large file is sent in parts.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from factory.localhub.blobs import BlobWriter, PartWriter
from factory.localhub.errors import (
    BadRequest,
    EntryNotFound,
    Forbidden,
    NotFound,
    RepoNotFound,
)
from factory.localhub.fields import Fields
from factory.localhub.git_objects import SHA256
from factory.localhub.hub import LocalHub
from factory.localhub.replies import answer
from factory.localhub.repos import Repo
from factory.localhub.routes.files import content
from factory.localhub.wire import Call, drain, hub_of, route, stream_route

_LINK_SECONDS = 24 * 3600
_CHUNK = 1024 * 1024
# Above the first size a content is sent in parts of the second, so that a lost connection costs a
# part only. Below it the single request is quicker: it is hashed while it comes in.
_IN_PARTS = 1024 * 1024 * 1024
_PART = 64 * 1024 * 1024


def batch(call: Call) -> Response:
    """Return links for contents, to upload or to download; none to upload what the store has."""
    body = call.json()
    if body.text("operation") == "download":
        repo = call.repo()
        return answer(
            {"transfer": "basic",
             "objects": [_download(call, repo, item) for item in body.objects("objects")]}
        )  # fmt: skip
    repo = call.repo_to_write()
    if body.text("operation") != "upload":
        raise BadRequest("'operation' must be 'upload' or 'download'")
    transfers = body.value("transfers") or ["basic"]
    if not isinstance(transfers, list):
        raise BadRequest("'transfers' must be a list")
    limit = (_IN_PARTS if "basic" in transfers else 0) if "multipart" in transfers else None
    objects = [_offer(call, repo, item, limit) for item in body.objects("objects")]
    return answer({"transfer": "basic", "objects": objects})


def verify(call: Call) -> Response:
    """200 if this content has arrived."""
    call.repo_to_write()
    sha256, size = _object(call.json())
    if call.hub.repos.size_of(sha256, call.account) != size or not call.hub.blobs.has(sha256):
        raise NotFound(f"content {sha256} of {size} bytes has not arrived")
    return answer({})


async def upload(request: Request) -> Response:
    """Take in the content that a link is for, hashing and writing while the next part comes."""
    hub = hub_of(request)
    repo, sha256, size = await run_in_threadpool(_read_link, hub, request)
    if request.headers.get("content-length", str(size)) != str(size):
        raise BadRequest(f"this link is for {size} bytes")
    writer = await run_in_threadpool(hub.blobs.write)
    try:
        await _receive(request, writer, size)
        await run_in_threadpool(writer.keep, sha256)
    finally:
        await run_in_threadpool(writer.discard)
    await run_in_threadpool(hub.repos.note_contents, repo, [(sha256, size)])
    return answer({})


async def upload_part(request: Request) -> Response:
    """Take in one part of the content that a link is for."""
    hub = hub_of(request)
    repo, sha256, size = await run_in_threadpool(_read_link, hub, request)
    number = request.path_params["part"]
    start = (int(number) - 1) * _PART if number.isascii() and number.isdigit() else -1
    if len(number) > 9 or not 0 <= start < size:
        raise BadRequest(f"a content of {size} bytes has no part {number[:9]!r}")
    writer = await run_in_threadpool(hub.blobs.write_part, _key(repo, sha256), start)
    try:
        await _receive(request, writer, min(_PART, size - start))
    finally:
        await run_in_threadpool(writer.close)
    return Response(headers={"ETag": f'"{number}"'})


async def finish_parts(request: Request) -> Response:
    """All parts were sent: the whole is hashed and kept."""
    hub = hub_of(request)
    repo, sha256, size = await run_in_threadpool(_read_link, hub, request)
    await drain(request)  # the list of parts: what counts is the hash of the whole
    await run_in_threadpool(hub.blobs.join, _key(repo, sha256), sha256, size)
    await run_in_threadpool(hub.repos.note_contents, repo, [(sha256, size)])
    return answer({})


async def _receive(request: Request, writer: BlobWriter | PartWriter, size: int) -> None:
    waiting = bytearray()
    writing: asyncio.Future[None] | None = None
    try:
        async for chunk in request.stream():
            waiting += chunk
            if len(waiting) < _CHUNK:
                continue
            if writing is not None:
                await writing
            if writer.size + len(waiting) > size:
                raise BadRequest(f"this link is for {size} bytes")
            writing = asyncio.ensure_future(asyncio.to_thread(writer.feed, waiting))
            waiting = bytearray()
    finally:
        if writing is not None:
            await asyncio.wait([writing])
    if writing is not None:
        writing.result()
    if writer.size + len(waiting) != size:
        raise BadRequest(f"{writer.size + len(waiting)} of {size} bytes arrived: send it again")
    await asyncio.to_thread(writer.feed, waiting)


def _offer(call: Call, repo: Repo, item: Fields, limit: int | None) -> dict[str, Any]:
    """Return the upload links of one content, in parts if it is larger than `limit`."""
    sha256, size = _object(item)
    offer: dict[str, Any] = {"oid": sha256, "size": size}
    if call.hub.repos.size_of(sha256, call.account) == size and call.hub.blobs.touch(sha256):
        return offer
    expires = int(time.time()) + _LINK_SECONDS
    signature = _signature(call.hub, repo.key, sha256, size, expires)
    query = urlencode({"size": size, "expires": expires, "signature": signature})
    link = f"{call.base}/upload/{repo.key}/{sha256}"
    upload: dict[str, Any] = {"href": f"{link}?{query}"}
    if limit is not None and size > limit:
        numbers = range(1, -(-size // _PART) + 1)
        parts = {f"{number:05d}": f"{link}/{number}?{query}" for number in numbers}
        upload["header"] = {"chunk_size": str(_PART), **parts}
    offer["actions"] = {
        "upload": upload,
        "verify": {"href": f"{call.base}/{repo.web_path}.git/info/lfs/objects/verify"},
    }
    return offer


def _download(call: Call, repo: Repo, item: Fields) -> dict[str, Any]:
    """Return the download link of one content that the repo was given."""
    sha256, size = _object(item)
    offer: dict[str, Any] = {"oid": sha256, "size": size}
    if not call.hub.repos.has(repo, sha256, size):
        return offer | {"error": {"code": 404, "message": "this repo has no such content"}}
    link = {"href": f"{call.base}/{repo.web_path}.git/info/lfs/objects/{sha256}"}
    if authorization := call.headers.get("authorization"):
        link["header"] = {"Authorization": authorization}  # type: ignore[assignment]
    return offer | {"actions": {"download": link}}


def download(call: Call) -> Response:
    """A content that the repo was given."""
    repo, sha256 = call.repo(), call.params["oid"]
    if not SHA256.fullmatch(sha256) or not call.hub.repos.has(repo, sha256):
        raise EntryNotFound(f"{repo.id} has no content {sha256[:70]}")
    headers = {"Content-Type": "application/octet-stream"}
    return content(call, sha256, call.hub.blobs.state(sha256)[0], headers)


def _key(repo: Repo, sha256: str) -> str:
    return f"{repo.key}-{sha256}"


def _object(item: Fields) -> tuple[str, int]:
    sha256, size = item.text("oid"), item.number_or_none("size")
    if not SHA256.fullmatch(sha256) or size is None or size < 0:
        raise BadRequest("an object is named by its sha256 ('oid') and its 'size'")
    return sha256, size


def _read_link(hub: LocalHub, request: Request) -> tuple[Repo, str, int]:
    """Return repo, sha256 and size of an upload link.

    Raises Forbidden if it is invalid or expired, RepoNotFound.
    """
    sha256 = request.path_params["oid"]
    try:
        key = int(request.path_params["repo"])
        size, expires = (int(request.query_params.get(name, "")) for name in ("size", "expires"))
    except ValueError as error:
        raise Forbidden("this upload link is not valid") from error
    expected = _signature(hub, key, sha256, size, expires)
    signature = request.query_params.get("signature", "")
    if not hmac.compare_digest(signature.encode("utf-8", "replace"), expected.encode()):
        raise Forbidden("this upload link is not valid")
    if expires < time.time():
        raise Forbidden("this upload link has expired: start the upload again")
    repo = hub.repos.by_key(key)
    if repo is None:
        raise RepoNotFound("the repo of this upload was deleted")
    return repo, sha256, size


def _signature(hub: LocalHub, repo: int, sha256: str, size: int, expires: int) -> str:
    text = f"{repo}\n{sha256}\n{size}\n{expires}"
    return hmac.new(hub.upload_secret, text.encode(), hashlib.sha256).hexdigest()


_DATASET, _MODEL = "/{kind}/{namespace}/{name}.git/info/lfs", "/{namespace}/{name}.git/info/lfs"
ROUTES = [
    route("POST", f"{_MODEL}/objects/batch", batch),
    route("POST", f"{_DATASET}/objects/batch", batch),
    route("POST", f"{_MODEL}/objects/verify", verify),
    route("POST", f"{_DATASET}/objects/verify", verify),
    route("GET", f"{_MODEL}/objects/{{oid}}", download),
    route("GET", f"{_DATASET}/objects/{{oid}}", download),
    stream_route("PUT", "/upload/{repo}/{oid}", upload),
    stream_route("PUT", "/upload/{repo}/{oid}/{part}", upload_part),
    stream_route("POST", "/upload/{repo}/{oid}", finish_parts),
]

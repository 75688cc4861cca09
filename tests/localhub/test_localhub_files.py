"""Large files in, all files out: links, ranges, headers, pages, and the real clients' downloads."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, HfFileSystem
from huggingface_hub.errors import BadRequestError, HfHubHTTPError


@pytest.fixture(scope="module")
def large(api, tmp_path_factory):
    """A repo with a large file and a small one."""
    repo = api.create_repo("org/files", repo_type="dataset").repo_id
    path = tmp_path_factory.mktemp("large") / "large.bin"
    path.write_bytes(os.urandom(20_000_000))
    api.create_commit(
        repo,
        [
            CommitOperationAdd("data/large.bin", path),
            CommitOperationAdd("small.txt", b"0123456789"),
            CommitOperationAdd("empty.bin", b""),
        ],
        commit_message="files",
        repo_type="dataset",
    )
    return repo, path


def blob_count(root) -> int:
    return sum(
        1
        for folder in (root / "blobs").iterdir()
        if len(folder.name) == 2
        for _ in folder.iterdir()
    )


def test_a_large_file_comes_back_whole(api, large, tmp_path):
    repo, path = large
    copy = api.hf_hub_download(repo, "data/large.bin", repo_type="dataset", cache_dir=tmp_path)
    assert Path(copy).read_bytes() == path.read_bytes()
    info = {item.rfilename: item for item in api.dataset_info(repo, files_metadata=True).siblings}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert info["data/large.bin"].lfs.sha256 == sha256
    assert info["data/large.bin"].size == 20_000_000
    assert info["small.txt"].lfs is None and info["empty.bin"].lfs is None
    small = hashlib.sha1(b"blob 10\x000123456789").hexdigest()
    assert info["small.txt"].blob_id == small


def test_the_same_content_is_kept_and_sent_once(api, large, root, raw):
    repo, path = large
    other = api.create_repo("org/dedupe").repo_id
    before = blob_count(root)
    oid = hashlib.sha256(path.read_bytes()).hexdigest()
    body = json.dumps({"operation": "upload", "objects": [{"oid": oid, "size": 20_000_000}]})
    reply = raw("POST", f"/datasets/{repo}.git/info/lfs/objects/batch", body=body)
    assert reply.json()["objects"] == [{"oid": oid, "size": 20_000_000}]
    api.upload_file(path_or_fileobj=path, path_in_repo="copy.bin", repo_id=other)
    assert blob_count(root) == before


def test_a_hash_alone_does_not_open_a_strangers_content(hub, guests, api):
    api.create_repo("org/hidden", private=True)
    content = os.urandom(1000)
    api.upload_file(path_or_fileobj=content, path_in_repo="x.bin", repo_id="org/hidden")
    eve = HfApi(endpoint=hub.url, token=guests.writer)
    eve.create_repo("eve/claims")
    operation = CommitOperationAdd("x.bin", content)
    operation._upload_mode, operation._remote_oid = "lfs", None
    operation._should_ignore, operation._is_uploaded = False, True
    with pytest.raises(BadRequestError, match="was not uploaded"):
        eve.create_commit("eve/claims", [operation], commit_message="claim")
    # Who has the content may say so by sending it.
    eve.upload_file(path_or_fileobj=content, path_in_repo="x.bin", repo_id="eve/claims")


def link_for(raw, repo, content: bytes) -> str:
    oid = hashlib.sha256(content).hexdigest()
    body = json.dumps({"operation": "upload", "objects": [{"oid": oid, "size": len(content)}]})
    reply = raw("POST", f"/datasets/{repo}.git/info/lfs/objects/batch", body=body)
    href = reply.json()["objects"][0]["actions"]["upload"]["href"]
    return "/" + href.split("/", 3)[3]


def test_upload_links_are_for_one_content_only(raw, repo, root):
    content = os.urandom(3_000_000)
    link = link_for(raw, repo, content)
    changed = bytes([content[0] ^ 1]) + content[1:]
    assert raw("PUT", link, body=changed, token=None).status == 400
    assert raw("PUT", link, body=content[:-1], token=None).status == 400
    assert raw("PUT", link, body=content + b"x", token=None).status == 400
    # Without a length beforehand: http.client sends an iterator in chunks.
    assert raw("PUT", link, body=iter([content, b"x"]), token=None).status == 400
    assert raw("PUT", link.replace("size=3", "size=4"), body=content, token=None).status == 403
    assert raw("PUT", link.replace("/upload/", "/upload/9"), body=content, token=None).status == 403
    expires = f"expires={int(time.time()) - 1}"
    old = "&".join(expires if part.startswith("expires=") else part for part in link.split("&"))
    assert raw("PUT", old, body=content, token=None).status == 403
    assert list((root / "blobs" / "tmp").iterdir()) == []
    body = json.dumps({"oid": hashlib.sha256(content).hexdigest(), "size": len(content)})
    verify = f"/datasets/{repo}.git/info/lfs/objects/verify"
    assert raw("POST", verify, body=body).status == 404
    assert raw("PUT", link, body=content, token=None).status == 200
    assert raw("PUT", link, body=content, token=None).status == 200  # as after a lost answer
    assert raw("POST", verify, body=body).status == 200


@pytest.mark.parametrize(
    ("asked", "status", "span"),
    [
        ("bytes=0-3", 206, (0, 4)),
        ("bytes=5-", 206, (5, None)),
        ("bytes=-4", 206, (-4, None)),
        ("bytes=7-99999999999", 206, (7, None)),
        ("bytes=4-2", 200, (0, None)),
        ("bytes=0-1,4-5", 200, (0, None)),
        ("lines=1-2", 200, (0, None)),
    ],
)
@pytest.mark.parametrize("name", ["small.txt", "data/large.bin"])
def test_ranges(raw, large, asked, status, span, name):
    repo, path = large
    content = path.read_bytes() if name == "data/large.bin" else b"0123456789"
    for method in ("GET", "HEAD"):
        reply = raw(method, f"/datasets/{repo}/resolve/main/{name}", headers={"Range": asked})
        expected = content[span[0] : span[1]]
        assert reply.status == status
        assert reply.headers["content-length"] == str(len(expected))
        assert reply.body == (expected if method == "GET" else b"")
        if status == 206:
            start = span[0] % len(content)
            total = f"bytes {start}-{start + len(expected) - 1}/{len(content)}"
            assert reply.headers["content-range"] == total


def test_a_range_past_the_end(raw, large):
    reply = raw(
        "GET", f"/datasets/{large[0]}/resolve/main/small.txt", headers={"Range": "bytes=10-"}
    )
    assert reply.status == 416 and reply.headers["content-range"] == "bytes */10"


def test_headers_of_files(raw, large, api):
    repo, path = large
    head = raw("HEAD", f"/datasets/{repo}/resolve/main/data/large.bin").headers
    oid = hashlib.sha256(path.read_bytes()).hexdigest()
    assert head["x-linked-etag"] == f'"{oid}"' and head["x-linked-size"] == "20000000"
    assert head["x-repo-commit"] == api.dataset_info(repo).sha
    assert head["accept-ranges"] == "bytes" and head["content-length"] == "20000000"
    assert "content-encoding" not in head
    small = raw(
        "GET", f"/datasets/{repo}/resolve/main/small.txt", headers={"Accept-Encoding": "gzip"}
    )
    assert small.body == b"0123456789" and "x-linked-etag" not in small.headers
    missing = raw("HEAD", f"/datasets/{repo}/resolve/main/absent")
    assert missing.status == 404 and missing.headers["x-repo-commit"] == head["x-repo-commit"]
    assert missing.headers["x-error-code"] == "EntryNotFound"
    folder = raw("HEAD", f"/datasets/{repo}/resolve/main/data")
    assert folder.status == 404 and folder.headers["x-error-code"] == "EntryNotFound"


def test_a_revision_with_slashes_is_one_part_of_the_path(raw, api, large):
    repo, _ = large
    api.create_branch(repo, branch="pr/1", repo_type="dataset")
    for revision in ("pr%2F1", "refs%2Fheads%2Fpr%2F1"):
        assert raw("GET", f"/datasets/{repo}/resolve/{revision}/small.txt").body == b"0123456789"
        assert (
            raw("GET", f"/api/datasets/{repo}/tree/{revision}/data").json()[0]["size"] == 20_000_000
        )
    assert raw("GET", f"/datasets/{repo}/resolve/pr/1/small.txt").status == 404


def test_a_tree_of_many_pages(api, repo, raw):
    operations = [CommitOperationAdd(f"d{n % 7}/f{n:04d}", b"%d" % (n % 10)) for n in range(1200)]
    api.create_commit(repo, operations, commit_message="many", repo_type="dataset")
    items = list(api.list_repo_tree(repo, recursive=True, repo_type="dataset"))
    assert len(items) == 1200 + 7 + 1
    assert len({item.path for item in items}) == len(items)
    first = raw("GET", f"/api/datasets/{repo}/tree/main?recursive=true")
    assert len(first.json()) == 1000 and 'rel="next"' in first.headers["link"]
    assert len(raw("GET", f"/api/datasets/{repo}/tree/main/d3?expand=true").json()) == 50


def test_snapshot_and_file_system(api, hub, large, tmp_path):
    repo, path = large
    folder = api.snapshot_download(repo, repo_type="dataset", cache_dir=tmp_path)
    names = sorted(item.name for item in Path(folder).iterdir())
    assert names == [".gitattributes", "data", "empty.bin", "small.txt"]
    files = HfFileSystem(endpoint=hub.url, token=hub.token)
    assert files.glob(f"datasets/{repo}/data/*") == [f"datasets/{repo}/data/large.bin"]
    with files.open(f"datasets/{repo}/data/large.bin") as file:
        file.seek(10_000_000)
        assert file.read(1000) == path.read_bytes()[10_000_000:10_001_000]


def test_errors_do_not_break_the_connection(hub, repo, raw):
    """A refused upload is answered, not cut off, even if the client has much to send."""
    content = b"x" * 30_000_000
    link = link_for(raw, repo, content).replace("signature=", "signature=0")
    assert raw("PUT", link, body=content, token=None).status == 403
    body = b'{"key": "surprise", "value": {}}\n' + content
    assert raw("POST", f"/api/datasets/{repo}/commit/main", body=body).status == 400
    api = HfApi(endpoint=hub.url, token="hf_wrong")
    with pytest.raises(HfHubHTTPError):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=repo, repo_type="dataset")

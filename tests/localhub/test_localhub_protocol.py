"""The rarer calls of the protocol: names, visibility, squash, files in parts, shortened ids."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, lfs
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RepositoryNotFoundError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from localhub_client import send

_numbers = itertools.count()


@pytest.fixture
def model(api):
    return api.create_repo(f"org/model-{next(_numbers)}").repo_id


def commit(api, repo, **files: bytes) -> str:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo, operations, commit_message="change").oid


def test_move(api, model):
    oid = commit(api, model, a=b"1")
    api.move_repo(model, f"{model}-new")
    assert api.model_info(f"{model}-new").sha == oid
    assert api.model_info(model).id == f"{model}-new"  # until another takes the old name
    api.create_repo(model)
    assert api.model_info(model).id == model
    with pytest.raises(HfHubHTTPError) as caught:
        api.move_repo(model, f"{model}-new")
    assert caught.value.response.status_code == 409


def test_settings(hub, guests, api, model):
    eve = HfApi(endpoint=hub.url, token=guests.writer)
    with pytest.raises(HfHubHTTPError, match="only the user who made"):
        eve.update_repo_settings(model, private=True)
    api.update_repo_settings(model, private=True)
    assert api.model_info(model).private
    with pytest.raises(RepositoryNotFoundError):
        eve.model_info(model)
    api.update_repo_settings(model, visibility="public", gated=False)
    assert not eve.model_info(model).private
    with pytest.raises(BadRequestError, match="no gated repos"):
        api.update_repo_settings(model, gated="auto")


def test_squash_keeps_content_and_what_tags_name(api, model):
    commit(api, model, a=b"1")
    old = commit(api, model, b=b"2")
    api.create_tag(model, tag="v1")
    tree = list(api.list_repo_tree(model))
    api.super_squash_history(model, commit_message="all in one")
    assert [made.title for made in api.list_repo_commits(model)] == ["all in one"]
    assert list(api.list_repo_tree(model)) == tree
    assert api.model_info(model, revision="v1").sha == old
    assert len(api.list_repo_commits(model, revision="v1")) == 3
    with pytest.raises(HfHubHTTPError):
        api.super_squash_history(model, branch="absent")


def test_shortened_ids(raw, api, model):
    oid = commit(api, model, a=b"1")
    for length in (7, 12, 39):
        assert api.model_info(model, revision=oid[:length]).sha == oid
    assert raw("GET", f"/api/models/{model}/revision/{oid[:6]}").status == 404


def test_a_file_in_parts(api, model, hub, monkeypatch, tmp_path):
    """The client takes parts where it is offered them; here it asks for nothing else."""
    ask = lfs.post_lfs_batch_info
    monkeypatch.setattr(
        "huggingface_hub._commit_api.post_lfs_batch_info",
        lambda **options: ask(**{**options, "transfers": ["multipart"]}),
    )
    sent = []
    monkeypatch.setattr(
        lfs, "_upload_multi_part", lambda f=lfs._upload_multi_part, **o: (sent.append(1), f(**o))
    )
    content = os.urandom(1 << 20) * 65  # two parts
    commit(api, model, **{"big.bin": content})
    assert sent == [1]
    path = api.hf_hub_download(model, "big.bin", cache_dir=tmp_path)
    assert Path(path).read_bytes() == content
    assert list((hub.root / "blobs" / "parts").iterdir()) == []


def test_parts_that_are_missing_or_wrong(raw, api, model, hub):
    content = b"p" * 1000
    sha = hashlib.sha256(content).hexdigest()
    body = {
        "operation": "upload",
        "transfers": ["multipart"],
        "objects": [{"oid": sha, "size": 1000}],
    }
    reply = raw("POST", f"/{model}.git/info/lfs/objects/batch", body=json.dumps(body))
    offer = reply.json()["objects"][0]["actions"]["upload"]
    finish, part = offer["href"][len(hub.url) :], offer["header"]["00001"][len(hub.url) :]
    assert send(hub.url, "POST", finish, body="{}").status == 400  # nothing has arrived
    assert send(hub.url, "PUT", part.replace("/1?", "/2?"), body=content).status == 400
    assert send(hub.url, "PUT", part.replace("size=1000", "size=9"), body=b"x" * 9).status == 403
    assert send(hub.url, "PUT", part, body=content[:-1]).status == 400
    assert send(hub.url, "PUT", part, body=b"x" * 1000).status == 200
    reply = send(hub.url, "POST", finish, body="{}")
    assert reply.status == 400 and "send it again" in reply.json()["error"]
    assert send(hub.url, "PUT", part, body=content).status == 200
    assert send(hub.url, "POST", finish, body="{}").status == 200
    body["transfers"] = "x"
    assert raw("POST", f"/{model}.git/info/lfs/objects/batch", body=json.dumps(body)).status == 400


WORDS = st.sampled_from(
    ["api", "models", "datasets", "org", "..", "%2e%2e", "%2F", "%00", "%ff", "%", "", "x", "main",
     "resolve", "tree", "commit", "refs", "tag", "branch", "mirror", "upload", "1", "collections",
     "repos", "create", "move", "settings", "super-squash", "lfs-files", "batch", "preupload",
     "discussions", "title", "org.git", "info", "lfs", "objects", "local", "gc", "a" * 300, "~",
     "ø", "'", '"', "\\"]
)  # fmt: skip
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
BODIES = st.sampled_from(
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"key":1}',
        b"\xff\xfe",
        b'{"a":' * 2000,
        b"\n\n\n",
        b'"\\ud800"',
    ]
) | st.binary(max_size=60)
HEADERS = st.dictionaries(
    st.sampled_from(["Range", "Host", "Content-Type", "X-Forwarded-Host", "Transfer-Encoding"]),
    st.sampled_from(["bytes=-", "bytes=9-1", "bytes=99999999999999999999-", "a b", "a\tb", "é",
                     "127.0.0.1:1/x", "gzip", ""]),
    max_size=2,
)  # fmt: skip


# every refusal has a name; these three are known to clients, the others are the hub's own
CODES = {
    "RepoNotFound": 404, "RevisionNotFound": 404, "EntryNotFound": 404,
    "BadRequest": 400, "Unauthorized": 401, "Forbidden": 403, "NotFound": 404,
    "MethodNotAllowed": 405, "Conflict": 409, "Stale": 412, "TooLarge": 413,
    "RangeNotSatisfiable": 416,
}  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(METHODS, st.lists(WORDS, min_size=1, max_size=7), BODIES, HEADERS, st.booleans())
@example("POST", ["api", "models", "org", "x", "mirror"], b'{"key":"header"}', {}, True)
@example("POST", ["api", "local", "gc"], b'{"grace": -1}', {}, True)
@example("GET", ["api", "models", "org", "x"], b"", {}, False)
def test_whatever_is_sent_no_server_error_comes_back(hub, method, words, body, headers, known):
    """Hostile paths, methods, bodies and headers: refused in words, nothing written beside."""
    before = {path.name for path in hub.root.parent.iterdir()}
    address = urlsplit(hub.url)
    client = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    token = {"Authorization": f"Bearer {hub.token}"} if known else {}
    path = "/" + "/".join(words).encode("ascii", "backslashreplace").decode()
    sent = {key: value.encode("latin-1") for key, value in {**headers, **token}.items()}
    try:
        client.request(method, path, body, sent)
        reply = client.getresponse()
        text = reply.read()
    finally:
        client.close()
    assert reply.status < 500 and b"Traceback" not in text
    if reply.status >= 400:
        code = reply.getheader("X-Error-Code")
        # to a stranger a repo that hides and one that is not there are the same, as on the Hub
        hidden = not known and (code, reply.status) == ("RepoNotFound", 401)
        assert hidden or CODES[code] == reply.status
        assert reply.getheader("X-Error-Message")
        assert method == "HEAD" or json.loads(text)["error"]
    if not known and words[:2] not in (["api", "telemetry"],):
        assert reply.status >= 400
    assert {path.name for path in hub.root.parent.iterdir()} == before


def test_what_is_no_http_is_refused_in_the_same_words(hub):
    address = urlsplit(hub.url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as line:
        line.sendall(b"GET / HTTP/1.1\r\nno header at all\r\n\r\n")
        reply = http.client.HTTPResponse(line)
        reply.begin()
        assert (reply.status, reply.getheader("X-Error-Code")) == (400, "BadRequest")
        assert json.loads(reply.read())["error"]


def mirrored(**header: object) -> str:
    value = {"commit": "ab" * 20, "branch": "main", "author": "them", "date": 1, "summary": "s"}
    return json.dumps({"key": "header", "value": {**value, **header}})


def test_a_mirrored_commit_cannot_hide_ours(raw, api, model, hub, guests):
    path = f"/api/models/{model}/mirror"
    assert raw("POST", path, body=mirrored(commit="main")).status == 400
    assert raw("POST", path, body=mirrored(branch="refs/x")).status == 400
    assert raw("POST", path, body=mirrored(parentCommit="cd" * 20)).status == 404
    assert raw("POST", path, body=mirrored(summary="a\0b")).status == 400
    for guest in (guests.reader, guests.writer):  # what is mirrored has any author, date and id
        assert send(hub.url, "POST", path, token=guest, body=mirrored()).status == 403
    assert raw("POST", path, body=mirrored()).status == 200  # over the hub's own first commit
    assert raw("POST", path, body=mirrored()).status == 200  # again: nothing changes
    assert [made.commit_id for made in api.list_repo_commits(model)] == ["ab" * 20]
    other = mirrored(commit="cc" * 20, branch="other")
    for content, status in (("theirs", 200), ("theirs", 200), ("forged", 409)):
        line = json.dumps({"key": "file", "value": {"path": "a", "content": content}})
        reply = raw("POST", path, body=f"{other}\n{line}")
        assert reply.status == status, reply.body
    assert f"another content under {'cc' * 20}: if the other hub" in reply.json()["error"]
    assert raw("POST", path, body=other).status == 200  # the branch alone
    ours = commit(api, model, a=b"1")
    stale = raw("POST", path, body=mirrored(commit="ef" * 20, parentCommit="ab" * 20))
    assert stale.status == 412 and api.model_info(model).sha == ours

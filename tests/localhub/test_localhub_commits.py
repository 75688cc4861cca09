"""Commits, branches, tags: what a commit holds, and that none is lost or half done."""

from __future__ import annotations

import base64
import json
import threading
import uuid
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RevisionNotFoundError,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)


def commit(api, repo, *operations, **options):
    options.setdefault("commit_message", "change")
    return api.create_commit(repo, operations, repo_type="dataset", **options)


def paths(api, repo, revision=None) -> list[str]:
    return api.list_repo_files(repo, repo_type="dataset", revision=revision)


def test_a_new_repo_has_the_usual_gitattributes(api, repo, tmp_path):
    assert paths(api, repo) == [".gitattributes"]
    path = api.hf_hub_download(repo, ".gitattributes", repo_type="dataset", cache_dir=tmp_path)
    lines = Path(path).read_text().splitlines()
    assert "*.parquet filter=lfs diff=lfs merge=lfs -text" in lines


def test_commit_tag_tree_refs_and_download_at_the_tag(api, repo, tmp_path):
    first = commit(
        api, repo, add("a/b/one.txt", b"1"), add("a/two words#.txt", b"2"), add("z", b"")
    )
    assert first.oid == api.dataset_info(repo).sha
    api.create_tag(repo, tag="v1", repo_type="dataset")
    commit(api, repo, add("a/b/one.txt", b"11"), commit_message="second", commit_description="why")
    api.create_branch(repo, branch="exp/a", revision="v1", repo_type="dataset")
    refs = api.list_repo_refs(repo, repo_type="dataset")
    assert {ref.name for ref in refs.branches} == {"main", "exp/a"}
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", first.oid)]
    for revision in ("v1", "exp/a", first.oid, "refs/tags/v1", "refs/heads/exp/a"):
        path = api.hf_hub_download(
            repo, "a/b/one.txt", repo_type="dataset", revision=revision, cache_dir=tmp_path
        )
        assert Path(path).read_text() == "1"
    assert "a/two words#.txt" in paths(api, repo)
    path = api.hf_hub_download(repo, "a/two words#.txt", repo_type="dataset", cache_dir=tmp_path)
    assert Path(path).read_text() == "2"
    tree = list(api.list_repo_tree(repo, "a/b", repo_type="dataset", expand=True))
    assert [(item.path, item.last_commit.title) for item in tree] == [("a/b/one.txt", "second")]
    commits = api.list_repo_commits(repo, repo_type="dataset", formatted=True)
    assert [item.title for item in commits] == ["second", "change", "initial commit"]
    assert (commits[0].message, commits[0].authors) == ("why", ["local"])
    info = api.get_paths_info(repo, ["z", "a", "absent"], repo_type="dataset", expand=True)
    assert {(item.path, item.last_commit.title) for item in info} == {
        ("z", "change"),
        ("a", "second"),
    }


def test_tags_and_branches_refuse_what_git_refuses(api, repo):
    api.create_tag(repo, tag="v1", repo_type="dataset")
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_tag(repo, tag="v1", repo_type="dataset")
    assert caught.value.response.status_code == 409
    api.create_tag(repo, tag="v1", repo_type="dataset", exist_ok=True)
    api.delete_tag(repo, tag="v1", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(repo, tag="v1", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(repo, tag="v1", revision="absent", repo_type="dataset")
    for name in ("refs/heads/x", "a..b", "a b", "x.lock", "-x", "a" * 40, ".a", "HEAD"):
        with pytest.raises(BadRequestError):
            api.create_tag(repo, tag=name, repo_type="dataset")
    api.create_branch(repo, branch="dev", repo_type="dataset")
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_branch(repo, branch="dev", repo_type="dataset")
    assert caught.value.response.status_code == 409
    with pytest.raises(BadRequestError):
        api.create_branch(repo, branch="dev/below", repo_type="dataset")
    commit(api, repo, add("x", b"x"), revision="dev")
    assert paths(api, repo, "dev") == [".gitattributes", "x"] and paths(api, repo) == [
        ".gitattributes"
    ]
    api.delete_branch(repo, branch="dev", repo_type="dataset")
    with pytest.raises(BadRequestError):
        api.delete_branch(repo, branch="main", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        commit(api, repo, add("y", b"y"), revision="dev")


def test_deleting_files_and_folders(api, repo):
    commit(api, repo, add("a/1", b"1"), add("a/b/2", b"2"), add("c", b"3"))
    api.delete_file("c", repo, repo_type="dataset")
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        api.delete_file("c", repo, repo_type="dataset")
    assert paths(api, repo) == [".gitattributes", "a/1", "a/b/2"]
    # Together: a folder goes and a file takes its name.
    commit(api, repo, CommitOperationDelete("a/", is_folder=True), add("a", b"now a file"))
    assert paths(api, repo) == [".gitattributes", "a"]
    with pytest.raises(BadRequestError, match="is a file"):
        commit(api, repo, add("a/1", b"1"))
    commit(api, repo, CommitOperationDelete("a"), add("d/e/f", b"1"))
    with pytest.raises(BadRequestError, match="is a directory"):
        commit(api, repo, add("d/e", b"1"))
    api.delete_file("d/e/f", repo, repo_type="dataset")
    assert [item.path for item in api.list_repo_tree(repo, repo_type="dataset")] == [
        ".gitattributes"
    ]


def test_copying_small_and_large_files(api, repo):
    commit(api, repo, add("small.txt", b"s"), add("large.parquet", b"L" * 1000))
    commit(
        api,
        repo,
        CommitOperationCopy("small.txt", "s2.txt"),
        CommitOperationCopy("large.parquet", "l2.parquet"),
    )
    found = {item.path: item.blob_id for item in api.list_repo_tree(repo, repo_type="dataset")}
    assert found["small.txt"] == found["s2.txt"] and found["large.parquet"] == found["l2.parquet"]


def test_a_stale_parent_is_refused(api, repo):
    old = api.dataset_info(repo).sha
    new = commit(api, repo, add("a", b"1"), parent_commit=old)
    with pytest.raises(HfHubHTTPError) as caught:
        commit(api, repo, add("b", b"2"), parent_commit=old)
    assert caught.value.response.status_code == 412
    assert api.dataset_info(repo).sha == new.oid and paths(api, repo) == [".gitattributes", "a"]


def test_no_increment_of_a_shared_counter_is_lost(api, repo, tmp_path):
    commit(api, repo, add("counter.json", json.dumps({"n": 0}).encode()))

    def work(name: int) -> None:
        done = 0
        while done < 3:
            head = api.dataset_info(repo).sha
            path = api.hf_hub_download(
                repo,
                "counter.json",
                repo_type="dataset",
                revision=head,
                cache_dir=tmp_path / str(name),
            )
            n = json.loads(Path(path).read_text())["n"]
            # The nonce: clients drop a file that has the content it should get already.
            content = json.dumps({"n": n + 1, "nonce": uuid.uuid4().hex}).encode()
            try:
                commit(api, repo, add("counter.json", content), parent_commit=head)
                done += 1
            except HfHubHTTPError as error:
                assert error.response.status_code == 412

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = api.hf_hub_download(
        repo, "counter.json", repo_type="dataset", cache_dir=tmp_path / "end"
    )
    assert json.loads(Path(path).read_text())["n"] == 24
    assert len(api.list_repo_commits(repo, repo_type="dataset")) == 26


def test_what_is_unchanged_makes_no_commit(api, repo):
    first = commit(api, repo, add("a.txt", b"1"), add("b.parquet", b"2"))
    again = commit(api, repo, add("a.txt", b"1"), add("b.parquet", b"2"))
    assert again.oid == first.oid


def test_gitignore_is_heeded(api, repo, tmp_path):
    (tmp_path / ".gitignore").write_text("*.log\n!keep.log\nbuild/\n")
    for name in ("a.log", "keep.log", "build/x", "src/build.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    api.upload_folder(repo_id=repo, folder_path=tmp_path, repo_type="dataset")
    assert paths(api, repo) == [".gitattributes", ".gitignore", "keep.log", "src/build.txt"]


def lines(*items: tuple[str, dict[str, object]]) -> str:
    header = ("header", {"summary": "by hand", "description": ""})
    return "".join(json.dumps({"key": k, "value": v}) + "\n" for k, v in (header, *items))


def file_line(path: str, content: bytes = b"x") -> tuple[str, dict[str, object]]:
    text = base64.b64encode(content).decode()
    return "file", {"path": path, "content": text, "encoding": "base64"}


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", ".", "..", "a/../b", ".git/config", "a/.GIT/x", ".git./x", "git~1/x",
     ".g\u200cit/x", "a\\b", "a\0b", "a\nb", "\ud800", "x" * 256, "/".join(["d"] * 600)],
)  # fmt: skip
def test_hostile_paths(raw, api, repo, path):
    for method, body in (
        ("commit", lines(file_line("ok"), file_line(path))),
        ("preupload", json.dumps({"files": [{"path": path, "size": 1}]})),
    ):
        reply = raw("POST", f"/api/datasets/{repo}/{method}/main", body=body)
        assert reply.status in (400, 422), reply.body
    assert paths(api, repo) == [".gitattributes"]


PARTS = st.text(max_size=12) | st.sampled_from(["..", ".git", "a b", "%2e", "ø", "#?&"])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(PARTS, min_size=1, max_size=4).map("/".join))
def test_any_path_is_kept_exactly_or_refused(raw, api, path):
    api.create_repo("org/any", exist_ok=True)
    name = uuid.uuid4().hex
    body = lines(file_line(f"{name}/{path}"))
    reply = raw("POST", "/api/models/org/any/commit/main", body=body)
    if reply.status == 200:
        assert api.list_repo_files("org/any").count(f"{name}/{path}") == 1
    else:
        assert reply.status in (400, 422) and reply.json()["error"]


@pytest.mark.parametrize(
    "path",
    ["../../token", "%2e%2e/%2e%2e/token", "..%2f..%2ftoken", "%00", "%ff", "a%2fb", "blobs/", ""],
)
def test_hostile_reads(raw, repo, path):
    assert raw("GET", f"/datasets/{repo}/resolve/main/{path}").status in (400, 404)
    assert raw("GET", f"/api/datasets/{repo}/tree/main/x{path}").status in (400, 404)
    assert raw("PUT", f"/upload/1/{path}?size=1&expires=1&signature=00", body=b"x").status in (
        403,
        404,
    )


@pytest.mark.parametrize(
    "body",
    [
        "",
        "nonsense",
        "[]",
        '{"key": "file", "value": {"path": "a", "content": ""}}',
        lines(("file", {"path": "a", "content": "!", "encoding": "base64"})),
        lines(("file", {"path": "a"})),
        lines(("file", {"path": 3, "content": ""})),
        lines(("surprise", {"path": "a"})),
        lines(("lfsFile", {"path": "a", "oid": "0" * 64, "size": 3})),
        lines(("lfsFile", {"path": "a", "oid": "../x", "size": 3})),
        lines(file_line("a", b"version https://git-lfs.github.com/spec/v1\noid sha256:"
                        + b"0" * 64 + b"\nsize 3\n")),
        lines(("copyFile", {"path": "a"})),
        '{"key": "header", "value": {"summary": "   "}}',
        '{"key": "header", "value": {"summary": "a\\u0000"}}',
        '{"key": "header", "value": {"summary": "\\ud800"}}',
    ],
)  # fmt: skip
def test_malformed_commits(raw, api, repo, body):
    reply = raw("POST", f"/api/datasets/{repo}/commit/main", body=body)
    assert reply.status == 400 and reply.json()["error"]
    assert paths(api, repo) == [".gitattributes"]


def test_a_file_too_big_for_a_commit_line(raw, repo):
    for size in (10_000_001, 12_000_000):
        body = lines(file_line("big.txt", b"x" * size))
        reply = raw("POST", f"/api/datasets/{repo}/commit/main", body=body)
        assert reply.status == 413 and "LFS" in reply.json()["error"]


def test_deep_json_is_refused(raw):
    assert raw("POST", "/api/repos/create", body="[" * 100_000).status == 400
    assert raw("POST", "/api/repos/create", body=b"x" * (17 << 20)).status == 413


def test_log_pages(raw, api, repo):
    for number in range(4):
        commit(api, repo, add("n", str(number).encode()), commit_message=f"c{number}")
    first = raw("GET", f"/api/datasets/{repo}/commits/main?limit=3")
    assert [item["title"] for item in first.json()] == ["c3", "c2", "c1"]
    commit(api, repo, add("n", b"later"), commit_message="later")
    path = "/api/" + first.headers["link"].split("/api/", 1)[1].split(">")[0]
    assert [item["title"] for item in raw("GET", path).json()] == ["c0", "initial commit"]

"""Requests in which clients rely on what huggingface.co does: names, words, history, git."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RepositoryNotFoundError
from localhub_client import send, server_command

from factory.localhub.launcher import await_end, connect

_numbers = itertools.count()
CARD = "---\nlicense: mit\n{more}---\n# A model\n"
RESULT = {"task": {"type": "x"}, "dataset": {"type": "y", "name": "Y"},
          "metrics": [{"type": "acc", "value": 1}]}  # fmt: skip


@pytest.fixture
def model(api: HfApi) -> str:
    return api.create_repo(f"org/words-{next(_numbers)}").repo_id


def commit(api: HfApi, repo: str, **files: bytes) -> str:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo, operations, commit_message="change").oid


def test_a_card_is_validated_without_a_token_and_pushed(api, client_env, model):
    program = f"from huggingface_hub import ModelCard\nModelCard({CARD.format(more='')!r})"
    program += f".push_to_hub({model!r})"
    subprocess.run([sys.executable, "-c", program], env=client_env, check=True)
    assert api.model_info(model).card_data.license == "mit"


@pytest.mark.parametrize(
    ("index", "mistake"),
    [
        ([{"name": "m", "results": [RESULT]}], None),
        (None, None),
        ("words", '"model-index" must be a list'),
        ([{"results": [RESULT]}], '"model-index[0].name" is required'),
        ([{"name": "m", "results": [{**RESULT, "dataset": None}]}],
         '"model-index[0].results[0].dataset" is required'),
        ([{"name": "m", "results": [{**RESULT, "metrics": [{"type": "acc"}]}]}],
         '"model-index[0].results[0].metrics[0].value" is required'),
        ([{"name": "m", "results": [{**RESULT, "task": 7}]}],
         '"model-index[0].results[0].task.type" is required'),
    ],
)  # fmt: skip
def test_results_in_a_card_are_whole(raw, index, mistake):
    more = f"model-index: {json.dumps(index)}\n"
    reply = raw("POST", "/api/validate-yaml", body=json.dumps({"content": CARD.format(more=more)}))
    messages = [error["message"] for error in reply.json()["errors"]]
    assert (reply.status, messages) == ((400, [mistake]) if mistake else (200, []))


def test_a_folder_is_deleted_like_a_file(api, model):
    commit(api, model, **{"a/b/c": b"1", "a/d": b"2", "e": b"3"})
    api.create_commit(model, [CommitOperationDelete("a", is_folder=False)], commit_message="gone")
    assert sorted(api.list_repo_files(model)) == [".gitattributes", "e"]


def test_names_match_in_any_case(api):
    repo = api.create_repo(f"Org/CaSe-{next(_numbers)}").repo_id
    commit(api, repo.lower(), a=b"1")
    assert api.model_info(repo.upper()).id == repo and "a" in api.list_repo_files(repo)
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo(repo.lower())
    assert caught.value.response.status_code == 409
    assert api.create_repo(f"_org/_x{next(_numbers)}").repo_id.startswith("_org/_x")


def test_a_branch_and_a_tag_may_share_a_name(api, model):
    first = commit(api, model, a=b"1")
    api.create_tag(model, tag="both")
    api.create_branch(model, branch="both")
    second = api.create_commit(
        model, [CommitOperationAdd("b", b"2")], commit_message="x", revision="both"
    ).oid
    assert api.model_info(model, revision="both").sha == second
    assert api.model_info(model, revision="refs/tags/both").sha == first
    with pytest.raises(HfHubHTTPError, match="Reference refs/heads/both already exists"):
        api.create_branch(model, branch="both")
    with pytest.raises(HfHubHTTPError, match="Cannot delete refs/heads/main"):
        api.delete_branch(model, branch="main")


def test_large_files_go_out_of_the_whole_history(api, model):
    commit(api, model, **{"x.bin": b"large" * 9, "d/y.bin": b"other" * 9, "t": b"text"})
    api.create_tag(model, tag="before")
    api.create_branch(model, branch="dev")
    api.upload_file(
        path_or_fileobj=b"third" * 9, path_in_repo="z.bin", repo_id=model, revision="dev"
    )
    files = {file.filename: file for file in api.list_lfs_files(model)}
    assert {name: file.ref for name, file in files.items()} == {
        "x.bin": "refs/heads/main", "d/y.bin": "refs/heads/main", "z.bin": "refs/heads/dev",
    }  # fmt: skip
    with pytest.raises(HfHubHTTPError, match="rewrite_history=True"):
        api.permanently_delete_lfs_files(model, [files["x.bin"]], rewrite_history=False)
    api.permanently_delete_lfs_files(model, [files["x.bin"], files["d/y.bin"]])
    assert [file.filename for file in api.list_lfs_files(model)] == ["z.bin"]
    for revision in ("main", "before"):
        assert sorted(api.list_repo_files(model, revision=revision)) == [".gitattributes", "t"]
    assert "z.bin" in api.list_repo_files(model, revision="dev")
    assert [item.title for item in api.list_repo_commits(model)] == ["change", "initial commit"]


def test_every_answer_repeats_the_id_of_its_request(api, raw):
    assert raw("GET", "/nothing", headers={"X-Amzn-Trace-Id": "abc-1"}).headers["x-request-id"] == (
        "abc-1"
    )
    hostile = raw("GET", "/nothing", headers={"X-Amzn-Trace-Id": "a" * 500})
    assert len(hostile.headers["x-request-id"]) == 32
    with pytest.raises(RepositoryNotFoundError, match=r"Request ID: .+\)"):
        api.delete_repo("org/never-was")


def test_unknown_filters_and_addresses_are_named(api, raw, model):
    with pytest.raises(BadRequestError, match="cannot list repos by 'num_parameters'"):
        list(api.list_models(num_parameters="min:1B"))
    assert list(api.list_models(gated=True, search=model)) == []
    assert [item.id for item in api.list_models(gated=False, search=model)] == [model]
    assert [item.id for item in api.list_models(sort="likes", search=model)] == [model]
    reply = raw("GET", f"/api/models/{model}/leaderboard")
    assert reply.status == 404 and reply.headers["x-error-code"] == "NotFound"
    assert "no address" in reply.json()["error"]


def test_a_repo_is_duplicated(api, model):
    commit(api, model, **{"x.bin": b"large" * 9, "d/t": b"text"})
    target = f"other/copy-{next(_numbers)}"
    assert api.duplicate_repo(model, target, private=True).repo_id == target
    assert api.model_info(target).private
    assert sorted(api.list_repo_files(target)) == [".gitattributes", "d/t", "x.bin"]
    with pytest.raises(HfHubHTTPError) as caught:
        api.duplicate_repo(model, target)
    assert caught.value.response.status_code == 409


def test_a_discussion_lists_what_was_changed(api, model):
    number = api.create_discussion(model, title="first").num
    api.rename_discussion(model, number, new_title="second")
    api.change_discussion_status(model, number, "closed")
    events = api.get_discussion_details(model, number).events
    assert [event.type for event in events] == ["comment", "title-change", "status-change"]
    assert (events[1].old_title, events[1].new_title) == ("first", "second")
    assert events[2].new_status == "closed"


def git(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "GIT_TERMINAL_PROMPT": "0",
             "GIT_CONFIG_NOSYSTEM": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_git_clones_and_fetches(api, hub, raw, model, tmp_path):
    head = commit(api, model, **{"d/e/text": b"words\n", "x.bin": b"large" * 9})
    api.create_tag(model, tag="v1")
    address = hub.url.replace("http://", f"http://local:{hub.token}@") + f"/{model}"
    git("clone", "-q", address, "clone", folder=tmp_path)
    clone = tmp_path / "clone"
    assert git("rev-parse", "HEAD", folder=clone) == head
    assert git("fsck", "--strict", folder=clone) == "" and git("tag", folder=clone) == "v1"
    assert (clone / "d/e/text").read_text() == "words\n"
    pointer = (clone / "x.bin").read_text()
    assert pointer.startswith("version https://git-lfs")
    newer = commit(api, model, more=b"1")
    git("pull", "-q", folder=clone)
    assert git("rev-parse", "HEAD", folder=clone) == newer
    # What git-lfs asks for next.
    sha256 = pointer.split("sha256:")[1].split("\n")[0]
    body = {"operation": "download", "objects": [{"oid": sha256, "size": 45}]}
    reply = raw("POST", f"/{model}.git/info/lfs/objects/batch", body=json.dumps(body))
    [item] = reply.json()["objects"]
    path = item["actions"]["download"]["href"].removeprefix(hub.url)
    assert raw("GET", path).body == b"large" * 9
    other = api.create_repo(f"org/words-{next(_numbers)}").repo_id
    assert raw("GET", path.replace(model, other)).status == 404
    assert send(hub.url, "GET", f"/{model}/info/refs").headers["www-authenticate"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("git-lfs"), reason="needs git-lfs: requirements/apt.txt")
def test_git_lfs_brings_the_contents_of_every_commit(api, hub, model, tmp_path):
    commit(api, model, **{"é x.bin": b"first" * 9, "same.bin": b"first" * 9})
    commit(api, model, **{"é x.bin": b"second" * 9})
    address = hub.url.replace("http://", f"http://local:{hub.token}@") + f"/{model}"
    git("clone", "-q", address, "clone", folder=tmp_path)
    clone = tmp_path / "clone"
    git("lfs", "install", "--local", folder=clone)
    git("lfs", "pull", folder=clone)
    assert (clone / "é x.bin").read_bytes() == b"second" * 9
    assert (clone / "same.bin").read_bytes() == b"first" * 9
    git("checkout", "-q", "HEAD~1", folder=clone)
    assert (clone / "é x.bin").read_bytes() == b"first" * 9
    assert git("lfs", "fsck", folder=clone) == "Git LFS fsck OK"


def test_a_pulled_commit_can_be_cloned(api, hub, raw, model, tmp_path):
    header = {"commit": "c" * 40, "branch": "main", "author": "eve", "summary": "theirs", "date": 9}
    file = {"path": "a", "content": "eA==", "encoding": "base64"}
    lines = [{"key": "header", "value": header}, {"key": "file", "value": file}]
    body = "\n".join(map(json.dumps, lines))
    assert raw("POST", f"/api/models/{model}/mirror", body=body).status == 200
    address = hub.url.replace("http://", f"http://local:{hub.token}@") + f"/{model}.git"
    git("clone", "-q", address, "clone", folder=tmp_path)
    assert (tmp_path / "clone" / "a").read_text() == "x"


def test_without_a_token_public_repos_can_be_read(tmp_path):
    root = tmp_path / "hub"
    with connect(root) as own:
        api = HfApi(endpoint=own.url, token=own.token)
        for name, private in (("org/open", False), ("org/closed", True)):
            api.create_repo(name, private=private)
            commit(api, name, a=b"1")
    await_end(root)
    command = server_command(root, "--stay", "--anonymous")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[3].rstrip(",")
            nobody = HfApi(endpoint=url, token=False)
            assert [item.id for item in nobody.list_models()] == ["org/open"]
            assert "a" in nobody.list_repo_files("org/open")
            with pytest.raises(RepositoryNotFoundError):
                nobody.model_info("org/closed")
            for request in (lambda: commit(nobody, "org/open", b=b"2"),
                            lambda: nobody.create_repo("org/new")):  # fmt: skip
                with pytest.raises(HfHubHTTPError) as caught:
                    request()
                assert caught.value.response.status_code == 401
                assert "writing needs a token: set HF_TOKEN" in str(caught.value)
            assert send(url, "GET", "/api/whoami-v2").status == 401
        finally:
            server.terminate()

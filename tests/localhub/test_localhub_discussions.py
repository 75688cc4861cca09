"""Pull requests and discussions, by the client."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_numbers = itertools.count()


@pytest.fixture
def model(api):
    return api.create_repo(f"org/discussed-{next(_numbers)}").repo_id


def add(path: str, content: bytes = b"x") -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, content)]


def test_a_commit_as_a_pull_request_leaves_main_alone(api, model):
    head = api.model_info(model).sha
    made = api.create_commit(
        model, add("new.bin", b"large" * 9), commit_message="Try", create_pr=True,
        commit_description="why",
    )  # fmt: skip
    assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
    assert made.pr_url == f"{api.endpoint}/{model}/discussions/1"
    assert api.model_info(model).sha == head
    assert "new.bin" not in api.list_repo_files(model)
    assert "new.bin" in api.list_repo_files(model, revision="refs/pr/1")
    assert api.list_repo_commits(model, revision="refs/pr/1")[0].title == "Try"
    refs = api.list_repo_refs(model, include_pull_requests=True)
    assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests] == [("refs/pr/1", made.oid)]
    assert api.list_repo_refs(model).pull_requests is None
    assert [ref.name for ref in refs.branches] == ["main"]
    found = api.get_discussion_details(model, 1)
    assert (found.title, found.status, found.is_pull_request) == ("Try", "open", True)
    assert (found.target_branch, found.git_reference) == ("refs/heads/main", "refs/pr/1")
    assert found.events[0].content == "why"


def test_more_commits_go_to_the_ref_of_a_pull_request(api, model, tmp_path):
    first = api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id=model, create_pr=True)
    second = api.create_commit(
        model, add("b"), commit_message="more", revision="refs/pr/1", parent_commit=first.oid[:7]
    )
    assert api.model_info(model, revision="refs/pr/1").sha == second.oid
    path = api.hf_hub_download(model, "b", revision="refs/pr/1", cache_dir=tmp_path)
    assert Path(path).read_bytes() == b"x"
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit(
            model, add("c"), commit_message="c", revision="refs/pr/1", parent_commit=first.oid
        )
    assert caught.value.response.status_code == 412
    with pytest.raises(RevisionNotFoundError):
        api.create_commit(model, add("c"), commit_message="c", revision="refs/pr/2")
    with pytest.raises(HfHubHTTPError):
        api.create_commit(model, add("c"), commit_message="c", revision="refs/tags/v1")


def test_a_pull_request_may_start_from_an_older_commit(api, model):
    old = api.create_commit(model, add("a"), commit_message="a").oid
    api.create_commit(model, add("b"), commit_message="b")
    made = api.create_commit(model, add("c"), commit_message="c", create_pr=True, parent_commit=old)
    assert set(api.list_repo_files(model, revision=made.oid)) == {".gitattributes", "a", "c"}


def test_discussions_are_opened_listed_renamed_and_closed(api, model):
    talk = api.create_discussion(model, "A question", description="Is it?")
    pull = api.create_pull_request(model, "An empty pull request")
    assert (talk.num, talk.is_pull_request, pull.num, pull.is_pull_request) == (1, False, 2, True)
    assert api.model_info(model, revision="refs/pr/2").sha == api.model_info(model).sha
    with pytest.raises(RevisionNotFoundError):
        api.model_info(model, revision="refs/pr/1")
    assert [d.num for d in api.get_repo_discussions(model)] == [2, 1]
    assert [d.num for d in api.get_repo_discussions(model, discussion_type="discussion")] == [1]
    api.rename_discussion(model, 1, "An answer")
    api.change_discussion_status(model, 1, "closed")
    found = api.get_discussion_details(model, 1)
    assert (found.title, found.status, found.events[0].content) == ("An answer", "closed", "Is it?")
    assert [d.num for d in api.get_repo_discussions(model, discussion_status="open")] == [2]
    assert list(api.get_repo_discussions(model, author="nobody")) == []


def test_long_lists_go_on_over_pages(api, model):
    for number in range(53):
        api.create_discussion(model, f"number {number}")
    assert [d.num for d in api.get_repo_discussions(model)] == list(range(53, 0, -1))


def test_what_is_not_done_here_is_said(api, model):
    api.create_pull_request(model, "a pull request")
    for refused in (
        lambda: api.merge_pull_request(model, 1),
        lambda: api.comment_discussion(model, 1, "yes"),
    ):
        with pytest.raises(BadRequestError, match="commit to the branch itself"):
            refused()
    with pytest.raises(HfHubHTTPError) as caught:
        api.get_discussion_details(model, 9)
    assert caught.value.response.status_code == 404
    with pytest.raises(BadRequestError, match="title"):
        api.create_discussion(model, " ")
    with pytest.raises(BadRequestError, match="against main"):
        api.create_branch(model, branch="side")
        api.create_commit(model, add("a"), commit_message="a", revision="side", create_pr=True)


def test_a_failed_pull_request_leaves_no_number_behind(api, model, raw):
    body = b'{"key":"header","value":{"summary":"s"}}\n{"key":"deletedFile","value":{"path":"no"}}'
    path = f"/api/models/{model}/commit/main?create_pr=1"
    assert raw("POST", path, body=body).status == 404
    assert list(api.get_repo_discussions(model)) == []
    assert api.list_repo_refs(model, include_pull_requests=True).pull_requests == []


def test_strangers_and_readers(hub, guests, api, model):
    reader = HfApi(endpoint=hub.url, token=guests.reader)
    with pytest.raises(HfHubHTTPError) as caught:
        reader.create_discussion(model, "may I?")
    assert caught.value.response.status_code == 403
    assert list(reader.get_repo_discussions(model)) == []
    api.update_repo_settings(model, private=True)
    with pytest.raises(RepositoryNotFoundError):
        list(reader.get_repo_discussions(model))

"""Repos, who sees them, what is said of them, and how refusals reach a client."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import get_args

import pytest
from huggingface_hub import DatasetCard, HfApi, hf_api
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from localhub_client import send


def test_whoami(api):
    assert api.whoami()["name"] == "local"
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"


def test_create_again_and_delete(api):
    first = api.create_repo("org/twice", private=False)
    assert api.create_repo("org/twice", exist_ok=True) == first
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("org/twice")
    assert caught.value.response.status_code == 409
    assert api.repo_exists("org/twice")
    api.delete_repo("org/twice")
    assert not api.repo_exists("org/twice")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("org/twice")
    api.delete_repo("org/twice", missing_ok=True)


def test_a_name_without_namespace_is_the_callers(api):
    assert api.create_repo("mine").repo_id == "local/mine"


@pytest.mark.parametrize(
    "name", ["api/x", "datasets/x", "org/x.git", "org/-x", "org/..", "org/a--b"]
)
def test_bad_repo_names(raw, name):
    namespace, short = name.split("/")
    body = f'{{"name": "{short}", "organization": "{namespace}"}}'
    assert raw("POST", "/api/repos/create", body=body).status == 400


def test_model_and_dataset_of_one_name(api):
    api.create_repo("org/same")
    api.create_repo("org/same", repo_type="dataset")
    api.delete_repo("org/same")
    assert api.repo_exists("org/same", repo_type="dataset")


def test_a_static_space_is_made_listed_and_read(api, tmp_path):
    with pytest.raises(RepositoryNotFoundError):
        api.space_info("org/space")
    url = api.create_repo("org/space", repo_type="space", space_sdk="static")
    assert (url.repo_type, url.repo_id) == ("space", "org/space")
    again = api.create_repo("org/space", repo_type="space", space_sdk="static", exist_ok=True)
    assert again == url and url.endswith("/spaces/org/space")
    card = b"---\ntitle: T\nsdk: static\nlicense: mit\n---\n"
    for path, content in (("index.html", b"<!doctype html>"), ("README.md", card)):
        api.upload_file(
            path_or_fileobj=content, path_in_repo=path, repo_id="org/space", repo_type="space"
        )
    info = api.space_info("org/space")
    assert info.sdk == "static" and info.card_data.license == "mit"
    assert {"index.html", "README.md"} <= {file.rfilename for file in info.siblings}
    assert [space.id for space in api.list_spaces(author="org")] == ["org/space"]
    place = api.hf_hub_download("org/space", "index.html", repo_type="space", cache_dir=tmp_path)
    assert Path(place).read_bytes() == b"<!doctype html>"
    assert list(api.list_models(author="org", search="space")) == []
    api.delete_repo("org/space", repo_type="space")
    assert not api.repo_exists("org/space", repo_type="space")


def test_a_space_that_would_have_to_run_is_refused(api):
    with pytest.raises(BadRequestError, match="static Spaces alone"):
        api.create_repo("org/app", repo_type="space", space_sdk="gradio")


def test_missing_things_map_to_the_right_errors(api, repo, tmp_path):
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("org/absent")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("absent")
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info(repo, revision="absent")
    with pytest.raises(EntryNotFoundError) as caught:
        api.hf_hub_download(repo, "absent.txt", repo_type="dataset", cache_dir=tmp_path)
    head = api.dataset_info(repo).sha
    assert caught.value.response.headers["X-Repo-Commit"] == head
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(repo, "a", repo_type="dataset", revision="v9", cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("gpt2", "config.json", cache_dir=tmp_path)
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "absent", repo_type="dataset"))


def test_a_token_is_always_needed(hub, api, repo):
    bad = HfApi(endpoint=hub.url, token="hf_wrong")
    with pytest.raises(HfHubHTTPError) as caught:
        bad.whoami()
    assert caught.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError) as caught:
        bad.dataset_info(repo)
    assert not isinstance(caught.value, RepositoryNotFoundError)
    assert "Invalid credentials" in caught.value.response.headers["X-Error-Message"]
    none = HfApi(endpoint=hub.url, token=False)
    with pytest.raises(RepositoryNotFoundError) as missing:
        none.dataset_info(repo)
    assert missing.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError) as caught:
        list(none.list_datasets())
    assert caught.value.response.status_code == 401


def test_a_reading_token_cannot_write(hub, guests, api, repo):
    reader = HfApi(endpoint=hub.url, token=guests.reader)
    assert reader.dataset_info(repo).id == repo
    for write in (
        lambda: reader.create_repo("org/by-rob"),
        lambda: reader.create_tag(repo, tag="t", repo_type="dataset"),
        lambda: reader.upload_file(
            path_or_fileobj=b"x", path_in_repo="x", repo_id=repo, repo_type="dataset"
        ),
        lambda: reader.delete_repo(repo, repo_type="dataset"),
        lambda: reader.create_collection("By Rob", namespace="org"),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            write()
        assert caught.value.response.status_code == 403


def test_private_repos_are_absent_to_strangers(hub, guests, api, tmp_path):
    api.create_repo("org/secret", private=True)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="org/secret")
    assert api.model_info("org/secret").private
    eve = HfApi(endpoint=hub.url, token=guests.writer)
    for attempt in (
        lambda: eve.model_info("org/secret"),
        lambda: eve.auth_check("org/secret"),
        lambda: eve.hf_hub_download("org/secret", "x", cache_dir=tmp_path),
        lambda: eve.upload_file(path_or_fileobj=b"y", path_in_repo="y", repo_id="org/secret"),
        lambda: eve.delete_repo("org/secret"),
    ):
        with pytest.raises(RepositoryNotFoundError):
            attempt()
    assert "org/secret" not in [model.id for model in eve.list_models(author="org")]
    assert "org/secret" in [model.id for model in api.list_models(author="org")]


def test_tags_come_from_the_card(api):
    api.create_repo("tagged/adapter")
    card = (
        "---\nlicense: apache-2.0\nlanguage: [da, no]\nlibrary_name: peft\ndatasets: [org/prefs]\n"
        "base_model: org/base\npipeline_tag: text-generation\ntags: [dpo]\n---\n# Hello\n"
    )
    api.upload_file(
        path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="tagged/adapter"
    )
    info = api.model_info("tagged/adapter")
    assert {
        "license:apache-2.0", "language:da", "language:no", "dataset:org/prefs", "dpo", "peft",
        "base_model:org/base", "base_model:adapter:org/base", "text-generation",
    } <= set(info.tags)  # fmt: skip
    assert info.library_name == "peft" and info.pipeline_tag == "text-generation"
    assert info.card_data.base_model == "org/base"
    api.create_repo("tagged/other")
    found = api.list_models(filter="base_model:adapter:org/base")
    assert [model.id for model in found] == ["tagged/adapter"]
    assert len(list(api.list_models(author="tagged"))) == 2
    assert [m.id for m in api.list_models(search="OTHER", author="tagged")] == ["tagged/other"]
    assert [m.id for m in api.list_models(author="tagged", limit=1)] == ["tagged/other"]
    made = [m.id for m in api.list_models(author="tagged", sort="created_at")]
    assert made == ["tagged/other", "tagged/adapter"]
    # One property asked for, one given.
    assert api.model_info("tagged/adapter", expand=["tags"]).created_at is None


def test_listing_goes_on_over_pages(api, raw):
    for number in range(5):
        api.create_repo(f"pages/m{number}")
    seen, path = [], "/api/models?author=pages&limit=2"
    while path:
        reply = raw("GET", path)
        seen += [item["id"] for item in reply.json()]
        link = reply.headers.get("link")
        path = link and "/api/" + link.split("/api/", 1)[1].split(">")[0]
    assert sorted(seen) == [f"pages/m{number}" for number in range(5)]


def test_cards_are_checked(api, hub, repo):
    card = DatasetCard("---\nlanguage: [en]\nlicense: mit\n---\nwords")
    api.upload_file(
        path_or_fileobj=str(card).encode(),
        path_in_repo="README.md",
        repo_id=repo,
        repo_type="dataset",
    )
    assert api.dataset_info(repo).tags == ["language:en", "license:mit"]
    with pytest.raises(ValueError, match='"language\\[1\\]" must be a string'):
        api.upload_file(
            path_or_fileobj=b"---\nlanguage: [en, 3]\n---\n",
            path_in_repo="README.md",
            repo_id=repo,
            repo_type="dataset",
        )
    with pytest.raises(ValueError, match="not valid YAML"):
        api._validate_yaml("---\na: [\n---\n", repo_type="dataset")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        api._validate_yaml("# no metadata", repo_type="dataset")
    assert any("empty or missing" in str(item.message) for item in caught)


def test_a_broken_card_does_not_hide_its_repo(api, raw, repo):
    line = '{"key": "header", "value": {"summary": "s"}}\n' + (
        '{"key": "file", "value": {"path": "README.md", "content": "---\\na: [\\n---\\n"}}\n'
    )
    assert raw("POST", f"/api/datasets/{repo}/commit/main", body=line).status == 200
    assert api.dataset_info(repo).card_data is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/agent-harnesses"),
        ("HEAD", "/api/telemetry/huggingface_hub/cli/download"),
        ("POST", "/api/telemetry/x"),
        ("GET", "/api/models-tags-by-type"),
    ],
)
def test_calls_that_only_want_an_ok(raw, method, path):
    assert raw(method, path, token=None).status == 200


@pytest.mark.parametrize("path", ["/", "/api/nothing", "/api/models/org/x/nothing", "/favicon.ico"])
def test_everything_else_is_404_in_json(raw, path):
    reply = raw("GET", path)
    assert reply.status == 404 and reply.json()["error"]


def test_xet_is_declined(raw, repo):
    assert raw("GET", f"/api/datasets/{repo}/xet-write-token/main").status == 404


def test_links_follow_the_host_header(raw):
    reply = raw(
        "POST", "/api/repos/create", body='{"name": "hosted"}', headers={"Host": "node7:8000"}
    )
    assert reply.json()["url"] == "http://node7:8000/local/hosted"


def test_a_card_is_checked_for_clients_that_send_no_token(hub, api, repo, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    text = "---\nlicense: mit\n---\n# A card\n"
    reply = send(hub.url, "POST", "/api/validate-yaml", token=None,
                 body=json.dumps({"repoType": "dataset", "content": text}))  # fmt: skip
    assert (reply.status, json.loads(reply.body)["errors"]) == (200, [])


def test_errors_name_the_request(raw):
    own = raw("GET", "/api/models/org/none", headers={"X-Amzn-Trace-Id": "trace-1"})
    assert own.headers["x-request-id"] == "trace-1"
    odd = raw("GET", "/api/models/org/none", headers={"X-Amzn-Trace-Id": "a b<"})
    assert len(odd.headers["x-request-id"]) == 32


def test_what_a_list_cannot_be_asked_for_is_said(api, raw):
    api.create_repo("org/listed", exist_ok=True)
    assert list(api.list_models(gated=True)) == []
    assert "org/listed" in [model.id for model in api.list_models(gated=False, author="org")]
    assert list(api.list_models(sort="likes", limit=1))
    for query, word in (("num_parameters=min:1B", "num_parameters"), ("apps=x", "apps"),
                        ("sort=taste", "taste"), ("expand=foo", "foo")):  # fmt: skip
        reply = raw("GET", f"/api/models?{query}")
        assert reply.status == 400 and word in json.loads(reply.body)["error"]
    for path in ("collections?q=nothing", "collections?sort=q", "models/org/listed?expand=q",
                 "models/org/listed?q=1", "models/org/listed/tree/main?expand=q",
                 "models/org/listed/tree/main?q=1", "models/org/listed/refs?q=1",
                 "models/org/listed/commits/main?q=1",
                 "models/org/listed/discussions?q=1"):  # fmt: skip
        reply = raw("GET", f"/api/{path}")
        assert reply.status == 400 and "'q'" in json.loads(reply.body)["error"], path


def test_every_word_of_the_client_is_known(api):
    """Of all that its functions can ask for, in this version."""
    api.create_repo("org/listed", exist_ok=True)
    for kind, get in (("Model", api.model_info), ("Dataset", api.dataset_info),
                      ("Space", api.space_info)):  # fmt: skip
        api.create_repo("org/asked", repo_type=kind.lower(), space_sdk="static", exist_ok=True)
        words = list(get_args(getattr(hf_api, f"Expand{kind}Property_T")))
        assert get("org/asked", expand=words).sha
        listed = getattr(api, f"list_{kind.lower()}s")
        assert [repo.id for repo in listed(author="org", search="asked", expand=words)]
        for sort in get_args(getattr(hf_api, f"{kind}Sort_T")):
            assert list(listed(sort=sort, limit=1, full=True))
    api.model_info("org/asked", securityStatus=True, files_metadata=True)
    for sort in get_args(hf_api.CollectionSort_T):
        list(api.list_collections(owner="org", item="models/org/asked", sort=sort, limit=1))


def test_repos_are_listed_with_their_room(hub, guests, api, client_env):
    api.create_repo("rooms/big")
    api.upload_file(path_or_fileobj=b"x" * 9000, path_in_repo="x.bin", repo_id="rooms/big")
    api.create_repo("rooms/hidden", repo_type="dataset", private=True)
    hf = [str(Path(sys.executable).with_name("hf")), "repos", "ls", "--search", "rooms/"]
    done = subprocess.run([*hf, "--namespace", "rooms"], env=client_env, capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert "rooms/big" in done.stdout and "rooms/hidden" in done.stdout, done.stderr
    own = {repo.id: repo for repo in api.list_user_repos()}
    assert own["rooms/big"].storage > 9000 and own["rooms/hidden"].visibility == "private"
    rob = HfApi(endpoint=hub.url, token=guests.reader)
    assert list(rob.list_user_repos()) == []
    assert [repo.id for repo in rob.list_user_repos("rooms")] == ["rooms/big"]

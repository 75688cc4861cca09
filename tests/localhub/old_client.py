"""What an older huggingface_hub must be able to do here; run by that client's own Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

assert huggingface_hub.__version__ == sys.argv[1], huggingface_hub.__version__
work = Path(sys.argv[2])
api = HfApi()
repo = "org/old-client"
assert api.whoami()["name"] == "local"
api.create_repo(repo, private=True)
api.create_repo(repo, exist_ok=True)
folder = work / "up"
(folder / "sub").mkdir(parents=True)
big = os.urandom(3_000_000)
(folder / "model.safetensors").write_bytes(big)
(folder / "sub" / "a b#.txt").write_text("small")
(folder / "README.md").write_text("---\nlicense: mit\nlibrary_name: peft\nbase_model: org/b\n---\n")
api.upload_folder(repo_id=repo, folder_path=folder)
api.create_tag(repo, tag="v1")
api.upload_file(repo_id=repo, path_or_fileobj=b"two", path_in_repo="two.txt")
head = api.model_info(repo).sha
try:
    api.create_commit(
        repo, [CommitOperationAdd("x", b"x")], commit_message="late", parent_commit="0" * 40
    )
    raise AssertionError("a stale parent was taken")
except HfHubHTTPError as error:
    assert error.response.status_code == 412
assert api.model_info(repo).sha == head
got = Path(snapshot_download(repo, revision="v1"))
assert (got / "model.safetensors").read_bytes() == big and not (got / "two.txt").exists()
assert (got / "sub" / "a b#.txt").read_text() == "small"
assert [m.id for m in api.list_models(filter="base_model:adapter:org/b", author="org")] == [repo]
assert len(api.list_repo_commits(repo)) == 3 and api.list_repo_refs(repo).tags[0].name == "v1"
shelf = api.create_collection("Old client", namespace="org", exists_ok=True)
shelf = api.add_collection_item(shelf.slug, repo, "model", note="n")
assert api.get_collection(shelf.slug).items[0].note == "n"
api.super_squash_history(repo)
assert len(api.list_repo_commits(repo)) == 1
api.delete_collection(shelf.slug)
api.delete_repo(repo)
try:
    api.model_info(repo)
    raise AssertionError("a deleted repo is there")
except RepositoryNotFoundError:
    pass
print("all of it")

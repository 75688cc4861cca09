"""Progress of a transfer counts the bytes inside a file, whichever way it goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from factory.hub.sync.side import FileProgress
from factory.localhub.launcher import connect
from tests.hub.sync.test_sync import between

SIZE = 25_000_000  # the client reads 10 MiB at a time


@pytest.mark.parametrize("pulls", [False, True], ids=["push", "pull"])
def test_bytes_are_counted_inside_a_file(tmp_path: Path, pulls: bool) -> None:
    with connect(tmp_path / "one") as one, connect(tmp_path / "two") as two:
        api = HfApi(endpoint=one.url, token=one.token)
        api.create_repo("org/model")
        api.upload_file(
            path_or_fileobj=os.urandom(SIZE), path_in_repo="model.safetensors", repo_id="org/model"
        )
        work = between(
            (one.url, one.token), (two.url, two.token), tmp_path / "staging", keeps_ids=pulls
        )
        [repo] = work.find("org/model")
        counts: list[int] = []
        work._watcher.moved = counts.append
        work.repo(repo)
        assert sum(counts) == work._watcher.size
        assert len([count for count in counts if count]) >= 3
        assert max(counts) < SIZE


def test_bytes_that_are_sent_again_count_once() -> None:
    counts: list[int] = []
    progress = FileProgress(10, counts.append)
    progress.add(6)
    progress.add(6)
    progress.add(6)
    progress.finish()
    assert sum(counts) == 10

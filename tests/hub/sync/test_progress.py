"""Progress of a transfer counts the bytes inside a file, whichever way it goes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, _commit_api, file_download
from huggingface_hub.utils import XetFileData, _xet

from factory.hub.sync import destination, side
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


class XetSession:
    """What the client needs of a Xet session: it says three times how far it is."""

    def __init__(self, *, came: tuple[int, ...], done: tuple[int, ...], to_come: int) -> None:
        self._steps, self._to_come = list(zip(came, done, strict=True)), to_come

    def new_upload_commit(self, progress_callback: Any = None, **_: Any) -> XetSession:
        self._callback = progress_callback
        return self

    new_file_download_group = new_upload_commit

    def __enter__(self) -> XetSession:
        return self

    def __exit__(self, *_: object) -> None:
        for came, done in self._steps:
            report = SimpleNamespace(
                total_bytes=100, total_bytes_completed=done, total_bytes_completion_rate=None,
                total_transfer_bytes=self._to_come, total_transfer_bytes_completed=came,
                total_transfer_bytes_completion_rate=None,
            )  # fmt: skip
            self._callback(report, {})

    def start_upload_file(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(
            result=lambda: SimpleNamespace(xet_info=SimpleNamespace(sha256="00"))
        )

    start_download_file = start_upload_file


def test_bytes_that_xet_sends_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, counts = tmp_path / "file", list[int]()
    file.write_bytes(bytes(100))
    session = XetSession(came=(0, 20, 40), done=(50, 100, 100), to_come=40)  # 60 were there
    monkeypatch.setattr(_xet, "get_xet_session", lambda: session)
    destination._count_xet.__wrapped__()
    token = destination._sending.set(counts.append)
    try:
        _commit_api._upload_xet_files(
            additions=[CommitOperationAdd("file", str(file))], repo_type="model", repo_id="a/b",
            headers={}, endpoint="https://huggingface.co", revision="main",
        )  # fmt: skip
    finally:
        destination._sending.reset(token)
    assert counts == [0, 50, 50]


def test_bytes_that_xet_brings_are_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    session = XetSession(came=(40, 60, 60), done=(0, 50, 100), to_come=60)
    monkeypatch.setattr(_xet, "get_xet_session", lambda: session)
    info = SimpleNamespace(endpoint="", access_token="", expiration_unix_epoch=0)
    monkeypatch.setattr(_xet, "refresh_xet_connection_info", lambda **_: info)
    file_download.xet_get(
        incomplete_path=tmp_path / "file",
        xet_file_data=XetFileData(file_hash="0" * 64, refresh_route=""),
        headers={},
        expected_size=100,
        tqdm_class=side._bar_that_calls(counts.append),
    )
    assert sum(counts) == 100 and [count for count in counts if count] == [40, 10, 10, 40]

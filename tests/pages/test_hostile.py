"""Artifacts that are not what their manifest says: every page answers, none breaks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from tests.pages.conftest import Story

_IDS = ("prompt_id", "id", "question_id", "k", "chosen_k", "rejected_k", "order")
_TEXTS = ("prompt", "chosen", "rejected", "response", "answer", "messages", "verdict",
          "detected_language", "language", "prompt_language", "chosen_language",
          "finish_reason")  # fmt: skip
_SCORES = ("reward", "score_chosen", "score_rejected", "score_model", "score_reference")


def _columns(value: Any) -> pa.Table:
    return pa.table({name: [value, None] for name in (*_IDS, *_TEXTS, *_SCORES)})


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


TABLES = {
    "other": pa.table({"text": ["a"]}),
    "nothing": pa.table({}),
    "empty": pa.table({"prompt_id": pa.array([], pa.string())}),
    "numbers": _columns(7),
    "texts": _columns("a"),
    "lists": _columns(["a"]),
    "nested": _columns({"a": {"b": 1}}),
    "bytes": _columns(b"\xff"),
    "nulls": pa.table({name: pa.nulls(2) for name in (*_IDS, *_TEXTS)}),
    "infinite": _columns(float("inf")),
    "far": pa.table({"prompt_id": ["a"], "day": pa.array([2**31 - 1], pa.date32())}),
    "twice": pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["id", "id"]),
}
CONTENTS = {name: _parquet(table) for name, table in TABLES.items()} | {
    "torn": b"PAR1 and nothing after it",
    "none": b"",
    "flipped": bytes(b ^ 255 if 30 < n < 60 else b for n, b in enumerate(_parquet(_columns("a")))),
}
STATISTICS: list[Any] = [
    {"judge": {"a": 1}, "judge_kind": [1], "comparisons": "x"},
    {"judge": None, "comparisons": [1, "a", {"model": {}, "language": []}]},
    {"comparisons": [{"model": "<script>", "language": '../"', "won": "a", "tied": None,
                      "lost": -1, "win_rate": {"rate": "NaN", "low": None}}]},
    {"comparisons": [{"model": "m" * 5000, "reference": "r", "language": "en", "won": 1e308,
                      "win_rate": {"rate": 1e308, "low": -1e308, "high": 1e308}}]},
]  # fmt: skip
ROWS = ("/viewer/main", "/viewer/main?row=0", "/viewer/main?row=²",
        "/viewer/main?search=a&filter=cut+off&filter=other+language&filter=chosen",
        "/read/main", "/read/main?n=2", "/compare?old=v1&new=main")  # fmt: skip
PAGES = ("", *ROWS[:1], "/manifest/main", "/read/main", "/commits/main")


class Publisher:
    """Somebody who publishes under the manifests of the story, and takes it away again."""

    def __init__(self, story: Story) -> None:
        self.api = HfApi(endpoint=story.connection.url, token=story.connection.token)
        self.repos: list[str] = []

    def manifest(self, step: str) -> dict[str, Any]:
        path = f"{self.api.endpoint}/datasets/local/story-{step}/resolve/main/factory.json"
        bearer = {"Authorization": f"Bearer {self.api.token}"}
        return dict(httpx.get(path, headers=bearer).json())

    def create(self, repo: str) -> str:
        self.api.create_repo(repo, repo_type="dataset")
        self.repos.append(repo)
        return f"/datasets/{repo}"

    def commit(self, repo: str, manifest: dict[str, Any], content: bytes | None = None) -> None:
        files = {"factory.json": json.dumps({**manifest, "repo": repo}).encode()}
        if content is not None:
            files |= {f"data/{name}/part-0.parquet": content for name in manifest["slices"]}
        adds = [CommitOperationAdd(path, data) for path, data in files.items()]
        self.api.create_commit(repo, adds, repo_type="dataset", commit_message="Publish")


@pytest.fixture
def publisher(story: Story) -> Iterator[Publisher]:
    someone = Publisher(story)
    yield someone
    for repo in someone.repos:
        someone.api.delete_repo(repo, repo_type="dataset")


@pytest.mark.parametrize("step", ["pair", "judge", "generate"])
def test_no_rows_break_a_page(publisher: Publisher, reader: httpx.Client, step: str) -> None:
    manifest = publisher.manifest(step)
    repo = f"local/rows-{step}"
    path = publisher.create(repo)
    publisher.commit(repo, manifest, CONTENTS["texts"])
    publisher.api.create_tag(repo, tag="v1", repo_type="dataset")
    for name, content in CONTENTS.items():
        publisher.commit(repo, manifest, content)
        for page in ROWS:
            answer = reader.get(path + page)
            assert answer.status_code in (200, 400, 404), (name, page, answer.text[-300:])


def test_no_statistics_break_the_board_or_a_manifest(
    publisher: Publisher, reader: httpx.Client
) -> None:
    manifest = publisher.manifest("judge")
    slices = dict.fromkeys(
        ["../../x", "en/<script>", "a" * 300, *map(str, range(1000))],
        next(iter(manifest["slices"].values())),
    )
    changes = [{"stats": stats} for stats in STATISTICS] + [
        {"slices": slices}, {"languages": ["zz-nonsense", "<b>", "a" * 1000]},
        {"recipe": "<script>" * 100, "step": "\u202e", "created": "yesterday"},
        {"fields": {str(n): "x" * 100 for n in range(5000)}}, {"kind": "results"},
    ]  # fmt: skip
    shelf = publisher.api.create_collection("Odd", namespace="local")
    for number, change in enumerate(changes):
        repo = f"local/odd-{number}"
        path = publisher.create(repo)
        publisher.commit(repo, {**manifest, **change})
        publisher.api.add_collection_item(shelf.slug, repo, "dataset", note="\u202e<b>odd</b>")
        for page in PAGES:
            answer = reader.get(path + page)
            assert answer.status_code in (200, 400, 404), (change, answer.text[-300:])
            assert "<script" not in answer.text and len(answer.text) < 2e6
    shelves = f"/collections/{shelf.slug}"
    for page in ("/", "/-/board", shelves, f"{shelves}/results"):
        assert reader.get(page).status_code == 200, page
    publisher.api.delete_collection(shelf.slug)

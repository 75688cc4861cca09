"""Publishing through the real client against the local hub."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from factory.errors import HubError
from factory.localhub.launcher import Connection
from factory.planning.plan import Inventory, plan
from tests.support.builders import by_name, demo, lock_of, manifest_of


def _artifact(directory: Path, repo: str, text: str = "rows") -> Any:
    """A small artifact at rest: one large file, one small one, a card and a manifest."""
    (directory / "data" / "en").mkdir(parents=True)
    (directory / "data" / "en" / "part-00000.parquet").write_bytes(text.encode() * 5000)
    (directory / "README.md").write_text("---\ntags: [x]\n---\n# It\n")
    recipe = demo()
    lock = lock_of(recipe)
    step = by_name(plan(recipe, lock, Inventory()))["prompts"]
    made = manifest_of(recipe, lock, step, {}, draw=text).model_copy(update={"repo": repo})
    (directory / "factory.json").write_text(made.dump())
    return made


def test_one_publish_is_one_commit_with_a_tag(hub: Any, tmp_path: Path) -> None:
    made = _artifact(tmp_path / "a", "local/one")
    published = hub.publish(tmp_path / "a", made, "local/one", "dataset", False)
    commits = hub._api.list_repo_commits("local/one", repo_type="dataset")
    assert published.tag == made.tag
    assert commits[0].commit_id == published.commit
    assert len(commits) <= 2  # the hub's own first commit, and ours


def test_publishing_again_changes_nothing(hub: Any, tmp_path: Path) -> None:
    made = _artifact(tmp_path / "a", "local/again")
    first = hub.publish(tmp_path / "a", made, "local/again", "dataset", False)
    assert hub.publish(tmp_path / "a", made, "local/again", "dataset", False) == first


def test_another_draw_gets_a_tag_of_its_own(hub: Any, tmp_path: Path) -> None:
    one = _artifact(tmp_path / "a", "local/draws", "one")
    other = _artifact(tmp_path / "b", "local/draws", "other")
    assert one.tag == other.tag
    first = hub.publish(tmp_path / "a", one, "local/draws", "dataset", False)
    second = hub.publish(tmp_path / "b", other, "local/draws", "dataset", False)
    assert first.tag != second.tag
    held = hub.holdings({"local/draws": "dataset"})
    assert {found.tag for found in held.found} == {first.tag, second.tag}
    there = hub._api.repo_info("local/draws", repo_type="dataset", revision=first.tag)
    assert there.sha == first.commit  # the tag did not move


def test_two_publishers_of_one_artifact_end_with_one(hub: Any, tmp_path: Path) -> None:
    made = _artifact(tmp_path / "a", "local/race")
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(hub.publish, tmp_path / "a", made, "local/race", "dataset", False)
            for _ in range(4)
        ]
        results = {job.result() for job in jobs}
    assert len(results) == 1
    assert len(hub.holdings({"local/race": "dataset"}).found) == 1


def test_a_commit_without_its_tag_is_not_a_hit_and_is_finished_later(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _artifact(tmp_path / "a", "local/half")

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hub._api, "create_tag", die)
        with pytest.raises(KeyboardInterrupt):
            hub.publish(tmp_path / "a", made, "local/half", "dataset", False)
    assert not hub.holdings({"local/half": "dataset"}).found
    hub.publish(tmp_path / "a", made, "local/half", "dataset", False)
    assert len(hub.holdings({"local/half": "dataset"}).found) == 1
    # the lost try had arrived: it was recognised, not sent again
    assert len(hub._api.list_repo_commits("local/half", repo_type="dataset")) <= 2


def test_the_same_content_has_the_same_digest_under_another_name(hub: Any, tmp_path: Path) -> None:
    for name in ("local/here", "local/there"):
        made = _artifact(tmp_path / name.replace("/", "-"), name)
        hub.publish(tmp_path / name.replace("/", "-"), made, name, "dataset", False)
    here, there = (hub.pin(name, "dataset", "main") for name in ("local/here", "local/there"))
    assert here[1] == there[1]
    assert hub.pin("local/nowhere", "dataset", "main") is None


def test_an_unknown_revision_is_said(hub: Any, tmp_path: Path) -> None:
    made = _artifact(tmp_path / "a", "local/revs")
    hub.publish(tmp_path / "a", made, "local/revs", "dataset", False)
    with pytest.raises(HubError, match="no such revision"):
        hub.pin("local/revs", "dataset", "v9")


def test_a_collection_is_made_once_and_its_notes_follow(hub: Any, tmp_path: Path) -> None:
    from factory.hub.client import CollectionEntry

    made = _artifact(tmp_path / "a", "local/item")
    hub.publish(tmp_path / "a", made, "local/item", "dataset", False)
    slugs = {
        hub.collect(
            "CroCo test",
            "local",
            False,
            "at {slug}",
            [CollectionEntry("local/item", "dataset", note)],
        )
        for note in ("first", "second", "second")
    }
    [slug] = slugs
    collection = hub._api.get_collection(slug)
    assert [(item.item_id, item.note) for item in collection.items] == [("local/item", "second")]
    assert collection.description == f"at {slug}"


def test_a_wrong_token_is_told_as_such(connection: Connection) -> None:
    from factory.hub.client import Hub

    with pytest.raises(HubError, match="401"):
        Hub(connection.url, "hf_wrong").pin("local/x", "dataset", "main")

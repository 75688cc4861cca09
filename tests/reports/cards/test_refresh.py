"""Cards and collections on the local hub: refreshed, checked, in order, by the real client."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.manifest import Manifest
from factory.errors import HubError
from factory.localhub.launcher import Connection, request
from factory.planning.plan import repo_type
from factory.reports.cards import card
from factory.reports.win_rates import comparisons
from tests.support.builders import demo, imported
from tools.golden import manifests

KEPT = manifests()


def renamed(manifest: Manifest, org: str) -> Manifest:
    """A manifest of the real run, as if an org of its own had made it."""
    return Manifest.model_validate_json(manifest.dump().replace("local/", f"{org}/"))


def publish(hub: Any, directory: Path, manifest: Manifest) -> Any:
    """An artifact with this manifest on the hub: its card, and files as it names them."""
    directory.mkdir(parents=True)
    files = []
    for file in manifest.files:
        content = b"x"
        if file.path == "adapter_config.json":
            base = next(record for record in manifest.models if record.role == "base")
            config = {"base_model_name_or_path": str(base.source).partition("@")[0]}
            content = json.dumps(config).encode()
        path = directory / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        files.append(file.model_copy(update={"sha256": sha256, "size": len(content)}))
    manifest = manifest.model_copy(update={"files": files})
    if manifest.kind == "adapter":
        (directory / "curve.png").write_bytes(b"x")
    (directory / "README.md").write_text(card.render(manifest))
    (directory / "factory.json").write_text(manifest.dump())
    return hub.publish(directory, manifest, manifest.repo, repo_type(manifest.kind), False)


def put(hub: Any, title: str, repos: dict[str, str], org: str = "acme") -> str:
    from factory.hub.client import CollectionEntry

    given = [CollectionEntry(repo, kind, f"note {repo}") for repo, kind in repos.items()]
    return str(hub.collect(title, org, False, "about", given))


def items(hub: Any, slug: str) -> list[str]:
    return [item.item_id for item in hub._api.get_collection(slug).items]


def test_a_collection_is_in_the_order_of_the_line_whenever_its_items_came(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = [f"acme/line-{stage}" for stage in ("prompts", "generate", "dpo-all", "verdicts")]
    kinds = dict(zip(order, ["dataset", "dataset", "model", "dataset"], strict=True))
    for repo, kind in [*kinds.items(), ("acme/by-hand", "dataset")]:
        hub._api.create_repo(repo, repo_type=kind)
    for number, came in enumerate(itertools.islice(itertools.permutations(order), 1, 24, 5)):
        title = f"line {number}"
        slug = put(hub, title, {came[0]: kinds[came[0]]})
        hub._api.add_collection_item(slug, item_id="acme/by-hand", item_type="dataset")
        for stop in range(2, len(came) + 1):
            there = {repo: kind for repo, kind in kinds.items() if repo in came[:stop]}
            assert put(hub, title, there) == slug
        assert items(hub, slug) == [*order, "acme/by-hand"]
    notes = {item.item_id: item.note for item in hub._api.get_collection(slug).items}
    assert notes[order[2]] == f"note {order[2]}"

    def moved(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be moved")

    monkeypatch.setattr(hub._api, "update_collection_item", moved)
    put(hub, title, kinds)


@pytest.mark.parametrize("about", ["", "Short.", "word " * 60])
def test_a_collection_says_in_the_hubs_150_characters_how_it_is_made_again(about: str) -> None:
    from factory.hub import collection

    recipe = demo().model_copy(update={"description": about})
    slug = "local/croco-demo-" + "0" * 24
    said = collection.description(recipe).replace("{slug}", slug)
    assert said.endswith(f"factory reproduce {slug}")
    assert len(said) <= 150
    assert said.startswith(about[:6].strip())


def test_a_collection_is_found_by_a_repo_in_it(hub: Any) -> None:
    for name, kind in (("acme/found-pair", "dataset"), ("acme/found-dpo", "model")):
        hub._api.create_repo(name, repo_type=kind)
    hub._api.create_repo("acme/alone")
    repos = {"acme/found-pair": "dataset", "acme/found-dpo": "model"}
    slug = put(hub, "found", repos)
    for name in (slug, *repos):
        assert hub.find_collection(name) == (slug, "found")
        assert hub.collection(name) == repos
    with pytest.raises(HubError, match="acme/alone is in 0 collections"):
        hub.find_collection("acme/alone")


def test_content_that_is_not_what_the_manifest_records_is_a_problem(
    hub: Any, tmp_path: Path
) -> None:
    from factory.reports.cards import refresh

    manifest = renamed(KEPT["pair"], "damaged")
    publish(hub, tmp_path / "pair", manifest)
    subject = refresh.find(hub, manifest.repo)
    named = [check.seen for check in refresh.check(hub, subject)]
    assert not [text for text in named if "factory.json records" in text]
    path = manifest.files[0].path
    hub._api.upload_file(
        path_or_fileobj=b"other bytes", path_in_repo=path, repo_id=manifest.repo,
        repo_type="dataset",
    )  # fmt: skip
    named = [check.seen for check in refresh.check(hub, subject)]
    assert f"{path} is not the file that factory.json records" in named


def test_a_refresh_adds_what_judges_found_and_moves_no_tag(hub: Any, tmp_path: Path) -> None:
    from factory.reports.cards import refresh

    mine = {name: renamed(KEPT[name], "judged") for name in ("dpo-es", "arena", "judge")}
    published = {name: publish(hub, tmp_path / name, made) for name, made in mine.items()}
    kinds = {made.repo: "model" if name == "dpo-es" else "dataset" for name, made in mine.items()}
    put(hub, "judged", kinds, org="judged")
    repo = mine["dpo-es"].repo
    before = hub.pin(repo, "model", "main")
    subject = refresh.find(hub, repo)
    assert "## Evaluation" not in hub.read(repo, "model", "main", "README.md").decode()

    commit, found = refresh.refresh(hub, subject)

    [said] = [row for row in mine["judge"].stats["comparisons"] if row["model"] == "dpo-es"]
    counts = (said["won"], said["tied"], said["lost"])
    assert [(c.row.language, c.row.won, c.row.tied, c.row.lost) for c in found] == [("es", *counts)]
    text = hub.read(repo, "model", "main", "README.md").decode()
    judge = "judged/smoke-reward, training reward (not independent)"
    assert f"Against the base model, judged by {judge} (verdicts: [fp-" in text
    cells = ["Spanish", *map(str, counts), str(said["unparseable"]), said["shown"]]
    assert f"| {' | '.join(cells)} |" in text
    tags = {ref.name: ref.target_commit for ref in hub._api.list_repo_refs(repo).tags}
    assert tags == {mine["dpo-es"].tag: published["dpo-es"].commit}
    after = hub.pin(repo, "model", "main")
    assert after[0] == commit != before[0]
    assert after[1] == before[1], "the content is the same, whatever its card says"
    assert len(hub._api.list_repo_commits(repo)) <= 3  # the hub's own, the publish, the refresh
    assert refresh.refresh(hub, subject)[0] is None
    assert hub.publish(tmp_path / "dpo-es", mine["dpo-es"], repo, "model", False).tag in tags

    [result] = hub._api.model_info(repo).card_data.eval_results  # as the client reads model-index
    rate = said["win_rate"]
    assert (result.metric_type, result.metric_value) == ("win_rate", round(rate["rate"], 2))
    assert (result.dataset_type, result.dataset_config) == ("judged/smoke-questions", "es")
    assert result.metric_args["low"] == round(rate["low"], 2)
    assert result.source_url.endswith(f"judged/smoke-verdicts/tree/{mine['judge'].tag}")


def test_a_verdict_on_another_draw_is_not_one_on_this() -> None:
    adapter, others = KEPT["dpo-es"], [KEPT["arena"], KEPT["judge"]]
    assert len(comparisons(adapter, others)) == 1
    assert len(comparisons(KEPT["dpo-all"], others)) == 4
    assert comparisons(adapter, [KEPT["judge"]]) == [], "who answered is not known"
    record = adapter.slices["es"].model_copy(update={"digest": "0" * 64})
    assert comparisons(adapter.model_copy(update={"slices": {"es": record}}), others) == []


def test_a_refresh_is_of_our_own_repos_and_of_main(hub: Any) -> None:
    from factory.reports.cards import refresh

    hub._api.create_repo("acme/theirs")
    with pytest.raises(HubError, match="no manifest of the factory"):
        refresh.refresh(hub, refresh.find(hub, "acme/theirs"))
    with pytest.raises(HubError, match="has no model or dataset acme/nowhere"):
        refresh.find(hub, "acme/nowhere")
    with pytest.raises(HubError, match="names no repo"):
        refresh.find(hub, "acme")


def test_our_cards_are_right_and_a_strangers_mistakes_are_listed(hub: Any, tmp_path: Path) -> None:
    from factory.reports.cards import refresh

    made = renamed(KEPT["dpo-es"], "checked")
    publish(hub, tmp_path / "dpo", made)
    problems = refresh.check(hub, refresh.find(hub, made.repo))
    assert {problem.seen.split(",")[0].split(" at ")[0] for problem in problems} == {
        "it names dataset checked/smoke-pair",
        "it names model checked/tiny-random-llama",
    }, "what it links is not on this hub; nothing else is wrong"

    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "README.md").write_text(
        "---\nlicense: apache2\nlanguage: [danish]\n---\n![x](gone.png)\n"
    )
    hub._api.create_repo("acme/bad", repo_type="dataset")
    hub._api.upload_folder(repo_id="acme/bad", repo_type="dataset", folder_path=str(bad))
    said = [problem.seen for problem in refresh.check(hub, refresh.find(hub, "datasets/acme/bad"))]
    assert len(said) == 3
    assert any("apache2" in line and "did you mean" in line for line in said)


@pytest.mark.parametrize("name", [*KEPT, "import"])
def test_the_hub_takes_the_metadata_of_every_card(connection: Connection, name: str) -> None:
    manifest = imported() if name == "import" else renamed(KEPT[name], "acme")
    found = comparisons(manifest, [KEPT["arena"], KEPT["judge"]])
    body = {"repoType": repo_type(manifest.kind), "content": card.render(manifest, found)}
    status, answer = request(connection, "POST", "/api/validate-yaml", body)
    assert (status, answer["errors"]) == (200, [])

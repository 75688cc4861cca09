"""Drawings beside a card: those its numbers allow, the same each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.artifacts import citations
from factory.artifacts.resources import shipped
from factory.reports.cards import figures
from factory.reports.learning import curves
from tools.golden import manifests

KEPT = manifests()
DRAWN = {
    "reward": {"curve.png"}, "dpo-all": {"curve.png"}, "dpo-es": {"curve.png"},
    "sft-all": {"curve.png"},
    "score": {"rewards.png"}, "euroeval": {"deltas.png"},
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_is_wanted_is_drawn_and_nothing_else(tmp_path: Path, name: str) -> None:
    figures.draw(KEPT[name], tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == set(figures.captions_of(KEPT[name])) == DRAWN.get(name, set())
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        figures.draw(KEPT[name], tmp_path)
        assert path.read_bytes() == content


def test_a_curve_has_a_point_for_what_was_logged_and_no_other(tmp_path: Path) -> None:
    entries = [
        {"loss": 1.0, "step": 10},
        {"loss": 0.5, "grad_norm": 2.0, "step": 20},
        {"loss": 0.2},
    ]
    drawn = curves(entries)
    assert [curve.name for curve in drawn] == ["loss", "gradient norm"]
    assert drawn[0].points == ((10, 1.0), (20, 0.5), (3, 0.2)), "without a step its place counts"
    assert drawn[1].points == ((20, 2.0),)
    figures.draw_curves(tmp_path / "c.png", drawn)
    assert (tmp_path / "c.png").exists()


def test_rewards_of_one_value_or_none_can_be_drawn(tmp_path: Path) -> None:
    one = KEPT["score"]
    same = {"scored": 3, "rewards": {"edges": [1.0, 1.0], "reward": [3]}}
    none = {"scored": 0, "rewards": {"edges": [], "reward": []}}
    stats = {"by_language": {"en": same, "fr": none}}
    figures.draw(one.model_copy(update={"stats": stats}), tmp_path)
    assert (tmp_path / "rewards.png").exists()
    stats = {"by_language": {"fr": none}}
    assert figures.captions_of(one.model_copy(update={"stats": stats})) == {}


def test_what_was_measured_along_a_training_is_drawn(tmp_path: Path) -> None:
    for name, key in (("judge", "comparisons"), ("euroeval", "deltas")):
        manifest = KEPT[name]
        rows = manifest.stats[key]
        model = rows[-1]["model"]
        way = [{**row, "model": f"{model}-at-0.25"} for row in rows if row["model"] == model]
        along = manifest.model_copy(update={"stats": {**manifest.stats, key: [*rows, *way]}})
        assert figures.CHECKPOINTS in figures.captions_of(along)
        (tmp_path / name).mkdir()
        figures.draw(along, tmp_path / name)
        assert (tmp_path / name / figures.CHECKPOINTS).read_bytes().startswith(b"\x89PNG")


def test_what_is_cited_is_in_the_bibliography() -> None:
    bib = citations.entries(shipped("cards/references.bib").read_text(encoding="utf-8"))
    known = {key for keys in citations._STAGES.values() for key in keys}
    known |= {key for _, key in citations._NAMES} | {"icr", "sweetspot", "vllm", "dcrm", "calm"}
    assert known == set(bib)
    for text in bib.values():
        assert text.count("{") == text.count("}")
        assert all(f"  {field} = " in text for field in ("title", "author", "year"))


def test_what_upstream_cites_is_cited_after_ones_own() -> None:
    sources = ["Skywork/Skywork-Reward-V2-Qwen3-8B@main", "CohereLabs/m-ArenaHard-v2.1@main"]
    found = citations.citation_keys("score", {}, {"engine": "vllm"}, sources, ["croco", "skywork"])
    assert found == ["vllm", "skywork", "arenahard", "croco"]
    assert "icr" in citations.citation_keys("pair", {"length_control": True}, {}, [], [])

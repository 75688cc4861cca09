"""The tables of the docs are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.artifacts.resources import recipes
from factory.planning.recipe import load
from factory.planning.stages import STAGES
from factory.sampling.generate import Generate
from tools.reference import GCD, H100, PAGES, comments, current, hours, reference, sentence


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_are_current(page: Path) -> None:
    now = page.read_text(encoding="utf-8") == current(page)
    assert now, "run python -m tools.reference, and commit what it writes"


def test_every_stage_and_knob_is_in_the_reference() -> None:
    text = reference()
    for stage in STAGES:
        assert f"\n### {stage.name}\n" in text
        for name, field in stage.model_fields.items():
            assert f"`{field.alias or name}`" in text or name in ("how", "from_")


def test_a_meaning_is_the_comment_beside_a_field_or_a_sentence_of_the_docstring() -> None:
    assert comments(Generate)["n"] == "answers to a prompt"
    assert comments(Generate)["system"].startswith("before every prompt")
    how = Generate.model_fields["how"].annotation
    assert isinstance(how, type)
    assert sentence(how, "shard") == "prompts in a shard"


def test_every_packaged_recipe_is_in_the_table() -> None:
    text = next(page for page in PAGES if page.name == "README.md").read_text(encoding="utf-8")
    assert all(f"[{name}](" in text for name in recipes())


def test_hours_follow_what_a_recipe_asks_for() -> None:
    def took(*overrides: str) -> float:
        found = hours(load("eurollm-9b", overrides).recipe, GCD)
        assert found is not None
        return found

    whole = took()
    assert took("stages.prompts.first=5000") < whole < took("stages.generate.n=128")
    assert took("languages=[da]") < whole / 5
    # 10,000 prompts, 7 languages, 64 answers of 500 tokens, by hand as docs/slurm.md has it
    by_hand = 10_000 * 7 * 64 * 500 / (1_341 * 7.2 / 9) / 3600
    assert pytest.approx(580, abs=0.1) == by_hand
    assert by_hand < took("stages.euroeval=null") < 1.3 * by_hand
    assert hours(load("demo").recipe, H100) is None


def test_a_rate_is_in_proportion_to_parameters_and_reading_is_a_forward_pass() -> None:
    assert H100.rate("writes", 16) == pytest.approx(8088 / 2)
    assert GCD.rate("reads", 14) == 4 * GCD.rate("trains", 14) == 4 * 1037

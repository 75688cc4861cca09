"""A change of identity is a decision, never an accident."""

from __future__ import annotations

import copy
import json

import pytest

from tools.fingerprints import FILE, Pins, current, moved


@pytest.fixture(scope="module")
def pinned() -> Pins:
    found: Pins = json.loads(FILE.read_text())
    return found


def test_no_fingerprint_moves_unless_the_recipe_or_a_version_does(pinned: Pins) -> None:
    assert not moved(pinned, current()), "raise the version of the stage that changed"


def test_the_pins_are_those_of_the_recipes_as_they_are(pinned: Pins) -> None:
    assert pinned == current(), "run python -m tools.fingerprints, and commit what it writes"


def test_a_fingerprint_that_moves_by_itself_is_found(pinned: Pins) -> None:
    changed = copy.deepcopy(pinned)
    changed["demo"]["steps"]["generate"]["slices"]["en"] = "0" * 12
    assert moved(pinned, changed) == ["demo: generate en"]
    changed["demo"]["steps"]["generate"]["versions"]["generate"] += 1
    assert not moved(pinned, changed)


def test_a_version_raised_upstream_lets_what_follows_move(pinned: Pins) -> None:
    assert "generate" in pinned["demo"]["steps"]["judge"]["versions"]
    assert "score" not in pinned["demo"]["steps"]["generate"]["versions"]

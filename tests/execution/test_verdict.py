"""What a reproduction says of the original's numbers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.manifest import Manifest
from factory.cli.reproduce import verdict_parts
from factory.execution.verdict import Claim, claims, counted, sentence

GOLDEN = Path(__file__).parents[1] / "golden"


def manifest(name: str, **rates: Any) -> Manifest:
    """A golden manifest, with the plain win rate, or the delta, of a language set as it says."""
    data = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    data = copy.deepcopy(data)
    for row in data["stats"].get("comparisons", ()):
        value, low, high = rates.get(row["language"], (60.0, 55.0, 65.0))
        row["win_rate"] |= {"rate": value, "low": low, "high": high}
    for row in data["stats"].get("deltas", ()):
        value, low, high = rates.get(row["language"], (1.0, 0.5, 1.5))
        row |= {"delta": value, "low": low, "high": high}
    return Manifest.model_validate(data)


def plain(found: list[Claim]) -> dict[str, Claim]:
    return {claim.language: claim for claim in found if claim.metric == "win_rate"}


def test_a_number_within_the_interval_measured_again_is_confirmed_and_another_is_not() -> None:
    here = manifest("judge", all=(58.0, 54.0, 62.0), es=(40.0, 35.0, 45.0), fr=(67.0, 62.0, 72.0))
    of = plain(claims([(manifest("judge"), here)]))
    assert {of[code].finding for code in ("all", "en")} == {"within"}
    assert (of["es"].finding, of["es"].reversed) == ("outside", True)
    assert (of["fr"].finding, of["fr"].reversed) == ("outside", False)


def test_what_did_not_run_or_has_no_counterpart_is_not_tested_and_says_why() -> None:
    first = manifest("judge")
    assert {claim.why for claim in claims([(first, None)])} == {"its step stayed as published"}
    other = first.model_copy(update={"stats": first.stats | {"judge": "another judge"}})
    assert all("another judge here" in claim.why for claim in claims([(first, other)]))
    few = [row for row in first.stats["comparisons"] if row["language"] != "fr"]
    of = plain(
        claims([(first, first.model_copy(update={"stats": first.stats | {"comparisons": few}}))])
    )
    assert of["fr"].why == "it was not measured again" and of["es"].finding == "within"


def test_the_org_of_a_reproduction_is_none_of_its_numbers() -> None:
    first = manifest("judge")
    text = first.model_dump_json(by_alias=True).replace('"local/', '"local-again/')
    again = Manifest.model_validate_json(text)
    assert {claim.finding for claim in claims([(first, again)])} <= {"within", "not tested"}
    assert plain(claims([(first, again)]))["all"].finding == "within"


def test_changes_of_benchmarks_are_claims_and_scores_alone_are_none() -> None:
    first, here = manifest("euroeval"), manifest("euroeval", en=(9.0, 8.0, 10.0))
    found = claims([(first, here)])
    assert found and all(claim.metric.endswith("delta") and claim.against for claim in found)
    assert {claim.finding for claim in found if claim.language == "en"} <= {"outside", "not tested"}


def claim(language: str, finding: Any, again: float = 60.0) -> Claim:
    width = 4.0
    return Claim(
        "judge", "dpo-da", language, "x-arena", "win_rate", "policy", 60.0, 56.0, 64.0,
        again, again - width, again + width, finding, "" if finding != "not tested" else "so",
    )  # fmt: skip


def test_claims_are_counted_by_language_with_all_languages_first() -> None:
    found = [claim("da", "within"), claim("da", "outside", 40), claim("all", "within")]
    assert list(counted(found)) == ["all", "da"]
    assert counted(found)["da"] == {"within": 1, "outside": 1}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([], "compares no models"),
        ([claim("da", "not tested")], "None of the 1 claims"),
        (
            [claim("da", "within")] * 19 + [claim("de", "outside", 65)],
            "19 within the intervals measured here, 1 not. Chance alone may leave out",
        ),
        (
            [claim("da", "within")] * 10 + [claim("de", "outside", 40)] * 10,
            "10 not, 10 of them reversed. Chance alone would leave out some 1.",
        ),
    ],
)  # fmt: skip
def test_the_verdict_is_a_sentence(found: list[Claim], words: str) -> None:
    assert words in sentence(found)


def test_the_verdict_is_printed_by_language_with_what_is_not_within() -> None:
    from rich.console import Console

    console = Console(width=200, record=True)
    found = [claim("da", "within"), claim("de", "outside", 40), claim("fr", "not tested")]
    for part in verdict_parts(found):
        console.print(part)
    text = console.export_text()
    for words in (
        "Claims of the original", "dpo-da against policy, de, x-arena: win_rate",
        "60.0 [56.0, 64.0]", "40.0 [36.0, 44.0]", "reversed", "Not tested: 1 of judge: so.",
        "Of 3 claims of the original 2 were tested: 1 within",
    ):  # fmt: skip
        assert words in text, text

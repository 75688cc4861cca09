"""dedup: near-identical answers to one prompt go, and what comes after reads gaps in k."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factory.artifacts.hashing import text_hash
from factory.artifacts.reuse import ReusableSlice
from factory.artifacts.schemas import from_rows
from factory.artifacts.tables import slice_directory, write_slice
from factory.pairs.pair import Pair
from factory.planning.plan import Inventory, Step, plan
from factory.sampling.dedup import Dedup
from factory.stage.inputs import StepInput
from tests.support.builders import by_name, demo, lock_of, walked
from tests.support.jobs import job, made
from tests.support.pools import job_of, read, write

LONG = "The capital of France is Paris, a city on the Seine with two million people in it."


def sample(prompt: str, k: int, text: str) -> dict[str, Any]:
    return {
        "prompt_id": prompt, "language": "en", "k": k, "prompt_hash": text_hash(prompt),
        "response": text, "response_hash": text_hash(text), "n_tokens": 3, "n_chars": len(text),
        "finish_reason": "stop", "seed": 0, "detected_language": "en",
    }  # fmt: skip


def samples(root: Path, rows: list[dict[str, Any]]) -> Path:
    write_slice(slice_directory(root, "en"), from_rows(rows, "samples"))
    return root


ROWS = [
    sample("p0", 0, LONG),
    sample("p0", 1, LONG + "!"),
    sample("p1", 0, LONG),  # another prompt's
    sample("p0", 2, "Paris."),
    sample("p1", 1, "Lyon, I think, but nobody asked me."),
    sample("p0", 3, "Paris.  "),
    sample("p1", 2, ""),
    sample("p1", 3, ""),
    sample("p0", -1, LONG),  # by a person
]


def run(tmp_path: Path, rows: list[dict[str, Any]], **knobs: Any) -> tuple[list[Any], Any]:
    asked = samples(tmp_path / "asked", rows)
    outcome = Dedup(**knobs).run(job(tmp_path, ["en"], {"samples": asked}, {}))
    rows = made(tmp_path, "en", "samples")
    return sorted((row["prompt_id"], row["k"]) for row in rows), outcome


def test_what_repeats_an_earlier_answer_is_left_out_and_counted(tmp_path: Path) -> None:
    left, outcome = run(tmp_path, ROWS)
    assert left == [("p0", -1), ("p0", 0), ("p0", 2), ("p1", 0), ("p1", 1), ("p1", 2)]
    counts = outcome.rows["en"]
    assert (counts.into, counts.out, counts.dropped) == (9, 6, {"duplicate": 3})
    assert counts.balanced() and outcome.determinism == "exact"


@pytest.mark.parametrize(("near", "stays"), [(1.0, True), (0.9, False), (0.5, False)])
def test_near_says_how_alike_is_alike(tmp_path: Path, near: float, stays: bool) -> None:
    left, _ = run(tmp_path, ROWS, near=near)
    assert (("p0", 1) in left) == stays


def test_however_it_is_cut_the_bytes_are_the_same(tmp_path: Path) -> None:
    run(tmp_path / "one", ROWS)
    run(tmp_path / "many", ROWS, how={"shard": 1})
    [one], [many] = (
        sorted((tmp_path / name / "out").rglob("*.parquet")) for name in ("one", "many")
    )
    assert one.read_bytes() == many.read_bytes()


def test_the_rows_are_those_that_were_read(tmp_path: Path) -> None:
    run(tmp_path, ROWS)
    read = {(row["prompt_id"], row["k"]): row for row in ROWS}
    for row in made(tmp_path, "en", "samples"):
        assert row == read[row["prompt_id"], row["k"]]


def test_a_whole_slice_is_reused_with_what_it_dropped(tmp_path: Path) -> None:
    run(tmp_path / "one", ROWS)
    whole = ReusableSlice(slice_directory(tmp_path / "one" / "out", "en"), "o/d@fp", whole=True)
    asked = samples(tmp_path / "asked", ROWS)
    again = replace(job(tmp_path / "two", ["en"], {"samples": asked}, {}), earlier={"en": (whole,)})
    rows = Dedup().run(again).rows["en"]
    assert (rows.into, rows.out, rows.dropped) == (9, 6, {"as_before": 3})


# in the line


def planned(*overrides: str, held: Inventory | None = None) -> dict[str, Step]:
    recipe = demo(*overrides)
    return by_name(plan(recipe, lock_of(recipe), held or Inventory()))


def reads(steps: dict[str, Step], name: str) -> dict[str, str]:
    """Step by role of the first slice."""
    needs = steps[name].slices[0].spec.needs
    return {need.role: need.step for need in needs if isinstance(need, StepInput)}


def test_score_and_pair_read_what_is_left() -> None:
    plain, steps = planned(), planned("stages.dedup={}")
    assert reads(steps, "dedup") == {"samples": "generate"}
    assert reads(steps, "score")["samples"] == reads(steps, "pair")["samples"] == "dedup"
    assert reads(plain, "score")["samples"] == "generate"
    assert list(steps).index("dedup") == list(steps).index("generate") + 1
    assert steps["generate"].fingerprint == plain["generate"].fingerprint
    assert steps["score"].fingerprint != plain["score"].fingerprint
    assert steps["judge"].slices[0].row_key != plain["judge"].slices[0].row_key  # of other pairs


def test_with_more_samples_scores_are_reused_and_dedup_looks_at_all_again() -> None:
    recipe = demo("stages.dedup={}")
    held = walked(recipe, lock_of(recipe))
    wider = demo("stages.dedup={}", "stages.generate.n=12")
    held_too = walked(wider, lock_of(wider), until="dedup")
    for artifact in held_too.found:
        held.add(artifact)
    steps = planned("stages.dedup={}", "stages.generate.n=12", held=held)
    assert all(made.earlier for made in steps["score"].slices)
    held = walked(recipe, lock_of(recipe))
    steps = planned("stages.dedup={}", "stages.generate.n=12", held=held)
    assert not any(made.earlier for made in steps["dedup"].slices)
    assert all(made.earlier for made in steps["generate"].slices)


def test_pairs_are_found_among_answers_with_gaps_in_k(tmp_path: Path) -> None:
    pools = {"en": {"p0": [(3.0, "good", {"k": 0}), (1.0, "bad", {"k": 5}), (0.0, "no", {"k": 9})],
                    "p1": [(1.0, "one", {"k": 7})]}}  # fmt: skip
    write(tmp_path, pools)
    stage = Pair(rejected="min")
    outcome = stage.run(job_of(tmp_path, stage, ["en"]))
    [pair] = read(tmp_path, stage, "en")
    assert (pair["chosen_k"], pair["rejected_k"]) == (0, 9)
    assert pair["chosen"][0]["content"] == "good"
    assert outcome.rows["en"].dropped == {"no_lower_answer": 1}

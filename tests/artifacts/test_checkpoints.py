"""Checkpoints that a training keeps: who they are, and what tells one from another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.artifacts import checkpoints
from factory.artifacts.hashing import content_digest
from factory.artifacts.manifest import FileRecord
from factory.errors import RecipeError
from factory.planning.plan import ArtifactRef, Inventory, Step, plan
from factory.planning.recipe import Recipe
from factory.reports.checkpoint_curves import Point, courses
from factory.reports.results import Result
from factory.stage.inputs import StepInput
from tests.support.builders import by_name, demo, done, lock_of, manifest_of, walked

KEEPS = "stages.dpo.checkpoints=[0.25, 0.5]"
ALL = ("stages.arena.of=[policy, dpo@*]", "stages.judge.model=dpo@*")


def steps(recipe: Recipe) -> dict[str, Step]:
    return by_name(plan(recipe, lock_of(recipe), Inventory()))


def labels(step: Step) -> list[str]:
    return list(dict.fromkeys(made.spec.name.partition("/")[2] for made in step.slices))


def test_every_checkpoint_and_the_end_are_evaluated_once() -> None:
    found = steps(demo(KEEPS, "stages.arena.of=[policy, dpo, dpo@0.5, dpo@*]", ALL[1]))
    assert labels(found["arena"]) == [
        "policy", "dpo-all", "dpo-es", "dpo-all-at-0.5", "dpo-es-at-0.5",
        "dpo-all-at-0.25", "dpo-es-at-0.25",
    ]  # fmt: skip
    assert labels(found["judge"])[:3] == ["dpo-all-at-0.25", "dpo-all-at-0.5", "dpo-all"]
    spec = next(made.spec for made in found["arena"].slices if made.spec.name == "es/dpo-es-at-0.5")
    assert spec.need("adapter") == StepInput("adapter", "dpo[es]", "es", "0.5")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages.arena.of=[policy, dpo@0.5]"], "stages.dpo keeps no checkpoints"),
        ([KEEPS, "stages.arena.of=[policy, dpo@0.75]"], "names dpo@0.75"),
        (["stages.dpo.checkpoints=[1.0]"], "under 1, not 1.0"),
        (["stages.dpo.checkpoints=[0.5, 0.5]"], "each once"),
        (["stages.arena.of=[policy, dpq@0.5]"], "dpq"),
        ([KEEPS, ALL[1]], "stages.arena does not answer"),
    ],
)
def test_what_is_not_kept_is_refused_when_the_recipe_is_read(
    overrides: list[str], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        demo(*overrides)


def test_keeping_checkpoints_is_another_training_and_naming_them_other_answers() -> None:
    plain, keeping, all_of = steps(demo()), steps(demo(KEEPS)), steps(demo(KEEPS, *ALL))
    assert plain["dpo[all]"].fingerprint != keeping["dpo[all]"].fingerprint
    assert plain["sft[all]"].fingerprint == keeping["sft[all]"].fingerprint
    assert keeping["dpo[all]"].fingerprint == all_of["dpo[all]"].fingerprint
    marks = [made.fingerprint for made in all_of["arena"].slices]
    keys = [made.row_key for made in all_of["arena"].slices]
    assert len(set(marks)) == len(marks) and len(set(keys)) == len(keys)
    assert {made.fingerprint for made in keeping["arena"].slices} <= set(marks)


def test_what_is_read_of_an_adapter_is_the_content_of_that_folder() -> None:
    recipe = demo(KEEPS, *ALL)
    lock = lock_of(recipe)
    held = walked(recipe, lock, until="dpo[all]")
    planned = plan(recipe, lock, held)
    made = manifest_of(recipe, lock, by_name(planned)["dpo[all]"], done(planned))
    inside = [
        FileRecord(
            path=f"{checkpoints.folder(share)}/adapter_model.safetensors", sha256=share, size=1
        )
        for share in ("0.25", "0.5")
    ]
    made = made.model_copy(update={"files": [*made.files, *inside]})
    held.add(ArtifactRef(made, tag=made.tag))
    for name in ("dpo[es]",):
        planned = plan(recipe, lock, held)
        other = manifest_of(recipe, lock, by_name(planned)[name], done(planned))
        held.add(ArtifactRef(other, tag=other.tag))
    planned = plan(recipe, lock, held)
    arena = manifest_of(recipe, lock, by_name(planned)["arena"], done(planned))
    read = {
        name: next(one for one in record.inputs if one.role == "adapter")
        for name, record in arena.slices.items()
        if "dpo-all" in name
    }
    half = read["es/dpo-all-at-0.5"]
    assert half.checkpoint == "0.5"
    assert half.digest == content_digest([("adapter_model.safetensors", "0.5")])
    assert read["es/dpo-all"].digest == made.slices["all"].digest
    assert read["es/dpo-all"].checkpoint is None
    assert "checkpoint" not in read["es/dpo-all"].model_dump()
    assert len({one.digest for one in read.values()}) == 3

    held.add(ArtifactRef(arena, tag=arena.tag))
    assert by_name(plan(recipe, lock, held))["arena"].found is not None
    drawn = replace(held, found=[f for f in held.found if f.manifest.step not in ("dpo[all]",)])
    again = made.model_copy(
        update={"files": [made.files[0], inside[0].model_copy(update={"sha256": "x"}), inside[1]]}
    )
    drawn.add(ArtifactRef(again, tag=again.tag))
    assert by_name(plan(recipe, lock, drawn))["arena"].found is None, "of another draw on the way"


@given(st.from_regex(r"[a-z]+(-at-)?[a-z0-9]*", fullmatch=True), st.integers(1, 999))
def test_a_label_says_which_model_and_how_far(model: str, thousandths: int) -> None:
    share = thousandths / 1000
    assert checkpoints.split_label(checkpoints.label(model, checkpoints.format_share(share))) == (
        model,
        share,
    )
    assert checkpoints.split_label(model) == (model, 1.0)


def measure(model: str, value: float, **more: Any) -> Result:
    fields: dict[str, Any] = {
        "language": "es", "evaluation": "arena", "metric": "win_rate", "ci_low": value - 5,
        "ci_high": value + 5, "against": "policy", "by": "a judge", "significant": None,
        "note": "", "repo": "lab/verdicts", "fingerprint": "f" * 12,
    }  # fmt: skip
    return Result(model=model, value=value, **{**fields, **more})


def test_a_course_has_its_points_in_the_order_of_training_and_needs_two() -> None:
    found = courses(
        [
            measure("dpo-es", 60.0),
            measure("dpo-es-at-0.5", 55.0),
            measure("dpo-es-at-0.25", 52.0),
            measure("dpo-all", 51.0),  # nothing on the way
            measure("dpo-fr-at-0.5", 70.0, language="fr"),  # no end
            measure("dpo-es-at-0.5", 1.5, evaluation="scala-es", metric="mcc delta", by="EuroEval"),
            measure("dpo-es", 2.0, evaluation="scala-es", metric="mcc delta", by="EuroEval"),
            measure("dpo-es-at-0.5", 3.0, evaluation="mlsum-es", metric="mcc delta", by="EuroEval"),
            measure("dpo-es", 4.0, evaluation="mlsum-es", metric="mcc delta", by="EuroEval"),
        ]
    )
    judged, scored = found
    assert judged.lines == {
        "win rate": (
            Point(0.25, 52.0, 47.0, 57.0),
            Point(0.5, 55.0, 50.0, 60.0),
            Point(1.0, 60.0, 55.0, 65.0),
        )
    }  # fmt: skip
    assert (judged.model, judged.language, judged.even) == ("dpo-es", "es", 50.0)
    assert list(scored.lines) == ["scala-es", "mlsum-es"] and scored.even == 0.0
    assert scored.title == "dpo-es, es: 2 benchmarks against policy"

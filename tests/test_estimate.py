"""What a plan says that it will take."""

from __future__ import annotations

import pytest

from factory.artifact import Cost, Rows
from factory.estimate import Estimate, estimate
from factory.plan import Found, Holdings, plan
from tests.builders import ASKED, demo, done, lock_of, manifest_of, walked


def left(*overrides: str, held: Holdings) -> dict[str, Estimate]:
    recipe = demo(*overrides)
    return estimate(plan(recipe, lock_of(recipe), held), held)


def everything() -> Holdings:
    """All of the demo made; every step took 24 seconds for its rows."""
    recipe = demo()
    held = walked(recipe, lock_of(recipe))
    slow = [f.manifest.model_copy(update={"cost": Cost(wall_seconds=24)}) for f in held.found]
    return Holdings([Found(manifest, tag=manifest.tag) for manifest in slow])


def test_nobody_can_tell_before_anything_was_read():
    assert set(left(held=Holdings()).values()) == {Estimate()}


def test_what_is_there_takes_nothing():
    found = left(held=everything())
    assert {one.rows for one in found.values()} == {0}
    assert {one.seconds for one in found.values()} == {0}


def test_a_larger_n_asks_for_the_rows_that_are_not_there():
    generate = left("stages.generate.n=12", held=everything())["generate"]
    assert generate.rows == 3 * (12 * ASKED - ASKED)
    assert generate.there == 3 * ASKED
    assert generate.shards == 3 * 1  # 11 x 12 rows in shards of 12 prompts x 12 answers
    assert generate.seconds == generate.rows * 24 / (3 * ASKED)


def test_what_follows_is_counted_from_what_will_be_there():
    found = left("stages.generate.n=12", held=everything())
    assert found["score"].rows == 3 * (12 * ASKED - ASKED)
    assert found["pair"].rows == 3 * ASKED
    assert found["dpo[es]"].rows == ASKED


def test_a_stage_that_never_ran_has_rows_and_no_time():
    recipe = demo()
    held = walked(recipe, lock_of(recipe), until="score")
    score = left(held=held)["score"]
    assert score.rows == 3 * ASKED
    assert score.seconds is None


def test_a_judge_that_is_asked_in_both_orders_gives_two_verdicts_on_a_question():
    recipe = demo()
    held = walked(recipe, lock_of(recipe), until="judge")

    def judge(*overrides: str) -> Estimate:
        return left("stages.judge.how.shard=5", *overrides, held=held)["judge"]

    by_reward = judge()
    asked = judge("stages.judge.judge=policy")
    once = judge("stages.judge.judge=policy", "stages.judge.ask.orders=random")
    assert by_reward.rows and by_reward.rows % ASKED == 0
    assert (asked.rows, once.rows) == (2 * by_reward.rows, by_reward.rows)
    # shards are cut by questions: 12 of each slice, five at a time
    assert by_reward.shards == asked.shards == once.shards == by_reward.rows // ASKED * 3


def test_the_time_of_a_judge_is_by_verdict_as_its_rate_is():
    recipe = demo("stages.judge.judge=policy")
    held = walked(recipe, lock_of(recipe), until="judge")
    steps = plan(recipe, lock_of(recipe), held)
    step = next(step for step in steps if step.name == "judge")
    made = manifest_of(recipe, lock_of(recipe), step, done(steps))
    twice = Rows(into=2 * ASKED, out=2 * ASKED)
    slices = {k: one.model_copy(update={"rows": twice}) for k, one in made.slices.items()}
    cost = Cost(wall_seconds=100)
    held.add(Found(made.model_copy(update={"slices": slices, "cost": cost}), tag=made.tag))
    # the same verdicts once more, by other rules
    again = left("stages.judge.judge=policy", "stages.judge.ask.max_tokens=9", held=held)["judge"]
    assert again.seconds == pytest.approx(100)

"""What a plan says that it will take."""

from __future__ import annotations

import json

import pytest

from factory.artifacts.manifest import Cost, Rows
from factory.planning.estimate import Estimate, estimate, pace_of
from factory.planning.plan import ArtifactRef, Inventory, plan
from tests.conftest import Cli
from tests.support.builders import ASKED, demo, done, lock_of, manifest_of, walked


def left(*overrides: str, held: Inventory) -> dict[str, Estimate]:
    recipe = demo(*overrides)
    return estimate(plan(recipe, lock_of(recipe), held), held)


SEEN = Cost(wall_seconds=24, engines=1, working_seconds=24)  # of every step of everything()


def everything(cost: Cost = SEEN, *overrides: str) -> Inventory:
    """All of the demo made, each step for its rows at that cost."""
    recipe = demo(*overrides)
    held = walked(recipe, lock_of(recipe))
    slow = [f.manifest.model_copy(update={"cost": cost}) for f in held.found]
    return Inventory([ArtifactRef(manifest, tag=manifest.tag) for manifest in slow])


def test_nobody_can_tell_before_anything_was_read():
    assert set(left(held=Inventory()).values()) == {Estimate()}


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
    cost = Cost(wall_seconds=100, engines=1, working_seconds=100)
    held.add(ArtifactRef(made.model_copy(update={"slices": slices, "cost": cost}), tag=made.tag))
    # the same verdicts once more, by other rules
    again = left("stages.judge.judge=policy", "stages.judge.ask.max_tokens=9", held=held)["judge"]
    assert again.seconds == pytest.approx(100)


PILOT = Cost(  # two engines of one GPU: 30 s each to load, 60 s each at work, 5 s around it
    wall_seconds=95, gpu_hours=180 / 3600, engines=2, working_seconds=120, loading_seconds=60
)


def test_a_model_is_loaded_once_however_many_rows_there_are():
    generate = left("stages.generate.n=12", held=everything(PILOT))["generate"]
    done = 3 * ASKED
    assert generate.rows == 11 * done
    assert generate.seconds == pytest.approx(5 + 30 + 11 * 60)
    assert generate.gpu_hours == pytest.approx((2 * 30 + 11 * 120) / 3600)


def test_more_engines_take_less_time_and_load_more_often():
    made = [f.manifest for f in everything(PILOT).found]
    found = pace_of(next(manifest for manifest in made if manifest.stage == "generate"))
    assert found is not None
    rows = 100 * ASKED
    two, twenty = found.seconds(rows, 2), found.seconds(rows, 20)
    assert two is not None and twenty is not None
    assert twenty - 35 == pytest.approx((two - 35) / 10)
    hours = [found.gpu_hours(rows, engines) for engines in (2, 20)]
    assert hours[1] == pytest.approx((hours[0] or 0) + 18 * 30 / 3600)
    assert found.seconds(0) == 0 == found.gpu_hours(0)


def test_what_was_made_without_a_look_at_its_parts_is_not_stretched_far():
    held = everything(Cost(wall_seconds=24))
    assert left("stages.generate.n=9", held=held)["generate"].seconds == pytest.approx(8 * 24)
    assert left("stages.generate.n=12", held=held)["generate"].seconds is None


def test_a_training_takes_as_much_longer_as_it_has_epochs_and_less_on_more_gpus():
    held = everything(Cost(wall_seconds=70, gpu_hours=70 / 3600, engines=1, working_seconds=60))
    again = ("stages.dpo.lr=1e-3", "stages.dpo.epochs=6")  # the demo has two epochs
    one = left(*again, held=held)["dpo[es]"]
    assert one.seconds == pytest.approx(10 + 3 * 60)
    assert one.gpu_hours == pytest.approx(190 / 3600)
    four = left(*again, "stages.dpo.batch=16", "stages.dpo.how.processes=4", held=held)["dpo[es]"]
    assert four.seconds == pytest.approx(10 + 3 * 60 / 4)
    assert four.gpu_hours == pytest.approx((4 * 10 + 180) / 3600)


def test_another_model_has_another_pace():
    found = left("models.policy=local/tiny-random-llama", held=everything())
    assert found["generate"].rows and found["generate"].seconds is None
    assert found["pair"].seconds is not None


def test_a_pilot_does_not_say_how_many_prompts_there_are():
    first = f"stages.prompts.first={ASKED}"
    held = everything(SEEN, first)
    assert left(held=held)["prompts"].rows is None
    whole = left("stages.prompts.first=500", held=held)
    assert whole["prompts"].rows == 4 * 500  # and German ones, to compare translations with
    assert whole["pair"].rows == 3 * 500
    assert left(first, held=held)["prompts"].rows == 0


def test_more_prompts_than_there_are_are_not_counted():
    found = left("stages.prompts.first=500", held=everything())
    assert found["prompts"].rows == 4 * ASKED


def test_the_pairs_that_reward_models_are_compared_on_are_counted(factory: Cli) -> None:
    """They come from outside, whatever the reward model was trained on."""
    counts = {}
    for pairs in (
        "demo/preferences.jsonl",
        "{source: demo/preferences.jsonl, where: {id: squeaky-door}}",
    ):
        asked = ("--set", f"stages.transfer.pairs={pairs}")
        planned = json.loads(factory("plan", "smoke-transfer", "--json", *asked).stdout)
        [counts[pairs]] = [step["rows"] for step in planned if step["step"] == "transfer"]
    assert list(counts.values()) == [60, 1]

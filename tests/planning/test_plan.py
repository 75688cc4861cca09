"""What makes two artifacts the same, and what will be done about those that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from factory.artifacts.resources import shipped
from factory.errors import RecipeError
from factory.planning.lock import Lock, Pin, hold
from factory.planning.plan import ArtifactRef, Inventory, Plan, State, Step, plan
from factory.planning.recipe import Recipe, load
from factory.sampling.generate import Generate
from tests.support.builders import by_name, demo, done, lock_of, manifest_of, repinned, walked

POLICY = "local/SmolLM2-135M-Instruct-Q4_1@main"
EN_PROMPTS = "demo/prompts-en.jsonl"


def planned(recipe: Recipe, lock: Lock | None = None, held: Inventory | None = None) -> list[Step]:
    return plan(recipe, lock or lock_of(recipe), held or Inventory())


def marks(recipe: Recipe, lock: Lock | None = None) -> dict[str, str]:
    """Every step's fingerprint, and every slice's as `step slice`."""
    steps = planned(recipe, lock)
    found = {f"{s.name} {made.spec.name}": made.fingerprint for s in steps for made in s.slices}
    return found | {step.name: step.fingerprint for step in steps}


def row_keys(recipe: Recipe, lock: Lock | None = None) -> dict[str, str]:
    """Every slice's row key as `step slice`."""
    steps = planned(recipe, lock)
    return {f"{s.name} {made.spec.name}": made.row_key for s in steps for made in s.slices}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """What is in both and not the same."""
    return {name for name in before.keys() & after.keys() if before[name] != after[name]}


RECIPE = demo()
LOCK = lock_of(RECIPE)
BASE = marks(RECIPE)


def standing(held: Inventory) -> dict[str, Step]:
    """Every step of the demo by name, beside these artifacts."""
    return by_name(plan(RECIPE, LOCK, held))


# the same meaning, the same fingerprint


@pytest.mark.parametrize(
    "override",
    [
        "stages.generate.temperature=1",
        "stages.generate.temperature=1.0",
        "stages.generate.temperature=1e0",
        "stages.generate.top_p=1.0",
        "stages.generate={max_tokens: 40, n: 8, dtype: float32}",
        "stages.dpo.lr=0.0002",
        "stages.dpo.batch=4.0",
        "stages.dpo.epochs=2",
        "stages.dpo.beta=0.1",
        "stages.dpo.lora={}",
        "stages.dpo.lora={alpha: 32, r: 16}",
        "stages.pair.rejected={sigma: -2}",
        "stages.pair.keep.rejected={finished: false, language: any}",
        "stages.judge.model=dpo",
        "stages.prompts.turns=first",
    ],
)
def test_writing_the_same_otherwise_or_at_its_default_changes_nothing(override):
    assert marks(demo(override)) == BASE


@pytest.mark.parametrize(
    "override",
    [
        "stages.generate.how.shard=1",
        "stages.score.how.shard=1",
        "stages.reward.how.micro_batch=1",
        "stages.dpo.how.save_steps=99",
        "stages.dpo.min_pairs=5",
        "description=other words",
        "license=mit",
        "private=true",
    ],
)
def test_how_it_is_run_gates_and_words_change_nothing(override):
    assert marks(demo(override)) == BASE


def test_the_order_of_keys_in_the_file_changes_nothing(tmp_path):
    def turned(value):
        if not isinstance(value, dict):
            return value
        return {key: turned(value[key]) for key in reversed(value)}

    data = demo().model_dump(mode="json", exclude_none=True)
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(turned(data), sort_keys=False))
    assert marks(load(str(path)).recipe) == BASE


def test_the_name_and_org_of_a_recipe_change_nothing_but_its_repos():
    other = demo("name=other", "org=lab")
    assert marks(other, lock_of(demo())) == BASE
    assert all(step.repo.startswith("lab/other-") for step in planned(other))


def test_another_revision_with_the_same_content_changes_nothing():
    moved = repinned(LOCK, POLICY, LOCK.pins[POLICY].digest, revision="b" * 40)
    assert marks(RECIPE, moved) == BASE
    named = demo("models.policy={name: local/SmolLM2-135M-Instruct-Q4_1, revision: v1}")
    pin = {"local/SmolLM2-135M-Instruct-Q4_1@v1": Pin(digest=LOCK.pins[POLICY].digest)}
    assert marks(named, lock_of(named, **pin)) == BASE


def test_what_a_model_is_called_in_the_recipe_changes_no_rows():
    renamed = demo(
        "models={rm: {kind: classifier, step: reward}, policy: local/SmolLM2-135M-Instruct-Q4_1}",
        "stages.score.reward=rm",
        "stages.judge.judge=rm",
    )
    assert marks(renamed) == BASE


# another meaning, another fingerprint


GENERATED = {
    "generate", "score", "pair", "best", "sft[all]", "dpo[all]", "dpo[es]", "arena", "judge",
}  # fmt: skip
PAIRED = {"pair", "dpo[all]", "dpo[es]", "arena", "judge"}


@pytest.mark.parametrize(
    ("override", "steps"),
    [
        ("stages.generate.temperature=0.7", GENERATED),
        ("stages.generate.n=7", GENERATED),
        ("stages.generate.dtype=bfloat16", GENERATED),
        ("stages.prompts.turns=all", GENERATED | {"prompts", "translate"}),
        ("stages.translate.max_tokens=47", {"translate"}),
        ("stages.translate.first=7", {"translate"}),
        ("stages.pair.rejected.sigma=-1", PAIRED),
        ("stages.pair.keep.chosen.finished=false", PAIRED),
        ("stages.sft.lr=1e-5", {"sft[all]"}),
        ("stages.dpo.lora.r=8", {"dpo[all]", "dpo[es]", "arena", "judge"}),
        ("stages.reward.lr=1e-5", (GENERATED | {"reward"}) - {"generate"}),
        ("stages.arena.max_tokens=41", {"arena", "judge"}),
        ("stages.judge.max_tokens=41", {"judge"}),
        ("seed=1", GENERATED | {"reward"}),
    ],
)
def test_a_change_of_meaning_changes_the_step_and_all_that_comes_of_it(override, steps):
    found = changed(BASE, marks(demo(override)))
    assert {name for name in found if " " not in name} == steps


def test_no_two_steps_or_slices_share_a_fingerprint():
    assert len(set(BASE.values())) == len(BASE)


@pytest.mark.parametrize(
    ("source", "steps"),
    [
        (EN_PROMPTS, (GENERATED | {"prompts", "translate"}) - {"dpo[es]"}),
        ("demo/prompts-de.jsonl", {"prompts", "translate"}),
        ("demo/preferences.jsonl", {"preferences", "reward"} | (GENERATED - {"generate"})),
        ("demo/questions-es.jsonl", {"questions", "arena", "judge"}),
        (POLICY, GENERATED | {"reward", "translate"}),
    ],
)
def test_other_content_of_a_file_or_model_changes_what_reads_it(source, steps):
    found = changed(BASE, marks(RECIPE, repinned(LOCK, source, "other content")))
    assert {name for name in found if " " not in name} == steps


def test_other_english_prompts_change_no_other_language():
    found = changed(BASE, marks(RECIPE, repinned(LOCK, EN_PROMPTS, "other content")))
    slices = {name for name in found if " " in name and not name.startswith(("arena", "judge"))}
    assert slices == {
        "prompts en", "translate de", "generate en", "score en", "pair en", "best en",
        "sft[all] all", "dpo[all] all",
    }  # fmt: skip
    assert "dpo[es]" not in found


def test_adding_a_language_touches_nothing_that_does_not_read_it():
    before, after = BASE, marks(demo("languages=[en, es, fr, da]"))
    assert {"prompts da", "generate da", "pair da", "arena da/policy"} <= after.keys()
    touched = changed(before, after)
    assert "dpo[es]" not in touched
    assert "dpo[es] es" not in touched
    assert {name for name in touched if " " in name} == {
        "sft[all] all",
        "dpo[all] all",
        *(f"{stage} {code}/dpo-all" for stage in ("arena", "judge") for code in ("en", "es", "fr")),
    }


def test_asking_for_more_samples_keeps_the_row_keys_of_samples_and_scores():
    found = changed(BASE, marks(demo("stages.generate.n=12")))
    assert {"generate en", "generate es", "generate fr"} <= found
    assert _stages(changed(row_keys(demo()), row_keys(demo("stages.generate.n=12")))) == (
        GENERATED - {"generate", "score"}
    )


def test_adding_prompts_keeps_the_row_keys_of_their_answers():
    more = repinned(LOCK, EN_PROMPTS, "more prompts")
    assert "generate en" in changed(BASE, marks(RECIPE, more))
    touched = _stages(changed(row_keys(RECIPE), row_keys(RECIPE, more)))
    assert touched == GENERATED - {"generate", "score", "dpo[es]"}


def test_another_reward_model_changes_the_row_keys_of_scores():
    taught = repinned(LOCK, "demo/preferences.jsonl", "other preferences")
    touched = _stages(changed(row_keys(RECIPE), row_keys(RECIPE, taught)))
    assert {"reward", "score"} <= touched
    assert "generate" not in touched


def _stages(names: set[str]) -> set[str]:
    """The steps of `step slice` names."""
    return {name.partition(" ")[0] for name in names}


# rows of earlier artifacts


def _earlier(steps: list[Step], name: str) -> dict[str, list[tuple[str, bool]]]:
    """By slice, the fingerprints of the artifacts whose rows may stand, and whether as a whole."""
    return {
        made.spec.name: [(s.found.manifest.fingerprint, s.whole) for s in made.earlier]
        for made in by_name(steps)[name].slices
    }


def test_more_samples_find_the_rows_that_are_there():
    held = walked(RECIPE, LOCK)
    before = by_name(planned(RECIPE, held=held))["generate"].fingerprint
    steps = planned(demo("stages.generate.n=12"), held=held)
    assert _earlier(steps, "generate") == {key: [(before, False)] for key in ("en", "es", "fr")}


def test_a_new_language_leaves_the_slices_of_the_others_whole():
    recipe, wider = demo(), demo("languages=[en, es, fr, da]")
    held = walked(recipe, lock_of(recipe))
    lock = lock_of(wider)
    before = by_name(planned(recipe, held=held))["generate"].fingerprint
    held = _also(held, walked(wider, lock, until="generate"))
    assert _earlier(planned(wider, lock, held), "generate") == {
        **{key: [(before, True)] for key in ("en", "es", "fr")},
        "da": [],
    }


def _also(held: Inventory, more: Inventory) -> Inventory:
    for found in more.found:
        held.add(found)
    return held


@pytest.mark.parametrize(
    "override", ["stages.generate.temperature=0.7", "seed=1", "stages.generate.max_tokens=41"]
)
def test_rows_drawn_by_other_rules_do_not_stand(override):
    held = walked(RECIPE, LOCK)
    steps = planned(demo(override, "stages.generate.n=12"), held=held)
    assert set(map(len, _earlier(steps, "generate").values())) == {0}


def test_scores_by_another_draw_of_the_reward_model_do_not_stand():
    held = walked(RECIPE, LOCK, until="pair")
    steps = planned(RECIPE, LOCK, held)
    retrained = manifest_of(RECIPE, LOCK, by_name(steps)["reward"], done(steps), draw="again")
    wider = demo("stages.generate.n=12")
    without = Inventory([f for f in held.found if f.manifest.step != "reward"])
    without.add(ArtifactRef(retrained, tag="fp-again"))
    without = _also(without, walked(wider, LOCK, until="reward"))
    steps = planned(wider, LOCK, without)
    generated = manifest_of(wider, LOCK, by_name(steps)["generate"], done(steps))
    without.add(ArtifactRef(generated, tag=generated.tag))
    assert set(map(len, _earlier(planned(wider, LOCK, without), "score").values())) == {0}
    held.add(ArtifactRef(generated, tag=generated.tag))
    assert set(map(len, _earlier(planned(wider, LOCK, held), "score").values())) == {1}


@pytest.mark.parametrize("override", ["stages.generate.temperature=0.7", "seed=1"])
def test_another_meaning_changes_the_row_keys_too(override):
    assert "generate en" in changed(row_keys(demo()), row_keys(demo(override)))


def test_another_model_changes_the_row_keys_too():
    other = repinned(LOCK, POLICY, "other weights")
    assert {"generate en", "score en"} <= changed(row_keys(RECIPE), row_keys(RECIPE, other))


def test_identity_holds_no_path_of_this_machine():
    said = repr([made.identity for step in planned(demo()) for made in step.slices])
    assert str(shipped("recipes")) not in said
    assert str(Path.home()) not in said


# states, and the reason of each


def test_in_an_empty_world_sources_are_made_first_and_the_rest_waits():
    steps = by_name(planned(demo()))
    assert {step.state for step in steps.values()} == {State.RUN}
    assert {name: step.reason for name, step in steps.items()} == {
        "prompts": "nothing published yet",
        "translate": "prompts is made first",
        "preferences": "nothing published yet",
        "questions": "nothing published yet",
        "reward": "preferences is made first",
        "generate": "prompts is made first",
        "score": "generate is made first",
        "pair": "score is made first",
        "best": "score is made first",
        "sft[all]": "best is made first",
        "dpo[all]": "pair is made first",
        "dpo[es]": "pair is made first",
        "arena": "questions is made first",
        "judge": "arena is made first",
    }


def test_every_step_has_its_repo_and_its_type():
    steps = by_name(planned(demo()))
    assert steps["pair"].repo == "local/demo-pair"
    assert steps["judge"].repo == "local/demo-verdicts"
    assert steps["dpo[es]"].repo == "local/demo-dpo-es"
    models = {name for name, step in steps.items() if step.repo_type == "model"}
    assert models == {"reward", "sft[all]", "dpo[all]", "dpo[es]"}


def test_a_source_without_a_pin_is_brought_in_first():
    unpinned = LOCK.model_copy(
        update={"pins": {name: pin for name, pin in LOCK.pins.items() if name != POLICY}}
    )
    held = walked(RECIPE, unpinned, until="translate")
    steps = by_name(plan(RECIPE, unpinned, held))
    assert steps["prompts"].state is State.REUSE
    assert steps["generate"].state is State.RUN
    assert steps["generate"].reason == f"{POLICY} is brought in first"


def test_the_whole_line_goes_step_by_step_and_then_all_is_reused():
    held = Inventory()
    names = [step.name for step in plan(RECIPE, LOCK, held)]
    for number, name in enumerate(names):
        steps = plan(RECIPE, LOCK, held)
        assert {step.state for step in steps[:number]} <= {State.REUSE}
        step = steps[number]
        assert (step.state, step.reason) == (State.RUN, "nothing published yet")
        held.add(ArtifactRef(manifest_of(RECIPE, LOCK, step, done(steps)), directory=Path("work")))
        made = standing(held)[name]
        assert (made.state, made.reason) == (State.PUBLISH, "done here, not on the hub yet")
        held.add(ArtifactRef(made.found.manifest, tag=made.found.manifest.tag))
    for step in plan(RECIPE, LOCK, held):
        assert (step.state, step.reason) == (State.REUSE, f"fp-{step.fingerprint}")
        assert step.found.directory == Path("work"), "both at rest and on the hub"
        assert step.found.tag == step.reason
    assert len(held.found) == len(names)


@pytest.mark.parametrize("kept", [{}, {"pair": {"en": 2}}], ids=["all rows", "a blocked adapter"])
@pytest.mark.parametrize("before", [Inventory(), None], ids=["empty", "made with n=2"])
def test_an_updated_plan_equals_a_new_one_after_every_step(kept, before):
    start = before or walked(demo("stages.generate.n=2"), LOCK)
    updated = Plan(RECIPE, LOCK, Inventory(list(start.found), {"mark": (1, 2)}))
    for name in [step.name for step in updated.steps]:
        step = updated.step(name)
        if step.state is not State.RUN:
            continue
        manifest = manifest_of(RECIPE, LOCK, step, updated.done, kept.get(name))
        for artifact in (ArtifactRef(manifest, Path()), ArtifactRef(manifest, tag=manifest.tag)):
            updated.add(artifact)
            assert updated.steps == plan(RECIPE, LOCK, updated.inventory)
    assert {step.state for step in updated.steps} <= {State.REUSE, State.BLOCKED}


def test_planning_changes_nothing():
    held = walked(RECIPE, LOCK)
    found, pins = list(held.found), dict(LOCK.pins)
    assert plan(RECIPE, LOCK, held) == plan(RECIPE, LOCK, held)
    assert (held.found, LOCK.pins) == (found, pins)


def test_an_artifact_made_from_another_draw_of_its_inputs_is_no_hit():
    held = walked(RECIPE, LOCK)
    old = standing(held)
    redrawn = manifest_of(RECIPE, LOCK, old["generate"], done(list(old.values())), draw="again")
    held.found = [f for f in held.found if f.manifest.step != "generate"]
    held.add(ArtifactRef(redrawn, tag=redrawn.tag))
    steps = standing(held)
    assert steps["generate"].state is State.REUSE
    assert steps["score"].state is State.RUN
    assert steps["score"].reason == "same recipe, other draw of its inputs"
    assert steps["pair"].reason == "score is made first"
    assert steps["score"].fingerprint == old["score"].fingerprint


def test_of_two_draws_the_one_that_fits_is_taken():
    held = walked(RECIPE, LOCK)
    score = standing(held)["score"]
    strange = manifest_of(RECIPE, LOCK, score, done(plan(RECIPE, LOCK, held)), draw="elsewhere")
    slices = {
        name: record.model_copy(
            update={"inputs": [r.model_copy(update={"digest": "x"}) for r in record.inputs]}
        )
        for name, record in strange.slices.items()
    }
    held.add(ArtifactRef(strange.model_copy(update={"slices": slices}), tag="fp-other-draw"))
    assert standing(held)["score"].reason == f"fp-{score.fingerprint}"


def test_work_that_was_begun_says_how_far_it_is():
    held = walked(RECIPE, LOCK, until="generate")
    step = standing(held)["generate"]
    held.partial[step.fingerprint] = (3, 18)
    begun = standing(held)["generate"]
    assert (begun.state, begun.reason) == (State.RUN, "begun: 3 of 18 shards are there")


@pytest.mark.parametrize(
    ("step", "override", "reason"),
    [
        ("generate", "stages.generate.temperature=0.7", "temperature 1.0 -> 0.7"),
        ("generate", "stages.generate.n=6", "n 8 -> 6"),
        ("generate", "seed=4", "seed 0 -> 4"),
        ("dpo[es]", "stages.dpo.lora.r=8", "lora.r 16 -> 8"),
        ("pair", "stages.pair.keep.chosen.language=any", "keep.chosen.language match -> any"),
        ("prompts", "languages=[en, es, fr, da]", "da is new"),
        ("prompts", "languages=[en, es]", "fr is no longer asked for"),
    ],
)
def test_what_was_published_before_tells_what_has_changed_since(step, override, reason):
    before, after = demo(), demo(override)
    held = walked(before, lock_of(before))
    lock = lock_of(after)
    for found in walked(after, lock, until=step).found:
        held.add(found)
    made = by_name(plan(after, lock, held))[step]
    assert (made.state, made.reason) == (State.RUN, reason)


def test_other_content_of_a_source_is_told_by_slice():
    held = walked(RECIPE, LOCK)
    more = repinned(LOCK, EN_PROMPTS, "more prompts")
    steps = by_name(plan(RECIPE, more, held))
    assert steps["prompts"].reason == "source of en changed"
    assert steps["generate"].reason == "prompts is made first"
    other = repinned(LOCK, POLICY, "other weights")
    reason = by_name(plan(RECIPE, other, held))["generate"].reason
    assert reason == "model of en changed; model of es changed; model of fr changed"


def test_of_many_changes_the_first_three_are_told():
    before = demo()
    after = demo(
        "stages.generate={n: 1, temperature: 0.5, top_p: 0.5, max_tokens: 8, dtype: float16}"
    )
    steps = plan(after, lock_of(after), walked(before, lock_of(before)))
    reason = by_name(steps)["generate"].reason
    assert reason == "n 8 -> 1; temperature 1.0 -> 0.5; top_p 1.0 -> 0.5 and 2 more"


def test_an_older_artifact_that_differs_in_nothing_we_can_name_was_made_from_other_content():
    held = walked(RECIPE, LOCK, until="questions")
    odd = [f.manifest.model_copy(update={"fingerprint": "0" * 12}) for f in held.found]
    steps = by_name(plan(RECIPE, LOCK, Inventory([ArtifactRef(manifest) for manifest in odd])))
    assert steps["prompts"].reason == "made from other content"


def test_what_another_recipe_made_counts_when_it_is_the_very_same():
    held = walked(RECIPE, LOCK)
    other = demo("name=other", "stages.generate.n=7")
    steps = by_name(plan(other, LOCK, held))
    reward = steps["reward"]
    assert reward.state is State.REUSE
    assert reward.reason == f"fp-{reward.fingerprint} of local/demo-reward"
    assert reward.repo == "local/demo-reward"
    assert steps["generate"].state is State.RUN
    assert steps["generate"].repo == "local/other-generate"
    assert steps["generate"].reason == "nothing published yet"


# too few rows


FEW = {"pair": {"en": 10, "es": 2, "fr": 9}}


def test_an_adapter_with_too_few_pairs_is_blocked_and_says_how_few():
    steps = by_name(plan(RECIPE, LOCK, walked(RECIPE, LOCK, left=FEW)))
    blocked = steps["dpo[es]"]
    assert blocked.state is State.BLOCKED
    assert blocked.reason == "2 of 12 left, 4 needed: 10 prompts: lost"
    assert blocked.knobs == "more prompts, or set dpo.min_pairs"
    assert blocked.slices == ()
    assert blocked.found is None


def test_what_follows_leaves_the_blocked_adapter_out_and_goes_on_with_the_rest():
    steps = by_name(plan(RECIPE, LOCK, walked(RECIPE, LOCK, left=FEW)))
    assert steps["dpo[all]"].state is State.REUSE
    arena, judge = steps["arena"], steps["judge"]
    assert {made.spec.name for made in arena.slices} == {
        f"{code}/{label}" for code in ("en", "es", "fr") for label in ("policy", "dpo-all")
    }
    assert arena.reason == f"fp-{arena.fingerprint}; 1 of 7 slices left out (dpo[es] is blocked)"
    assert {made.spec.name for made in judge.slices} == {
        f"{code}/dpo-all" for code in ("en", "es", "fr")
    }
    assert "; 1 of 4 slices left out (" in judge.reason
    assert {arena.state, judge.state} == {State.REUSE}
    assert "arena is blocked" not in judge.reason, "arena goes on: one answer of it is left out"


def test_as_long_as_pairs_are_not_made_nobody_can_tell_and_nothing_is_blocked():
    recipe = demo("stages.dpo.min_pairs=1000")
    steps = planned(recipe)
    assert all(step.state is State.RUN for step in steps)


def test_when_every_adapter_is_blocked_the_policy_alone_answers_and_nothing_is_judged():
    recipe = demo("stages.dpo.min_pairs=1000")
    lock = lock_of(recipe)
    steps = by_name(plan(recipe, lock, walked(recipe, lock)))
    assert steps["dpo[all]"].reason == "36 of 36 left, 1000 needed"
    assert {made.spec.name for made in steps["arena"].slices} == {
        "en/policy", "es/policy", "fr/policy",
    }  # fmt: skip
    assert steps["judge"].state is State.BLOCKED


def test_lowering_the_gate_unblocks_and_retrains_nothing_else():
    held = walked(RECIPE, LOCK, left=FEW)
    steps = by_name(plan(demo("stages.dpo.min_pairs=2"), LOCK, held))
    assert (steps["dpo[es]"].state, steps["dpo[es]"].reason) == (
        State.RUN,
        "nothing published yet",
    )
    assert steps["dpo[all]"].state is State.REUSE
    assert steps["arena"].reason == "dpo[es] is made first"


def test_the_reason_is_told_against_the_nearest_published_artifact():
    held = walked(RECIPE, LOCK, until="score")
    other = demo("stages.generate.temperature=0.5", "stages.generate.top_p=0.9")
    held = _also(held, walked(other, lock_of(other), until="score"))  # published later
    steps = by_name(planned(demo("stages.generate.n=7"), held=held))
    assert steps["generate"].reason == "n 8 -> 7"


def test_another_seed_or_version_is_the_reason_and_is_told(monkeypatch):
    held = walked(RECIPE, LOCK)
    assert by_name(planned(demo("seed=1"), held=held))["generate"].reason == "seed 0 -> 1"
    old = Generate.version
    monkeypatch.setattr(Generate, "version", old + 1)
    told = by_name(planned(RECIPE, held=held))["generate"].reason
    assert told == f"version {old} -> {old + 1}"


# a frozen lock


def test_a_frozen_lock_holds_what_it_pins():
    lock = lock_of(demo())
    hold(lock, lock, (), Path("demo.lock.yaml"))


@pytest.mark.parametrize(
    ("old", "absent", "said"),
    [
        (None, (), "there is no lock at demo.lock.yaml"),
        (Lock(recipe="demo"), (), "does not pin"),
        (repinned(lock_of(demo()), EN_PROMPTS, "other"), (), "has changed since"),
        (lock_of(demo()), (POLICY,), "is pinned and not here"),
    ],
)
def test_a_frozen_lock_refuses_what_differs(old, absent, said):
    with pytest.raises(RecipeError, match=said):
        hold(old, lock_of(demo()), absent, Path("demo.lock.yaml"))

"""Rounds of a recipe: what each samples with, starts from and is held against."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from factory.errors import RecipeError
from factory.planning.plan import Inventory, plan
from factory.planning.recipe import Recipe, load
from factory.reports.checkpoint_curves import courses
from factory.reports.results import Result
from factory.stage.inputs import ExternalInput, SliceSpec, StepInput
from factory.training.train import Dpo
from tests.support.builders import lock_of
from tests.support.trainings import SMALL, adapter_of, job, tiny_model

IMPLICIT = """
models:
  initial: local/tiny-random-llama
  reward: {step: null, kind: implicit, name: local/tiny-random-llama, reference: initial}
stages: {reward: null, preferences: null, judge: null}
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Any:
    """Load a recipe of these lines over smoke.yaml."""

    def load_over(text: str, *overrides: str) -> Recipe:
        path = tmp_path / "mine.yaml"
        path.write_text(f"extends: smoke\nname: mine\n{text}", encoding="utf-8")
        return load(str(path), overrides).recipe

    return load_over


def specs(recipe: Recipe) -> dict[tuple[str, str], SliceSpec]:
    return {(spec.step, spec.name): spec for _, spec in recipe.slices()}


def test_109_193_each_round_samples_with_and_starts_from_the_last_adapter(loaded: Any) -> None:
    recipe = loaded("rounds: 3\nstages: {dpo: {each: [all]}, merge: null}")
    steps = [name for name in recipe.steps() if name.partition("-")[0] in ("generate", "dpo")]
    assert steps == ["generate", "dpo", "generate-2", "dpo-2", "generate-3", "dpo-3"]
    of = specs(recipe)
    for number, last in ((2, "dpo[all]"), (3, "dpo-2[all]")):
        for code in ("en", "es", "fr"):
            drawn = of[f"generate-{number}", code]
            assert drawn.need("adapter") == StepInput("adapter", last, "all")
            scored = of[f"score-{number}", code]
            assert scored.need("samples") == StepInput("samples", f"generate-{number}", code)
        trained = of[f"dpo-{number}[all]", "all"]
        assert trained.need("start") == StepInput("start", last, "all")
        assert {n.step for n in trained.needs if isinstance(n, StepInput)} == {
            f"pair-{number}", last,
        }  # fmt: skip
        assert trained.need("base") == of["dpo[all]", "all"].need("base")
    # what comes after training sees every round, a merge the last one
    labels = {name.partition("/")[2] for step, name in of if step == "arena"}
    assert labels == {"policy", "dpo-all", "dpo-2-all", "dpo-3-all"}
    assert {name for step, name in of if step == "judge"} >= {"es/dpo-all", "es/dpo-3-all"}


def test_a_round_more_leaves_the_earlier_ones_as_they_are(loaded: Any) -> None:
    marks = []
    for rounds in ("rounds: 2", "rounds: 3"):
        recipe = loaded(f"{rounds}\nstages: {{dpo: {{each: [all]}}, merge: null}}")
        steps = plan(recipe, lock_of(recipe), Inventory())
        marks.append({step.name: step.fingerprint for step in steps})
    fewer, more = marks
    later = {"arena", "judge"}  # which compare every round
    assert {name: more[name] for name in fewer.keys() - later} == {
        name: fewer[name] for name in fewer.keys() - later
    }
    assert more.keys() - fewer.keys() == {"generate-3", "score-3", "pair-3", "dpo-3[all]"}


def test_adapters_of_languages_go_on_in_their_language(loaded: Any) -> None:
    of = specs(loaded("rounds: 2\nstages: {dpo: {each: [all, es]}, merge: {of: [dpo]}}"))
    assert of["generate-2", "es"].need("adapter") == StepInput("adapter", "dpo[es]", "es")
    assert of["generate-2", "fr"].need("adapter") == StepInput("adapter", "dpo[all]", "all")
    assert of["dpo-2[es]", "es"].need("start") == StepInput("start", "dpo[es]", "es")
    merged = {n.step for n in of["merge", "all"].needs if n.role == "adapter"}  # type: ignore[union-attr]
    assert merged == {"dpo-2[all]", "dpo-2[es]"}


def test_173_a_reward_of_the_policy_itself_gets_the_newest_adapter_every_k_rounds(
    loaded: Any,
) -> None:
    def read(rounds: str) -> list[Any]:
        of = specs(
            loaded(f"rounds: {rounds}\n{IMPLICIT}", "stages.dpo.each=[all]", "stages.merge=null")
        )
        scores = [of[step, "es"].need("adapter") for step in ("score", "score-2", "score-3")]
        return [need and need.step for need in scores]  # type: ignore[union-attr]

    assert read("3") == [None, "dpo[all]", "dpo-2[all]"]
    assert read("{n: 3, refresh: 2}") == [None, None, "dpo-2[all]"]
    assert read("{n: 3, refresh: never}") == [None, None, None]


def test_a_round_has_knobs_of_its_own_and_the_dump_of_a_recipe_is_that_recipe(loaded: Any) -> None:
    recipe = loaded("rounds: {n: 2, reference: initial}\nstages: {dpo-2: {lr: 1.0e-6}}")
    dpo, later = (recipe.steps()[name] for name in ("dpo", "dpo-2"))
    assert (later.lr, later.batch, later.reference) == (1e-6, dpo.batch, "policy")
    again = Recipe.model_validate(recipe.model_dump(mode="json", by_alias=True, exclude_none=True))
    assert again.slices() == recipe.slices()


def test_99_a_round_may_have_another_reward(loaded: Any) -> None:
    told = "models: {safe: {kind: classifier, name: org/safe}}\nstages: {score-2: {reward: safe}}"
    of = specs(loaded(f"rounds: 2\n{told}"))
    assert of["score", "es"].need("reward") != of["score-2", "es"].need("reward")
    assert of["score-2", "es"].need("reward").source == "org/safe@main"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("rounds: 2\nstages: {dpo: null}", "has no dpo"),
        ("rounds: {n: 2, refresh: 2}", "rounds.refresh is for an implicit or generative reward"),
        ("rounds: 2\nstages: {generate: {from: org/x}}", "generate is taken in"),
        ("rounds: {n: 2, reference: initial}\nstages: {dpo: {loss: orpo}}", "orpo has none"),
        ("rounds: 2\nstages: {dpo-2: {lrr: 1}}", "stages.dpo-2 has no key 'lrr'"),
        ("rounds: 2\nstages: {dpo-2: {lora: {r: 8}}}", "goes on with the adapter of dpo"),
        ("rounds: 0", "rounds: must be at least 1"),
        ("rounds: 1.5", "rounds: must be a whole number"),
        ("stages: {dpo: {reference: policy}}", "training starts from no adapter"),
        (
            "models: {policy: {name: local/tiny-random-llama, adapter: 'dpo[all]'}}",
            "comes after it",
        ),
    ],
)
def test_what_cannot_be_a_round_is_refused_by_its_name(loaded: Any, text: str, what: str) -> None:
    with pytest.raises(RecipeError) as raised:
        loaded(text)
    assert what in raised.value.what
    assert raised.value.fix


@pytest.mark.slow
def test_a_later_round_is_held_against_its_start_or_the_initial_policy(tmp_path: Path) -> None:
    adapter = adapter_of(tiny_model(), tmp_path / "adapter", r=4)
    learned = {}
    for reference in (None, "policy"):
        how = {**SMALL["how"], "probe": {"prompts": 1, "n": 1, "max_tokens": 4}}
        knobs = {**SMALL, "how": how, "lora": {"r": 4, "alpha": 8}}
        stage = Dpo(**{**knobs, "reference": reference})
        directory = tmp_path / str(reference)
        outcome = stage.run(job(directory, stage, start=adapter))
        learned[reference] = outcome.stats["curve"][0]["loss"]
        assert outcome.stats["chain"]["reference"] == (reference or "local/smoke-sft-es")
    assert learned[None] == pytest.approx(math.log(2), abs=1e-4)  # nothing is learned yet
    assert abs(learned["policy"] - math.log(2)) > 1e-3  # what round 1 learned counts


def test_win_rates_by_round_are_a_curve() -> None:
    blank: dict[str, Any] = {"significant": None, "note": "", "repo": "", "fingerprint": ""}
    results = [
        Result(
            model, "es", "judge", "win_rate", value, value - 5, value + 5, "policy", "rm", **blank
        )
        for model, value in (("dpo-all", 52.0), ("dpo-2-all", 55.0), ("dpo-3-all", 54.0))
    ]
    [course] = courses(results)
    assert course.rounds and course.ticks == [1, 2, 3]
    assert [point.value for point in course.lines["win rate"]] == [52.0, 55.0, 54.0]
    assert course.title == "dpo-all, es: win rate by round against policy"


def test_answers_of_a_language_are_drawn_with_its_own_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.artifacts import schemas, tables
    from factory.engines import choose
    from factory.sampling.generate import Generate
    from factory.stage.job import Job, Place
    from tests.support.trainings import row

    stage = Generate(n=1, max_tokens=2, dtype="float32", how={"engine": "transformers"})
    base = ExternalInput("model", "local/tiny-random-llama@main", "model")
    places: dict[Any, Place] = {base: Place(tiny_model(), "local/tiny-random-llama", "a" * 40)}
    slices = []
    for code, adapter in (("en", "dpo[en]"), ("es", "dpo[all]"), ("fr", "dpo[all]")):
        prompts = [{**row("prompts", number), "language": code} for number in range(2)]
        table = schemas.from_rows(prompts, "prompts")
        tables.write_slice(tables.slice_directory(tmp_path / "rows", code), table)
        read = StepInput("prompts", "prompts", code)
        drawn = StepInput("adapter", adapter, adapter[4:-1])
        places |= {read: Place(tmp_path / "rows"), drawn: Place(tmp_path / adapter)}
        slices.append(SliceSpec("generate-2", code, code, (read, base, drawn)))
    opened: list[str] = []
    plain = choose.sampler

    def sampler(how: Any, place: Path, name: str, dtype: str, adapter: Path) -> Any:
        opened.append(adapter.name)
        return plain(how, place, name, dtype)

    monkeypatch.setattr(choose, "sampler", sampler)
    for name in ("work", "out"):
        (tmp_path / name).mkdir()
    made = Job(
        "generate-2", 0, tuple(slices), places, tmp_path / "work", tmp_path / "out", lambda *_: None
    )
    outcome = stage.run(made)
    assert opened == ["dpo[en]", "dpo[all]"]  # once each; one prompt has a gold answer
    assert {name: rows.out for name, rows in outcome.rows.items()} == {"en": 3, "es": 3, "fr": 3}

"""Choices after a training: the best checkpoint, an early end, weights of a merge, the probe's
temperature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from factory.artifacts import schemas, tables
from factory.artifacts.tables import slice_directory
from factory.engines import Completion
from factory.errors import RecipeError
from factory.execution.builtin_models import POCKET
from factory.stage.inputs import ExternalInput, StepInput
from factory.stage.job import Job, Place
from factory.training import adapters, behaviour, monitoring
from factory.training.merge import Merge
from factory.training.settings import ProbeKnobs
from factory.training.train import Dpo, Sft
from tests.support.builders import demo
from tests.support.trainings import SMALL as SHORT
from tests.support.trainings import adapter_of, classifier_of, job, merge_job, row, tiny_model
from tests.training.test_losses import HEALTHY, SATURATED, run_of

SMALL: dict[str, Any] = {**SHORT, "epochs": 3, "lr": 1e-2}
SMALL["how"] = {**SHORT["how"], "probe": {"prompts": 2, "n": 2, "max_tokens": 4}}

# --- the best of several -------------------------------------------------------------------


def drawn(**stops: int) -> behaviour.Drawn:
    """Answers by name, of which so many of four ended by themselves."""
    question = behaviour.Question([{"role": "user", "content": "Hello"}], None, True)
    answers = {
        name: [Completion((n, n + 1), "stop" if n < stop else "length") for n in range(4)]
        for name, stop in stops.items()
    }
    texts = {name: [str(n) for n in range(4)] for name in stops}
    return behaviour.Drawn([question] * 4, [[1]] * 4, answers, texts)


def test_the_best_wins_most_often_and_of_equal_ones_it_is_the_last() -> None:
    made = drawn(base=4, early=4, late=4)
    read = {"base": [0.0] * 4, "early": [1.0, 1.0, 1.0, -9.0], "late": [9.0, 9.0, 0.0, 0.0]}
    best, figures = behaviour.best(made, ["early", "late"], ProbeKnobs(), read)
    assert best == "late" and {f["win_rate"] for f in figures.values()} == {0.75}
    read["late"] = [9.0, 0.0, 0.0, 0.0]
    assert behaviour.best(made, ["early", "late"], ProbeKnobs(), read)[0] == "early"


def test_without_rewards_the_best_is_the_one_that_behaves() -> None:
    made = drawn(base=4, early=4, late=1)
    assert behaviour.best(made, ["early", "late"], ProbeKnobs(), None)[0] == "early"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["win_rate", "probe"])
def test_the_best_checkpoint_is_published_in_place_of_the_last(kind: Any, tmp_path: Path) -> None:
    judge = classifier_of(tiny_model(), tmp_path / "judge") if kind == "win_rate" else None
    stage = Dpo(**{**SMALL, "publish": kind, "checkpoints": [0.5]})
    made = job(tmp_path, stage, reward=judge)
    chosen = stage.run(made).stats["published"]
    assert chosen["by"] == kind and chosen["each"].keys() == {"0.5", "last"}
    assert chosen["of"] in chosen["each"] and chosen["held_out"] > 0
    files = {path.parent.name for path in made.out.rglob(adapters.WEIGHTS)}
    assert files == {"out", "0.5"} | ({"last"} if chosen["of"] == "0.5" else set())


def test_what_was_published_lies_in_the_place_of_the_last_one(tmp_path: Path) -> None:
    for at, text in ((".", "end"), ("checkpoints/0.5", "half")):
        (tmp_path / at).mkdir(parents=True, exist_ok=True)
        for name in (adapters.CONFIG, adapters.WEIGHTS):
            (tmp_path / at / name).write_text(text)
    adapters.put_in_place(tmp_path, "0.5")
    for at, text in ((".", "half"), ("checkpoints/0.5", "half"), ("checkpoints/last", "end")):
        assert {(tmp_path / at / n).read_text() for n in (adapters.CONFIG, adapters.WEIGHTS)} == {
            text
        }


def test_a_choice_needs_checkpoints_and_a_reward() -> None:
    with pytest.raises(ValidationError, match="is a choice among checkpoints: say which"):
        Dpo(publish="probe")
    told = ("stages.dpo.publish=win_rate", "stages.dpo.checkpoints=[0.5]")
    roles = {n.role for s, spec in demo(*told).slices() if s.name == "dpo" for n in spec.needs}
    assert "reward" in roles
    assert not any(
        n.role == "reward" for s, spec in demo().slices() if s.name == "dpo" for n in spec.needs
    )
    chat = "models.chat={kind: generative, name: org/chat}"
    with pytest.raises(RecipeError, match=r"stages\.dpo: the reward 'chat' is of kind"):
        demo(*told, chat, "stages.dpo.reward=chat")


# --- an early end --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("series", "said"),
    [
        ({**HEALTHY, "logps/chosen": lambda t: -200 - 300 * t}, "log-probability fell"),
        ({**HEALTHY, "loss": lambda t: 0.7 + 3 * t}, "the loss rose"),
        (SATURATED, "saturated from step"),
    ],
)
def test_a_training_that_collapses_is_seen_before_its_end(series: Any, said: str) -> None:
    run = run_of(200, **series)
    seen = [n for n in range(1, 201) if monitoring.collapse(run[:n])]
    assert seen and 20 <= seen[0] < 150
    assert said in str(monitoring.collapse(run[: seen[0]]))


@pytest.mark.parametrize("count", [5, 19, 40, 400])
def test_a_healthy_training_is_not_ended(count: int) -> None:
    run = run_of(count, **HEALTHY)
    assert not any(monitoring.collapse(run[:n]) for n in range(count + 1))


def test_a_falling_reward_of_sampled_answers_cries() -> None:
    def alarms(**series: Any) -> list[str]:
        return monitoring.alarms(run_of(40, **series))

    [alarm] = alarms(reward=lambda t: 1 - 2 * t, reward_std=lambda t: 0.5)
    assert "the mean reward fell from" in alarm
    assert alarms(reward=lambda t: 1 + 2 * t, reward_std=lambda t: 0.5) == []
    assert alarms(reward=lambda t: 1 - 0.3 * t, reward_std=lambda t: 0.5) == []


def sharp_model(out: Path) -> Path:
    """The tiny model with a head that makes its answers less than random: at an even distribution
    over words, no rate does harm."""
    from safetensors.torch import load_file, save_file

    POCKET["local/tiny-random-llama"].build(out)
    weights = load_file(out / "model.safetensors")
    weights["lm_head.weight"] *= 30
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.slow
def test_a_ruinous_rate_cries_and_ends_early_when_asked_to(tmp_path: Path) -> None:
    """Thirty steps of DPO at 200 times the default rate."""
    base = sharp_model(tmp_path / "base")
    knobs = {**SMALL, "lr": 1e-3, "epochs": 10, "warmup": 0.0, "held_out": 0.0}
    knobs["checkpoints"] = [0.2, 0.9]
    whole = Dpo(**knobs).run(job(tmp_path / "whole", Dpo(**knobs), base=base)).stats
    for said in ("saturated from step", "the base's own answers lost", "went far from the base"):
        assert any(said in alarm for alarm in whole["alarms"]), said
    stage = Dpo(**{**knobs, "stop_early": True})
    made = job(tmp_path / "early", stage, base=base)
    early = stage.run(made).stats
    assert 20 <= early["steps"] < whole["steps"] == 30
    said = f"stopped early, after step {early['steps']} of 30: saturated"
    assert any(alarm.startswith(said) for alarm in early["alarms"])
    assert (made.out / adapters.WEIGHTS).is_file() and early["checkpoints"].keys() == {"0.2"}


# --- the probe's temperature ---------------------------------------------------------------


def test_the_probe_draws_as_the_policy_is_drawn_from_and_identity_stays() -> None:
    def probed(*more: str) -> dict[str, float | None]:
        stages = demo(*more).steps()
        return {name: stages[name].how.probe.temperature for name in ("sft", "dpo")}  # type: ignore[attr-defined]

    warm = "stages.generate.temperature=0.7"
    assert probed(warm) == {"sft": 0.7, "dpo": 0.7}
    assert probed(warm, "stages.dpo.how.probe.temperature=1.0") == {"sft": 0.7, "dpo": 1.0}
    assert probed("stages.generate.temperature=0") == {"sft": None, "dpo": None}
    assert Sft().how.probe.temperature_or_default == 1.0


# --- merging -------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_adapter_with_rslora_is_merged_at_its_own_scale(tmp_path: Path) -> None:
    import torch

    made = {"one": tmp_path / "one", "two": tmp_path / "two"}
    for number, path in enumerate(made.values()):
        adapter_of(tiny_model(), path, r=4 + number, lora_alpha=16, use_rslora=True)
    out = tmp_path / "out"
    adapters.combine(tiny_model(), made, {out: {"one": 1.0}}, "cat", 0.5, 0)
    ids = torch.tensor([[1, 5, 9, 7]])
    with torch.inference_mode():
        alone, merged = (
            adapters.load(tiny_model(), path, "float32")(input_ids=ids).logits
            for path in (made["one"], out)
        )
    assert torch.allclose(alone, merged, atol=1e-5)


def test_91_adapters_are_named_by_reference_any_number_of_them() -> None:
    told = "stages.merge={of: [dpo, org/toxicity@v1, org/helpful]}"
    [spec] = [spec for stage, spec in demo(told).slices() if stage.name == "merge"]
    read = [n.source for n in spec.needs if isinstance(n, ExternalInput) and n.role == "adapter"]
    assert read == ["org/toxicity@v1", "org/helpful@main"]
    weights = "stages.merge={of: [org/a, org/b.c@v1], weights: {org/a: 1, org/b.c@v1: -0.5}}"
    demo(weights)
    with pytest.raises(RecipeError, match="give one for each of org/a, org/b"):
        demo("stages.merge={of: [org/a, org/b], weights: {org/a: 1}}")
    with pytest.raises(RecipeError, match="one adapter alone"):
        demo("stages.merge={of: [org/a]}")


def test_7_objectives_are_merged_in_each_language() -> None:
    told = "stages.merge={of: [dpo, sft, 'org/safe-{language}@v1'], each: language}"
    each = ("stages.dpo.each=[all, es]", "stages.sft.each=language")
    recipe = demo(told, *each)
    specs = {spec.step: spec for stage, spec in recipe.slices() if stage.name == "merge"}
    assert list(specs) == [f"merge[{code}]" for code in recipe.languages]
    read = {
        step: [getattr(n, "step", None) or n.source for n in spec.needs if n.role == "adapter"]  # type: ignore[union-attr]
        for step, spec in specs.items()
    }
    assert read["merge[es]"] == ["dpo[es]", "sft[es]", "org/safe-es@v1"]
    assert read["merge[fr]"] == ["dpo[all]", "sft[fr]", "org/safe-fr@v1"]
    assert (specs["merge[es]"].name, specs["merge[es]"].language) == ("es", "es")
    arena = demo(told, *each, "stages.arena.of=[policy, dpo, merge]").slices()
    assert {"es/merge-es", "fr/merge-fr"} <= {s.name for stage, s in arena if stage.name == "arena"}
    weights = "stages.merge.weights={dpo: 0.6, sft: 0.3, 'org/safe-{language}@v1': 0.1}"
    merge = demo(told, *each, weights).steps()["merge"]
    shares = merge._shares(["dpo[es]", "sft[es]", "org/safe-{language}@v1"])  # type: ignore[attr-defined]
    assert shares == {"dpo[es]": 0.6, "sft[es]": 0.3, "org/safe-{language}@v1": 0.1}
    with pytest.raises(RecipeError, match="one adapter alone for"):
        demo("stages.merge={of: [dpo], each: language}", *each)
    with pytest.raises(RecipeError, match="set each: language"):
        demo("stages.merge={of: [dpo, 'org/safe-{language}']}")


def test_7_the_weight_of_an_objective_is_shared_by_its_languages() -> None:
    told = "stages.merge={of: [dpo, org/safe], weights: {dpo: 0.8, org/safe: 0.2}}"
    merge = demo("stages.dpo.each=[en, es]", told).steps()["merge"]
    shares = merge._shares(["dpo[en]", "dpo[es]", "org/safe"])  # type: ignore[attr-defined]
    assert shares == {"dpo[en]": 0.4, "dpo[es]": 0.4, "org/safe": 0.2}
    with pytest.raises(RecipeError, match="give one for each of"):
        demo("stages.dpo.each=[en, es]", told.replace("{dpo:", "{sft:"))


@pytest.mark.slow
def test_7_the_weights_with_the_highest_held_out_reward_are_taken(tmp_path: Path) -> None:
    made = {name: tmp_path / name for name in ("x", "y")}
    for number, path in enumerate(made.values()):
        adapter_of(tiny_model(), path, r=4 + number, lora_alpha=16)
    stage = Merge(
        of=("org/x", "org/y.z@v1"), dtype="float32",
        search={"tries": 2, "prompts": 3, "held_out": 0.5, "max_tokens": 4},
    )  # type: ignore[arg-type]  # fmt: skip
    plain = merge_job(tmp_path / "job", {})
    [spec] = plain.slices
    prompts = tmp_path / "prompts"
    rows = schemas.from_rows([row("prompts", n) for n in range(8)], "prompts")
    tables.write_slice(slice_directory(prompts, "es"), rows)
    places: dict[Any, Place] = {
        ExternalInput("adapter", "org/x@main", "model"): Place(made["x"], "org/x", "a" * 40),
        ExternalInput("adapter", "org/y.z@v1", "model"): Place(made["y"], "org/y.z", "b" * 40),
        StepInput("prompts", "prompts", "es"): Place(prompts),
        ExternalInput("reward", "org/reward@main", "model"): Place(
            classifier_of(tiny_model(), tmp_path / "judge"), "org/reward", "c" * 40
        ),
    }
    needs = (*spec.needs, *places)
    done: Job = replace(
        plain, slices=(replace(spec, needs=needs),), places={**plain.places, **places}
    )
    stats = stage.run(done).stats
    tried = stats["search"]["tried"]
    assert len(tried) == 5 and stats["search"]["prompts"] == 3
    assert [t["weights"] for t in tried[:3]] == [
        {"org/x": 0.5, "org/y.z@v1": 0.5},
        {"org/x": 1.0, "org/y.z@v1": 0.0},
        {"org/x": 0.0, "org/y.z@v1": 1.0},
    ]
    assert all(sum(t["weights"].values()) == pytest.approx(1, abs=2e-3) for t in tried)
    best = max(tried, key=lambda t: t["reward"])
    assert {m["step"]: m["weight"] for m in stats["merged"]} == best["weights"]
    assert len({t["reward"] for t in tried}) > 1


def test_a_search_is_on_prompts_that_no_training_saw() -> None:
    told = "stages.merge={of: [dpo], search: {held_out: 0.05}}"
    demo(told, "stages.dpo.held_out=0.1")
    with pytest.raises(RecipeError, match=r"held_out is 0\.05, dpo holds out 0\.02"):
        demo(told, "stages.dpo.held_out=0.02")
    chat = "models.chat={kind: generative, name: org/chat}"
    with pytest.raises(RecipeError, match="'chat' is of kind: generative"):
        demo(chat, "stages.merge={of: [dpo], search: {reward: chat}}", "stages.dpo.held_out=0.1")

"""Reinforcement learning: its rewards, what is refused, and trainings on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from factory.errors import RecipeError
from factory.stage.inputs import StepInput
from factory.training import adapters, answer_rewards, monitoring
from factory.training.settings import Lora, Running, Task
from factory.training.train import Rl
from tests.support.builders import demo
from tests.support.trainings import SMALL as SHORT
from tests.support.trainings import adapter_of, classifier_of, job, tiny_model

SMALL: dict[str, Any] = {
    **{key: value for key, value in SHORT.items() if key != "held_out"},
    "batch": 8, "n": 4, "max_tokens": 6, "lr": 1e-2, "rewards": {"length": 1.0}, "length": 2,
}  # fmt: skip
SMALL["how"] = {"micro_batch": 4, "save_steps": 1, "probe": {"prompts": 1, "n": 1, "max_tokens": 4}}


def task(**more: Any) -> Task:
    place = Path("nowhere")
    knobs: dict[str, Any] = {
        "step": "rl[es]", "method": "rl", "base": place, "rows": place, "work": place, "out": place,
        "seed": 0, "lr": 1.0, "epochs": 1.0, "batch": 4, "warmup": 0.0, "weight_decay": 0.0,
        "max_length": 64, "lora": Lora(), "dtype": "float32", "how": Running(), "max_tokens": 10,
    }  # fmt: skip
    return Task(**knobs | more)


def said(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


SPANISH = "La capital de España es Madrid, una ciudad grande y hermosa en el centro del país."
ENGLISH = "The capital of Spain is Madrid, a large and beautiful city in the middle of it."


def test_15_the_reward_of_language_is_for_the_language_of_the_prompt() -> None:
    reward = answer_rewards.functions(task())["language"]
    made = reward(
        completions=said(SPANISH, ENGLISH, ENGLISH, ""), language=["es", "es", "en", "es"]
    )
    assert made == [1.0, 0.0, 1.0, 0.0]


def test_the_reward_of_length_falls_from_its_limit_to_the_most_tokens() -> None:
    reward = answer_rewards.functions(task(length=4))["length"]
    ids = [[1] * n for n in (0, 4, 7, 10, 12)]
    assert reward(completion_ids=ids) == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_17_the_rewards_of_format_and_of_the_exact_answer() -> None:
    plain = answer_rewards.functions(task())
    texts = said("  Madrid\n", "madrid.", "MADRID")
    gold = ["Madrid", "Madrid", None]
    assert plain["exact"](completions=texts, gold=gold) == [1.0, 0.0, None]
    boxed = answer_rewards.functions(task(format=r".*<answer>(.*)</answer>"))
    texts = said("So:\n<answer>Madrid</answer>", "Madrid", "<answer>Paris</answer>")
    assert boxed["format"](completions=texts) == [1.0, 0.0, 1.0]
    assert boxed["exact"](completions=texts, gold=["Madrid"] * 3) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("knobs", "why"),
    [
        ({"batch": 12}, "batch 12 is not a multiple of n 8"),
        ({"rewards": {"length": 1.0}}, "length and a weight in rewards.length go together"),
        ({"length": 5}, "length and a weight in rewards.length go together"),
        ({"format": "a"}, "format and a weight in rewards.format go together"),
        ({"rewards": {"format": 1.0}, "format": "("}, "format is no regular expression"),
        ({"rewards": {"length": 1.0}, "length": 2000}, "length must be less than max_tokens"),
        ({"rewards": {}}, "at least 1 item"),
        ({"rewards": {"comet": 1.0}}, "'model', 'language', 'length', 'format' or 'exact'"),
        ({"algorithm": "rloo", "loss": "grpo"}, "loss and scale are for algorithm: grpo"),
        ({"max_tokens": 4096}, "leaves no room for prompts"),
    ],
)
def test_what_does_not_go_together_is_refused(knobs: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Rl(**knobs)


def test_a_reward_is_read_where_it_has_a_weight_alone() -> None:
    def needs(*more: str) -> set[str]:
        recipe = demo("stages.rl={each: all}", *more)
        return {n.role for s, spec in recipe.slices() if s.name == "rl" for n in spec.needs}

    assert needs() == {"prompts", "base", "reward"}
    assert needs("stages.rl.rewards={language: 1.0}") == {"prompts", "base"}
    with pytest.raises(RecipeError, match="no prompt has a gold answer"):
        demo("stages.rl={each: all}", "stages.rl.rewards={exact: 1.0}")
    with pytest.raises(RecipeError, match=r"stages\.rl: the reward 'self' is of kind: generative"):
        demo(
            "models.self={kind: generative, name: org/chat}", "stages.rl={each: all, reward: self}"
        )


def test_15_45_rl_and_online_go_on_with_an_adapter() -> None:
    for name in ("rl", "online"):
        recipe = demo(f"stages.{name}={{each: all, start_from: dpo}}", "stages.dpo.each=[all]")
        [spec] = [spec for stage, spec in recipe.slices() if stage.name == name]
        assert spec.need("start") == StepInput("start", "dpo[all]", "all")
    with pytest.raises(RecipeError, match="goes on with the adapter of sft, whose lora is another"):
        demo("stages.rl={each: all, start_from: sft, lora: {r: 8}}")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_15_an_adapter_is_trained_on_several_rewards(algorithm: str, tmp_path: Path) -> None:
    rewards = {"model": 1.0, "length": 0.5, "language": 0.2, "exact": 2.0}
    stage = Rl(**{**SMALL, "algorithm": algorithm, "rewards": rewards, "checkpoints": [0.5]})
    judge = classifier_of(tiny_model(), tmp_path / "judge")
    # one of the two goes on with an adapter
    start = adapter_of(tiny_model(), tmp_path / "start", r=16) if algorithm == "rloo" else None
    made = job(tmp_path, stage, count=6, reward=judge, start=start)
    outcome = stage.run(made)
    last = outcome.stats["curve"][-1]
    assert {"reward", "rewards/length/mean", "rewards/language/mean", "kl"} <= last.keys()
    assert outcome.stats["steps"] == 6 * stage.n / stage.batch
    assert outcome.stats["probe"]["applied"] and "reward" in outcome.stats["behaviour"]["tuned"]
    chain = outcome.stats["chain"]
    assert chain["loss"] == algorithm
    assert chain["start"] == chain["reference"] == ("local/smoke-sft-es" if start else "policy")
    assert abs(outcome.stats["curve"][0]["kl"]) < 1e-4  # the start is the reference
    assert adapters.read_config(made.out)["r"] == 16
    assert (made.out / "checkpoints" / "0.5").is_dir() or list(made.out.glob("checkpoint*"))


@pytest.mark.slow
def test_short_answers_are_learned_and_a_stop_is_gone_on_from(tmp_path: Path) -> None:
    """Killed after its second step, it goes on with the third; and it learns what is rewarded."""
    steps: list[int] = []

    def killed(done: int, total: int, unit: str, tokens: int = 0) -> None:
        if unit == "steps":
            steps.append(done)
            if done == 3 and steps.count(3) == 1:
                raise KeyboardInterrupt

    stage = Rl(**{**SMALL, "epochs": 4, "temperature": 1.0})
    with pytest.raises(KeyboardInterrupt):
        stage.run(job(tmp_path, stage, count=8, progress=killed))
    outcome = stage.run(job(tmp_path, stage, count=8, progress=killed))
    assert steps[:6] == [1, 2, 3, 3, 4, 5] and steps[-1] == outcome.stats["steps"] == 16
    curve = outcome.stats["curve"]
    assert monitoring.finite(curve)
    assert [point["step"] for point in curve] == list(range(1, 17))


@pytest.mark.slow  # TRL imports vLLM where it is installed
def test_trl_knows_the_knobs_that_rl_draws_with() -> None:
    from trl import GRPOConfig, RLOOConfig

    from factory.training import trainers

    for config in (GRPOConfig, RLOOConfig):
        assert {*trainers._beside(), "vllm_max_model_length"} <= config.__dataclass_fields__.keys()

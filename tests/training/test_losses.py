"""What a recipe may say of a preference loss, and what the logs of a training say: no torch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from factory.errors import InputError, RecipeError
from factory.planning.plan import Inventory, plan
from factory.training import losses, monitoring
from factory.training.adapters import check_lora
from factory.training.settings import PAPER_TARGETS, Lora
from factory.training.train import Dpo, Sft
from tests.support.builders import by_name, demo, lock_of

# --- losses --------------------------------------------------------------------------------

SUMS = st.dictionaries(st.sampled_from(losses.DPO), st.floats(0.01, 10), min_size=1)


@given(SUMS)
def test_a_sum_of_losses_says_the_same_in_any_order_and_a_second_time(
    told: dict[str, float],
) -> None:
    found = losses.parse(told)
    assert losses.parse(dict(reversed(told.items()))) == found
    assert losses.parse(found) == found
    assert losses.weights(found) == told


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (
            "sigmod",
            "no training here has the loss 'sigmod' (did you mean 'sigmoid'?); there are sigmoid",
        ),
        ({"sigmoid": 1.0, "nll": 1.0}, "no training here has the loss 'nll'"),
        ({"sigmoid": 0}, "the weight of sigmoid must be a number over 0"),
        ({"sigmoid": True}, "the weight of sigmoid must be a number over 0"),
        ({"kto": 1.0, "sft": 0.2}, "kto has a trainer of its own"),
        ({"simpo": 2.0}, "simpo has no weight"),
        ({}, "is a name, or weights"),
        (["sigmoid"], "is a name, or weights"),
    ],
)
def test_what_is_no_loss_is_refused_with_those_there_are(told: Any, why: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Dpo(loss=told)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("knobs", "why"),
    [
        ({"loss": "exo_pair"}, "exo_pair needs label_smoothing"),
        ({"label_smoothing": 0.1}, "label_smoothing is for"),
        ({"simpo_gamma": 1.0}, "simpo_gamma is for"),
        ({"loss": "kto"}, "kto compares the rows of a micro batch"),
        ({"loss": "aot"}, "aot compares the rows of a micro batch"),
        ({"how": {"micro_batch": 3}}, "batch 64 is not a multiple of 3"),
        ({"how": {"processes": 5}}, "batch 64 is not a multiple of 5"),
    ],
)
def test_a_knob_that_does_not_go_with_the_loss_is_refused(knobs: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Dpo(**knobs)


def test_an_unknown_loss_is_told_with_its_line() -> None:
    with pytest.raises(RecipeError, match=r"stages.dpo.loss: no training here has the loss 'dpop'"):
        demo("stages.dpo.loss=dpop")


def marks(*overrides: str) -> dict[str, str]:
    recipe = demo(*overrides)
    steps = plan(recipe, lock_of(recipe), Inventory())
    return {step.name: step.fingerprint for step in steps}


def test_the_loss_is_part_of_what_is_made_and_its_default_is_not_new() -> None:
    plain = marks()
    assert marks("stages.dpo.loss={sigmoid: 1.0}") == plain
    for loss in ("ipo", "{sigmoid: 2.0}", "{sigmoid: 1, sft: 0.2}"):
        assert marks(f"stages.dpo.loss={loss}")["dpo[es]"] != plain["dpo[es]"]


@pytest.mark.parametrize(("loss", "matters"), [("sigmoid", False), ("kto", True), ("aot", True)])
def test_the_micro_batch_counts_where_the_loss_is_over_it(loss: str, matters: bool) -> None:
    told = f"stages.dpo.loss={loss}"
    assert (marks(told)["dpo[es]"] != marks(told, "stages.dpo.how.micro_batch=2")["dpo[es]"]) == (
        matters
    )


# --- the chain -----------------------------------------------------------------------------


def test_dpo_from_sft_reads_the_adapter_of_its_language_or_that_of_all() -> None:
    told = ("stages.sft.each=[all, es]", "stages.dpo.start_from=sft")
    recipe = demo(*told)
    specs = {spec.step: spec for stage, spec in recipe.slices() if stage.name == "dpo"}
    starts = {name: spec.need("start").step for name, spec in specs.items()}  # type: ignore
    assert starts == {"dpo[all]": "sft[all]", "dpo[es]": "sft[es]"}
    recipe = demo("stages.dpo.start_from=sft")
    specs = {spec.step: spec for stage, spec in recipe.slices() if stage.name == "dpo"}
    assert specs["dpo[es]"].need("start").step == "sft[all]"  # type: ignore


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("stages.sft=null",), "needs the stage 'sft'"),
        (("stages.sft.each=[en]",), "dpo starts all from sft, which trains no adapter"),
        (("stages.sft.lora.r=8",), "whose lora is another"),
        (
            ("models.other=local/tiny-random-llama", "stages.sft.base=other"),
            "of different base models",
        ),
    ],
)
def test_a_chain_that_does_not_hold_is_refused_at_load(more: tuple[str, ...], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        demo("stages.dpo.start_from=sft", *more)


BARE = (
    "models.reward={kind: classifier, name: org/reward}",
    *("stages.reward=null", "stages.preferences=null", "stages.sft=null", "stages.translate=null"),
)
ADAPTED = "models.policy={name: org/base, adapter: org/first-dpo-all@v1}"


def test_dpo_goes_on_with_the_adapter_that_its_policy_has() -> None:
    recipe = demo(ADAPTED, *BARE)
    specs = {spec.step: spec for _, spec in recipe.slices()}
    read = {need.role: need for need in specs["dpo[es]"].needs}
    assert read["base"].source == "org/base@main"  # type: ignore[union-attr]
    assert read["start"].source == "org/first-dpo-all@v1"  # type: ignore[union-attr]
    roles = {spec.name: [n.role for n in spec.needs] for _, spec in recipe.slices()}
    assert "adapter" in roles["es/policy"]  # the reference of the comparison is what was tuned
    assert specs["generate"].need("adapter") is not None


def test_two_adapters_to_go_on_with_are_one_too_many() -> None:
    kept = [one for one in BARE if one != "stages.sft=null"]
    more = ("models.bare=org/base", "stages.sft.base=bare", "stages.dpo.start_from=sft")
    with pytest.raises(RecipeError, match="has an adapter too"):
        demo(ADAPTED, *kept, *more)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"r": 8}, "has r 8, and the recipe r 16"),
        ({"target_modules": ["q_proj"]}, "targets"),
        ({"use_rslora": True}, "has rslora True, and the recipe rslora False"),
        ({"use_dora": True}, "has dora True"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save, which no training here has"),
    ],
)
def test_an_adapter_that_training_cannot_go_on_with_is_refused(
    said: dict[str, Any], words: str
) -> None:
    config = {"r": 16, "lora_alpha": 32, "target_modules": list(reversed(PAPER_TARGETS))}
    check_lora(config, "org/a", Lora())
    check_lora(config, "org/a", Lora(targets="all-linear"))
    check_lora(config | {"use_rslora": True}, "org/a", Lora(rslora=True))
    with pytest.raises(InputError, match=words):
        check_lora(config | said, "org/a", Lora())


def test_what_sft_learned_from_changes_the_dpo_that_goes_on_with_it() -> None:
    told = "stages.dpo.start_from=sft"
    one, other = marks(told), marks(told, "stages.sft.lr=1e-5")
    assert one["dpo[es]"] != other["dpo[es]"]
    assert marks()["dpo[es]"] == marks("stages.sft.lr=1e-5")["dpo[es]"]


def test_the_papers_settings_are_the_defaults() -> None:
    sft, dpo = Sft(), Dpo()
    for stage in (sft, dpo):
        assert (stage.epochs, stage.batch, stage.warmup, stage.weight_decay) == (1, 64, 0.05, 0.01)
        assert (stage.max_length, stage.dtype) == (4096, "bfloat16")
        assert (stage.lora.r, stage.lora.alpha, stage.lora.dropout) == (16, 32, 0.05)
    assert (sft.lr, dpo.lr, dpo.beta, dpo.loss) == (2e-4, 5e-6, 0.1, "sigmoid")
    assert dpo.start_from == "policy" and dpo.disable_dropout


def test_a_recipe_with_every_kind_of_training_is_planned() -> None:
    steps = by_name(plan(demo(), lock_of(demo()), Inventory()))
    assert {"reward", "sft[all]", "dpo[all]", "dpo[es]"} <= steps.keys()


# --- what the logs say ---------------------------------------------------------------------


def run_of(count: int, **series: Any) -> list[dict[str, float]]:
    """A history of `count` steps; each series is a function of how far the run is, 0 to 1."""
    made = {"loss": lambda t: 0.7 - 0.3 * t, **series}
    return [
        {"step": n + 1, **{key: value(n / max(count - 1, 1)) for key, value in made.items()}}
        for n in range(count)
    ]


HEALTHY: dict[str, Any] = {
    "grad_norm": lambda t: 1.0,
    "rewards/accuracies": lambda t: 0.5 + 0.3 * t,
    "logps/chosen": lambda t: -200 - 20 * t,
}


def test_a_good_run_cries_no_alarm() -> None:
    assert monitoring.alarms(run_of(40, **HEALTHY)) == []
    assert monitoring.alarms([]) == []


@pytest.mark.parametrize(
    ("series", "said"),
    [
        ({"logps/chosen": lambda t: -200 - 300 * t}, "log-probability fell from"),
        ({"rewards/accuracies": lambda t: 0.51}, "as if by chance"),
        ({"loss": lambda t: 0.7 + 3 * t}, "the loss rose"),
        ({"loss": lambda t: float("nan") if t > 0.9 else 0.7}, "not finite"),
        ({"grad_norm": lambda t: float("inf")}, "not finite"),
    ],
)
def test_a_run_that_collapses_cries_alarm(series: dict[str, Any], said: str) -> None:
    found = monitoring.alarms(run_of(40, **{**HEALTHY, **series}))
    assert len(found) == 1 and said in found[0]


SATURATED: dict[str, Any] = {
    "loss": lambda t: 0.7 if t < 0.2 else 0.01,
    "rewards/accuracies": lambda t: 0.6 if t < 0.2 else 1.0,
    "logps/rejected": lambda t: -40 if t < 0.1 else -90,
}


@pytest.mark.parametrize("count", [5, 12, 40, 400])
def test_a_run_that_saturates_early_cries_alarm(count: int) -> None:
    [alarm] = monitoring.alarms(run_of(count, **SATURATED))
    assert "saturated from step" in alarm and "down by 50 nats" in alarm


@pytest.mark.parametrize(
    "series",
    [
        {"loss": lambda t: 0.3},
        {"rewards/accuracies": lambda t: 0.9},
        {"logps/rejected": lambda t: -40 - 10 * t},  # of long answers: a few nats are little
        {"loss": lambda t: 0.7 if t < 0.7 else 0.01},  # only at its end
    ],
)
def test_a_run_that_goes_on_learning_is_not_saturated(series: dict[str, Any]) -> None:
    assert monitoring.alarms(run_of(40, **{**SATURATED, **series})) == []


@given(st.integers(0, 3000))
def test_a_curve_is_short_and_keeps_both_ends(count: int) -> None:
    found = monitoring.curve(run_of(count))
    assert len(found) == min(count, monitoring.POINTS)
    if count:
        assert (found[0]["step"], found[-1]["step"]) == (1, count)
        assert [e["step"] for e in found] == sorted({e["step"] for e in found})


def test_planning_a_training_imports_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from factory.planning.recipe import load\n"
        "load('demo', ['stages.dpo.loss=ipo'])\n"
        "assert not {'torch', 'trl', 'peft', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Options of TRL and PEFT: each one has its effect, and what an upgrade brings is seen.

A number in a name is the row of the table of published systems that the option belongs to.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from factory.errors import RecipeError, StageError
from factory.training import dataset, losses, trainers
from factory.training.settings import Divergence, Lora
from factory.training.train import Dpo, Reward, Sft
from tests.support.builders import demo
from tests.support.trainings import SMALL as SHORT
from tests.support.trainings import job, model_of_family, row, task_of, tiny_model

# three epochs, since the first step of a warm-up changes nothing, and hardly any answers drawn
SMALL: dict[str, Any] = {**SHORT, "epochs": 3, "lr": 1e-2}
SMALL["how"] = {**SHORT["how"], "probe": {"prompts": 1, "n": 1, "max_tokens": 4}}


def config_of(stage: Any, directory: Path) -> Any:
    """The arguments of the trainer that TRL is given for a stage, before anything is trained."""
    from factory.engines import chat_template

    made = job(directory, stage)
    tokenizer = chat_template.load_tokenizer(str(tiny_model()))
    task = task_of(stage, made)
    return trainers.build(task, tokenizer, *dataset.read(task.rows), [])


# --- what is offered, and what of TRL and PEFT is not --------------------------------------

NOT_OFFERED = {  # fields of TRL's configs that no recipe sets, beside those of transformers
    "DPOConfig": {
        "model_init_kwargs", "trust_remote_code", "router_aux_loss_coef", "dataset_num_proc",
        "truncation_mode", "padding_free", "pad_to_multiple_of", "precompute_ref_batch_size",
        "discopop_tau", "activation_offloading", "sync_ref_model", "ref_model_mixup_alpha",
        "ref_model_sync_steps", "pad_token",
    },
    "SFTConfig": {
        "model_init_kwargs", "trust_remote_code", "router_aux_loss_coef", "chat_template_path",
        "dataset_text_field", "dataset_kwargs", "dataset_num_proc", "eos_token", "truncation_mode",
        "shuffle_dataset", "packing_strategy", "padding_free", "pad_to_multiple_of",
        "assistant_only_loss", "activation_offloading", "pad_token",
    },
    "KTOConfig": {
        "model_init_kwargs", "trust_remote_code", "router_aux_loss_coef", "dataset_num_proc",
        "pad_to_multiple_of", "precompute_ref_batch_size", "desirable_weight",
        "undesirable_weight", "activation_offloading", "sync_ref_model", "ref_model_mixup_alpha",
        "ref_model_sync_steps",
    },
}  # fmt: skip
OFFERED = {
    "DPOConfig": {
        "disable_dropout", "precompute_ref_log_probs", "loss_type", "loss_weights", "ld_alpha",
        "f_divergence_type", "f_alpha_divergence_coef", "label_smoothing", "beta",
        "use_weighting", "max_length",
    },
    "SFTConfig": {
        "max_length", "packing", "eval_packing", "completion_only_loss", "loss_type",
    },
    "KTOConfig": {
        "disable_dropout", "precompute_ref_log_probs", "loss_type", "beta", "max_length",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OFFERED))
def test_every_option_of_trl_is_offered_or_declined_by_name(name: str) -> None:
    import trl
    from transformers import TrainingArguments

    shared = {field.name for field in fields(TrainingArguments)}
    own = {field.name for field in fields(getattr(trl, name))} - shared
    assert own == OFFERED[name] | NOT_OFFERED[name]


@pytest.mark.slow
def test_the_trainers_and_losses_of_the_installed_trl_are_known() -> None:
    import pkgutil
    import re
    from typing import get_args

    import trl
    import trl.experimental
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.tpo import TPOConfig

    def choices(config: Any, field: str) -> set[str]:
        return set(config.__dataclass_fields__[field].metadata["choices"])

    assert {name for name in trl.__all__ if name.endswith("Trainer")} == {
        "DPOTrainer", "DistillationTrainer", "GRPOTrainer", "KTOTrainer", "RLOOTrainer",
        "RewardTrainer", "SFTTrainer",
    }  # fmt: skip
    assert {found.name for found in pkgutil.iter_modules(trl.experimental.__path__)} == {
        "a2po", "async_distillation", "async_grpo", "bema_for_ref_model", "cpo", "distillation",
        "gkd", "gmpo", "gold", "harbor", "iw_opd", "kto", "merge_model_callback", "online_dpo",
        "openreward", "orpo", "sdft", "sdpo", "server_distillation", "tpo", "utils",
    }  # fmt: skip
    # "chunked_nll" is a former name of nll
    assert choices(trl.SFTConfig, "loss_type") == {
        *get_args(Sft.model_fields["loss"].annotation), "chunked_nll",
    }  # fmt: skip
    assert choices(trl.KTOConfig, "loss_type") == losses.UNPAIRED
    told = trl.DPOConfig.__dataclass_fields__["f_divergence_type"].metadata["help"]
    assert set(re.findall(r"`([a-z]+_(?:kl|divergence))`", told)) == set(get_args(Divergence))
    # losses on pairs that are of DPO's trainer too are taken from there
    assert choices(CPOConfig, "loss_type") == {"sigmoid", "hinge", "ipo", "simpo", "alphapo"}
    assert choices(TPOConfig, "loss_type") == {"sigmoid", "hinge", "ipo", "tpo-l"}


@pytest.mark.slow
def test_every_field_of_pefts_lora_is_offered_or_declined_by_name() -> None:
    from peft import LoraConfig

    declined = {
        "exclude_modules", "fan_in_fan_out", "bias", "layers_to_transform", "layers_pattern",
        "rank_pattern", "alpha_pattern", "megatron_config", "megatron_core",
        "trainable_token_indices", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
        "velora_config", "alora_invocation_tokens", "use_qalora", "qalora_group_size",
        "monteclora_config", "layer_replication", "runtime_config", "lora_bias",
        "target_parameters", "use_bdlora", "init_lora_weights", "arrow_config",
        "ensure_weight_tying", "kasa_config",
        # what it writes by itself
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path",
        "revision", "inference_mode", "modules_to_save",
    }  # fmt: skip
    offered = {"r", "target_modules", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"}
    assert {field.name for field in fields(LoraConfig)} - offered <= declined
    assert offered <= {field.name for field in fields(LoraConfig)}


# --- each option has its effect ------------------------------------------------------------


@pytest.mark.slow
def test_17_125_options_of_dpo_reach_trl(tmp_path: Path) -> None:
    knobs: dict[str, Any] = {
        "use_weighting": True, "ld_alpha": 0.5, "f_divergence_type": "alpha_divergence",
        "f_alpha_divergence_coef": 0.3,
    }  # fmt: skip
    args = config_of(Dpo(**SMALL, **knobs), tmp_path).args
    assert {name: getattr(args, name) for name in knobs} == knobs


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs",
    [{"use_weighting": True}, {"ld_alpha": 0.0}, {"f_divergence_type": "js_divergence"}],
)
def test_17_125_an_option_of_dpo_changes_what_is_learned(
    knobs: dict[str, Any], tmp_path: Path
) -> None:
    plain, other = (
        made.run(job(tmp_path / name, made)).stats["curve"]
        for name, made in (
            ("plain", Dpo(**SMALL)),
            ("other", Dpo(**{**SMALL, **knobs})),
        )
    )
    assert [point["loss"] for point in plain] != [point["loss"] for point in other]


@pytest.mark.slow
def test_223_tpo_learns_the_answers_of_best_and_counts_pairs_without_one(tmp_path: Path) -> None:
    stage = Dpo(**{**SMALL, "loss": "tpo"})
    outcome = stage.run(job(tmp_path, stage))
    [rows] = outcome.rows.values()
    assert (rows.into, rows.out, rows.dropped) == (12, 11, {"no_reference": 1})
    train, _ = dataset.read(tmp_path / "work" / "checkpoints" / "rows")
    assert {"prompt", "chosen", "rejected", "reference"} <= set(train.column_names)
    assert outcome.stats["chain"]["reference"] is None


@pytest.mark.slow
@pytest.mark.parametrize(("over", "good"), [("mean", 8), (0.5, 19)])
def test_67_kto_learns_from_scored_answers_without_pairs(
    over: Any, good: int, tmp_path: Path
) -> None:
    stage = Dpo(**{**SMALL, "loss": "kto", "unpaired": over, "held_out": 0.0})
    outcome = stage.run(job(tmp_path, stage, count=10))
    [rows] = outcome.rows.values()
    left_out = {"all_alike": 3} if over == "mean" else {}
    assert rows.dropped == left_out | {"unfinished": 1, "no_reward": 1}
    assert rows.into == 30 and rows.out == 30 - sum(rows.dropped.values())
    train, _ = dataset.read(tmp_path / "work" / "checkpoints" / "rows")
    # over the mean of 0, 1 and 5 is one of three; the first prompt has rewards of 2 alone
    assert sum(train["label"]) == good + (over != "mean") * 1
    assert outcome.stats["probe"]["applied"]


def test_67_scored_answers_of_one_kind_train_nothing(tmp_path: Path) -> None:
    stage = Dpo(**{**SMALL, "loss": "kto", "unpaired": 99.0})
    with pytest.raises(StageError, match="of 35 scored answers none is desirable; left out: no_r"):
        stage.run(job(tmp_path, stage))


@pytest.mark.slow
def test_125_dft_is_another_loss_and_packing_puts_rows_together(tmp_path: Path) -> None:
    def first_loss(name: str, **knobs: Any) -> Any:
        stage = Sft(**{**SMALL, **knobs})
        return stage.run(job(tmp_path / name, stage)).stats

    plain, dft, packed = first_loss("a"), first_loss("b", loss="dft"), first_loss("c", packing=True)
    assert dft["curve"][0]["loss"] != plain["curve"][0]["loss"]
    assert packed["steps"] < plain["steps"] and packed["trained_on"] == plain["trained_on"]
    assert packed["final"].keys() == plain["final"].keys()


@pytest.mark.slow
def test_45_rows_that_are_packed_do_not_see_each_other(tmp_path: Path) -> None:
    """The first step's loss is that of the same rows apart: their mean over tokens."""
    knobs = {**SMALL, "lora": {"dropout": 0.0}, "batch": 12, "held_out": 0.0, "lr": 1e-9}
    knobs["how"] = {**SMALL["how"], "micro_batch": 12}

    def loss_of(name: str, **more: Any) -> float:
        stage = Sft(**{**knobs, **more})
        trainer = config_of(stage, tmp_path / name)
        rows = list(trainer.train_dataset)
        batch = trainer.data_collator(rows)
        import torch

        with torch.no_grad():
            return float(trainer.compute_loss(trainer.model.eval(), batch))

    apart, packed = loss_of("apart"), loss_of("packed", packing=True)
    assert packed == pytest.approx(apart, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rslora", "dora"])
def test_an_adapter_of_another_kind_is_trained_merged_and_probed(kind: str, tmp_path: Path) -> None:
    from factory.training import adapters

    stage = Dpo(**{**SMALL, "lora": {kind: True}})
    made = job(tmp_path, stage)
    probed = stage.run(made).stats["probe"]
    assert adapters.read_config(made.out)[f"use_{kind}"]
    assert probed["applied"] and probed["merged"]["mean"] < 1e-4 > probed["engine"]["mean"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Sft, Reward])
@pytest.mark.parametrize("family", ["chatml", "llama3"])
def test_rows_are_tokenized_once_to_what_trl_makes_of_them(
    kind: Any, family: str, tmp_path: Path
) -> None:
    from datasets import Dataset

    from factory.engines import chat_template

    base = model_of_family(family, tmp_path / "base")
    stage = kind(**SMALL)
    made = job(tmp_path, stage, base=base)
    tokenizer = chat_template.load_tokenizer(str(base))
    task = task_of(stage, made)
    rows = [row(stage.rows_kind, n) for n in range(8)]
    rows = [r | dataset.encode(tokenizer, r, apart=False)[1] for r in rows]
    plain = Dataset.from_list([{name: r[name] for name in stage.columns} for r in rows])
    prepared = []
    for given in (plain, Dataset.from_list(rows)):
        trainer = trainers.build(task, tokenizer, given, None, [])
        prepared.append(list(trainer.train_dataset.select_columns(list(stage.tokens))))
    assert prepared[0] == prepared[1]


# --- label smoothing from the margin -------------------------------------------------------


def test_133_a_pair_is_swapped_as_often_as_its_margin_says() -> None:
    def rows(margin: float) -> list[dict[str, Any]]:
        return [
            {
                "prompt_id": f"p{n}",
                "chosen": "a",
                "rejected": "b",
                "reward_margin": margin,
                "chosen_ids": [1],
                "rejected_ids": [2],
            }
            for n in range(4000)
        ]

    for margin, share in ((0.0, 0.5), (2.0, 0.269), (4.0, 0.119), (1e6, 0.0)):
        made, figures = dataset.swapped(rows(margin), 2.0, 0)
        assert figures["swapped"] / 4000 == pytest.approx(share, abs=0.025)
        assert sum(row["chosen"] == "b" for row in made) == figures["swapped"]
        assert all((row["chosen"] == "b") == (row["chosen_ids"] == [2]) for row in made)
    assert dataset.swapped(rows(1.0), 2.0, 0) == dataset.swapped(rows(1.0), 2.0, 0)
    assert dataset.swapped(rows(1.0), 2.0, 0) != dataset.swapped(rows(1.0), 2.0, 1)


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "why"),
    [
        ({"use_weighting": True, "loss": "aot", "how": {"micro_batch": 2}}, "use_weighting is not"),
        ({"ld_alpha": 0.5, "loss": "simpo"}, "ld_alpha is not for simpo"),
        ({"f_divergence_type": "forward_kl", "loss": "apo_zero"}, "f_divergence_type is not for"),
        ({"f_divergence_type": "kl"}, "reverse_kl"),
        ({"f_alpha_divergence_coef": 0.3}, "is for f_divergence_type: alpha_divergence"),
        ({"unpaired": "mean"}, "unpaired is not for sigmoid"),
        ({"margin_smoothing": 1.0, "loss": "tpo"}, "margin_smoothing is not for tpo"),
        ({"loss": "tpo", "group_by_length": True}, "group_by_length is not for tpo"),
    ],
)
def test_a_knob_that_a_loss_does_not_have_is_refused(knobs: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Dpo(**knobs)


def test_packed_rows_have_no_lengths_to_group_by() -> None:
    with pytest.raises(ValidationError, match="packing leaves no rows of other lengths"):
        Sft(packing=True, group_by_length=True)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ((), "stages.dpo may load adapters of dpo with vLLM, which does not take DoRA"),
        (("stages.dpo.how.engine=transformers",), "stages.arena may load adapters of dpo"),
    ],
)
def test_dora_is_refused_where_vllm_may_load_it(more: tuple[str, ...], why: str) -> None:
    engines = ("stages.dpo.how.engine=transformers", "stages.arena.how.engine=transformers")
    demo("stages.dpo.lora.dora=true", *engines)
    demo("stages.dpo.lora.rslora=true")
    with pytest.raises(RecipeError, match=why):
        demo("stages.dpo.lora.dora=true", *more)
    with pytest.raises(RecipeError, match="magnitudes do not add up"):
        demo("stages.dpo.lora.dora=true", *engines, "stages.merge={of: [dpo]}")


def test_what_vllm_takes_of_lora_is_what_is_refused() -> None:
    peft_helper = pytest.importorskip("vllm.lora.peft_helper")
    base = {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
    helper = peft_helper.PEFTHelper
    assert helper.from_dict({**base, "use_rslora": True})._validate_features() == []
    assert "DoRA" in " ".join(helper.from_dict({**base, "use_dora": True})._validate_features())


def test_223_tpo_needs_the_stage_best() -> None:
    demo("stages.dpo.loss=tpo")
    with pytest.raises(RecipeError, match="reads sft, and no stage before it makes any"):
        demo("stages.dpo.loss=tpo", "stages.best=null", "stages.sft=null")


def test_new_knobs_at_their_defaults_are_no_part_of_identity() -> None:
    assert Dpo()._fields(lambda marks: not marks) == {}
    assert Sft(lora=Lora(dora=False))._fields(lambda marks: not marks) == {}

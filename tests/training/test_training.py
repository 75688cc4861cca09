"""Trainings on a tiny model with the real TRL and PEFT: every loss, the chain, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from factory.engines import chat_template
from factory.errors import InputError, StageError, WorkError
from factory.stage.job import Job
from factory.stage.outcome import Outcome
from factory.training import adapters, dataset, losses, monitoring, probe, trainers
from factory.training.merge import Merge
from factory.training.settings import PAPER_TARGETS
from factory.training.train import Dpo, Reward, Sft
from tests.support import trainings
from tests.support.families import FAMILIES, tokenizer_of
from tests.support.trainings import (
    SMALL,
    job,
    merge_job,
    model_of_family,
    row,
    rows_to_train,
    task_of,
    tiny_model,
)

pytestmark = pytest.mark.slow

# what a loss cannot do without, beside its name
NEEDS: dict[str, dict[str, Any]] = {
    "exo_pair": {"label_smoothing": 1e-3},
    "robust": {"label_smoothing": 0.1},
    "simpo": {"beta": 2.0},
    "mpo": {"loss": {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}},
}
# the row of the table of published systems that a loss belongs to
ROWS = {
    "bco_pair": 141, "kto": 67, "cpo": 171, "robust": 181, "mpo": 191, "orpo": 217, "tpo": 223,
    "tpo_l": 223, "sigmoid_norm": 231,
}  # fmt: skip


def row_of(loss: str) -> str:
    """The id of a loss: its row and its name."""
    return f"{ROWS[loss]}-{loss}" if loss in ROWS else loss


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads on a model this small wait for each other more than they work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def adapter_of(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(out / adapters.WEIGHTS)
    return found


def same(one: Path, other: Path) -> bool:
    import torch

    mine, theirs = adapter_of(one), adapter_of(other)
    return all(torch.equal(weight, theirs[name]) for name, weight in mine.items())


def trained(directory: Path, stage: Any, **more: Any) -> tuple[Job, Outcome]:
    made = job(directory, stage, **more)
    return made, stage.run(made)


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Outcome]:
    return trained(tmp_path_factory.mktemp("sft"), Sft(**{**SMALL, "lr": 1e-2, "epochs": 3}))


@pytest.fixture(scope="module")
def dpo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Outcome]:
    return trained(tmp_path_factory.mktemp("dpo"), Dpo(**SMALL))


# --- losses --------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [*losses.NAMES, "mpo"], ids=row_of)
def test_every_loss_trains_and_changes_every_layer(loss: str, tmp_path: Path) -> None:
    made, outcome = trained(tmp_path, Dpo(**{**SMALL, "loss": loss, **NEEDS.get(loss, {})}))
    stats = outcome.stats
    assert stats["steps"] >= 2
    assert monitoring.finite(stats["curve"]) and "eval_loss" in stats["final"]
    up = {name: weight for name, weight in adapter_of(made.out).items() if "lora_B" in name}
    assert len(up) == 2 * len(PAPER_TARGETS)
    assert all(weight.abs().max() > 0 for weight in up.values())
    assert stats["probe"]["applied"]
    assert stats["chain"]["reference"] == (None if loss in losses.WITHOUT_REFERENCE else "policy")


def test_the_table_of_losses_is_the_installed_trls() -> None:
    import re

    from trl import DPOConfig
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig

    told = str(DPOConfig.__dataclass_fields__["loss_type"].metadata["help"])
    assert tuple(re.findall(r"\'(\w+)\'", told)) == losses.DPO
    assert CPOConfig.__dataclass_fields__["simpo_gamma"].default == 0.5
    assert ORPOConfig.__dataclass_fields__["beta"].default == 0.1


def test_191_a_weighted_sum_is_the_sum_of_its_losses(tmp_path: Path) -> None:
    """Before the first step the policy is the reference: log 2, and the chosen answers' NLL."""
    _, alone = trained(tmp_path / "a", Dpo(**{**SMALL, "loss": {"sft": 1.0}}))
    _, mixed = trained(tmp_path / "b", Dpo(**{**SMALL, "loss": {"sigmoid": 1.0, "sft": 0.2}}))
    nll = alone.stats["curve"][0]["loss"]
    assert mixed.stats["curve"][0]["loss"] == pytest.approx(0.6931 + 0.2 * nll, abs=2e-3)


# --- sft -----------------------------------------------------------------------------------


def test_the_loss_of_sft_is_over_the_completion_alone_with_its_stop_token(tmp_path: Path) -> None:
    made = job(tmp_path, Sft(**SMALL))
    tokenizer = chat_template.load_tokenizer(str(tiny_model()))
    task = task_of(Sft(**SMALL), made)
    train, held_out = dataset.read(task.rows)
    trainer = trainers.build(task, tokenizer, train, held_out, [])
    [stop] = tokenizer.convert_tokens_to_ids(["<|im_end|>"])
    checked = 0
    for example, told in zip(trainer.train_dataset, train, strict=True):
        batch = trainer.data_collator([example])
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        prompt = chat_template.prompt_ids(tokenizer, told["prompt"])
        assert ids[: len(prompt)] == prompt
        assert labels[: len(prompt)] == [-100] * len(prompt)
        answer = labels[len(prompt) : len(ids)]
        assert answer == ids[len(prompt) :], "every token of the completion is learned"
        assert answer.count(stop) == 1, "the one that ends the turn is learned"
        assert ids.count(tokenizer.bos_token_id) == 2, "one opens each turn of ChatML, none more"
        checked += 1
    assert checked == len(train) > 4


def test_both_sides_of_a_pair_end_in_the_stop_token_and_begin_with_one_bos(tmp_path: Path) -> None:
    made = job(tmp_path, Dpo(**SMALL))
    tokenizer = chat_template.load_tokenizer(str(tiny_model()))
    task = task_of(Dpo(**SMALL), made)
    train, held_out = dataset.read(task.rows)
    trainer = trainers.build(task, tokenizer, train, held_out, [])
    stop, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    for example in trainer.train_dataset:
        for side in ("chosen_ids", "rejected_ids"):
            assert example[side].count(stop) == 1 and stop in example[side][-2:]
            ids = example["prompt_ids"] + example[side]
            assert ids[0] == bos != ids[1]


@pytest.mark.parametrize("family", [*FAMILIES])
def test_the_token_ids_of_pairs_are_those_that_trl_would_make(family: str) -> None:
    from types import SimpleNamespace

    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    tokenizer = tokenizer_of(family)
    asked = [{"role": "user", "content": "Quelle est la capitale ?"}]
    sides = {"chosen": "Paris, la capitale.", "rejected": "  "}
    row: dict[str, Any] = {
        side: [{"role": "assistant", "content": text}] for side, text in sides.items()
    } | {"prompt": asked, "chat_template_kwargs": chat_template.template_arguments(tokenizer) or {}}
    _, ids = dataset.encode(tokenizer, row, apart=True)
    _, whole = dataset.encode(tokenizer, row, apart=False)
    [trls] = DPOTrainer._prepare_dataset(
        SimpleNamespace(_tokenizer=tokenizer),
        Dataset.from_list([row]), tokenizer, DPOConfig(use_cpu=True, max_length=None), "train",
    )  # fmt: skip
    assert {name: list(tokens) for name, tokens in ids.items()} == {
        name: trls[name] for name in ids
    }
    assert {*ids} == {"prompt_ids", "chosen_ids", "rejected_ids"} and ids["prompt_ids"].size
    assert [*ids["prompt_ids"], *ids["chosen_ids"]] == [*whole["chosen_ids"]]


def test_a_template_without_a_stop_token_is_refused(tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny_model(), base)
    for path in base.glob("chat_template*"):
        path.write_text(path.read_text().replace("+ '<|im_end|>' ", ""))
    with pytest.raises(StageError, match="no stop token"):
        trained(tmp_path, Sft(**SMALL), base=base)


def test_thinking_is_off_in_training_as_it_is_in_sampling(tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny_model(), base)
    for path in base.glob("chat_template*"):
        switch = "{% if enable_thinking is not defined or enable_thinking %}Think!{% endif %}"
        path.write_text(switch + path.read_text())
    made, _ = trained(tmp_path, Dpo(**SMALL), base=base)
    tokenizer = chat_template.load_tokenizer(str(base))
    assert chat_template.template_arguments(tokenizer) == {"enable_thinking": False}
    told, held_out = dataset.read(made.work / "checkpoints" / "rows")
    task = Dpo(**SMALL)._task(made, made.work / "checkpoints")
    trainer = trainers.build(task, tokenizer, told, held_out, [])
    for example, row_told in zip(trainer.train_dataset, told, strict=True):
        assert example["prompt_ids"] == chat_template.prompt_ids(tokenizer, row_told["prompt"])


def test_sft_learns_its_rows(sft: tuple[Job, Outcome]) -> None:
    _, outcome = sft
    assert outcome.stats["curve"][-1]["loss"] < outcome.stats["curve"][0]["loss"]
    assert outcome.stats["chain"] == {
        "load_on": "local/tiny-random-llama", "revision": "a" * 40, "start": "policy",
    }  # fmt: skip
    assert outcome.template is not None and outcome.template["stop_tokens"] == ["<|im_end|>"]


# --- the chain -----------------------------------------------------------------------------


def test_dpo_goes_on_with_the_sft_adapter_and_is_one_adapter_for_the_policy(
    sft: tuple[Job, Outcome], tmp_path: Path
) -> None:
    stage = Dpo(**SMALL, start_from="sft")
    made, outcome = trained(tmp_path, stage, start=sft[0].out)
    first = outcome.stats["curve"][0]
    # the reference is the SFT adapter: at the first step nothing differs from it
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert first["rewards/margins"] == 0
    _, anew = trained(tmp_path / "anew", Dpo(**SMALL))
    assert first["logps/chosen"] > anew.stats["curve"][0]["logps/chosen"] + 1, "it starts from SFT"
    assert not same(made.out, sft[0].out)
    config = json.loads((made.out / adapters.CONFIG).read_text())
    assert config["base_model_name_or_path"] == "local/tiny-random-llama"
    assert config["revision"] == "a" * 40
    assert outcome.stats["chain"] == {
        "load_on": "local/tiny-random-llama", "revision": "a" * 40,
        "start": "local/smoke-sft-es", "start_revision": "fp-0123456789ab",
        "reference": "local/smoke-sft-es", "loss": "sigmoid",
    }  # fmt: skip
    assert sorted(path.name for path in made.out.iterdir() if path.suffix == ".safetensors") == [
        "adapter_model.safetensors"
    ]
    assert not (made.out / "ref").exists()


def test_layers_that_the_model_does_not_have_are_named_with_those_it_has(tmp_path: Path) -> None:
    stage = Dpo(**SMALL, lora={"targets": ["q_proj", "c_attn"]})
    with pytest.raises(StageError, match="no linear layers called c_attn") as told:
        trained(tmp_path, stage)
    assert "all-linear" in told.value.fix and "down_proj" in told.value.fix


def test_all_linear_is_every_layer_but_the_head(tmp_path: Path) -> None:
    made, _ = trained(tmp_path, Dpo(**SMALL, lora={"r": 2, "targets": "all-linear"}))
    named = {name.split(".")[-3] for name in adapter_of(made.out)}
    assert named == set(PAPER_TARGETS)


def test_loras_dropout_is_off_in_dpo_unless_it_is_asked_for(
    dpo: tuple[Job, Outcome], tmp_path: Path
) -> None:
    """TRL's default; so the published job's 0.05 was without effect."""
    off, _ = trained(tmp_path / "off", Dpo(**SMALL, lora={"dropout": 0.5}))
    on, _ = trained(tmp_path / "on", Dpo(**SMALL, lora={"dropout": 0.5}, disable_dropout=False))
    assert same(dpo[0].out, off.out)
    assert not same(dpo[0].out, on.out)


def test_a_reference_computed_beforehand_changes_nothing(
    dpo: tuple[Job, Outcome], tmp_path: Path
) -> None:
    how = {**SMALL["how"], "precompute_reference": "always"}
    _, outcome = trained(tmp_path, Dpo(**{**SMALL, "how": how}))
    mine, theirs = outcome.stats["curve"], dpo[1].stats["curve"]
    for one, other in zip(mine, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)


def test_rows_of_like_length_are_batched_when_it_is_asked_for(tmp_path: Path) -> None:
    for number, stage in enumerate((Sft, Dpo)):
        _, outcome = trained(tmp_path / str(number), stage(**SMALL, group_by_length=True))
        assert outcome.stats["steps"] >= 2


# --- refused, and told ---------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_it_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="not finite"):
        trained(tmp_path, Sft(**{**SMALL, "lr": 1e30}))
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_rows_over_the_budget_are_counted_and_too_few_are_refused(tmp_path: Path) -> None:
    tokenizer = chat_template.load_tokenizer(str(tiny_model()))
    sizes = sorted(max(dataset.encode(tokenizer, row("pairs", n))[0]) for n in range(12))
    # in batches of two: a training of one step, at the learning rate 0 of a warm-up, learns nothing
    _, outcome = trained(tmp_path, Dpo(**{**SMALL, "batch": 2, "max_length": sizes[7]}))
    counted = outcome.rows["es"]
    assert counted.into == 12 and counted.balanced()
    assert counted.dropped == {"too_long": sum(size > sizes[7] for size in sizes)}
    with pytest.raises(StageError, match="0 of 12 rows fit max_length"):
        trained(tmp_path / "none", Dpo(**{**SMALL, "max_length": 8}))


def test_rows_over_the_budget_are_cut_where_a_recipe_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = chat_template.load_tokenizer(str(tiny_model()))
    rows = [row("pairs", n) for n in range(12)]
    sizes = [max(dataset.encode(tokenizer, one)[0]) for one in rows]
    most = sorted(sizes)[3]
    read: list[int] = []
    built = trainers.build

    def watched(*arguments: Any) -> Any:
        trainer = built(*arguments)
        for batch in trainer.get_train_dataloader():
            read.extend(batch["attention_mask"].sum(dim=1).tolist())
        return trainer

    monkeypatch.setattr(trainers, "build", watched)
    knobs = {**SMALL, "batch": 2, "max_length": most, "over": "truncate", "held_out": 0}
    _, outcome = trained(tmp_path, Dpo(**knobs))
    assert outcome.rows["es"].out == 12 and not outcome.rows["es"].dropped
    assert outcome.stats["truncated"] == sum(size > most for size in sizes) > 1
    assert max(read) == most and len(read) == 2 * 12, "chosen and rejected, each cut at its end"
    longest = [one | {"prompt": one["chosen"]} for one in rows]  # no room for any answer
    with pytest.raises(StageError, match="0 of 12 rows fit"):
        Dpo(**{**knobs, "max_length": 8})._fitting(longest, tokenizer, "dpo")
    with pytest.raises(ValueError, match="over: truncate is not for kto"):
        Dpo(**{**SMALL, "loss": "kto", "over": "truncate"})


def test_a_reporter_that_is_not_installed_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = find_spec
    monkeypatch.setattr(
        trainers.importlib.util, "find_spec", lambda name: None if name == "wandb" else real(name)
    )
    with pytest.raises(InputError, match="wandb, which is not installed"):
        trained(tmp_path, Dpo(**{**SMALL, "how": {**SMALL["how"], "report_to": "wandb"}}))


def test_the_curve_has_what_a_person_watches(dpo: tuple[Job, Outcome]) -> None:
    _, outcome = dpo
    for entry in outcome.stats["curve"]:
        assert {
            "step", "loss", "grad_norm", "learning_rate", "rewards/accuracies", "rewards/margins",
            "logps/chosen",
        } <= entry.keys()  # fmt: skip
    assert {"eval_loss", "eval_rewards/accuracies"} <= outcome.stats["final"].keys()
    assert outcome.stats["batching"] == {"micro_batch": 2, "processes": 1, "accumulation": 2}


def test_control_tokens_in_rows_are_trained_on_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.training import launch

    def held(kind: str, number: int) -> dict[str, Any]:
        answer = {"role": "assistant", "content": f"No {number}.<|im_end|>\n<|im_start|>user\nBye"}
        return row(kind, number) | ({"rejected": [answer]} if number % 4 == 0 else {})

    rows: list[Any] = []
    real = launch.run
    monkeypatch.setattr(trainings, "row", held)
    monkeypatch.setattr(
        launch,
        "run",
        lambda task, progress: (rows.extend(dataset.read(task.rows)[0]), real(task, progress))[1],
    )
    _, outcome = trained(tmp_path, Dpo(**SMALL))
    assert any("< |im_end|>" in row["rejected"][-1]["content"] for row in rows)
    assert not any("<|im_end|>" in row["rejected"][-1]["content"] for row in rows)
    assert (
        "3 of 12 rows hold control tokens of the model, which are read as text"
        in (outcome.stats["alarms"])
    )


def test_rows_that_the_template_refuses_are_left_out_and_counted() -> None:
    tokenizer = tokenizer_of("mistral")
    rows = [row("pairs", number) for number in range(4)]
    rows[1]["prompt"] = [{"role": "system", "content": "Be brief."}, *rows[1]["prompt"]]
    kept, counts, _ = Dpo(**SMALL)._fitting(rows, tokenizer, "dpo[all]")
    assert len(kept) == 3 and counts.dropped == {chat_template.REFUSED: 1} and counts.balanced()


def test_53_a_margin_is_what_the_better_answer_must_win_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for margin, first in ((None, 0.6931), (100.0, 100.0)):
        monkeypatch.setattr(
            trainings, "row", lambda kind, n, m=margin: row(kind, n) | {"margin": m}
        )
        _, outcome = trained(tmp_path / str(margin), Reward(**SMALL))
        assert outcome.stats["curve"][0]["loss"] == pytest.approx(first, rel=0.1)


def test_a_reward_model_is_merged_and_has_no_probe(tmp_path: Path) -> None:
    made, outcome = trained(tmp_path, Reward(**SMALL))
    assert (made.out / "model.safetensors").exists()
    assert "probe" not in outcome.stats and outcome.template is None


@pytest.mark.parametrize("kind", [Reward, Dpo, Sft])
def test_figures_on_held_out_rows_are_means_over_rows(kind: Any, tmp_path: Path) -> None:
    """Whatever the micro batch: of three rows in batches of two, the third would count twice."""
    import torch
    from datasets import Dataset

    figures = []
    for size in (1, 2):
        stage = kind(**{**SMALL, "how": {"micro_batch": size, "evaluations": 1}})
        made = job(tmp_path / str(size), stage)
        rows = Dataset.from_list(rows_to_train(stage, 3))
        tokenizer = chat_template.load_tokenizer(str(tiny_model()))
        task = stage._task(made, made.work)
        torch.manual_seed(0)  # the head of a reward model
        found = trainers.build(task, tokenizer, rows, rows, []).evaluate()
        figures.append({k: v for k, v in monitoring.short(found).items() if "time" not in k})
    assert figures[0] == pytest.approx(figures[1], rel=1e-3) and len(figures[0]) > 1


@pytest.mark.parametrize("family", ["llama3", "mistral", "chatml"])
def test_a_reward_model_is_read_at_the_token_that_it_was_trained_at(
    family: str, tmp_path: Path
) -> None:
    """Also where the pad token would be EOS, and EOS ends every conversation: then transformers
    would skip what the last token says, in training and later."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from factory.engines.transformers import TransformersScorer

    base = model_of_family(family, tmp_path / "base")
    directory = trained(tmp_path / "run", Reward(**SMALL), base=base)[0].out
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    plain = AutoModelForSequenceClassification.from_pretrained(str(directory)).eval()
    talks = [
        [*row("preferences", n)["prompt"], *row("preferences", n)[side]]
        for n in range(12)
        for side in ("chosen", "rejected")
    ]
    ids = [chat_template.conversation_ids(tokenizer, talk) for talk in talks]
    pad = plain.config.pad_token_id
    assert pad is not None and pad == tokenizer.pad_token_id
    assert all(pad != row[-1] for row in ids)
    if family != "chatml":  # whose template ends in a line break: its pad token stays
        assert not any(pad in row for row in ids)
    texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        last = [float(plain.score(plain.model(torch.tensor([r]))[0][0, -1])) for r in ids]
        together = plain(batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0]
    assert together.tolist() == pytest.approx(last, abs=1e-4)
    assert TransformersScorer(directory, "float32").score(ids) == pytest.approx(last, abs=1e-4)


# --- the probe -----------------------------------------------------------------------------


def test_the_probe_finds_peft_the_engine_and_the_merged_model_in_agreement(
    dpo: tuple[Job, Outcome],
) -> None:
    found = dpo[1].stats["probe"]
    assert found["applied"] and found["base"]["mean"] > 5 * found["tolerance"]
    assert found["merged"]["max"] < 1e-4 and found["engine"]["max"] < 1e-4
    assert found["engine"]["name"].startswith("transformers ")


# Loading vLLM takes most of a minute, and more on a machine that others use.
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_and_peft_agree_on_an_adapter(dpo: tuple[Job, Outcome]) -> None:
    talks = [[*row("pairs", n)["prompt"], *row("pairs", n)["chosen"]] for n in range(3)]
    found = probe.probe(tiny_model(), dpo[0].out, talks, "float32", 256, "vllm")
    assert found["engine"]["name"].startswith("vllm ")
    assert probe.check(found, "dpo[es]") == []
    assert found["engine"]["mean"] < found["base"]["mean"] / 5


def test_an_engine_that_drops_the_adapter_is_refused(dpo: tuple[Job, Outcome]) -> None:
    found = dpo[1].stats["probe"]
    dropped = {**found, "engine": {"name": "vllm 0", **found["base"]}}
    with pytest.raises(StageError, match="vllm 0 differs from PEFT"):
        probe.check(dropped, "dpo[es]")


def test_ways_that_differ_by_more_than_rounding_are_said_and_nothing_is_thrown_away(
    dpo: tuple[Job, Outcome],
) -> None:
    found = dpo[1].stats["probe"]
    gap = {"max": 1.0, "mean": found["base"]["mean"] / 3}
    merged, engine = probe.check({**found, "merged": gap, "engine": {"name": "x", **gap}}, "dpo")
    assert merged.startswith("merged differs") and engine.startswith("x differs")


@pytest.mark.parametrize("share", [0.0, 1e-5])
def test_an_adapter_that_changes_nothing_but_by_rounding_is_refused(
    dpo: tuple[Job, Outcome], tmp_path: Path, share: float
) -> None:
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(dpo[0].out, tmp_path / "idle")
    weights = adapter_of(tmp_path / "idle")
    idle = {n: w * share if "lora_B" in n else w for n, w in weights.items()}
    save_file(idle, tmp_path / "idle" / adapters.WEIGHTS)
    talks = [row("pairs", n)["prompt"] for n in range(2)]
    found = probe.probe(tiny_model(), tmp_path / "idle", talks, "float32", 256)
    assert not found["applied"]
    assert (found["base"]["max"] > 0) == (share > 0)
    with pytest.raises(StageError, match="by more than rounding"):
        probe.check(found, "dpo[es]")


def test_an_adapter_of_another_base_is_refused(dpo: tuple[Job, Outcome], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny_model()))
    model.config.num_hidden_layers = 1
    model.model.layers = model.model.layers[:1]
    model.save_pretrained(str(tmp_path / "shallow"))
    with pytest.raises(InputError, match="of the adapter fit nothing"):
        adapters.load(tmp_path / "shallow", dpo[0].out, "float32")


def test_an_evaluation_of_an_adapter_that_was_not_applied_is_refused(
    dpo: tuple[Job, Outcome], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    probe.refuse_unapplied(dpo[0].out, "dpo-es")
    idle = {n: w * 0 if "lora_B" in n else w for n, w in adapter_of(dpo[0].out).items()}
    save_file(idle, tmp_path / adapters.WEIGHTS)
    with pytest.raises(StageError, match="dpo-es changes no logit"):
        probe.refuse_unapplied(tmp_path, "dpo-es")


# --- merging -------------------------------------------------------------------------------


def logits(directory: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([[1, 5, 9, 2, 33]])).logits


def test_merged_weights_say_what_the_adapter_says_and_the_base_is_left_alone(
    dpo: tuple[Job, Outcome], tmp_path: Path
) -> None:
    import torch

    from factory.artifacts.hashing import file_sha256

    base = {path.name: file_sha256(path) for path in tiny_model().iterdir()}
    to = tmp_path / "merged"
    adapters.merge(tiny_model(), dpo[0].out, to, "float32")
    assert {path.name: file_sha256(path) for path in tiny_model().iterdir()} == base
    tuned = adapters.load(tiny_model(), dpo[0].out, "float32")
    with torch.no_grad():
        wanted = tuned(torch.tensor([[1, 5, 9, 2, 33]])).logits
    assert torch.allclose(logits(to), wanted, atol=1e-5)
    assert not torch.allclose(logits(to), logits(tiny_model()), atol=1e-4)
    one, other = (chat_template.load_tokenizer(str(path)) for path in (to, tiny_model()))
    assert one.chat_template == other.chat_template and one.get_vocab() == other.get_vocab()
    names = {path.name for path in to.iterdir()}
    assert {"model.safetensors", "generation_config.json", "config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert str(tiny_model()) not in (to / "config.json").read_text()


def _merge_once(base: Path, adapter: Path, to: Path) -> str:
    """Return "won", or the error of a merge that came second."""
    try:
        adapters.merge(base, adapter, to, "float32")
    except WorkError as error:
        return error.what
    return "won"


def test_two_merges_at_once_cannot_collide(dpo: tuple[Job, Outcome], tmp_path: Path) -> None:
    # processes, as people have them: transformers cannot load two models in threads of one
    from multiprocessing import get_context

    to = tmp_path / "merged"
    with get_context("spawn").Pool(2) as pool:
        results = sorted(pool.starmap(_merge_once, [(tiny_model(), dpo[0].out, to)] * 2))
    assert results.count("won") == 1 and str(to) in results[0]
    assert [path.name for path in tmp_path.iterdir()] == ["merged"], "nothing is left beside it"
    logits(to)
    with pytest.raises(WorkError, match="is there already"):
        adapters.merge(tiny_model(), dpo[0].out, to)


@pytest.mark.parametrize("method", ["linear", "cat", "svd", "ties", "dare_linear", "dare_ties_svd"])
def test_adapters_are_merged_into_one_with_provenance(
    method: str, dpo: tuple[Job, Outcome], sft: tuple[Job, Outcome], tmp_path: Path
) -> None:
    stage = Merge(of=("sft", "dpo"), method=method, dtype="float32")
    made = merge_job(tmp_path, {"sft[es]": sft[0].out, "dpo[es]": dpo[0].out})
    stats = stage.run(made).stats
    assert [part["step"] for part in stats["merged"]] == ["sft[es]", "dpo[es]"]
    assert [part["weight"] for part in stats["merged"]] == [0.5, 0.5]
    assert stats["probe"]["applied"]
    config = adapters.read_config(made.out)
    assert config["base_model_name_or_path"] == "local/tiny-random-llama"
    assert {path.name for path in made.out.iterdir() if path.is_dir()} == set()
    assert str(made.out) not in (made.out / adapters.CONFIG).read_text()


def test_a_linear_merge_is_the_mean_of_the_changes(
    dpo: tuple[Job, Outcome], sft: tuple[Job, Outcome], tmp_path: Path
) -> None:
    """With cat, which is exact: PEFT's linear adds up the factors, and not their products."""
    import torch

    made = merge_job(tmp_path, {"sft[es]": sft[0].out, "dpo[es]": dpo[0].out})
    Merge(of=("sft", "dpo"), method="cat", dtype="float32").run(made)

    def change(adapter: Path) -> Any:
        found = adapter_of(adapter)
        [down] = [w for n, w in found.items() if "layers.0.self_attn.q_proj.lora_A" in n]
        [up] = [w for n, w in found.items() if "layers.0.self_attn.q_proj.lora_B" in n]
        config = adapters.read_config(adapter)
        return up @ down * config["lora_alpha"] / config["r"]

    wanted = (change(sft[0].out) + change(dpo[0].out)) / 2
    assert torch.allclose(change(made.out), wanted, atol=1e-6)

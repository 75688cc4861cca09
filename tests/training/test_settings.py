"""The pure parts of training: the split, the checkpoints, what devices are told. Trainings run in
test_training and test_resume."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.engines import choose
from factory.engines.chat_template import load_tokenizer
from factory.errors import StageError
from factory.training import launch, trainers
from factory.training.dataset import split
from factory.training.resume import COMPLETE, last_checkpoint
from factory.training.settings import Lora, Running, Task
from factory.training.train import Dpo, Online
from tests.support.trainings import SMALL, classifier_of, job, tiny_model

IDS = st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=30, unique=True)
SHARES = st.floats(0, 0.99)


def _rows(ids: list[str]) -> list[dict[str, str]]:
    return [{"prompt_id": name, "language": code} for name in ids for code in ("en", "es")]


@given(IDS, SHARES, st.integers(0, 5))
def test_a_split_loses_nothing_and_keeps_a_prompt_whole(
    ids: list[str], share: float, seed: int
) -> None:
    train, held = split(_rows(ids), share, seed)
    assert len(train) + len(held) == 2 * len(ids)
    assert not {r["prompt_id"] for r in train} & {r["prompt_id"] for r in held}
    assert train
    assert bool(held) == bool(share)


@given(IDS, SHARES, st.integers(0, 5))
def test_the_split_is_the_same_whatever_the_order_of_rows(
    ids: list[str], share: float, seed: int
) -> None:
    one, other = split(_rows(ids), share, seed), split(_rows(ids)[::-1], share, seed)
    for mine, theirs in zip(one, other, strict=True):
        assert {r["prompt_id"] for r in mine} == {r["prompt_id"] for r in theirs}


def test_another_seed_holds_others_out() -> None:
    ids = [f"p{i}" for i in range(200)]
    held = [{r["prompt_id"] for r in split(_rows(ids), 0.2, seed)[1]} for seed in (0, 1)]
    assert held[0] != held[1]
    assert all(20 <= len(one) <= 60 for one in held)


def test_a_half_written_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert not (tmp_path / "checkpoint-10").exists()
    assert last_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("there", "device", "dtype", "asked", "kernel"),
    [
        (True, "cuda", "bfloat16", "auto", "flash_attention_2"),
        (True, "cuda", "float32", "auto", "sdpa"),  # it has no float32
        (True, "cpu", "bfloat16", "auto", "sdpa"),
        (False, "cuda", "bfloat16", "auto", "sdpa"),  # never required
        (True, "cuda", "bfloat16", "eager", "eager"),
        (False, "cuda", "bfloat16", "flash_attention_2", "flash_attention_2"),
    ],
)
def test_flash_attention_is_taken_where_it_is_there_and_can_be(
    there: bool, device: str, dtype: str, asked: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainers.importlib.util.find_spec

    def spec(name: str, *more: Any) -> Any:
        return (object() if there else None) if name == "flash_attn" else real(name, *more)

    monkeypatch.setattr(trainers.importlib.util, "find_spec", spec)
    monkeypatch.setattr(trainers, "device_of", lambda task: device)
    assert trainers.attention(task(dtype=dtype, attn=asked)) == kernel


def test_accelerate_is_told_of_as_many_gpus_as_the_recipe_asks_for() -> None:
    told = launch.config(task(processes=4), "cuda", 8)
    assert (told["distributed_type"], told["num_processes"]) == ("MULTI_GPU", 4)
    told = launch.config(task(processes=4, strategy="fsdp"), "cuda", 4)
    assert told["distributed_type"] == "FSDP"
    assert told["fsdp_config"]["fsdp_version"] == 2
    with pytest.raises(StageError, match="4, this machine has 2 GPUs") as raised:
        launch.config(task(processes=4), "cuda", 2)
    assert "the batch stays 64" in raised.value.fix
    with pytest.raises(StageError, match="over GPUs alone"):
        launch.config(task(processes=2, strategy="fsdp"), "cpu", 0)


@pytest.mark.parametrize(
    ("gpus", "how", "batch", "processes"),
    [
        (0, {}, 64, 1),
        (1, {}, 64, 1),
        (2, {}, 64, 2),
        (8, {"micro_batch": 2}, 64, 8),
        (8, {"micro_batch": 16}, 64, 4),
        (3, {}, 64, 2),
        (8, {"processes": 2}, 64, 2),
        (8, {}, 7, 7),
    ],
)
def test_a_training_takes_all_gpus_that_can_share_its_batch(
    gpus: int, how: dict[str, Any], batch: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "gpu_count", lambda: gpus)
    assert launch.spread(Running(**how), batch).processes == processes


def test_19_online_draws_with_vllm_where_there_is_a_gpu_and_its_tokens_are_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = load_tokenizer(str(tiny_model()))
    real = trainers.importlib.util.find_spec
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setattr(
        trainers.importlib.util, "find_spec", lambda n, *a: n if n == "vllm" else real(n, *a)
    )
    assert trainers.drawing(task(), tokenizer) == {}, "there is no GPU"
    monkeypatch.setattr(trainers, "device_of", lambda task: "cuda")
    drawn = trainers.drawing(task(), tokenizer)
    assert drawn["use_vllm"] and drawn["vllm_mode"] == "colocate"
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert trainers.drawing(task(engine="transformers"), tokenizer) == {}
    template = str(tokenizer.chat_template)
    tokenizer.chat_template = "{% if enable_thinking is not defined %}Think. {% endif %}" + template
    assert trainers.drawing(task(), tokenizer) == {}, "it would be asked for its thoughts"
    rl = task().model_copy(update={"method": "rl"})
    assert trainers.drawing(rl, tokenizer) == drawn, "TRL hands it token ids"


@pytest.mark.parametrize("method", ["online", "rl"])
def test_answers_that_vllm_cannot_draw_are_told_of_or_refused_where_it_was_asked_for(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(str(tiny_model()))
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")

    def asked(engine: str) -> Task:
        return task(engine=engine).model_copy(update={"method": method})

    with pytest.raises(StageError, match=r"how.engine is vllm, .*: there is no GPU"):
        trainers.slow_drawing(asked("vllm"), tokenizer)
    assert trainers.slow_drawing(asked("auto"), tokenizer) is None, "nothing is faster on a CPU"
    real = trainers.importlib.util.find_spec
    monkeypatch.setattr(trainers, "device_of", lambda task: "cuda")
    monkeypatch.setattr(
        trainers.importlib.util, "find_spec", lambda n, *a: None if n == "vllm" else real(n, *a)
    )
    with pytest.raises(StageError, match="draw its answers: vLLM is not installed"):
        trainers.drawing(asked("vllm"), tokenizer)
    said = trainers.slow_drawing(asked("auto"), tokenizer)
    assert said is not None and "by itself" in said and "vLLM is not installed" in said
    assert ("50 times" in said) == (method == "online")
    assert trainers.slow_drawing(asked("transformers"), tokenizer) is None, "so it was asked for"
    monkeypatch.setattr(trainers.importlib.util, "find_spec", lambda name, *_: name)
    assert trainers.slow_drawing(asked("auto"), tokenizer) is None
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1", "the probe's vLLM is another one"
    assert trainers.slow_drawing(task(), tokenizer) is None, "dpo draws nothing"


def test_an_engine_that_is_not_there_and_slow_drawing_are_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def begun(*_: Any) -> None:
        raise StageError("training began", "")

    real = choose.importlib.util.find_spec
    monkeypatch.setattr(launch, "run", begun)
    monkeypatch.setattr(
        choose.importlib.util, "find_spec", lambda n, *a: None if n == "vllm" else real(n, *a)
    )
    stage = Dpo(**{**SMALL, "how": {"engine": "vllm"}})
    with pytest.raises(StageError, match="the engine 'vllm' needs vllm, which is not installed"):
        stage.run(job(tmp_path / "dpo", stage))
    monkeypatch.setattr(trainers, "slow_drawing", lambda task, _: f"{task.method} is slow")
    online: Any = Online(**{**SMALL, "held_out": 0, "max_tokens": 64})
    with pytest.raises(StageError, match="training began"):
        online.run(job(tmp_path / "online", online, reward=tiny_model()))
    assert caplog.messages == ["online[es]: online is slow"]


def test_rows_are_tokenized_in_several_processes_while_gpus_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "dataset_num_proc" not in trainers.arguments(task(), evaluate=False)
    monkeypatch.setattr(trainers, "device_of", lambda task: "cuda")
    monkeypatch.setattr(trainers.os, "sched_getaffinity", lambda _: range(56))
    assert trainers.arguments(task(), evaluate=False)["dataset_num_proc"] == 16
    online = task().model_copy(update={"method": "online"})
    assert "dataset_num_proc" not in trainers.arguments(online, evaluate=False)


@pytest.mark.slow  # TRL imports vLLM where it is installed
def test_trl_knows_the_knobs_that_online_draws_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setattr(trainers, "device_of", lambda task: "cuda")
    monkeypatch.setattr(trainers.importlib.util, "find_spec", lambda name: name)
    drawn = trainers.drawing(task(), load_tokenizer(str(tiny_model())))
    monkeypatch.undo()
    from trl.experimental.online_dpo import OnlineDPOConfig

    assert drawn and set(drawn) <= {field.name for field in dataclasses.fields(OnlineDPOConfig)}


@pytest.mark.parametrize("gpus", ["6", "6,7"])
def test_one_process_on_gpus_is_another_one_that_sees_one(
    gpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    started: dict[str, Any] = {}

    class Process:
        """Ends at once, with a result."""

        returncode = 0

        def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
            started.update(command=command, env=env)
            (tmp_path / "result.json").write_text(json.dumps({"steps": 3}))

        def poll(self) -> int:
            """It has ended."""
            return 0

        wait = poll

    count = len(gpus.split(","))
    monkeypatch.setattr(launch, "gpu_count", lambda: count)
    monkeypatch.setattr(launch.trainers, "device_of", lambda task: "cuda")
    monkeypatch.setattr(launch.subprocess, "Popen", Process)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    made = task(processes=1).model_copy(update={"work": tmp_path})
    assert launch.run(made, lambda *_: None) == {"steps": 3}
    assert started["command"][1:3] == ["-m", "factory.training.worker"]
    visible = [started["env"][f"{name}_VISIBLE_DEVICES"] for name in ("CUDA", "HIP")]
    assert visible == ["6", "6"]


def test_the_reward_that_online_and_rl_learn_from_is_not_rounded_to_half_precision(
    tmp_path: Path,
) -> None:
    import torch

    reward = classifier_of(tiny_model(), tmp_path / "reward")
    judge, _ = trainers._judge(task().model_copy(update={"reward": reward}))
    assert judge.model.dtype == torch.bfloat16 and judge.score.weight.dtype == torch.float32
    ids = torch.tensor([[7 + n, 8, 9] for n in range(40)])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):  # so TRL's trainers call it
        values = judge(ids).logits
    assert (values != values.bfloat16()).sum() > 30


def test_sixty_four_rows_a_step_stay_sixty_four_whatever_the_devices() -> None:
    for processes in (1, 2, 8, 32):
        for micro_batch in (1, 2):
            made = task(processes=processes, micro_batch=micro_batch)
            assert made.accumulation * micro_batch * processes == made.batch == 64


def task(dtype: str = "bfloat16", **how: Any) -> Task:
    """A task with the paper's settings; nothing of it is on disk."""
    here = Path("nowhere")
    return Task(
        step="dpo[es]", method="preference", base=here, rows=here, work=here, out=here, seed=0,
        lr=5e-6, epochs=1, batch=64, warmup=0.05, weight_decay=0.01, max_length=4096,
        lora=Lora(), dtype=dtype, how=Running(**how),
    )  # fmt: skip

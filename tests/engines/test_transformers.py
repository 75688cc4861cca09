"""The transformers engine on a tiny real model: what it promises, whatever the batch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from factory.engines import Completion, Sampling, chat_template
from factory.errors import InputError, StageError
from factory.execution.builtin_models import POCKET
from factory.rewards.backends.classifier import Classifier
from tests.support.trainings import adapter_of, classifier_of, model_of_family


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    POCKET["local/tiny-random-llama"].build(out)
    return out


@pytest.fixture(scope="module")
def classifier(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier_of(model, tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def sampler(model: Path) -> Any:
    from factory.engines.transformers import TransformersSampler

    return TransformersSampler(model, "float32")


@pytest.fixture(scope="module")
def scorer(classifier: Path) -> Any:
    from factory.engines.transformers import TransformersScorer

    return TransformersScorer(classifier, "float32")


def _prompts(sampler: Any, *texts: str) -> list[list[int]]:
    return [
        chat_template.prompt_ids(sampler.tokenizer, [{"role": "user", "content": t}]) for t in texts
    ]


def test_the_same_call_gives_the_same_answers(sampler: Any) -> None:
    prompts = _prompts(sampler, "Hello", "A longer question about bread and water")
    sampling = Sampling(1.0, 1.0, 8)
    assert sampler.sample(prompts, sampling, 1) == sampler.sample(prompts, sampling, 1)
    assert sampler.sample(prompts, sampling, 1) != sampler.sample(prompts, sampling, 2)


def test_one_load_of_a_base_answers_for_all_its_adapters_as_each_would_alone(
    model: Path, sampler: Any, tmp_path: Path
) -> None:
    from factory.engines.transformers import TransformersSampler

    prompts = _prompts(sampler, "Hello", "A longer question about bread and water and salt")
    adapters = [
        adapter_of(model, tmp_path / "a", r=4, target_modules=["q_proj", "v_proj"]),
        adapter_of(model, tmp_path / "b", r=12, target_modules=["q_proj", "down_proj"]),
        adapter_of(
            model, tmp_path / "c", r=8, target_modules=["k_proj"], modules_to_save=["lm_head"]
        ),
    ]
    greedy = Sampling(0, 1, 8)
    alone = {
        one: TransformersSampler(model, "float32", one).sample(prompts, greedy, 0)
        for one in (None, *adapters)
    }
    answers = [tuple(s.token_ids for s in said) for said in alone.values()]
    assert len(set(answers)) == 4, "else the test would show nothing"
    shared = TransformersSampler(
        model, "float32", adapters[1], other_adapters=[adapters[0], adapters[2]]
    )
    assert shared.sample(prompts, greedy, 0) == alone[adapters[1]], "it wears the first"
    for one in (None, adapters[2], adapters[0], None):  # out of a whole layer, and back
        shared.set_adapter(one)
        assert shared.sample(prompts, greedy, 0) == alone[one]
    with pytest.raises(KeyError):
        shared.set_adapter(tmp_path / "d")


def test_an_adapter_that_would_change_nothing_is_refused(model: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from factory.engines.transformers import TransformersSampler

    base = AutoModelForCausalLM.from_pretrained(str(model))
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(base, prompt).save_pretrained(str(tmp_path / "prompt"))
    with pytest.raises(InputError, match="no LoRA adapter"):
        TransformersSampler(model, "float32", tmp_path / "prompt")
    strange = adapter_of(model, tmp_path / "strange", r=4, target_modules=["q_proj"])
    config = json.loads((strange / "adapter_config.json").read_text())
    (strange / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["qkv"]}))
    with pytest.raises(StageError, match="does not fit"):
        TransformersSampler(model, "float32", strange)


def test_greedy_answers_do_not_depend_on_neighbours(sampler: Any) -> None:
    short, long = _prompts(sampler, "Hello", "A longer question about bread and water and salt")
    greedy = Sampling(0, 1, 8)
    together = sampler.sample([short, long], greedy, 0)
    assert together == sampler.sample([short], greedy, 0) + sampler.sample([long], greedy, 0)


def test_prompts_of_like_length_are_drawn_together_and_answers_keep_their_order(
    sampler: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.engines.transformers import TransformersSampler

    by_twos = TransformersSampler(model, "float32", rows=2)
    draw, batches = by_twos._batch, []

    def watched(prompts: Any, *more: Any) -> Any:
        batches.append([len(prompt) for prompt in prompts])
        return draw(prompts, *more)

    monkeypatch.setattr(by_twos, "_batch", watched)
    one, two, three = _prompts(sampler, "Hello", "Hello and how is it", "word " * 30)
    asked, greedy = [one, three, two, one, three, two], Sampling(0, 1, 6)
    together = by_twos.sample(asked, greedy, 0)
    alone = [sampler.sample([p], greedy, 0)[0] for p in asked]
    assert [sample.token_ids for sample in together] == [sample.token_ids for sample in alone]
    assert batches == [[len(p)] * 2 for p in (three, two, one)]  # nothing was padded
    assert by_twos.sample([], greedy, 0) == []


def test_an_answer_that_is_cut_says_so(sampler: Any) -> None:
    [sample] = sampler.sample(_prompts(sampler, "Hello"), Sampling(0, 1, 3), 0)
    assert sample.finish_reason == "length" and len(sample.token_ids) == 3


def test_an_answer_ends_before_its_stop_token() -> None:
    assert Completion.cut([5, 6, 2, 7], frozenset({2, 3}), 4) == Completion((5, 6), "stop", 4)
    assert Completion.cut([5, 6], frozenset({2, 3}), 4) == Completion((5, 6), "length", 4)


def test_a_score_does_not_depend_on_the_batch(scorer: Any) -> None:
    rows = [[7, 8, 9], [10] * 40, [11, 12], [0, 1, 2, 3]]  # 0 is the tokenizer's own pad token
    together = scorer.score(rows)
    apart = [scorer.score([row])[0] for row in rows]
    assert together == pytest.approx(apart, abs=1e-5)


def test_a_score_is_the_raw_logit_at_the_last_token(scorer: Any, classifier: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(str(classifier)).eval()
    ids = [[7, 8, 9, 10]]
    with torch.no_grad():
        hidden = plain.model(torch.tensor(ids)).last_hidden_state[:, -1]
        expected = float(plain.score(hidden)[0, 0])
    assert scorer.score(ids)[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["llama3", "mistral"])
@pytest.mark.parametrize("padded", [True, False])
def test_a_classifier_is_read_as_transformers_reads_it(
    family: str, padded: bool, tmp_path: Path
) -> None:
    """Where the pad token ends a conversation, that is the token before it."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from factory.engines.transformers import TransformersScorer

    base = model_of_family(family, tmp_path / "base")
    tokenizer = chat_template.load_tokenizer(str(base))
    made = classifier_of(base, tmp_path / "classifier")
    config = made / "config.json"
    pad = tokenizer.eos_token_id if padded else None
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token_id": pad}))
    plain = AutoModelForSequenceClassification.from_pretrained(str(made)).eval()
    asked = {"role": "user", "content": "Hello"}
    talks = [[asked, {"role": "assistant", "content": t}] for t in ("Good day to you.", "Hi", "x")]
    rows = [chat_template.conversation_ids(tokenizer, talk) for talk in talks]
    assert all(row[-1] == tokenizer.eos_token_id for row in rows)
    with torch.no_grad():
        expected = [float(plain(torch.tensor([row])).logits[0, 0]) for row in rows]
        last = [float(plain.score(plain.model(torch.tensor([row]))[0][0, -1])) for row in rows]
    assert (expected == pytest.approx(last, abs=1e-4)) is not padded
    assert TransformersScorer(made, "float32").score(rows) == pytest.approx(expected, abs=1e-5)


def test_too_long_is_a_reason_and_not_a_number(scorer: Any) -> None:
    reward = Classifier(scorer, max_tokens=20)
    prompt = [{"role": "user", "content": "Hello"}]
    fits, over = reward([(prompt, "hi"), (prompt, "word " * 50)])
    assert fits.value is not None and fits.status == "ok"
    assert over.value is None and over.status == "too_long" and over.n_tokens > 20


RAN_OUT = "CUDA out of memory. Tried to allocate 2.00 GiB"
OF_BLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


def _short_of_memory(
    monkeypatch: pytest.MonkeyPatch, engine: Any, rows: int, says: str = RAN_OUT
) -> list[int]:
    """Let an engine have memory for batches of so many rows; the sizes that it tries. What torch
    says of its own memory has a class of its own."""
    import torch

    kind = torch.OutOfMemoryError if says == RAN_OUT else RuntimeError
    batch, tried = engine._batch, []

    def limited(sequences: Any, *more: Any) -> Any:
        tried.append(len(sequences))
        if len(sequences) > rows:
            raise kind(says)
        return batch(sequences, *more)

    monkeypatch.setattr(engine, "_batch", limited)
    return tried


@pytest.mark.parametrize("says", [RAN_OUT, OF_BLAS])
def test_where_memory_runs_out_batches_are_halved_and_nothing_is_lost(
    says: str, model: Path, sampler: Any, scorer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.engines.transformers import TransformersLikelihood, TransformersSampler

    rows = [[7 + n, 8, 9, 10 + n] for n in range(9)]
    greedy = Sampling(0, 1, 4)
    small = TransformersSampler(model, "float32")
    expected = [sample.token_ids for sample in small.sample(rows, greedy, 0)]
    monkeypatch.setattr(small, "_rows", 8)
    tried = _short_of_memory(monkeypatch, small, 2, says)
    drawn = small.sample(rows, greedy, 0)
    assert tried == [8, 4, 2, 2, 2, 2, 1], "and no more than fits is tried again"
    assert [sample.token_ids for sample in drawn] == expected
    assert len({sample.seed for sample in drawn}) == 5, "a stream for each batch"

    scores = scorer.score(rows)
    with monkeypatch.context() as within:
        _short_of_memory(within, scorer, 2, says)
        assert scorer.score(rows) == pytest.approx(scores, abs=1e-5)
        scorer._share = 1

    likelihood = TransformersLikelihood(model, "float32")
    values = likelihood.log_probs(rows, [1] * 9)
    _short_of_memory(monkeypatch, likelihood, 3, says)
    for ours, plain in zip(likelihood.log_probs(rows, [1] * 9), values, strict=True):
        assert ours == pytest.approx(plain, abs=1e-5)


def test_a_row_that_does_not_fit_alone_says_what_would_help(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.engines.transformers import TransformersSampler

    sampler = TransformersSampler(model, "float32")
    _short_of_memory(monkeypatch, sampler, 0)
    with pytest.raises(StageError, match="CUDA out of memory") as caught:
        sampler.sample([[7, 8, 9]] * 4, Sampling(0, 1, 4), 0)
    assert "tensor_parallel" in caught.value.fix
    _short_of_memory(monkeypatch, sampler, 0, "a kernel is not there")
    with pytest.raises(RuntimeError, match=r"^a kernel is not there$"):
        sampler.sample([[7, 8, 9]] * 4, Sampling(0, 1, 4), 0)


def test_a_reward_in_half_precision_is_not_rounded_to_it(classifier: Path) -> None:
    import torch

    from factory.engines.transformers import TransformersScorer

    scorer = TransformersScorer(classifier, "bfloat16")
    values = scorer.score([[7 + n, 8, 9] for n in range(40)])
    rounded = [float(torch.tensor(value).bfloat16()) for value in values]
    assert sum(value != other for value, other in zip(values, rounded, strict=True)) > 30


@pytest.mark.parametrize(
    ("given", "there", "fits"),
    [
        ({}, 0, True),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, True),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0, True),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0, True),
        ({"CUDA_VISIBLE_DEVICES": "0"}, 0, False),
        ({"ROCR_VISIBLE_DEVICES": "3"}, 0, False),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 3, False),
        ({"CUDA_VISIBLE_DEVICES": "GPU-7d,GPU-1b", "ROCR_VISIBLE_DEVICES": "0,1"}, 2, True),
        ({"HIP_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": "2,3"}, 1, True),
        ({"CUDA_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": "3"}, 0, False),
    ],
)
def test_gpus_that_were_given_and_are_gone_end_the_task(
    given: dict[str, str], there: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.engines import choose, transformers

    monkeypatch.setattr(transformers, "gpu_count", lambda: there)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if fits:
        assert choose.resolve_engine("transformers") == "transformers"
        return
    with pytest.raises(StageError, match=rf"torch finds {there}: \S") as caught:
        choose.resolve_engine("auto")
    assert "driver" in caught.value.fix


def test_a_gpu_that_fails_while_a_model_is_loaded_is_no_fault_of_the_model(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import transformers

    from factory.engines.transformers import TransformersSampler

    def from_pretrained(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(torch.OutOfMemoryError):
        TransformersSampler(model, "float32")


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        ("nvidia-smi", "NVIDIA H100, 81559 MiB, 550.54"),
        ("rocm-smi", '{"card0": {"Card Series": "MI250X"}, "system": {"Driver version": "6.3"}}'),
    ],
)
def test_nobody_works_on_the_cpu_of_a_machine_with_gpus_without_a_word(
    tool: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.engines import choose, transformers

    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transformers, "gpu_count", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / tool
    path.write_text("#!/bin/sh\nexit 9\n")
    path.chmod(0o755)
    assert choose.resolve_engine("auto") == "transformers", "a tool without its driver"
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    for engine in ("auto", "vllm"):
        with pytest.raises(
            StageError, match=r"this machine has 1 x .*, and torch finds none: torch"
        ) as r:
            choose.resolve_engine(engine)
        assert "how.engine: transformers" in r.value.fix
    assert choose.resolve_engine("transformers") == "transformers"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose.resolve_engine("auto") == "transformers", "they are hidden"

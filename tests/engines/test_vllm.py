"""The vLLM engine on a CPU, against transformers on the same tiny real models.

Each start takes about 20 s on a quiet 2-core machine, so tests share engines.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from factory.artifacts.resources import install_command
from factory.engines import Sampling, chat_template, checkpoint
from factory.engines.choose import EngineKnobs, resolve_engine
from factory.engines.guard import descendants
from factory.engines.vllm import RANKS, max_lora_rank
from factory.errors import InputError, StageError
from factory.rewards.score import ScoreHow
from factory.sampling.generate import GenerateHow
from tests.support import multimodal
from tests.support.trainings import adapter_of, classifier_of, model_of_family, opinionated

there = pytest.mark.skipif(
    not importlib.util.find_spec("vllm"), reason="vLLM is not installed: make install-vllm"
)
GREEDY = Sampling(0, 1, 12)


@pytest.mark.parametrize(("asked", "given"), [(1, 8), (8, 8), (9, 16), (65, 128), (257, 320)])
def test_a_rank_is_snapped_up_to_one_that_vllm_takes(asked: int, given: int) -> None:
    assert max_lora_rank(asked) == given


def test_a_rank_above_all_is_refused() -> None:
    assert max_lora_rank(512) == RANKS[-1]
    with pytest.raises(InputError, match="512"):
        max_lora_rank(513)


@there
@pytest.mark.slow
def test_our_ranks_are_among_vllms() -> None:
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    assert set(RANKS) <= set(get_args(MaxLoRARanks))


def test_a_missing_engine_names_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name)
    )
    with pytest.raises(StageError) as caught:
        resolve_engine("vllm")
    assert install_command("vllm") in caught.value.fix
    assert resolve_engine("auto") == "transformers"


def test_without_a_gpu_transformers_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr("factory.engines.transformers.has_gpu", lambda: False)
    assert resolve_engine("auto") == "transformers"
    monkeypatch.setattr("factory.engines.transformers.has_gpu", lambda: True)
    assert resolve_engine("auto") == "vllm"


def test_continuous_batching_in_transformers_is_refused_with_the_way_around() -> None:
    for how in (EngineKnobs, ScoreHow, GenerateHow):
        with pytest.raises(ValidationError, match="was removed: leave batching out"):
            how(batching="continuous")
        assert how(batching="static") == how(), "what it always was is still read"


def test_knobs_reach_vllm_in_its_words() -> None:
    knobs = EngineKnobs(tensor_parallel=2, max_num_seqs=7, max_num_batched_tokens=9000)
    assert knobs.vllm() == {
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.9,
        "max_num_seqs": 7,
        "max_num_batched_tokens": 9000,
    }


class Stand:
    """Stands for vLLM's engine: answers with the settings that it was opened with."""

    opened: list[dict[str, Any]]
    closed = 0
    gate: threading.Event | None = None

    def __init__(self, directory: Path, adapters: Any, settings: dict[str, Any]) -> None:
        type(self).opened.append(settings)
        self.seed, self.tokens, self._end = settings.get("seed", 0), 5, threading.Event()

    def ask(self, requests: Any, adapter: Any = None) -> list[Any]:
        """Answer at once, or when the gate opens."""
        if self.gate is not None and len(requests) == 2:
            self.gate.wait(10)
        assert not self._end.is_set(), "it is never closed under a caller"
        return [types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=[7])])] * len(
            requests
        )

    def close(self) -> None:
        """Close it."""
        self._end.set()
        type(self).closed += 1


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> type[Stand]:
    """vLLM's engine replaced, so that nothing is loaded and vLLM need not be there."""
    from factory.engines import vllm as ours

    fake = types.ModuleType("vllm")
    fake.__version__ = "0"  # type: ignore[attr-defined]
    fake.SamplingParams = dict  # type: ignore[attr-defined]
    parameters = types.ModuleType("vllm.sampling_params")
    parameters.RequestOutputKind = types.SimpleNamespace(FINAL_ONLY=1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", parameters)
    engine = type("Engine", (Stand,), {"opened": []})
    monkeypatch.setattr(ours, "_Engine", engine)
    return engine


def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every checkpoint have a context of 131,072 tokens, as TranslateGemma's."""
    read = checkpoint.read

    def wider(directory: Path) -> checkpoint.Checkpoint:
        return dataclasses.replace(read(directory), max_context=131072)

    monkeypatch.setattr(checkpoint, "read", wider)


def test_vllm_is_opened_for_the_longest_request_and_again_for_a_longer_one(
    model: Path, stand: type[Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.engines.vllm import VllmSampler

    wide(monkeypatch)
    engine = VllmSampler(model, "bfloat16", how=EngineKnobs().vllm())
    seeds = []
    for length in (10, 3000, 4097, 5000, 60000, 70000):
        seeds.append(engine.sample([[7] * length], Sampling(1, 1, 90), 5)[0].seed)
    lengths = [settings["max_model_len"] for settings in stand.opened]
    assert lengths == [4096, 8192, 65536, 131072] and stand.closed == 3
    assert [settings["seed"] for settings in stand.opened] == [5, 6, 7, 8], "no stream twice"
    assert seeds == [5, 5, 6, 6, 7, 8], "and each answer says its own"
    assert engine.tokens == 20
    engine.close()
    assert stand.closed == 4 and engine.tokens == 20


def test_a_reward_model_loads_while_the_first_rows_are_tokenized(
    classifier: Path, stand: type[Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.engines.vllm import VllmScorer

    wide(monkeypatch)
    sys.modules["vllm"].LLMEngine = object  # type: ignore[attr-defined]
    engine = VllmScorer(classifier, "bfloat16", longest=9000)
    end = time.monotonic() + 10
    while not stand.opened and time.monotonic() < end:
        time.sleep(0.01)
    assert [settings["max_model_len"] for settings in stand.opened] == [16384]
    engine.close()
    assert stand.closed == 1
    VllmScorer(classifier, "bfloat16", how={"max_model_len": 5000}, longest=9000).close()
    assert stand.opened[1]["max_model_len"] == 5000 and stand.closed == 2


def test_a_length_that_the_recipe_gives_stands(
    model: Path, stand: type[Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.engines.vllm import VllmSampler

    wide(monkeypatch)
    engine = VllmSampler(model, "bfloat16", how=EngineKnobs(max_model_len=5000).vllm())
    engine.sample([[7] * 10], Sampling(1, 1, 90), 5)
    assert [settings["max_model_len"] for settings in stand.opened] == [5000]
    with pytest.raises(InputError, match="5050 tokens"):
        engine.sample([[7] * 4960], Sampling(1, 1, 90), 5)


def test_a_longer_request_waits_for_those_under_way(
    model: Path, stand: type[Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.engines.pipelining import run
    from factory.engines.vllm import VllmSampler

    wide(monkeypatch)
    engine = VllmSampler(model, "bfloat16")
    stand.gate = threading.Event()
    batches = [[[7] * 10] * 2, [[7] * 9000], [[7] * 20], [[7] * 30]]
    threading.Timer(0.3, stand.gate.set).start()
    done = run(batches, lambda batch: engine.sample(batch, Sampling(1, 1, 8), 5), lanes=2)
    assert len(list(done)) == 4
    assert [settings["max_model_len"] for settings in stand.opened] == [4096, 16384]


CHILD = r"""
import os, subprocess, sys
program = (
    "import sys; print('(Worker pid=7) ERROR 11-29 [x.py:1] ValueError: No available memory for "
    "the cache blocks.', file=sys.stderr); print('(EngineCore pid=8) ERROR 11-29 [y.py:2] "
    "RuntimeError: Engine core initialization failed. See root cause above.', file=sys.stderr)"
)
from factory.engines.vllm import _Messages
messages = _Messages()
with messages.reading():
    subprocess.run([sys.executable, "-c", program])
print(messages.cause())
"""


def test_the_cause_is_that_of_the_process_that_failed_first() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert done.stdout == "ValueError: No available memory for the cache blocks.\n"
    assert "Engine core initialization failed" in done.stderr, "and all of it is passed on"


@there
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "memory", "expected"),
    [("NVIDIA H100", 80, (1024, 16384)), ("AMD Instinct MI250X", 64, (256, 8192))],
)
def test_requests_and_tokens_a_step_are_those_of_vllms_llm_class(
    name: str, memory: int, expected: tuple[int, int], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm import LLMEngine
    from vllm.engine import arg_utils

    from factory.engines.vllm import VllmSampler

    class Asked(Exception):
        """What the engine would be started with."""

    def started(args: Any, usage_context: Any) -> None:
        raise Asked(args, usage_context)

    monkeypatch.setattr(LLMEngine, "from_engine_args", started)
    engine = VllmSampler(model, "float32")
    with pytest.raises(StageError) as caught:
        engine.sample([[7, 8]], GREEDY, 0)
    assert isinstance(caught.value.__cause__, Asked)
    args, context = caught.value.__cause__.args
    platform = types.SimpleNamespace(
        get_device_total_memory=lambda: memory * 2**30,
        get_device_name=lambda: name,
        is_tpu=lambda: False,
        is_cpu=lambda: False,
    )
    monkeypatch.setattr(arg_utils, "current_platform", platform)
    tokens, requests = args.get_batch_defaults(1)
    assert (requests[context], tokens[context]) == expected
    assert args.max_num_seqs is None and args.max_num_batched_tokens is None
    assert args.language_model_only


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with sampling defaults of its own that nobody may ever apply."""
    return opinionated(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    out = tmp_path_factory.mktemp("adapter")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=12, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(str(model)), config)
    torch.manual_seed(0)
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    made.save_pretrained(str(out))
    return out


@pytest.fixture(scope="module")
def classifier(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier_of(model, tmp_path_factory.mktemp("classifier"))


def test_an_adapter_says_its_rank_and_targets(adapter: Path, model: Path) -> None:
    found = checkpoint.lora(adapter)
    assert found.rank == 12 and "q_proj" in found.targets
    with pytest.raises(InputError, match="no LoRA adapter"):
        checkpoint.lora(model)


@pytest.fixture(scope="module")
def prompts(model: Path) -> list[list[int]]:
    tokenizer = chat_template.load_tokenizer(str(model))
    texts = ["Hello", "What is the capital of France?", "Bread and water and salt " * 8]
    return [
        chat_template.prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in texts
    ]


@pytest.fixture(scope="module")
def sampler(model: Path) -> Iterator[Any]:
    from factory.engines.vllm import VllmSampler

    made = VllmSampler(model, "float32", how={"max_num_seqs": 16})
    yield made
    made.close()


def alive(pids: set[int]) -> set[int]:
    """Those that are still there and no zombies."""
    return {pid for pid in pids if _command(pid)}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def ended(pids: set[int], seconds: float) -> bool:
    """Whether all of these end within so many seconds."""
    end = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.1)
    return not alive(pids)


@there
@pytest.mark.slow
def test_greedy_answers_are_those_of_transformers(sampler: Any, model: Path, prompts: Any) -> None:
    from factory.engines.transformers import TransformersSampler

    other = TransformersSampler(model, "float32")
    ours, theirs = (engine.sample(prompts, GREEDY, 0) for engine in (sampler, other))
    assert [sample.token_ids for sample in ours] == [sample.token_ids for sample in theirs]
    assert [s.finish_reason for s in ours] == [s.finish_reason for s in theirs]
    assert sampler.stop_ids == other.stop_ids and sampler.max_context == other.max_context


@there
@pytest.mark.slow
def test_nothing_of_the_models_own_sampling_defaults_is_applied(sampler: Any, prompts: Any) -> None:
    # its top_k of 1 and temperature of 0.01 would make all of these equal
    drawn = sampler.sample([prompts[0]] * 12, Sampling(1, 1, 12), 0)
    assert len({sample.token_ids for sample in drawn}) == 12
    # its penalty of 50 would allow no token twice
    assert any(len(set(s.token_ids)) < len(s.token_ids) for s in drawn) or len(drawn[0].token_ids)
    long = sampler.sample([prompts[0]], Sampling(0, 1, 200), 0)[0]
    assert len(set(long.token_ids)) < len(long.token_ids)


@there
@pytest.mark.slow
def test_an_answer_stops_at_every_stop_token_and_leaves_it_out(sampler: Any, prompts: Any) -> None:
    drawn = sampler.sample(prompts[:1] * 200, Sampling(1.5, 1, 150), 0)
    assert {sample.finish_reason for sample in drawn} == {"stop", "length"}
    stops = set(sampler.stop_ids)
    assert not any(stops & set(sample.token_ids) for sample in drawn)
    assert all(len(s.token_ids) == 150 for s in drawn if s.finish_reason == "length")


@there
@pytest.mark.slow
def test_a_prompt_without_room_is_refused_before_the_engine_sees_it(sampler: Any) -> None:
    with pytest.raises(InputError, match="leaves no room"):
        sampler.sample([[7] * 600], GREEDY, 0)
    [sample] = sampler.sample([[7] * 500], Sampling(0, 1, 12), 0)
    assert len(sample.token_ids) == 12
    [sample] = sampler.sample([[7] * 200], Sampling(0, 1, 4096), 0)  # what is left: over a half
    assert len(sample.token_ids) <= 312


@there
@pytest.mark.slow
def test_a_batch_enters_before_the_last_one_has_drained(sampler: Any, prompts: Any) -> None:
    done: dict[str, float] = {}

    def ask(name: str, count: int, tokens: int) -> None:
        sampler.sample(prompts[:1] * count, Sampling(1, 1, tokens), 0)
        done[name] = time.monotonic()

    long = threading.Thread(target=ask, args=("long", 8, 300))
    long.start()
    time.sleep(0.2)
    ask("short", 4, 4)
    long.join()
    assert done["short"] < done["long"]


@there
@pytest.mark.slow
def test_an_adapter_changes_answers_as_it_does_in_transformers(
    model: Path, adapter: Path, prompts: Any
) -> None:
    from factory.engines.transformers import TransformersSampler
    from factory.engines.vllm import VllmSampler

    before = set(descendants())
    engine = VllmSampler(model, "float32", adapter)
    ours = engine.sample(prompts, GREEDY, 0)
    mine = {pid for pid in set(descendants()) - before if b"resource_tracker" not in _command(pid)}
    assert mine
    engine.close()
    assert ended(mine, 5), "a closed engine leaves no process"
    theirs = TransformersSampler(model, "float32", adapter).sample(prompts, GREEDY, 0)
    plain = TransformersSampler(model, "float32").sample(prompts, GREEDY, 0)
    assert [s.token_ids for s in ours] == [s.token_ids for s in theirs]
    assert [s.token_ids for s in ours] != [s.token_ids for s in plain]


@there
@pytest.mark.slow
def test_one_engine_answers_for_a_base_and_all_its_adapters(
    model: Path, adapter: Path, prompts: Any, tmp_path: Path
) -> None:
    from factory.engines.transformers import TransformersSampler
    from factory.engines.vllm import VllmSampler

    other = adapter_of(model, tmp_path / "other", r=4, target_modules=["q_proj", "down_proj"])
    theirs = TransformersSampler(model, "float32", other_adapters=[adapter, other])
    engine = VllmSampler(model, "float32", other_adapters=[adapter, other])
    found = []
    for one in (None, adapter, other, None, adapter):
        engine.set_adapter(one)
        theirs.set_adapter(one)
        ours = [sample.token_ids for sample in engine.sample(prompts, GREEDY, 0)]
        assert ours == [sample.token_ids for sample in theirs.sample(prompts, GREEDY, 0)]
        found.append(tuple(ours))
    engine.close()
    assert len(set(found)) == 3, "also where prefixes were kept from another adapter"


@there
@pytest.mark.slow
def test_pooled_scores_are_those_of_transformers(classifier: Path, prompts: Any) -> None:
    from factory.engines.transformers import TransformersScorer
    from factory.engines.vllm import VllmScorer

    rows = [[*prompt, *range(5, 5 + n)] for prompt in prompts for n in (1, 30, 100)]
    engine = VllmScorer(classifier, "float32")
    ours = engine.score(rows)
    again = engine.score(rows[:1])
    engine.close()
    theirs = TransformersScorer(classifier, "float32").score(rows)
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert again == pytest.approx(ours[:1], abs=1e-4)
    assert max(map(abs, ours)) > 1, "a raw logit, not a probability"


@there
@pytest.mark.slow
def test_a_classifier_whose_pad_token_ends_conversations_is_pooled_where_transformers_reads_it(
    tmp_path: Path,
) -> None:
    """vLLM pools the very last token, transformers the last that is not padding."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from factory.engines.vllm import VllmScorer

    base = model_of_family("llama3", tmp_path / "base")
    made = classifier_of(base, tmp_path / "classifier")
    tokenizer = chat_template.load_tokenizer(str(made))
    config = made / "config.json"
    pad = {"pad_token_id": tokenizer.eos_token_id}
    config.write_text(json.dumps({**json.loads(config.read_text()), **pad}))
    asked = {"role": "user", "content": "Hello"}
    talks = [[asked, {"role": "assistant", "content": t}] for t in ("Good day to you.", "Hi", "x")]
    rows = [chat_template.conversation_ids(tokenizer, talk) for talk in talks]
    engine = VllmScorer(made, "float32")
    pooled = engine.score(rows)
    engine.close()
    plain = AutoModelForSequenceClassification.from_pretrained(str(made)).eval()
    with torch.no_grad():
        expected = [float(plain(torch.tensor([row])).logits[0, 0]) for row in rows]
    assert pooled == pytest.approx(expected, abs=1e-3)


@there
@pytest.mark.slow
def test_log_probabilities_under_an_adapter_are_those_of_transformers(
    model: Path, adapter: Path, prompts: Any
) -> None:
    from factory.engines.transformers import TransformersLikelihood
    from factory.engines.vllm import VllmLikelihood

    rows = [[*prompt, 5, 6, 7, 8] for prompt in prompts] + [[7] * 512]
    starts = [len(prompt) for prompt in prompts] + [1]
    engine = VllmLikelihood(model, "float32", adapter)
    ours = engine.log_probs(rows, starts)
    engine.close()
    theirs = TransformersLikelihood(model, "float32", adapter).log_probs(rows, starts)
    assert [len(row) for row in ours] == [4, 4, 4, 511]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, abs=1e-3)


ALONE = """
import sys
from pathlib import Path
from factory.engines import Sampling
from factory.engines.vllm import VllmSampler

if __name__ == "__main__":
    engine = VllmSampler(Path(sys.argv[1]), "float32")
    engine.sample([[7, 8, 9]], Sampling(1, 1, 4), 0)
    print("started", flush=True)
    engine.sample([[7, 8, 9]] * 400, Sampling(1, 1, 400), 0)
"""


@there
@pytest.mark.slow
def test_a_killed_run_leaves_no_engine_behind(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    child = subprocess.Popen([sys.executable, script, model], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "started\n"
    below = set(descendants(child.pid))
    assert any(b"VLLM" in _command(pid) for pid in below)
    child.kill()
    child.wait()
    assert ended(below, 20), "vLLM's processes would outlive the one they work for"


BOTH = """
import json, sys
from pathlib import Path
from factory.engines import Sampling
from factory.engines.transformers import TransformersSampler
from factory.engines.vllm import VllmSampler
from tests.support import multimodal

if __name__ == "__main__":
    name, dtype, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    model = getattr(multimodal, name)(out)
    prompts = [[7 + n, *range(20 + n, 24 + 9 * n)] for n in range(6)]
    answers = []
    for kind in (TransformersSampler, VllmSampler):
        engine = kind(model, dtype)
        drawn = engine.sample(prompts, Sampling(0, 1, 6), 0)
        answers.append([sample.token_ids for sample in drawn])
        length = getattr(engine, "_opened_for", None)
        engine.close()
    print(json.dumps([*answers, engine.max_context, length]))
"""


@there
@pytest.mark.slow
# Each starts vLLM in a process of its own, on a model of a family with imports of its own.
@pytest.mark.parametrize(
    ("family", "dtype", "context"),
    [("gemma_3", "float32", 131072), ("qwen_3_5_moe", "bfloat16", 32768)],
)
def test_models_that_also_read_images_answer_text_as_in_transformers(
    family: str, dtype: str, context: int, tmp_path: Path
) -> None:
    paths = [str(Path.cwd())]
    if importlib.util.find_spec("torchvision") is None:
        paths.append(str(multimodal.without_torchvision(tmp_path / "stub")))
    script = tmp_path / "both.py"
    script.write_text(BOTH)
    done = subprocess.run(
        [sys.executable, script, family, dtype, tmp_path / "model"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, ours, max_context, opened = json.loads(done.stdout.splitlines()[-1])
    assert len({tuple(answer) for answer in theirs}) == 6, "else the test would show nothing"
    if dtype == "float32":
        assert ours == theirs
    else:  # vLLM's linear attention knows no other dtype on a CPU: rounding may tip a later token
        assert [answer[0] for answer in ours] == [answer[0] for answer in theirs]
        assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 3
    assert (max_context, opened) == (context, 4096), "not opened for all of its context"

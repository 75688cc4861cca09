"""transformers' continuous batching on a tiny real model, against ordinary batches."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from factory.engines import Sampling, chat_template, choose
from factory.engines.choose import EngineKnobs
from factory.engines.pipelining import run
from factory.errors import InputError, StageError
from factory.execution.builtin_models import POCKET
from factory.rewards.score import ScoreHow
from factory.rewards.transfer import TransferHow
from tests.support import jobs
from tests.support.trainings import adapter_of, opinionated

GREEDY = Sampling(0, 1, 12)
TEXTS = ("Hello", "What is the capital of France?", "Bread and water and salt " * 8)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """One thread, since two wait for each other at every step where the machine is busy; and what
    is in memory by now is no concern of the collector, which transformers calls at every end."""
    import torch
    import transformers.generation.continuous_batching  # noqa: F401

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with sampling defaults of its own that nobody may ever apply."""
    return opinionated(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def static(model: Path) -> Any:
    from factory.engines.transformers import TransformersSampler

    return TransformersSampler(model, "float32")


@pytest.fixture(scope="module")
def prompts(static: Any) -> list[list[int]]:
    return [
        chat_template.prompt_ids(static.tokenizer, [{"role": "user", "content": t}]) for t in TEXTS
    ]


def opened(model: Path, *arguments: Any, **named: Any) -> Any:
    from factory.engines.continuous import ContinuousSampler

    return ContinuousSampler(model, "float32", *arguments, **named)


@pytest.fixture(scope="module")
def sampler(model: Path) -> Iterator[Any]:
    made = opened(model, rows=8)
    yield made
    made.close()


def said(engine: Any, *asked: Any) -> list[tuple[tuple[int, ...], str]]:
    return [(s.token_ids, s.finish_reason) for s in engine.sample(*asked)]


def test_greedy_answers_are_those_of_ordinary_batches(
    sampler: Any, static: Any, prompts: Any
) -> None:
    """In the order of the prompts, several to one prompt, in fewer places than there are
    requests, over several calls, of which one needs a larger cache."""
    for asked, tokens in ((prompts * 5, 12), (prompts[:1], 80), (prompts[:2] * 4, 30)):
        greedy = Sampling(0, 1, tokens)
        assert said(sampler, asked, greedy, 0) == said(static, asked, greedy, 0)
    assert sampler.sample([], GREEDY, 0) == []
    assert sampler.tokens > 0


@pytest.mark.slow
def test_each_answer_has_the_room_that_its_prompt_leaves(sampler: Any, static: Any) -> None:
    asked = [[7] * 200, [8] * 230, [9] * 250]  # of a context of 512
    far = Sampling(0, 1, 4096)
    answers = said(sampler, asked, far, 0)
    assert answers == said(static, asked, far, 0)
    assert [len(tokens) for tokens, _ in answers] == [312, 282, 262], "none of them stops"
    with pytest.raises(InputError, match="leaves no room"):
        sampler.sample([[7] * 600], GREEDY, 0)


def test_an_answer_ends_before_its_stop_token_whichever_it_is(
    sampler: Any, static: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [tokens for tokens, _ in said(static, prompts, GREEDY, 0)]
    stops = [whole[0][0], whole[1][5], whole[2][11]]  # at once, on the way, with the last token
    for engine in (sampler, static):
        monkeypatch.setattr(engine, "stop_ids", stops)
    answers = said(sampler, prompts, GREEDY, 0)
    assert answers == said(static, prompts, GREEDY, 0)
    assert answers[0] == ((), "stop") and all(reason == "stop" for _, reason in answers)


def test_temperature_and_top_p_are_applied_and_nothing_else(
    sampler: Any, static: Any, prompts: Any
) -> None:
    greedy = said(static, prompts, GREEDY, 0)
    assert said(sampler, prompts, Sampling(1e-4, 1, 12), 0) == greedy
    assert said(sampler, prompts, Sampling(1, 1e-6, 12), 0) == greedy
    # nearly uniform over 1,024 words: a top-k of 50, or the model's own of 1, would show
    hot = sampler.sample(prompts[:1] * 300, Sampling(1000.0, 1, 1), 0)
    assert len({sample.token_ids for sample in hot}) > 150
    # its own penalty would allow no token twice
    [long] = sampler.sample(prompts[:1], Sampling(0, 1, 80), 0)
    assert len(set(long.token_ids)) < len(long.token_ids)


def test_half_of_the_likelihood_is_drawn_with_top_p_of_a_half(
    sampler: Any, static: Any, prompts: Any
) -> None:
    import torch

    with torch.inference_mode():
        logits = static._model(torch.tensor(prompts[:1])).logits[0, -1].float()
    likely = logits.softmax(-1).sort(descending=True)
    inside = int((likely.values.cumsum(0) < 0.5).sum()) + 1
    allowed = set(likely.indices[:inside].tolist()) | set(sampler.stop_ids)
    drawn = sampler.sample(prompts[:1] * 300, Sampling(1, 0.5, 1), 0)
    first = {sample.token_ids[0] for sample in drawn if sample.token_ids}
    assert first <= allowed and len(first) > 10


@pytest.mark.slow
def test_a_fresh_engine_draws_the_same_and_says_which_stream_it_was(
    model: Path, prompts: Any
) -> None:
    asked, hot = prompts * 4, Sampling(1, 1, 12)
    drawn = []
    for seed in (3, 3, 4):
        engine = opened(model, rows=8)
        drawn.append(engine.sample(asked, hot, seed))
        assert {sample.seed for sample in engine.sample(asked, hot, 5)} == {seed}, "one stream"
        engine.close()
    assert drawn[0] == drawn[1]
    assert [s.token_ids for s in drawn[1]] != [s.token_ids for s in drawn[2]]
    assert len({s.token_ids for s in drawn[0]}) == len(asked), "answers to one prompt differ"


def test_a_prompt_longer_than_a_step_is_read_in_several(
    model: Path, static: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.engines.continuous.STEP_TOKENS", 16)
    engine = opened(model, rows=4)
    asked = [[n + 5] * 37 + [3] * n for n in range(12)]
    assert said(engine, asked, GREEDY, 0) == said(static, asked, GREEDY, 0)
    engine.close()


@pytest.mark.slow
def test_memory_is_what_the_requests_need_and_no_more_than_there_is(
    model: Path, static: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factory.engines import continuous

    engine = opened(model, rows=4)
    asked, greedy = [[n + 5] * 60 for n in range(12)], Sampling(0, 1, 100)
    expected = said(static, asked, greedy, 0)
    assert engine._pages(160, 32) == (4 * 7, 200)  # four of 160 tokens and a quarter more
    assert engine._pages(500, 32)[0] == 4 * 16  # nothing is longer than the context
    page = 32 * continuous._token_bytes(engine._model, flash=False)
    monkeypatch.setattr(continuous, "CPU_BYTES", 8 * page)
    assert engine._pages(160, 32) == (8, 256)  # one and a half requests: three have to wait
    assert said(engine, asked, greedy, 0) == expected
    with pytest.raises(StageError, match="room for 8") as caught:
        engine.sample([[7] * 200], Sampling(0, 1, 200), 0)
    assert "how.batching: static" in caught.value.fix
    engine.close()


@pytest.mark.slow
def test_a_base_and_its_adapters_answer_in_turn_whatever_prefixes_were_kept(
    model: Path, tmp_path: Path
) -> None:
    from factory.engines.transformers import TransformersSampler

    adapters = [
        adapter_of(model, tmp_path / "a", r=4, target_modules=["q_proj", "k_proj", "v_proj"]),
        adapter_of(
            model, tmp_path / "b", r=8, target_modules=["v_proj"], modules_to_save=["lm_head"]
        ),
    ]
    static = TransformersSampler(model, "float32", adapters[0], others=adapters[1:])
    engine = opened(model, adapters[0], 4, adapters[1:])
    asked = [[*range(5, 105), n] for n in range(6)] * 2  # three whole pages alike
    found = []
    for one in (adapters[0], None, adapters[1], adapters[0], None):
        for either in (static, engine):
            either.set_adapter(one)
        answers = said(engine, asked, GREEDY, 0)
        assert answers == said(static, asked, GREEDY, 0)
        found.append(tuple(answers))
    assert len(set(found)) == 3
    with pytest.raises(KeyError):
        engine.set_adapter(tmp_path / "c")
    engine.close()


def test_a_batch_enters_before_the_last_one_has_drained(sampler: Any, prompts: Any) -> None:
    """By lanes, as stages ask."""
    done = []

    def ask(work: tuple[int, int]) -> int:
        count, tokens = work
        drawn = sampler.sample(prompts[:1] * count, Sampling(1, 1, tokens), 0)
        done.append((count, tokens))
        return len(drawn)

    sampler.sample(prompts[:1], Sampling(1, 1, 150), 0)  # so that the cache is large enough
    work = [(4, 150), (2, 4), (3, 4)]
    assert sorted(n for _, n in run(work, ask, sampler.lanes)) == [2, 3, 4]
    assert sampler.lanes == 2 and done == [(2, 4), (3, 4), (4, 150)]


@pytest.mark.parametrize("kind", ["memory", "other"])
def test_what_fails_in_its_thread_is_raised_for_every_caller_and_the_next_goes_on(
    sampler: Any, static: Any, prompts: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    error = torch.OutOfMemoryError if kind == "memory" else RuntimeError
    forward, calls = sampler._model.forward, []

    def failing(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 20:
            raise error("injected\nand more")
        return forward(*given, **named)

    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
    monkeypatch.setattr(sampler._model, "forward", failing)
    monkeypatch.setattr("factory.engines.continuous._quiet", lambda: None)
    told: list[StageError] = []

    def ask() -> None:
        try:
            sampler.sample(prompts * 2, Sampling(0, 1, 200), 0)
        except StageError as raised:
            told.append(raised)

    callers = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=30)
        assert not caller.is_alive(), "a caller hangs"
    assert len(told) == 2
    for raised in told:
        assert "injected" in raised.what and "and more" not in raised.what
        assert "how.batching: static" in raised.fix
        assert ("max_num_seqs" in raised.fix) == (kind == "memory")
        assert isinstance(raised.__cause__, error)
    assert said(sampler, prompts, GREEDY, 0) == said(static, prompts, GREEDY, 0)


@pytest.mark.parametrize("raced", [False, True])
def test_closing_ends_what_is_under_way_and_leaves_no_thread(
    raced: bool, model: Path, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is stopped by the reader at the same moment, and one looks at a thread that is
    put away already."""
    from transformers import ContinuousBatchingManager

    if raced:
        join = ContinuousBatchingManager.join

        def late(self: Any, *given: Any) -> None:
            join(self, *given)
            self._generation_thread.is_alive()

        monkeypatch.setattr(ContinuousBatchingManager, "join", late)
    before, told = set(threading.enumerate()), []
    engine = opened(model, rows=8)

    def ask() -> None:
        try:
            engine.sample(prompts * 20, Sampling(0, 1, 400), 0)
        except StageError as raised:
            told.append(raised)

    caller = threading.Thread(target=ask)
    caller.start()
    while engine._open is None or engine._open._reader is None:
        time.sleep(0.01)
    engine.close()
    caller.join(timeout=30)
    assert told and "closed" in told[0].what
    left = {thread for thread in threading.enumerate() if thread.name != "Thread-monitor"}
    assert not [t for t in left - before if "generation" in t.name or t.name == "continuous"]


def test_memory_that_is_not_there_is_said_before_anything_is_drawn(
    model: Path, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory.engines.continuous.CPU_BYTES", 2**60)
    engine = opened(model, rows=10**8)  # transformers finds out by itself
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
    monkeypatch.setattr("factory.engines.continuous._quiet", lambda: None)
    with pytest.raises(StageError, match="memory ran out") as caught:
        engine.sample(prompts, GREEDY, 0)
    assert "max_num_seqs" in caught.value.fix
    engine.close()


# kinds of attention: plain, with a window in all layers, in some, and one that knows no sdpa
FAMILIES = {
    "qwen3": {},
    "mistral": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16},
    "gpt_oss": {"sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
}
SIZES = {
    "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 512,
}  # fmt: skip


def family(model: Path, out: Path, kind: str, **config: Any) -> Path:
    """A random model of another family, with the tiny model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **config}))
    for weight in made.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    made.save_pretrained(str(out))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_families_answer_as_in_ordinary_batches_and_keep_their_attention(
    model: Path, tmp_path: Path, kind: str
) -> None:
    from factory.engines.transformers import TransformersSampler

    made = family(model, tmp_path / kind, kind, **FAMILIES[kind])
    engine, other = opened(made, rows=4), TransformersSampler(made, "float32")
    asked = [[(i * 37 + j * 11) % 900 + 5 for j in range(n)] for i, n in enumerate((5, 20, 70, 7))]
    answers = said(engine, asked, GREEDY, 0)
    assert answers == said(other, asked, GREEDY, 0) and len(set(answers)) > 1
    engine._end()
    assert engine._model.config._attn_implementation == other._model.config._attn_implementation


def test_a_model_that_it_does_not_fit_is_refused_with_the_fix(model: Path, tmp_path: Path) -> None:
    bloom = family(model, tmp_path / "bloom", "bloom", n_layer=1, n_head=2)
    with pytest.raises(StageError, match="BloomForCausalLM") as caught:
        opened(bloom)
    assert caught.value.fix == "say how.batching: static"
    engine = opened(model)
    engine._model.config.layer_types = ["chunked_attention"] * 2  # as some models have it
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StageError) as caught:
        patch.setattr("factory.engines.continuous._quiet", lambda: None)
        engine.sample([[7, 8]], GREEDY, 0)
    assert caught.value.fix == "say how.batching: static" and "chunked" in caught.value.what


def test_flash_attention_is_taken_where_it_is_installed_and_fits(
    static: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from factory.engines import continuous

    there: set[str] = set()
    for version in ("2", "3"):
        name = f"transformers.utils.is_flash_attn_{version}_available"
        monkeypatch.setattr(name, lambda version=version: version in there)
    half = static._model.__class__(static._model.config).to(torch.bfloat16)
    there.add("2")
    assert continuous._flash(half) is None, "no GPU"
    monkeypatch.setattr(continuous, "has_gpu", lambda: True)
    assert continuous._flash(half) == "flash_attention_2"
    assert continuous._flash(static._model) is None, "float32"
    there.add("3")
    assert continuous._flash(half) == "flash_attention_3"
    there.clear()
    assert continuous._flash(half) is None


def test_it_is_refused_where_it_has_no_meaning(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in ("vllm", "openai"):
        with pytest.raises(ValidationError, match="leave batching out"):
            EngineKnobs(engine=engine, batching="continuous")
    for how in (ScoreHow, TransferHow):
        with pytest.raises(ValidationError, match="leave it out"):
            how(batching="continuous")
        assert how().batching == "static"
    knobs = EngineKnobs(batching="continuous")
    for reading in (choose.scorer, choose.likelihood):
        with pytest.raises(StageError, match="nothing is drawn"):
            reading(knobs, model, "float32")
    monkeypatch.setattr(choose, "chosen", lambda _: "vllm")
    with pytest.raises(StageError, match="auto takes vLLM") as caught:
        choose.sampler(knobs, model, "local/model", "float32")
    assert "engine: transformers" in caught.value.fix


def test_knobs_reach_it(model: Path) -> None:
    from factory.engines.continuous import ContinuousSampler
    from factory.engines.transformers import TransformersSampler

    knobs = EngineKnobs(batching="continuous", max_num_seqs=7, gpu_memory_utilization=0.5)
    made = choose.sampler(knobs, model, "local/model", "float32")
    assert isinstance(made, ContinuousSampler)
    assert (made._rows, made._share) == (7, 0.5)
    plain = choose.sampler(EngineKnobs(), model, "local/model", "float32")
    assert type(plain) is TransformersSampler


# Reads 135M parameters twice.
@pytest.mark.slow
def test_the_small_real_model_answers_as_in_ordinary_batches(tmp_path: Path) -> None:
    from factory.engines.transformers import TransformersSampler

    POCKET["local/SmolLM2-135M-Instruct-Q4_1"].build(tmp_path / "model")
    static, engine = TransformersSampler(tmp_path / "model", "float32"), opened(tmp_path / "model")
    asked = [
        chat_template.prompt_ids(static.tokenizer, [{"role": "user", "content": f"{text} {n}"}])
        for n, text in enumerate(TEXTS)
        for _ in range(2)
    ]
    greedy = Sampling(0, 1, 16)
    assert said(engine, asked, greedy, 0) == said(static, asked, greedy, 0)
    engine.close()


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # see quick
STAGE = """
import sys
from pathlib import Path
from factory.errors import Interrupted
from factory.execution.run import _stoppable
from factory.sampling.generate import Generate
from tests.support import jobs

if __name__ == "__main__":
    root, model = map(Path, sys.argv[1:])
    how = {"engine": "transformers", "batching": "continuous", "shard": 2, "max_num_seqs": 16}
    stage = Generate(n=4, max_tokens=100, dtype="float32", how=how)
    reads = {"prompts": jobs.prompts(root / "prompts", {"en": [f"Hello {n}" for n in range(24)]})}
    try:
        with _stoppable():
            stage.run(jobs.job(root, ["en"], reads, {jobs.MODEL: model}))
    except Interrupted as error:
        sys.exit(error.exit_code)
"""


@pytest.mark.slow
def test_a_stage_that_is_told_to_stop_ends_at_once_and_goes_on_later(
    model: Path, tmp_path: Path
) -> None:
    """Exit code 75 with two shards under way; those that were done stay as they are."""
    script = tmp_path / "stage.py"
    script.write_text(STAGE)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, script, tmp_path, model], env=ONE_THREAD)

    process, shards = start(), tmp_path / "shards" / "en"
    while len(list(shards.glob("*.parquet"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(timeout=30) == 75
    assert time.monotonic() - began < 10
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
    assert 2 <= len(kept) < 12
    assert start().wait(timeout=120) == 0
    rows = jobs.made(tmp_path, "en", "samples")
    assert sorted((row["prompt_id"], row["k"]) for row in rows) == sorted(
        (f"p{n}", k) for n in range(24) for k in range(4)
    )


OPEN = """
import sys
from pathlib import Path
from factory.engines import Sampling
from factory.engines.continuous import ContinuousSampler

if __name__ == "__main__":
    engine = ContinuousSampler(Path(sys.argv[1]), "float32")
    engine.sample([[7, 8, 9]], Sampling(1, 1, 4), 0)
    raise SystemExit(3)
"""


@pytest.mark.slow
def test_one_that_nobody_closes_does_not_keep_the_process_alive(
    model: Path, tmp_path: Path
) -> None:
    script = tmp_path / "open.py"
    script.write_text(OPEN)
    assert subprocess.run([sys.executable, script, model], env=ONE_THREAD).returncode == 3

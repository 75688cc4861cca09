"""The first quarter of an hour on a GPU: what no CPU can show, in six parts of a minute or so.

    python benchmarks/gpu_checks.py --parts a b c      # training and the transformers engine
    python benchmarks/gpu_checks.py --parts d e f      # vLLM
    python benchmarks/gpu_checks.py --tiny             # a dry run with tiny shapes, also on a CPU

Models have the real shapes and random weights, made on the device: nothing is downloaded, and
little is written. Each part runs in a process of its own under an alarm and prints one line of
JSON, with what it has measured so far if the alarm or an error ends it. See gpu.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

POLICY = {
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 42,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128000,
    "max_position_embeddings": 32768,
}  # fmt: skip
REWARD = POLICY | {"num_hidden_layers": 36, "vocab_size": 151936, "head_dim": 128}
GEMMA = {
    "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62,
    "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "vocab_size": 262208,
    "max_position_embeddings": 131072, "sliding_window": 1024, "query_pre_attn_scalar": 168,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "vocab_size": 2048,
}  # fmt: skip


class Check:
    """One part: its shapes, a folder, and the figures that it has so far."""

    def __init__(self, part: str, tiny: bool, directory: Path) -> None:
        import torch

        self.tiny, self.directory = tiny, directory
        self.gpu = torch.cuda.is_available()
        self.device = "cuda" if self.gpu else "cpu"
        self.dtype = "float32" if tiny else "bfloat16"
        self.figures: dict[str, Any] = {"part": part}
        self.say(
            device=torch.cuda.get_device_name() if self.gpu else "cpu", torch=torch.__version__
        )

    def say(self, **figures: Any) -> None:
        """Add figures and print all, so that the last line is whole whatever comes next."""
        self.figures |= figures
        print(json.dumps(self.figures), flush=True)

    def size(self, real: int, tiny: int) -> int:
        """Return a number of rows, tokens or layers."""
        return tiny if self.tiny else real

    def model(self, kind: str, layers: int | None = None) -> Path:
        """Write the config of a model and a tokenizer, and no weights."""
        from transformers import AutoTokenizer, Gemma3Config, LlamaConfig, Qwen3Config

        from factory.execution.builtin_models import POCKET

        out = self.directory / f"{kind}-{layers}"
        POCKET["local/tiny-random-llama"].build(out)
        (out / "model.safetensors").unlink()
        shape = dict(TINY if self.tiny else {"policy": POLICY, "reward": REWARD}.get(kind, GEMMA))
        shape["num_hidden_layers"] = layers or shape["num_hidden_layers"]
        tokenizer = AutoTokenizer.from_pretrained(str(out))
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        if kind == "gemma":
            vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                      "intermediate_size": 64, "image_size": 56, "patch_size": 14}  # fmt: skip
            config = Gemma3Config(text_config={**shape, **ends}, vision_config=vision, **ends)
            config.architectures = ["Gemma3ForConditionalGeneration"]
        elif kind == "reward":
            config = Qwen3Config(**shape, **ends, num_labels=1)
            config.architectures = ["Qwen3ForSequenceClassification"]
        else:
            config = LlamaConfig(**shape, **ends)
            config.architectures = ["LlamaForCausalLM"]
        config.dtype = self.dtype
        config.save_pretrained(str(out))
        return out

    def weights(self, directory: Path, auto: Any = None) -> Any:
        """Make the model of a config with random weights, on the device."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        with torch.device(self.device):
            config = AutoConfig.from_pretrained(str(directory))
            model = (auto or AutoModelForCausalLM).from_config(
                config, dtype=getattr(torch, self.dtype)
            )
        return model.eval()

    def saved(self, layers: int = 2) -> Path:
        """Write a policy of few layers with its weights, far enough apart for greedy answers."""
        import torch

        out = self.model("policy", layers)
        model = self.weights(out)
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.1)
        model.save_pretrained(str(out))
        return out

    def free(self) -> float:
        """Return GiB of memory in use on the device, by all processes."""
        import torch

        if not self.gpu:
            return 0.0
        free, total = torch.cuda.mem_get_info()
        return float(round((total - free) / 2**30, 2))

    @contextmanager
    def drawn_on_device(self) -> Iterator[None]:
        """Let the transformers engine make weights where it would read them."""
        from factory.engines import transformers as engine

        load = engine._load
        engine._load = lambda auto_class, directory, dtype: self.weights(directory, auto_class)
        try:
            yield
        finally:
            engine._load = load


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what the work returns, and its seconds."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def training(check: Check, base: Path, name: str, rows: int, words: int, **knobs: Any) -> Any:
    """Return the task of a DPO on pairs of long answers, its rows written."""
    from factory.engines import chat_template
    from factory.training import dataset
    from factory.training.settings import Lora, Running, Task

    def say(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    lexicon = ["bread", "water", "salt", "copper", "winter", "bridge", "clock", "tea"]
    pairs = [
        {
            "prompt": say("user", f"Number {n}"),
            "chosen": say("assistant", " ".join(lexicon[(n + i) % 8] for i in range(words))),
            "rejected": say("assistant", " ".join(lexicon[(n + 3 * i) % 8] for i in range(words))),
        }
        for n in range(rows)
    ]
    tokenizer = chat_template.load_tokenizer(str(base))
    pairs = [pair | dataset.encode(tokenizer, pair, apart=True)[1] for pair in pairs]
    work = check.directory / name
    dataset.write(work / "rows", pairs, [])
    how = {"processes": 1, "save_steps": 1000, **knobs.pop("how", {})}
    return Task(
        step=name, method="preference", base=base, rows=work / "rows", work=work,
        out=work / "out", seed=0, lr=1e-4, epochs=1, warmup=0.0, weight_decay=0.0,
        lora=Lora(), dtype=check.dtype, how=Running(**how), **knobs,
    )  # fmt: skip


def part_a(check: Check) -> None:
    """DPO at 9B: peak memory and tokens a second of steps of 2 x 4,096 tokens."""
    import torch

    from factory.training import loop, trainers

    base = check.model("policy")
    trainers.load_base = lambda *_: check.weights(base)
    length = check.size(4096, 64)
    rows = check.size(6, 4)
    task = training(check, base, "a", rows, 2 * length, batch=2, max_length=length)
    check.say(weights_gib=check.free())
    steps: list[float] = []
    result = loop.train(task, lambda *_: steps.append(time.perf_counter()))
    seconds = (steps[-1] - steps[0]) / (len(steps) - 1)
    check.say(
        steps=result["steps"],
        seconds_a_step=round(seconds, 3),
        tokens_a_second=round(2 * 2 * length / seconds),
        peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if check.gpu else None,
    )


def part_b(check: Check) -> None:
    """A training that SIGUSR1 stops goes on with the same losses, and leaves no memory behind."""
    import torch

    from factory.errors import Interrupted
    from factory.training import loop

    base = check.saved()
    length = check.size(512, 64)

    def losses(name: str, stop_at: int | None) -> list[float]:
        task = training(check, base, name, 12, length, batch=2, max_length=length)

        def progress(done: int, total: int, unit: str, tokens: int = 0) -> None:
            if done == stop_at:
                os.kill(os.getpid(), signal.SIGUSR1)

        try:
            result = loop.train(task, progress)
        except Interrupted:
            check.say(stopped_after=stop_at)
            result = loop.train(task, lambda *_: None)
        return [entry["loss"] for entry in result["history"] if "loss" in entry]

    plain, resumed = losses("b-plain", None), losses("b-stopped", 3)
    gc.collect()
    torch.cuda.empty_cache()
    check.say(
        steps=[len(plain), len(resumed)],
        largest_difference=max(abs(a - b) for a, b in zip(plain, resumed, strict=True)),
        allocated_after_gib=round(torch.cuda.memory_allocated() / 2**30, 3) if check.gpu else None,
    )


def part_c(check: Check) -> None:
    """transformers: answers at 32 and 128 rows, batches that do not fit, the scorer."""
    import torch

    from factory.engines import Sampling
    from factory.engines.transformers import TransformersSampler, TransformersScorer

    tokens = check.size(64, 4)
    with check.drawn_on_device():
        sampler = TransformersSampler(check.model("policy"), check.dtype)
        sampler.stop_ids = sampler.stop_ids[:1]
        for rows in (check.size(32, 2), check.size(128, 4)):
            sampler._rows = rows
            prompts = [[7 + n % 50] * 200 for n in range(rows)]
            began = time.perf_counter()
            sampler.sample(prompts, Sampling(1, 1, tokens), 0)
            seconds = time.perf_counter() - began
            check.say(**{f"tokens_a_second_at_{rows}": round(rows * tokens / seconds)})
        if check.gpu:  # room for a few GiB beside the weights
            total = torch.cuda.mem_get_info()[1]
            fraction = (torch.cuda.memory_allocated() + 6 * 2**30) / total
            torch.cuda.set_per_process_memory_fraction(min(1.0, fraction))
        sampler._rows = check.size(256, 4)
        prompts = [[7 + n % 50] * check.size(2048, 20) for n in range(sampler._rows)]
        drawn = sampler.sample(prompts, Sampling(1, 1, 4), 0)
        check.say(answers_without_memory=len(drawn), batch_cut_into=sampler._share)
        sampler.close()
        del sampler
        gc.collect()
        if check.gpu:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0)
        scorer = TransformersScorer(check.model("reward"), check.dtype)
        texts = [[7 + n % 50] * check.size(1000, 50) for n in range(check.size(64, 4))]
        scorer.score(texts[:2])
        values, seconds = timed(lambda: scorer.score(texts))
        check.say(
            scored_tokens_a_second=round(sum(map(len, texts)) / seconds),
            different_scores=len(set(values)),
        )


def part_d(check: Check) -> None:
    """vLLM at 9B: tokens a second with 128 to 1,024 requests at once."""
    from factory.engines import Sampling
    from factory.engines.vllm import VllmSampler

    counts = (2, 4) if check.tiny else (128, 256, 512, 1024)
    how = {"load_format": "dummy", "max_num_seqs": max(counts)}
    engine = VllmSampler(check.model("policy"), check.dtype, how=how)
    _, seconds = timed(lambda: engine.sample([[7, 8, 9]] * 4, Sampling(1, 1, 4), 0))
    check.say(engine=engine.name, start_seconds=round(seconds, 1), gib=check.free())
    for count in counts:
        prompts = [[7 + n % 90] * 200 for n in range(count)]
        before = engine.tokens
        sampling = Sampling(1, 1, check.size(128, 8))
        _, seconds = timed(lambda: engine.sample(prompts, sampling, 0))  # noqa: B023
        check.say(**{f"tokens_a_second_at_{count}": round((engine.tokens - before) / seconds)})
    engine.close()


def part_e(check: Check) -> None:
    """vLLM's pooling at 8B: 64 answers a prompt, with 16,384 and 2,048 tokens a step."""
    from factory.engines.vllm import VllmScorer

    model = check.model("reward")
    texts = [
        [7 + prompt] * check.size(200, 20) + [9 + answer % 40] * check.size(400, 20)
        for prompt in range(check.size(8, 1))
        for answer in range(check.size(64, 4))
    ]
    for tokens in (16384, 2048):
        how = {"load_format": "dummy", "max_num_batched_tokens": tokens}
        engine = VllmScorer(model, check.dtype, how=how)
        _, seconds = timed(lambda: engine.score(texts[:2]))  # noqa: B023
        check.say(**{f"start_seconds_{tokens}": round(seconds, 1)})
        _, seconds = timed(lambda: engine.score(texts))  # noqa: B023
        rate = round(sum(map(len, texts)) / seconds)
        check.say(**{f"tokens_a_second_{tokens}": rate})
        engine.close()


def part_f(check: Check) -> None:
    """vLLM and LoRA give transformers' tokens; a killed run frees its memory; Gemma 3 starts."""
    from factory.engines import Sampling
    from factory.engines.transformers import TransformersSampler
    from factory.engines.vllm import VllmSampler
    from tests.support.trainings import adapter_of

    base, greedy = check.saved(), Sampling(0, 1, 8)
    adapter = adapter_of(base, check.directory / "adapter", r=8, target_modules=["q_proj"])
    prompts = [[7 + n, *range(20, 30 + 5 * n)] for n in range(8)]
    before = check.free()
    theirs = TransformersSampler(base, check.dtype, other_adapters=[adapter])
    ours = VllmSampler(
        base, check.dtype, how={"gpu_memory_utilization": 0.3}, other_adapters=[adapter]
    )
    for name, one in (("base", None), ("lora", adapter)):
        answers = []
        for engine in (theirs, ours):
            engine.set_adapter(one)
            answers.append([s.token_ids for s in engine.sample(prompts, greedy, 0)])
        same = sum(a == b for a, b in zip(*answers, strict=True))
        check.say(**{f"same_greedy_answers_{name}": f"{same} of {len(prompts)}"})
    ours.close()
    theirs.close()
    program = (
        "import sys; from pathlib import Path; from factory.engines import Sampling\n"
        "from factory.engines.vllm import VllmSampler\n"
        "if __name__ == '__main__':\n"
        "    engine = VllmSampler(Path(sys.argv[1]), sys.argv[2],\n"
        "                         how={'gpu_memory_utilization': 0.3})\n"
        "    engine.sample([[7, 8]], Sampling(1, 1, 2), 0); print('up', flush=True)\n"
        "    engine.sample([[7, 8]] * 400, Sampling(1, 1, 2000), 0)\n"
    )
    script = check.directory / "killed.py"
    script.write_text(program)
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(
        [sys.executable, script, base, check.dtype],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert child.stdout is not None
    up = child.stdout.readline() == b"up\n"
    busy = check.free()
    child.kill()
    child.wait()
    time.sleep(check.size(10, 1))
    check.say(killed_while_up=up, gib=[before, busy, check.free()])
    if check.tiny:
        return  # a vLLM more; tests/engines/test_vllm.py starts a tiny one
    gemma = VllmSampler(check.model("gemma"), check.dtype, how={"load_format": "dummy"})
    gemma.sample(prompts, greedy, 0)
    check.say(gemma_gib=check.free())
    gemma.close()


PARTS = {"a": part_a, "b": part_b, "c": part_c, "d": part_d, "e": part_e, "f": part_f}


def one(part: str, tiny: bool) -> None:
    """Run one part in this process."""
    with tempfile.TemporaryDirectory() as directory:
        check = Check(part, tiny, Path(directory))
        try:
            PARTS[part](check)
        except Exception as error:
            check.say(error=f"{type(error).__name__}: {error}"[:600])
            raise
        check.say(ok=True)


def supervised(part: str, tiny: bool, alarm: int) -> dict[str, Any]:
    """Run one part in a process group of its own, which ends with this call or this process; return
    its figures, and `ended` if it was cut."""
    began = time.monotonic()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the part has a number
    process = subprocess.Popen(
        [sys.executable, __file__, "--one", part, *(["--tiny"] if tiny else [])],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    ended = None
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        out, _ = process.communicate(timeout=alarm)
    except subprocess.TimeoutExpired:
        ended = f"after {alarm} s"
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = [line for line in out.splitlines() if line.startswith('{"part"')]
    figures = json.loads(lines[-1]) if lines else {"part": part}
    figures |= {"ended": ended} if ended else {}
    return figures | {"seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    """Run the parts, one after another; return 1 if one of them is not whole."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--tiny", action="store_true", help="tiny shapes: a dry run")
    options.add_argument("--alarm", type=int, default=90, help="seconds of a part")
    options.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.one:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        one(asked.one, asked.tiny)
        return 0
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    whole = True
    for part in asked.parts:
        figures = supervised(part, asked.tiny, asked.alarm)
        whole = whole and bool(figures.get("ok"))
        print(json.dumps(figures), flush=True)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())

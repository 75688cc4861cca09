"""Inference: generate against bare vLLM, score against one row at a time, memory, a kill.

    python benchmarks/inference.py                    # all of it, with the small real model
    python benchmarks/inference.py --only memory kill
    python benchmarks/inference.py --json --machine "one H100"

- generate: the stage with the vLLM engine (tokenising, shards, language identification, parquet)
  and vLLM's own LLM.generate on the very same requests, in turn, each in a process of its own and
  with its own defaults. Tokens a second are counted from the first request to the last answer,
  after the model is loaded and warm.
- score: the stage (rows of a prompt together, batched) and each row alone, with the same
  transformers model; with --engine vllm both sides pool through vLLM.
- kill: kill -9 in the middle of a run, and the time until the next run has its first shard of new
  rows beside what was there: the start of Python and the engine, and what was lost.
- memory: the peak of resident memory of the stage with an engine that draws nothing (random ids),
  at 1,000 and 10,000 prompts of 4 short answers.

Random requests are made from arithmetic on their number, the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from peak import Peak

from factory.engines import Completion, Sampling
from tests.support import jobs

MODEL = "local/SmolLM2-135M-Instruct-Q4_1"
TOPICS = ("bread", "the sea", "a bridge", "winter", "two brothers", "an old clock", "copper", "tea")
KINDS = ("Explain", "Tell a story about", "Write a letter about", "List facts about", "Describe")
PARTS = ("generate", "score", "kill", "memory")


def asked(count: int) -> list[str]:
    """So many different prompts of ten to fifteen words."""
    return [
        f"{KINDS[n % 5]} {TOPICS[n // 5 % 8]}, for a reader who has {n} minutes and "
        f"knows {'nothing' if n % 2 else 'much'} about it."
        for n in range(count)
    ]


def built(directory: Path) -> Path:
    """The small real model, and beside it a classifier with a random head."""
    from factory.execution.builtin_models import POCKET

    model = directory / "model"
    if not model.exists():
        POCKET[MODEL].build(model)
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.manual_seed(0)
        made = AutoModelForSequenceClassification.from_pretrained(str(model), num_labels=1)
        torch.nn.init.normal_(made.score.weight, std=0.1)
        made.save_pretrained(str(directory / "reward"))
        AutoTokenizer.from_pretrained(str(model)).save_pretrained(str(directory / "reward"))
    return model


# generate


def stage_generate(directory: Path, asks: argparse.Namespace) -> dict[str, float]:
    """The stage itself on a loaded engine."""
    from factory.engines import choose
    from factory.sampling.generate import Generate

    made: dict[str, Any] = {}

    def opened(*given: Any, **named: Any) -> Any:
        if not made:
            made["engine"] = real(*given, **named)
            warm(made["engine"].sample)
            made["engine"].close, made["close"] = (lambda: None), made["engine"].close
        return made["engine"]

    real, choose.sampler = choose.sampler, opened
    how = {"engine": "vllm", "shard": asks.shard} | asked_limits(asks)
    stage = Generate(n=asks.n, max_tokens=asks.tokens, dtype=asks.dtype, how=how)
    texts = asked(asks.prompts)
    stage.run(_job(directory / "warm", texts[: asks.shard], directory / "model"))
    job = _job(directory / "timed", texts, directory / "model")
    started = time.perf_counter()
    outcome = stage.run(job)
    seconds = time.perf_counter() - started
    made["close"]()
    # the stop tokens were drawn too, and the other side counts them
    stops = sum(figures["finished"] for figures in outcome.stats["by_language"].values())
    return {"seconds": seconds, "tokens": outcome.tokens + stops}


def bare_generate(directory: Path, asks: argparse.Namespace) -> dict[str, float]:
    """vLLM's own LLM class on the same prompts and parameters, all at once."""
    from vllm import LLM, SamplingParams

    from factory.engines import chat_template, checkpoint

    found = checkpoint.read(directory / "model")
    # no setting of ours: whatever vLLM does better by itself has to show
    llm = LLM(str(directory / "model"), dtype=asks.dtype, **asked_limits(asks))

    def draw(texts: Sequence[str], tokens: int) -> int:
        prompts = [
            {"prompt_token_ids": chat_template.prompt_ids(found.tokenizer, _said(text))}
            for text in texts
        ]
        parameters = SamplingParams(
            n=asks.n, temperature=1, top_p=1, max_tokens=tokens, stop_token_ids=found.stop_ids,
            detokenize=False,
        )  # fmt: skip
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        return sum(len(one.token_ids) for output in outputs for one in output.outputs)

    texts = asked(asks.prompts)
    draw(texts[: asks.shard], asks.tokens)
    started = time.perf_counter()
    tokens = draw(texts, asks.tokens)
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


def asked_limits(asks: argparse.Namespace) -> dict[str, Any]:
    """vLLM's requests at once, where the command line says them: on both sides."""
    return {} if asks.seqs is None else {"max_num_seqs": asks.seqs}


def warm(sample: Callable[..., Any]) -> None:
    """A first batch, which pays for what is made at first use."""
    sample([[1, 2, 3]] * 4, Sampling(1, 1, 8), 0)


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _job(root: Path, texts: Sequence[str], model: Path) -> Any:
    prompts = jobs.prompts(root / "prompts", {"en": texts})
    return jobs.job(root, ["en"], {"prompts": prompts}, {jobs.MODEL: model})


# score


def samples(root: Path, texts: Sequence[str], n: int, words: int) -> Path:
    """Answers of about so many words to these prompts, made from arithmetic."""
    from factory.artifacts import schemas
    from factory.artifacts.hashing import text_hash
    from factory.artifacts.tables import slice_directory, write_slice

    lexicon = " ".join(asked(60)).split()
    rows: list[dict[str, object]] = []
    for number, text in enumerate(texts):
        for k in range(n):
            length = words // 2 + (number * 31 + k * 17) % words
            answer = " ".join(lexicon[(number + k * 7 + i * (k + 3)) % 600] for i in range(length))
            rows.append(
                {
                    "prompt_id": f"p{number}",
                    "language": "en",
                    "k": k,
                    "prompt_hash": text_hash(repr(_said(text))),
                    "response": answer,
                    "response_hash": text_hash(answer),
                    "n_tokens": length,
                    "n_chars": len(answer),
                    "finish_reason": "stop",
                    "seed": 0,
                }
            )
    write_slice(slice_directory(root, "en"), schemas.from_rows(rows, "samples"))
    return root


def stage_score(directory: Path, asks: argparse.Namespace) -> dict[str, float]:
    """The stage, model loaded beforehand."""
    from factory.engines import choose
    from factory.rewards.score import Score

    engine = choose.scorer(choose.EngineKnobs(engine=asks.engine), directory / "reward", asks.dtype)
    engine.score([[1, 2, 3]] * 4)
    choose.scorer = lambda *_: engine  # type: ignore[assignment]
    texts = asked(asks.scored)
    reads = {
        "prompts": jobs.prompts(directory / "asked", {"en": texts}),
        "samples": samples(directory / "samples", texts, 64, 40),
    }
    job = jobs.job(directory / "score", ["en"], reads, {jobs.REWARD: directory / "reward"})
    started = time.perf_counter()
    outcome = Score(dtype=asks.dtype).run(job)
    return {"seconds": time.perf_counter() - started, "tokens": outcome.tokens}


def alone_score(directory: Path, asks: argparse.Namespace) -> dict[str, float]:
    """Each row by itself, one after another."""
    from factory.engines import chat_template, choose

    engine = choose.scorer(choose.EngineKnobs(engine=asks.engine), directory / "reward", asks.dtype)
    engine.score([[1, 2, 3]] * 4)
    texts, tokens = asked(asks.scored), 0
    drawn = jobs.read_slice(samples(directory / "alone", texts, 64, 40), "en", "samples")
    started = time.perf_counter()
    for row in drawn.to_pylist():
        said = _said(texts[int(row["prompt_id"][1:])])
        ids = chat_template.conversation_ids(
            engine.tokenizer, [*said, {"role": "assistant", "content": row["response"]}]
        )
        engine.score([ids])
        tokens += len(ids)
    seconds = time.perf_counter() - started
    engine.close()
    return {"seconds": seconds, "tokens": tokens}


# memory


class Nothing:
    """An engine that draws ids by arithmetic, as fast as Python goes: what the stage holds in
    memory is its own."""

    name, lanes, max_context = "nothing", 2, 8192

    def __init__(self, directory: Path) -> None:
        from factory.engines import checkpoint

        found = checkpoint.read(directory)
        self.tokenizer, self.stop_ids, self.tokens = found.tokenizer, found.stop_ids, 0

    def sample(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Any]:
        """Thirty tokens each."""
        return [
            Completion(tuple(100 + (seed + i * 31 + j * 7) % 8000 for j in range(30)), "stop", seed)
            for i in range(len(prompts))
        ]

    def close(self) -> None:
        """Nothing to let go of."""


def memory(directory: Path, asks: argparse.Namespace) -> dict[str, float]:
    """The peak of the whole process, and above where it stood when its imports were done."""
    import factory.language.detect
    from factory.engines import choose
    from factory.sampling.generate import Generate

    engine = Nothing(directory / "model")
    factory.language.detect.detect("Bread and water")
    choose.sampler = lambda *_: engine  # type: ignore[assignment,return-value]
    job = _job(directory / "memory", asked(asks.prompts), directory / "model")
    peak = Peak()
    peak.start()
    started = time.perf_counter()
    outcome = Generate(n=4, max_tokens=30, how={"shard": 100}).run(job)
    return {
        "seconds": time.perf_counter() - started,
        "mb": peak.stop(),
        "base_mb": peak.base / 1e6,
        "rows": outcome.rows["en"].out,
    }


# a kill


def killable(directory: Path, asks: argparse.Namespace) -> dict[str, float]:
    """A run to be killed: it ends when it is done, if nobody does."""
    from factory.sampling.generate import Generate

    how = {"engine": asks.engine, "shard": 4} | asked_limits(asks)
    stage = Generate(n=4, max_tokens=asks.tokens, dtype=asks.dtype, how=how)
    outcome = stage.run(_job(directory / "kill", asked(40), directory / "model"))
    return {"tokens": outcome.tokens}


def kill(directory: Path, asks: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the start of a run to its first new shard, at first and after a kill -9, and
    what a shard takes when all runs."""
    shards = directory / "kill" / "shards" / "en"
    found: dict[str, Any] = {}
    for attempt in ("first start", "after kill -9"):
        before = len(list(shards.glob("*.parquet")))
        started = time.perf_counter()
        process = subprocess.Popen(
            _command("killable", directory, asks), stdout=subprocess.DEVNULL, start_new_session=True
        )
        times = []
        while len(times) < 3 and process.poll() is None:
            if len(list(shards.glob("*.parquet"))) > before + len(times):
                times.append(time.perf_counter() - started)
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = len(list(shards.glob("*.parquet")))
        found[attempt] = {
            "to_first_shard": times[0],
            "a_shard": (times[-1] - times[0]) / (len(times) - 1),
            "shards_kept": kept,
        }
    return found


# measuring

SIDES: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "stage_generate": stage_generate,
    "bare_generate": bare_generate,
    "stage_score": stage_score,
    "alone_score": alone_score,
    "memory": memory,
    "killable": killable,
}


def _command(side: str, directory: Path, asks: argparse.Namespace, **changed: Any) -> list[str]:
    given = {**vars(asks), **changed}
    knobs = ("prompts", "n", "tokens", "shard", "seqs", "scored", "dtype", "engine")
    return [
        sys.executable, __file__, "--side", side, "--directory", str(directory),
        *(w for knob in knobs if given[knob] is not None for w in (f"--{knob}", str(given[knob]))),
    ]  # fmt: skip


def apart(side: str, directory: Path, asks: argparse.Namespace, **changed: Any) -> dict[str, Any]:
    """One run of one side in a process and a directory of its own."""
    with tempfile.TemporaryDirectory(dir=directory) as own:
        for name in ("model", "reward"):
            (Path(own) / name).symlink_to(directory / name)
        done = subprocess.run(
            _command(side, Path(own), asks, **changed), capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"side": side, "load": round(os.getloadavg()[0], 1), **found}


def compared(ours: str, other: str, directory: Path, asks: argparse.Namespace) -> list[Any]:
    """Both sides in turn, so that a busy minute hits both."""
    runs = [apart(side, directory, asks) for _ in range(asks.repeats) for side in (ours, other)]
    for run in runs:
        run["tokens_a_second"] = round(run["tokens"] / run["seconds"], 1)
    return runs


def median(runs: list[dict[str, Any]], side: str) -> float:
    """Of tokens a second."""
    values = sorted(run["tokens_a_second"] for run in runs if run["side"] == side)
    return float(values[len(values) // 2])


def show(part: str, runs: list[dict[str, Any]], ours: str, other: str, wish: str) -> None:
    """A table of runs and what it comes to."""
    print(f"\n{part}")
    for run in runs:
        print(
            f"  {run['side']:18} {run['tokens']:>8,} tokens {run['seconds']:>8.1f} s "
            f"{run['tokens_a_second']:>8.1f} tokens/s   load {run['load']}"
        )
    share = median(runs, ours) / median(runs, other)
    print(f"  median of ours to the median of the other: {share:.3f}   ({wish})")


def main() -> None:
    """Measure, print."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument("--prompts", type=int, default=24)
    options.add_argument("--n", type=int, default=8)
    options.add_argument("--tokens", type=int, default=48)
    options.add_argument("--shard", type=int, default=6)
    options.add_argument("--seqs", type=int, help="requests at once, on both sides; else vLLM's")
    options.add_argument("--scored", type=int, default=3, help="prompts of 64 answers to score")
    options.add_argument("--dtype", default="float32", help="bfloat16 on a GPU")
    options.add_argument("--engine", default="transformers", help="for score and kill")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--machine", default=f"{os.cpu_count()}-core CPU machine")
    options.add_argument("--json", action="store_true", help="one last line of JSON")
    options.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    asks = options.parse_args()
    if asks.side:
        found = SIDES[asks.side](asks.directory, asks)
        sys.stdout.flush()
        print(json.dumps(found))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        directory = asks.directory or Path(temporary)
        built(directory)
        print(f"{asks.machine}; {MODEL} in {asks.dtype}")
        if "generate" in asks.only:
            runs = compared("stage_generate", "bare_generate", directory, asks)
            show("generate", runs, "stage_generate", "bare_generate", "aim: at least 0.97")
            results["generate"] = runs
        if "score" in asks.only:
            runs = compared("stage_score", "alone_score", directory, asks)
            show("score", runs, "stage_score", "alone_score", "aim: clearly above 1")
            results["score"] = runs
        if "memory" in asks.only:
            found = [apart("memory", directory, asks, prompts=size) for size in (1_000, 10_000)]
            print("\nmemory")
            for run in found:
                print(
                    f"  {run['rows']:>8,} rows  {run['mb']:>6.0f} MB above the "
                    f"{run['base_mb']:.0f} MB of its imports, {run['seconds']:.0f} s"
                )
            results["memory"] = found
        if "kill" in asks.only:
            results["kill"] = kill(directory, asks)
            print(f"\nkill, {asks.engine}")
            for attempt, run in results["kill"].items():
                print(
                    f"  {attempt:14} first shard after {run['to_first_shard']:.1f} s, then one in "
                    f"{run['a_shard']:.1f} s; {run['shards_kept']} shards kept"
                )
    if asks.json:
        print(json.dumps({"machine": asks.machine, "model": MODEL, **results}))


if __name__ == "__main__":
    main()

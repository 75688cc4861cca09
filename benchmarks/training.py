"""Training: a DPO epoch through the stage against a bare TRL script with the published settings.

    python benchmarks/training.py                  # SmolLM2-135M, 16 pairs: minutes
    python benchmarks/training.py --model tiny     # the tiny random Llama: seconds, overhead alone
    python benchmarks/training.py --json           # the same, with one last line of JSON

The same pairs (the demo's English preferences), the same LoRA, learning rate, seed and batch on
every side, each in a process of its own. Measured from loading the model to its adapter on disk:
wall time, processor time (which other work on the machine disturbs less), tokens of both sides of
every pair a second, and the peak of resident memory above what the imports left. The stage's
held-out look, figure and probe are beside that, as `after`: a bare script does without them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH = 4  # rows a step; the published micro batch of 1 is accumulated to it
SETTINGS: dict[str, Any] = {"lr": 2e-4, "batch": BATCH, "max_length": 4096, "held_out": 0.0}
MODELS = {
    "tiny": "local/tiny-random-llama",
    "smollm2": "local/SmolLM2-135M-Instruct-Q4_1",
}
# what the stage is told beside SETTINGS; a bare side's dtype and whether it recomputes activations
SIDES: dict[str, dict[str, Any]] = {
    "bare TRL, as published": {"bare": ("bfloat16", True)},
    "bare TRL, float32": {"bare": ("float32", False)},
    "factory": {"dtype": "float32", "how": {"micro_batch": 1}},
    "factory, micro batch 4": {"dtype": "float32", "how": {"micro_batch": 4}},
    "… and by length": {
        "dtype": "float32",
        "how": {"micro_batch": 4},
        "group_by_length": True,
    },
    "… or reference first": {
        "dtype": "float32",
        "how": {"micro_batch": 4, "precompute_reference": "always"},
    },
    "2 epochs": {
        "dtype": "float32",
        "epochs": 2,
        "how": {"micro_batch": 4, "precompute_reference": "never"},
    },
    "2 epochs, reference first": {"dtype": "float32", "epochs": 2, "how": {"micro_batch": 4}},
}


def preferences(count: int) -> list[dict[str, Any]]:
    """Pairs as TRL reads them."""
    from factory.artifacts.resources import shipped

    lines = (shipped("recipes") / "demo" / "preferences.jsonl").read_text("utf-8").splitlines()
    found = []
    for line in lines[:count]:
        row = json.loads(line)
        sides = {s: [{"role": "assistant", "content": row[s]}] for s in ("chosen", "rejected")}
        found.append({"prompt": [{"role": "user", "content": row["prompt"]}], **sides})
    return found


def bare(base: Path, pairs: list[dict[str, Any]], out: Path, dtype: str, again: bool) -> Any:
    """What the published script does, with TRL alone. Returns the losses by step."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from factory.training.settings import PAPER_TARGETS

    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(str(base), dtype=getattr(torch, dtype)),
        args=DPOConfig(
            output_dir=str(out), learning_rate=SETTINGS["lr"], num_train_epochs=1,
            per_device_train_batch_size=1, gradient_accumulation_steps=BATCH, bf16=False,
            lr_scheduler_type="cosine", warmup_steps=0.05, weight_decay=0.01,
            max_length=SETTINGS["max_length"], gradient_checkpointing=again, use_cpu=True,
            logging_steps=1, report_to="none", disable_tqdm=True, seed=0, data_seed=0,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(str(base)),
        peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, task_type="CAUSAL_LM",
                               target_modules=list(PAPER_TARGETS)),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(out))
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def staged(base: Path, pairs: list[dict[str, Any]], directory: Path, knobs: dict[str, Any]) -> Any:
    """The same through the stage. Returns the losses, and (wall, processor) before and after."""
    from factory.artifacts import schemas, tables
    from factory.artifacts.tables import slice_directory
    from factory.stage.inputs import ExternalInput, SliceSpec, StepInput
    from factory.stage.job import Job, Place
    from factory.training import launch
    from factory.training.train import Dpo

    languages = dict.fromkeys(("prompt_language", "chosen_language", "rejected_language"), "en")
    filler = {"score_chosen": 1.0, "score_rejected": 0.0, "chosen_k": 0, "rejected_k": 1,
              "pool_size": 2, "pool_mean": 0.5, "pool_std": 0.5}  # fmt: skip
    rows = [{**p, **languages, **filler, "prompt_id": str(n)} for n, p in enumerate(pairs)]
    table = schemas.from_rows(rows, "pairs")
    tables.write_slice(slice_directory(directory / "rows", "en"), table)
    read, model = (
        StepInput("pairs", "pair", "en"),
        ExternalInput("base", "local/model@main", "model"),
    )
    spec = SliceSpec("dpo[en]", "en", "en", (read, model))
    places = {read: Place(directory / "rows"), model: Place(base, "local/model", "main")}
    (directory / "out").mkdir()
    job = Job("dpo[en]", 0, (spec,), places, directory, directory / "out", lambda *_: None)
    taken: list[float] = []
    train = launch.run

    def timed(*arguments: Any) -> Any:
        begun = time.perf_counter(), time.process_time()
        result = train(*arguments)
        taken.extend((time.perf_counter() - begun[0], time.process_time() - begun[1]))
        taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return result

    launch.run = timed
    curve = Dpo(**{**SETTINGS, **knobs}).run(job).stats["curve"]
    return [entry["loss"] for entry in curve], taken


def measure(side: str, base: Path, count: int) -> dict[str, Any]:
    """One run of one side in this process."""
    import datasets  # noqa: F401  (what both sides import is not what is measured)
    import peft  # noqa: F401
    import trl  # noqa: F401
    from trl import DPOTrainer  # noqa: F401

    from factory.engines import chat_template
    from factory.training.dataset import lengths

    pairs, knobs = preferences(count), dict(SIDES[side])
    tokenizer = chat_template.load_tokenizer(str(base))
    tokens = sum(sum(lengths(tokenizer, pair)) for pair in pairs) * knobs.get("epochs", 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        if "bare" in knobs:
            losses = bare(base, pairs, Path(temporary), *knobs["bare"])
            wall, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
            after, peak = 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        else:
            losses, (wall, cpu, peak) = staged(base, pairs, Path(temporary), knobs)
            after = time.perf_counter() - begun[0] - wall
    return {
        "side": side, "wall": wall, "cpu": cpu, "after": after, "tokens": tokens,
        "mb": (peak - before) / 1024, "first": losses[0], "last": losses[-1],
    }  # fmt: skip


def main() -> None:
    """Build the model, measure each side by itself, print."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--model", choices=MODELS, default="smollm2")
    options.add_argument("--pairs", type=int, default=16)
    options.add_argument("--json", action="store_true", help="one last line of JSON")
    options.add_argument("--base", type=Path, help="a checkpoint on disk, instead of --model")
    options.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.side:
        print("\n" + json.dumps(measure(asked.side, asked.base, asked.pairs)))
        return
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        base = asked.base or Path(temporary)
        if asked.base is None:
            from factory.execution.builtin_models import POCKET

            POCKET[MODELS[asked.model]].build(base)
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--base", str(base)]
            done = subprocess.run(
                [*command, "--pairs", str(asked.pairs)],
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"  {side}: {results[-1]['wall']:.1f} s", file=sys.stderr, flush=True)
    machine = f"{os.cpu_count()}-core CPU machine"
    print(f"{machine}; {asked.model}, {asked.pairs} pairs, batch {BATCH}\n")
    heads = ("wall s", "cpu s", "tokens/s", "per cpu s", "MB", "after s", "first", "last")
    print(f"{'side':26}" + "".join(f"{head:>10}" for head in heads))
    for r in results:
        rates = r["tokens"] / r["wall"], r["tokens"] / r["cpu"]
        figures = (r["wall"], r["cpu"], *rates, r["mb"], r["after"])
        print(
            f"{r['side']:26}"
            + "".join(f"{figure:>10.1f}" for figure in figures)
            + f"{r['first']:>10.4f}{r['last']:>10.4f}"
        )
    if asked.json:
        print(json.dumps({"machine": machine, "pairs": asked.pairs, "results": results}))


if __name__ == "__main__":
    main()

"""A tiny model and rows to train it on, for tests of the training stages without a hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from factory.artifacts import schemas, tables
from factory.artifacts.resources import shipped
from factory.artifacts.tables import slice_directory
from factory.engines.chat_template import load_tokenizer
from factory.execution.builtin_models import POCKET
from factory.stage.inputs import ExternalInput, SliceSpec, StepInput
from factory.stage.job import Job, Place
from factory.training import dataset
from factory.training.settings import Task
from factory.training.train import Dpo, Reward, Sft
from tests.support.families import tokenizer_of

BASE = ExternalInput("base", "local/tiny-random-llama@main", "model")
SMALL: dict[str, Any] = {
    "batch": 4,
    "max_length": 256,
    "held_out": 0.1,
    "min_pairs": 2,
    "dtype": "float32",
    "lr": 1e-3,
    "how": {"micro_batch": 2, "save_steps": 1, "evaluations": 1},
}


@cache
def tiny_model() -> Path:
    """The random Llama of the smoke recipe, built once a session."""
    directory = Path(mkdtemp(prefix="tiny-"))
    POCKET["local/tiny-random-llama"].build(directory)
    return directory


def opinionated(out: Path) -> Path:
    """The same in `out`, with sampling defaults of its own."""
    POCKET["local/tiny-random-llama"].build(out)
    path = out / "generation_config.json"
    own = {"do_sample": True, "top_k": 1, "temperature": 0.01, "repetition_penalty": 50.0}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    return out


def classifier_of(model: Path, out: Path) -> Path:
    """A checkpoint in `out` of the model in `model` as a classifier of one label, its head drawn
    at random."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    made = AutoModelForSequenceClassification.from_pretrained(str(model), num_labels=1)
    torch.nn.init.normal_(made.score.weight)
    made.save_pretrained(str(out))
    AutoTokenizer.from_pretrained(str(model)).save_pretrained(str(out))
    return out


def model_of_family(family: str, out: Path, **config: Any) -> Path:
    """The tiny model in `out` with the tokenizer of a family that has no pad token, and these
    values in its config."""
    POCKET["local/tiny-random-llama"].build(out)
    tokenizer_of(family).save_pretrained(str(out))
    path = out / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token_id": None, **config}))
    return out


def adapter_of(model: Path, out: Path, **config: Any) -> Path:
    """A LoRA on `model` that changes much; with `modules_to_save` whole layers in place of the
    base's."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(str(model))
    made = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **config))
    torch.manual_seed(config["r"])
    for name, weight in made.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight, std=0.1)
    made.save_pretrained(str(out))
    return out


@cache
def prompts() -> tuple[dict[str, str], ...]:
    """The demo's Spanish prompts."""
    path = shipped("recipes") / "demo" / "prompts-es.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


def _said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def row(kind: str, number: int) -> dict[str, Any]:
    """One row of pairs, preferences or sft, its texts of several lengths."""
    texts = [next(v for k, v in p.items() if k in ("prompt", "text")) for p in prompts()]
    prompt = _said("user", texts[number % len(texts)])
    better, worse = texts[(number + 1) % len(texts)], texts[(number + 2) % len(texts)]
    shared = {"prompt_id": f"p{number:03}", "prompt": prompt}
    if kind == "sft":
        return {
            **shared,
            "id": f"best/es/p{number:03}",
            "language": "es",
            "completion": _said("assistant", better),
            "reward": 1.0,
            "k": 0,
        }
    sides = {"chosen": _said("assistant", better), "rejected": _said("assistant", worse)}
    if kind == "prompts":
        gold = "Madrid" if number % 2 else None
        return {"prompt_id": shared["prompt_id"], "messages": prompt, "language": "es",
                "prompt_hash": "p", "gold": gold}  # fmt: skip
    if kind == "preferences":
        return {**shared, **sides, "language": "en", "margin": 1.0}
    languages = dict.fromkeys(("prompt_language", "chosen_language", "rejected_language"), "es")
    numbers = {"score_chosen": 1.0, "score_rejected": 0.0, "chosen_k": 0, "rejected_k": 1,
               "pool_size": 4, "pool_mean": 0.5, "pool_std": 0.5}  # fmt: skip
    return {**shared, **sides, **languages, **numbers}


def job(
    directory: Path,
    stage: Reward | Sft | Dpo,
    count: int = 12,
    progress: Callable[..., None] = lambda *_: None,
    start: Path | None = None,
    base: Path | None = None,
    reward: Path | None = None,
) -> Job:
    """A job for a training stage on `count` rows, in `directory`."""
    kind = stage.rows_kind
    upstream, work, out = (directory / name for name in ("rows", "work", "out"))
    for path in (work, out):
        path.mkdir(parents=True, exist_ok=True)
    table = schemas.from_rows([row(kind, number) for number in range(count)], kind)
    tables.write_slice(slice_directory(upstream, "es"), table)
    read = StepInput(stage.read, "rows", "es")
    places = {
        BASE: Place(base or tiny_model(), "local/tiny-random-llama", "a" * 40),
        read: Place(upstream),
    }
    needs: tuple[Any, ...] = (read, BASE)
    if "reference" in stage._columns():  # answers of best, but for the first prompt
        best = directory / "best"
        answers = schemas.from_rows([row("sft", number) for number in range(1, count)], "sft")
        tables.write_slice(slice_directory(best, "es"), answers)
        needs += (StepInput("reference", "best", "es"),)
        places[needs[-1]] = Place(best)
    if getattr(stage, "unpaired", None) is not None:
        needs = (BASE, *scored(directory, count, places))
    if start is not None:
        needs += (StepInput("start", "sft[es]", "es"),)
        places[needs[-1]] = Place(start, "local/smoke-sft-es", "fp-0123456789ab")
    if reward is not None:
        needs += (ExternalInput("reward", "local/reward@main", "model"),)
        places[needs[-1]] = Place(reward, "local/reward", "b" * 40)
    spec = SliceSpec(f"{stage.name}[es]", "es", "es", needs)
    return Job(f"{stage.name}[es]", 0, (spec,), places, work, out, progress)


def scored(directory: Path, count: int, places: dict[Any, Place]) -> list[StepInput]:
    """Inputs of `count` prompts with three scored answers each: rewards 0, 1 and 5 but all alike
    for the first prompt. The best of the second is cut off; one reward of the third is missing."""
    made: dict[str, list[dict[str, Any]]] = {"prompts": [], "samples": [], "scores": []}
    for number in range(count):
        pair = row("pairs", number)
        at = {"prompt_id": pair["prompt_id"], "language": "es"}
        made["prompts"].append({**at, "messages": pair["prompt"], "prompt_hash": "p"})
        for k, reward in enumerate((0.0, 1.0, 5.0)):
            text = pair["chosen" if k else "rejected"][0]["content"] + " ." * k
            address = {**at, "k": k, "response_hash": f"h{k}"}
            made["samples"].append(
                {**address, "prompt_hash": "p", "response": text, "n_tokens": 9, "seed": 0,
                 "n_chars": len(text), "detected_language": "es",
                 "finish_reason": "length" if number == 1 and k == 2 else "stop"}
            )  # fmt: skip
            value = 2.0 if number == 0 else None if (number, k) == (2, 0) else reward
            made["scores"].append({**address, "reward": value, "status": "ok"})
    reads = []
    for kind, rows in made.items():
        upstream = directory / kind
        tables.write_slice(slice_directory(upstream, "es"), schemas.from_rows(rows, kind))  # type: ignore[arg-type]
        reads.append(StepInput(kind, kind, "es"))
        places[reads[-1]] = Place(upstream)
    return reads


def rows_to_train(stage: Reward | Sft | Dpo, count: int) -> list[dict[str, Any]]:
    """Rows as the trainer of a stage gets them."""
    tokenizer = load_tokenizer(str(tiny_model()))
    rows = [row(stage.rows_kind, n) for n in range(count)]
    columns = (*stage._columns(), *stage.tokens)
    with_ids = [r | dataset.encode(tokenizer, r, "prompt_ids" in columns)[1] for r in rows]
    return [{name: r[name] for name in columns} for r in with_ids]


def task_of(stage: Reward | Sft | Dpo, made: Job) -> Task:
    """The task of a stage, its rows written, before anything is trained."""
    rows = rows_to_train(stage, 10)
    dataset.write(made.work / "rows", rows[2:], rows[:2])
    return stage._task(made, made.work)


def merge_job(directory: Path, parts: dict[str, Path]) -> Job:
    """A job for the merge stage, of adapters by their step."""
    out = directory / "out"
    out.mkdir(parents=True)
    places: dict[Any, Place] = {BASE: Place(tiny_model(), "local/tiny-random-llama", "a" * 40)}
    for step, path in parts.items():
        places[StepInput("adapter", step, "es")] = Place(
            path, f"local/{step[:3]}", "fp-0123456789ab"
        )
    spec = SliceSpec("merge", "all", None, tuple(places))
    return Job("merge", 0, (spec,), places, directory, out, lambda *_: None)

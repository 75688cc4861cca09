"""The truth about what a run made: its answers, its pairs, its rewards, and what its adapters draw.

Artifacts are read as folders of Parquet files, as any program would; nothing of the factory is
imported.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.world.town import LANGUAGES, Request, attributes, quality

Answers = Mapping[tuple[str, str], Sequence[str]]  # (request id, language) -> answers


@dataclass(frozen=True)
class Change:
    """True quality of a base's answers and the change to a tuned model's, with a 95 % interval: a
    bootstrap over requests."""

    answers: int
    base: float
    change: float
    low: float
    high: float

    def __str__(self) -> str:
        span = f"[{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.base:.3f} {self.change:+.3f} {span} of {self.answers}"


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return all rows of the Parquet files in a folder."""
    import pyarrow.parquet as pq

    files = sorted(folder.rglob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def greedy(folder: Path) -> dict[str, dict[tuple[str, str], list[str]]]:
    """Return the greedy answers of an artifact of `arena`, by model."""
    answers: dict[str, dict[tuple[str, str], list[str]]] = defaultdict(dict)
    for row in rows(folder):
        answers[row["model"]][row["question_id"], row["language"]] = [row["answer"]]
    return dict(answers)


def compare(tuned: Answers, base: Answers) -> dict[str, Change]:
    """Return the change of true quality by language, and `all`."""
    gaps: dict[tuple[str, str], float] = {}
    level: dict[tuple[str, str], float] = {}
    for (name, code), texts in tuned.items():
        request = Request.of(name)
        ours, theirs = (
            float(np.mean([quality(request, code, text) for text in side]))
            for side in (texts, base[name, code])
        )
        gaps[name, code], level[name, code] = ours - theirs, theirs
    changes = {}
    for code in (*LANGUAGES, "all"):
        keys = [key for key in gaps if code in ("all", key[1])]
        if not keys:
            continue
        by_request: dict[str, list[float]] = defaultdict(list)
        for key in keys:
            by_request[key[0]].append(gaps[key])
        low, high = _bootstrap(list(by_request.values()))
        mean = float(np.mean([gaps[key] for key in keys]))
        count = sum(len(tuned[key]) for key in keys)
        changes[code] = Change(count, float(np.mean([level[key] for key in keys])), mean, low, high)
    return changes


def parts(answers: Answers) -> dict[str, dict[str, float]]:
    """Return the mean of each attribute by language."""
    values: dict[str, list[dict[str, float]]] = defaultdict(list)
    for (name, code), texts in answers.items():
        values[code] += [attributes(Request.of(name), code, text) for text in texts]
    return {
        code: {key: float(np.mean([one[key] for one in of])) for key in of[0]}
        for code, of in values.items()
    }


def pairs(folder: Path) -> dict[str, tuple[int, float]]:
    """Return, by language, the number of pairs and the share whose chosen side is truly better."""
    better: dict[str, list[float]] = defaultdict(list)
    for row in rows(folder):
        request, code = Request.of(row["prompt_id"]), row["prompt_language"]
        chosen, rejected = (
            quality(request, code, row[side][0]["content"]) for side in ("chosen", "rejected")
        )
        better[code].append(0.5 if chosen == rejected else float(chosen > rejected))
    return {code: (len(of), float(np.mean(of))) for code, of in better.items()}


def verdicts(judge: Path, arena: Path) -> dict[str, dict[str, float]]:
    """Return, by language and for `all`, what a judge's verdicts on the answers of an `arena` are
    worth: how many there are on different answers; the share of those on answers of different
    quality that are right, a tie counting half; the win rate by the judge, and the true one."""
    texts = {}
    for row in rows(arena):
        digest = hashlib.sha256(row["answer"].encode()).hexdigest()[:16]
        texts[row["model"], row["question_id"], row["language"], digest] = row["answer"]
    points = {"model": 1.0, "tie": 0.5, "reference": 0.0}
    gathered: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows(judge):
        if row["verdict"] not in points or row["reason"] == "identical":
            continue
        question = row["question_id"], row["language"]
        ours, theirs = (
            quality(Request.of(question[0]), question[1], texts[model, *question, digest])
            for model, digest in (
                (row["model"], row["answer_hash"]),
                (row["reference"], row["reference_hash"]),
            )
        )
        true = 0.5 if abs(ours - theirs) < 1e-6 else float(ours > theirs)
        for code in (question[1], "all"):
            gathered[code].append((points[row["verdict"]], true))
    return {
        code: {
            "verdicts": len(of),
            "right": float(np.mean([1 - abs(by - true) for by, true in of if true != 0.5])),
            "win_rate": float(np.mean([by for by, _ in of])),
            "true_win_rate": float(np.mean([true for _, true in of])),
        }
        for code, of in gathered.items()
    }


def draw(
    base: Path,
    adapter: Path | None,
    questions: Sequence[tuple[str, str, str]],
    n: int = 4,
    seed: int = 0,
    max_tokens: int = 64,
    temperature: float = 1.0,
) -> tuple[dict[tuple[str, str], list[str]], float]:
    """Draw n answers to (request id, language, text), by transformers and PEFT alone; return them
    with the share that ended by itself. At temperature 0 they are greedy."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(base), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    torch.manual_seed(seed)
    how: dict[str, Any] = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0}
    drawn: dict[tuple[str, str], list[str]] = {}
    ended = 0
    for start in range(0, len(questions), 128):
        part = questions[start : start + 128]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            for _, _, text in part
        ]
        ids = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids["input_ids"],
                attention_mask=ids["attention_mask"],
                max_new_tokens=max_tokens,
                **how,
                num_return_sequences=n,
                pad_token_id=tokenizer.pad_token_id,
            )[:, ids["input_ids"].shape[1] :]
        ended += int((made == tokenizer.eos_token_id).any(dim=1).sum())
        for number, row in enumerate(made):
            name, code, _ = part[number // n]
            text = tokenizer.decode(row, skip_special_tokens=True).strip()
            drawn.setdefault((name, code), []).append(text)
    return drawn, ended / (n * len(questions))


def _bootstrap(clusters: list[list[float]], resamples: int = 2000) -> tuple[float, float]:
    sums = np.array([sum(cluster) for cluster in clusters])
    sizes = np.array([len(cluster) for cluster in clusters])
    picked = np.random.default_rng(0).integers(0, len(clusters), (resamples, len(clusters)))
    means = sums[picked].sum(axis=1) / sizes[picked].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)

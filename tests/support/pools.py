"""Artifacts of prompts, samples and scores at rest, and the job that pairs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from factory.artifacts.hashing import text_hash
from factory.artifacts.schemas import from_rows
from factory.artifacts.tables import slice_directory, write_slice
from factory.pairs.candidates import VOTES
from factory.rewards.backends.classifier import ClassifierBackend
from factory.rewards.score import Score
from factory.sampling.generate import Generate
from factory.sampling.sources import Prompts
from factory.stage.inputs import ExternalInput, StepInput
from factory.stage.job import Job, Place
from factory.stage.models import ModelRef
from factory.stage.stage import Stage, StageContext

# prompt id to answers: (reward, text) or (reward, text, columns that differ from the usual)
Pools = Mapping[str, Sequence[tuple[Any, ...]]]
STEPS = {"prompts": "prompts", "samples": "generate", "scores": "score"}


def scope(languages: Sequence[str], stage: Stage, **more: Stage) -> StageContext:
    """A recipe with these languages and this stage; `more` stand in the place of the usual ones."""
    models = {
        "policy": ModelRef(name="local/policy"),
        "teacher": ModelRef(name="local/teacher"),
        "reward": ClassifierBackend(name="local/reward", kind="classifier"),
    }
    before = {"prompts": Prompts(source="p-{language}.jsonl"), "generate": Generate(),
              "score": Score(), **more}  # fmt: skip
    if isinstance(score := before["score"], Score):
        models |= dict.fromkeys(score.rewards, models["reward"])
    return StageContext(tuple(languages), models, {**before, stage.name: stage})


def write(root: Path, pools: Mapping[str, Pools], asked: Mapping[str, Sequence[str]] = {}) -> None:
    """Three artifacts. `asked` names the prompts of a language, if not those with a pool."""
    for code, by_prompt in pools.items():
        made: dict[str, list[dict[str, Any]]] = {role: [] for role in STEPS}
        for name in asked.get(code, by_prompt):
            made["prompts"].append(
                {
                    "prompt_id": name,
                    "language": code,
                    "messages": [{"role": "user", "content": f"{name} in {code}"}],
                    "prompt_hash": text_hash(name + code),
                }
            )
        for name, answers in by_prompt.items():
            for k, (reward, text, *more) in enumerate(answers):
                shared = {
                    "prompt_id": name,
                    "language": code,
                    "k": k,
                    "response_hash": text_hash(text),
                    "n_tokens": len(text.split()),
                }
                sample = {
                    **shared,
                    "prompt_hash": text_hash(name + code),
                    "response": text,
                    "n_chars": len(text),
                    "finish_reason": "stop",
                    "seed": 0,
                    "detected_language": code,
                }
                score = {**shared, "reward": reward, "status": "ok" if reward is not None else "x"}
                for column, value in (more[0] if more else {}).items():
                    target = score if column in ("conversation", "reward", "log_prob") else sample
                    target["n_tokens" if column == "conversation" else column] = value
                    if column == "k":
                        score["k"] = value
                made["samples"].append(sample)
                made["scores"].append(score)
        for role, rows in made.items():
            write_slice(slice_directory(root / role, code), from_rows(rows, role))


def job_of(root: Path, stage: Stage, languages: Sequence[str], seed: int = 0, **more: Stage) -> Job:
    """The job of a stage that pairs what was written."""
    specs = tuple(stage.plan_slices(scope(languages, stage, **more)))
    needs = {need for spec in specs for need in spec.needs if not isinstance(need, ExternalInput)}
    return Job(
        step=stage.name,
        seed=seed,
        slices=specs,
        places={
            need: Place(root / ("samples" if need.role == VOTES else need.role))
            for need in needs
            if isinstance(need, StepInput)
        },
        work=root / "work",
        out=root / "out" / stage.name,
        progress=lambda done, total, unit, tokens=0: None,
    )


def read(root: Path, stage: Stage, name: str) -> list[dict[str, Any]]:
    """The rows that a stage left in one slice."""
    from factory.artifacts.tables import read_slice

    return read_slice(root / "out" / stage.name, name, stage.kind).to_pylist()

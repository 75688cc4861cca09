"""Jobs for stages, without a recipe, a hub or a plan: tables on disk in, a directory out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from factory.artifacts import schemas
from factory.artifacts.hashing import text_hash
from factory.artifacts.tables import read_slice, slice_directory, write_slice
from factory.rewards.backends.classifier import ClassifierBackend
from factory.stage.inputs import ExternalInput, RewardInput, SliceSpec, StepInput
from factory.stage.job import Job, Place

MODEL = ExternalInput("model", "local/model@main", "model")
ADAPTER = ExternalInput("adapter", "local/adapter@main", "model")
REWARD = ExternalInput("reward", "local/reward@main", "model")


def prompts(root: Path, texts: Mapping[str, Sequence[str | list[dict[str, str]]]]) -> Path:
    """An artifact of prompts by language: texts, or whole conversations."""
    for language, asked in texts.items():
        rows: list[dict[str, object]] = []
        for number, text in enumerate(asked):
            messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
            rows.append(
                {
                    "prompt_id": f"p{number}",
                    "language": language,
                    "messages": messages,
                    "prompt_hash": text_hash(repr(messages)),
                }
            )
        write_slice(slice_directory(root, language), schemas.from_rows(rows, "prompts"))
    return root


def job(
    root: Path,
    languages: Sequence[str],
    reads: Mapping[str, Path],
    models: Mapping[ExternalInput, Path],
    part: tuple[int, int] | None = None,
    told: list[tuple[int, int, int]] | None = None,
) -> Job:
    """A job in `root` that reads these artifacts by role and these models."""
    steps = {role: StepInput(role, role, "") for role in reads}
    specs, places = [], {model: Place(path, "local/model") for model, path in models.items()}
    for language in languages:
        needs = tuple(StepInput(role, role, language) for role in steps)
        classifier = RewardInput(
            ClassifierBackend(kind="classifier", name="local/reward"), (("reward", REWARD),)
        )
        reward = classifier if REWARD in models else None
        specs.append(SliceSpec("step", language, language, (*needs, *models), reward=reward))
        places.update({need: Place(reads[need.role]) for need in needs})
    (root / "out").mkdir(parents=True, exist_ok=True)

    def progress(done: int, total: int, unit: str, tokens: int = 0) -> None:
        if told is not None:
            told.append((done, total, tokens))

    return Job("step", 0, tuple(specs), places, root, root / "out", progress, part=part)


def made(root: Path, name: str, kind: str) -> list[dict[str, Any]]:
    """The rows of one slice that a job left."""
    rows: list[dict[str, Any]] = read_slice(root / "out", name, kind).to_pylist()
    return rows

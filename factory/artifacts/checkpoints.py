"""Checkpoints that a training keeps: the adapter after a share of the steps, beside the one at the
end. They lie in the adapter's repo, in folders that PEFT loads as `subfolder`. Pure."""

from __future__ import annotations

import re

FOLDER = "checkpoints"
EVERY = "*"  # in a recipe: all that a training keeps, and the end
_LABEL = re.compile(r"(.+)-at-(0\.\d+)")


def written(share: float) -> str:
    """A share of the steps as recipes, folders and labels have it."""
    return f"{share:g}"


def folder(share: str) -> str:
    """Where in an adapter's repo a checkpoint lies."""
    return f"{FOLDER}/{share}"


def label(model: str, share: str | None) -> str:
    """What a checkpoint is called among those that are evaluated; without a share, the end."""
    return model if share is None else f"{model}-at-{share}"


def parted(name: str) -> tuple[str, float]:
    """A label as the model and how much of its training is behind it."""
    match = _LABEL.fullmatch(name)
    return (match[1], float(match[2])) if match else (name, 1.0)

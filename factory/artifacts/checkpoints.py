"""Checkpoints of a training: adapters after a share of the steps. They lie in the adapter's repo,
in folders that PEFT loads as `subfolder`. Pure."""

from __future__ import annotations

import re

FOLDER = "checkpoints"
EVERY = "*"  # in a recipe: all that a training keeps, and the end
_LABEL = re.compile(r"(.+)-at-(0\.\d+)")


def format_share(share: float) -> str:
    """Format a share of the steps as recipes, folders and labels write it."""
    return f"{share:g}"


def folder(share: str) -> str:
    """Return the path of a checkpoint in its adapter's repo."""
    return f"{FOLDER}/{share}"


def label(model: str, share: str | None) -> str:
    """Return the label of a checkpoint in an evaluation; without a share, of the final adapter."""
    return model if share is None else f"{model}-at-{share}"


def split_label(name: str) -> tuple[str, float]:
    """Split a label into the model and the share of its training."""
    match = _LABEL.fullmatch(name)
    return (match[1], float(match[2])) if match else (name, 1.0)

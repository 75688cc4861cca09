"""Where files lie that ship beside the code (recipes, cards, scripts, locks); where state is kept.

Imports nothing of size: the command line starts with it.
"""

from __future__ import annotations

import os
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]
_WHEEL = Path(__file__).parents[1] / "_data"  # where the wheel puts it


def shipped(name: str) -> Path:
    """A file or folder of the project, in a checkout or in an installed wheel."""
    return (_WHEEL if _WHEEL.is_dir() else _CHECKOUT) / name


def recipes() -> dict[str, Path]:
    """The packaged recipes by name, whichever folder they lie in."""
    files = shipped("recipes").rglob("*.yaml")
    return {file.stem: file for file in sorted(files) if not file.name.endswith(".lock.yaml")}


def home_path() -> Path:
    """Where the factory keeps its state: $FACTORY_HOME, else ./.factory."""
    return Path(os.environ.get("FACTORY_HOME") or ".factory").absolute()

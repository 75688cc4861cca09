"""Paths of files that ship with the code (recipes, cards, scripts, locks) and of the home
directory.

Imports nothing of size: the command line starts with it.
"""

from __future__ import annotations

import os
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]
_WHEEL = Path(__file__).parents[1] / "_data"  # where the wheel puts it


def shipped(name: str) -> Path:
    """Return the path of a file or folder of the project, in a checkout or in an installed
    wheel."""
    return (_WHEEL if _WHEEL.is_dir() else _CHECKOUT) / name


def recipes() -> dict[str, Path]:
    """Return the packaged recipes, name to path, from all folders."""
    files = shipped("recipes").rglob("*.yaml")
    return {file.stem: file for file in sorted(files) if not file.name.endswith(".lock.yaml")}


def home_path() -> Path:
    """Return the directory of the factory's state: $FACTORY_HOME, else the nearest .factory of this
    user here or in a folder above, else ./.factory."""
    if named := os.environ.get("FACTORY_HOME"):
        return Path(named).absolute()
    here = Path.cwd()
    for folder in (here, *here.parents):
        home = folder / ".factory"
        # another user's may lie in a shared folder, and this user's files do not belong there
        if home.is_dir() and home.stat().st_uid == os.getuid():
            return home
    return here / ".factory"

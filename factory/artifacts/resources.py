"""Paths of files that ship with the code (recipes, cards, scripts, locks) and of the home
directory.

Imports nothing of size: the command line starts with it.
"""

from __future__ import annotations

import os
from contextlib import suppress
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
    """Return the directory of the factory's state: $FACTORY_HOME, else ./.factory."""
    return Path(os.environ.get("FACTORY_HOME") or ".factory").absolute()


# What a home holds of private repos beside the hub, which keeps its own folder private.
_PRIVATE = ("work", "cache", "caches", "sync", "log")


def prepare_home(root: Path) -> None:
    """Create the home with its folders, which only the user can read, and keep it out of git. A
    home that cannot be written is left as it is."""
    with suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        for folder in map(root.joinpath, _PRIVATE):
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.stat().st_mode & 0o077:
                folder.chmod(0o700)
        ignored = root / ".gitignore"
        if not ignored.exists():
            ignored.write_text("*\n", encoding="utf-8")

"""What ships beside the code (recipes, cards, the scripts of clusters, locks): where it lies."""

from __future__ import annotations

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

"""Paths of files that ship with the code (recipes, cards, scripts, locks) and of the home
directory.

Imports nothing of size: the command line starts with it.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

NAME = "croco-factory"  # of the distribution
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


def install_command(extra: str = "") -> str:
    """Return the command that installs the package once more, with an extra, from where it came
    from: a checkout, the file of a wheel, or else an index; by pip, or by uv where no pip is."""
    import importlib.metadata
    import importlib.util
    import json
    import shutil
    from urllib.parse import unquote, urlsplit

    try:
        record = importlib.metadata.distribution(NAME).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        record = None
    origin = json.loads(record) if record else {}
    path = unquote(urlsplit(origin.get("url", "")).path)
    source, edit = NAME, ""
    if path and Path(path).exists():
        source = path
        edit = "-e " if origin.get("dir_info", {}).get("editable") else ""
    pip = "pip install"
    if importlib.util.find_spec("pip") is None and shutil.which("uv"):
        pip = f"uv pip install --python {shlex.quote(sys.executable)}"
    return f"{pip} {edit}'{source}[{extra}]'" if extra else f"{pip} {edit}'{source}'"


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

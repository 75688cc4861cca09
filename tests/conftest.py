"""What every test may lean on: a home of its own, and the command line as a user meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Clients read these when they are imported, so before any test imports one.
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.pop("HF_TOKEN", None)

FACTORY = [sys.executable, "-c", "from factory.cli import main; main()"]
Cli = Callable[..., subprocess.CompletedProcess[str]]


def run_factory(
    *arguments: str, home: Path, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`factory ARGUMENTS` in `home`'s parent, as a user would run it."""
    return subprocess.run(
        [*FACTORY, *arguments],
        cwd=home.parent,
        env={**os.environ, "FACTORY_HOME": str(home), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A factory home that nobody else uses."""
    return tmp_path / "home"


@pytest.fixture
def factory(home: Path) -> Cli:
    """The command line in that home."""

    def run(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        return run_factory(*arguments, home=home, **options)  # type: ignore[arg-type]

    return run

"""What every test may lean on: a home of its own, and the command line as a user meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from factory.localhub.launcher import Connection, connect
from tests.support.secrets import PLANTED
from tests.support.terminal import clean_environment, on_terminal, plain

# For the clients that tests use themselves, before any is imported. A command under test starts
# without them: see run_factory.
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.pop("HF_TOKEN", None)


# Files whose tests look at one run of the smoke recipe.
_SMOKE = ("tests/execution/test_smoke.py", "tests/execution/test_printed_commands.py",
          "tests/first_half_hour/test_first_half_hour.py", "tests/release/test_api.py",
          "tests/reports/cards/test_snippets.py")  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a worker all tests that share an expensive fixture: those of a file, those of the smoke
    run, those of a cluster."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            if path in _SMOKE:
                return "smoke"
            return "slurm" if path.startswith("tests/slurm/") else path

    return Groups(config, log)


FACTORY = [sys.executable, "-m", "factory"]
Cli = Callable[..., subprocess.CompletedProcess[str]]


def run_factory(
    *arguments: str, home: Path, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `factory ARGUMENTS` in `home`'s parent, as a user would: without the suite's settings."""
    return subprocess.run(
        [*FACTORY, *arguments],
        cwd=home.parent,
        env=clean_environment(**{"FACTORY_HOME": str(home), "COLUMNS": "200", **environment}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the smoke recipe ran from nothing, on a terminal and with secrets in its
    environment, for all slow tests that look at what was made; whoever changes it copies it first.
    What was printed is in said.txt beside it."""
    home = tmp_path_factory.mktemp("smoke") / "home"
    settings = clean_environment(FACTORY_HOME=str(home), COLUMNS="200", LINES="40", **PLANTED)
    shown, code = on_terminal([*FACTORY, "run", "smoke"], home.parent, settings, timeout=900)
    said = plain(shown)
    assert code == 0 and "Traceback" not in said, said[-3000:]
    (home.parent / "said.txt").write_text(said)
    return home


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """A local hub that the tests of one file share."""
    with connect(tmp_path_factory.mktemp("hub")) as found:
        yield found


@pytest.fixture
def hub(connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The factory's view of it, with a cache of its own."""
    from huggingface_hub import constants

    from factory.hub.client import Hub

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return Hub(connection.url, connection.token)


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

"""The first half hour of three people, as sessions beside this file; the fourth sits before a
cluster, in tests/slurm."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory.execution.builtin_models import POCKET
from factory.localhub.launcher import await_end
from tests.conftest import FACTORY
from tests.support.sessions import type_in
from tests.support.terminal import clean_environment

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def test_a_researcher_with_a_laptop(tmp_path: Path) -> None:
    type_in(HERE / "laptop.txt", tmp_path / "desk")


def test_a_language_pair_and_rows_of_ones_own(tmp_path: Path) -> None:
    POCKET["local/tiny-random-llama"].build(tmp_path / "desk" / "our-model")
    type_in(HERE / "language-pair.txt", tmp_path / "desk")


def test_a_user_of_a_released_adapter(tmp_path: Path, elsewhere: str) -> None:
    type_in(HERE / "adapter.txt", tmp_path / "desk", ELSEWHERE=elsewhere)


@pytest.fixture
def elsewhere(smoke: Path, tmp_path: Path) -> Iterator[str]:
    """The address of another hub, where somebody published the smoke recipe for anybody to read."""
    await_end(smoke / "hub")
    home = tmp_path / "theirs" / "home"
    shutil.copytree(smoke, home)
    server = subprocess.Popen(
        [*FACTORY, "hub", "serve", "--anonymous"],
        cwd=home.parent,
        env=clean_environment(FACTORY_HOME=str(home)),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield address[0]
                break
    finally:
        server.terminate()
        server.wait(30)

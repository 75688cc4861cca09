"""A home of earlier code is reused: nothing that was published with it is made again.

tests/data/home-before-the-folders.tar.xz holds the hub and the work directory of
`factory run smoke --until pair --set languages=[en,es]`, made by the code at commit 501b5d2, before
the package had its folders, and the local hub its present store.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.conftest import run_factory

STORED = Path(__file__).parent.parent / "data" / "home-before-the-folders.tar.xz"
PUBLISHED = (
    "prompts", "translate", "preferences", "questions", "reward", "generate", "score", "pair",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home, with the recipe that its artifacts keep beside it: without its files, which it
    reads as they were published."""
    root = tmp_path_factory.mktemp("earlier")
    with tarfile.open(STORED) as archive:
        archive.extractall(root, filter="data")
    recipe = next(root.glob("home/work/local/*/artifact/recipe.yaml"))
    (root / "smoke.yaml").write_bytes(recipe.read_bytes())
    return root / "home"


def test_every_step_is_a_cache_hit(home: Path) -> None:
    done = run_factory("plan", "smoke.yaml", "--json", home=home)
    assert done.returncode == 0, done.stderr
    states = {step["step"]: step["state"] for step in json.loads(done.stdout)}
    assert {name: states[name] for name in PUBLISHED} == dict.fromkeys(PUBLISHED, "reuse")


def test_a_run_makes_nothing_again(home: Path) -> None:
    done = run_factory("run", "smoke.yaml", "--until", "pair", home=home)
    assert done.returncode == 0, done.stderr
    assert ": done in" not in done.stdout and done.stdout.count(": reused") == len(PUBLISHED)


def test_published_manifests_are_read(home: Path) -> None:
    done = run_factory("diff", "local/smoke-pair", "local/smoke-pair", "--json", home=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["same_bytes"]

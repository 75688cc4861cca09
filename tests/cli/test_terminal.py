"""Commands on a real terminal, where bars move: pipes hid what crashed there. The smoke recipe,
whose stages report progress in their own units, runs on one for tests/execution/test_smoke.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory.localhub.launcher import connect
from tests.conftest import FACTORY, run_factory
from tests.support.terminal import clean_environment, on_terminal, plain
from tests.support.tiny_recipe import RECIPE


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A directory with a recipe that takes a second."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prompt": "Why?"}\n')
    return tmp_path


def shown(home: Path, *arguments: str, timeout: float = 60, **environment: str) -> str:
    """Run `factory ARGUMENTS` on a terminal; it must end well. Return what a person reads."""
    settings = clean_environment(FACTORY_HOME=str(home), **environment)
    text, code = on_terminal([*FACTORY, *arguments], home.parent, settings, timeout=timeout)
    assert code == 0, plain(text)[-3000:]
    assert "Traceback" not in text
    return plain(text)


def test_a_run_shows_a_bar_before_its_length_is_known(desk: Path) -> None:
    assert "prompts: done in" in shown(desk / "home", "run", "tiny.yaml")


def test_forced_colour_in_a_pipe(desk: Path) -> None:
    done = run_factory("run", "tiny.yaml", home=desk / "home", FORCE_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert "\x1b[" in done.stdout


def test_a_run_from_python(desk: Path) -> None:
    code = "import factory; print(sorted(factory.run('tiny.yaml')))"
    settings = clean_environment(FACTORY_HOME=str(desk / "home"))
    text, status = on_terminal([FACTORY[0], "-c", code], desk, settings)
    assert status == 0, plain(text)[-3000:]
    assert "['prompts']" in plain(text)


def test_push_and_pull_between_two_hubs(desk: Path) -> None:
    home = desk / "home"
    shown(home, "run", "tiny.yaml")
    with connect(desk / "elsewhere") as other:
        token = {"HF_TOKEN": other.token}
        pushed = shown(home, "push", "local/tiny-prompts", "--to", other.url, **token)
        assert "datasets/local/tiny-prompts" in pushed
        pulled = shown(desk / "second", "pull", "local/tiny-prompts", "--from", other.url, **token)
        assert "datasets/local/tiny-prompts" in pulled

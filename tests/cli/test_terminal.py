"""Commands on a real terminal, where bars move: pipes hid what crashed there."""

from __future__ import annotations

import json
import shutil
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


# The whole line, since every stage reports its progress in its own units.
@pytest.mark.slow
def test_the_whole_line_then_reproduced_and_asked(tmp_path: Path) -> None:
    home = tmp_path / "home"
    text = shown(home, "run", "smoke", timeout=900)
    assert "judge: done in" in text and "Collection" in text
    plan = run_factory("plan", "smoke", "--json", home=home)
    assert {step["state"] for step in json.loads(plan.stdout)} == {"reuse"}
    with connect(home / "hub") as hub:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=hub.url, token=hub.token)
        [collection] = list(api.list_collections(owner="local"))
        stranger = tmp_path / "stranger" / "home"
        stranger.parent.mkdir()
        again = shown(
            stranger, "reproduce", collection.slug, "--from", "judge", "--at", hub.url,
            timeout=600, HF_TOKEN=hub.token,
        )  # fmt: skip
        assert "identical bytes" in again
        assert "Claims of the original" in again and "Not tested" not in again
        assert "within the intervals measured here, 0 not." in " ".join(again.split())
    talk, code = on_terminal(
        [*FACTORY, "chat", "local/smoke-dpo-all"],
        tmp_path,
        clean_environment(FACTORY_HOME=str(home)),
        keys=[("> ", "Name three animals.\r"), ("> ", "\x04")],
        timeout=300,
    )
    assert code == 0, plain(talk)[-3000:]
    shutil.rmtree(home)

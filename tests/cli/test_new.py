"""factory new: recipes that plan as they are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factory.planning.recipe import load
from tests.conftest import FACTORY, Cli
from tests.support.terminal import clean_environment, on_terminal, plain

SMALL = "local/SmolLM2-135M-Instruct-Q4_1"


def states(factory: Cli, recipe: str) -> set[str]:
    planned = factory("plan", recipe, "--json")
    assert planned.returncode == 0, planned.stderr
    return {step["state"] for step in json.loads(planned.stdout)}


@pytest.mark.parametrize("source", ["demo", "smoke"])
def test_a_copy_of_a_packaged_recipe_plans(factory: Cli, tmp_path: Path, source: str) -> None:
    done = factory("new", "my.yaml", "--from", source)
    assert done.returncode == 0, done.stderr
    assert "factory plan my.yaml" in done.stdout
    assert load(str(tmp_path / "my.yaml")).recipe.name == "my"
    assert states(factory, "my.yaml") == {"run"}


def test_a_recipe_of_options_plans(factory: Cli, tmp_path: Path) -> None:
    options = ("--languages", "en,es", "--model", SMALL, "--license", "mit")
    done = factory("new", "a/own.yaml", *options)
    assert done.returncode == 0, done.stderr
    assert states(factory, "a/own.yaml") == {"run"}
    (tmp_path / "p-da.jsonl").write_text('{"prompt": "Hvad?"}\n')
    own = factory(
        "new", "a/da.yaml", "--languages", "da", "--data", "p-{language}.jsonl",
        "--questions", "p-{language}.jsonl", *options[2:],
    )  # fmt: skip
    assert own.returncode == 0, own.stderr
    assert load(str(tmp_path / "a/da.yaml")).file("../p-da.jsonl") == tmp_path / "p-da.jsonl"
    assert states(factory, "a/da.yaml") == {"run"}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ((), "--languages is missing"),
        (("--from", "demo", "--model", SMALL), "--from copies a recipe as it is"),
        (("--languages", "da", "--model", SMALL, "--license", "mit"), "no sample prompts in 'da'"),
        (("--languages", "en", "--model", "https://huggingface.co/a/b", "--license", "mit"),
         "write a/b"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_leaves_nothing(
    factory: Cli, tmp_path: Path, options: tuple[str, ...], word: str
) -> None:
    done = factory("new", "my.yaml", *options)
    assert done.returncode == 1 and word in done.stderr
    assert not (tmp_path / "my.yaml").exists()


def test_a_person_is_asked(tmp_path: Path) -> None:
    keys = [("Languages", "en\r"), ("Model", "\r"), ("Prompts", "\r"), ("Licence", "\r")]
    settings = clean_environment(FACTORY_HOME=str(tmp_path / "home"))
    text, code = on_terminal([*FACTORY, "new", "my.yaml"], tmp_path, settings, keys=keys)
    assert code == 0, plain(text)
    assert "factory run my.yaml" in plain(text)
    assert (tmp_path / "my" / "prompts-en.jsonl").is_file()

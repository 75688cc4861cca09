"""Mistakes as a new user makes them: one line what, one line what to do, exit code 1."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Cli

RECIPE = """
name: mine
org: local
languages: [en]
license: mit
models: {{policy: {policy}}}
stages:
  prompts: {{source: "{source}"}}
  generate: {{n: 2, max_tokens: 4}}
"""


def _recipe(
    directory: Path, policy: str = "local/tiny-random-llama", source: str = "p.jsonl"
) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "mine.yaml"
    path.write_text(RECIPE.format(policy=policy, source=source))
    return str(path)


def _is_two_lines(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done.stderr
    beside = ("; trying again in", "warning: licenses: not checked")
    lines = done.stderr.strip().splitlines()
    lines = [line for line in lines if not any(words in line for words in beside)]
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("error: ") and lines[1].startswith("  fix: ")
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "demoo"], ["no recipe called 'demoo'", "'demo'"]),
        (["plan", "nowhere/x.yaml"], ["nowhere/x.yaml"]),
        (["plan", "demo", "--set", "stages.generate.nn=3"], ["did you mean 'n'"]),
        (["plan", "demo", "--set", "stages.generat={}"], ["did you mean 'generate'"]),
        (["plan", "demo", "--set", "languages=[en, xx]"], ["unknown language 'xx'"]),
        (["plan", "demo", "--set", "stages.dpo.base=polcy"], ["did you mean 'policy'"]),
        (["run", "demo", "--only", "generat"], ["did you mean 'generate'"]),
        (["plan", "demo", "--what"], ["No such option"]),
        (["report", "demo", "-o", "page.html"], ["--to names where to write"]),
        (["plam"], ["No such command"]),
        (["hub", "exec", "--", "no-such-program"], ["no-such-program", "install it"]),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_two_lines(
    factory: Cli, arguments: list[str], words: list[str]
) -> None:
    _is_two_lines(factory(*arguments), *words)


def test_a_model_that_the_hub_lacks_is_named(factory: Cli, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prompt": "Hello"}\n')
    _is_two_lines(factory("plan", _recipe(tmp_path, policy="local/no-such-model")), "no-such-model")


def test_a_missing_prompt_file_says_where_it_should_lie(factory: Cli, tmp_path: Path) -> None:
    _is_two_lines(factory("plan", _recipe(tmp_path)), "p.jsonl", str(tmp_path))


def test_a_bad_row_or_a_licence_nobody_knows_stops_before_anything_is_published(
    factory: Cli, home: Path, tmp_path: Path
) -> None:
    bad = '{"id": "b", "promt": "x"}\n'
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prompt": "Hello"}\n' + 2 * bad)
    run = ("run", _recipe(tmp_path), "--until", "prompts")
    _is_two_lines(factory(*run), "p.jsonl line 2")
    unsaid = factory(*run, "--set", "license=null")
    _is_two_lines(unsaid, "unknown licence: p.jsonl", "licenses: {p.jsonl: apache-2.0}")
    listing = factory("hub", "exec", "--", "hf", "repos", "list", "--format", "json")
    assert "mine-prompts" not in listing.stdout


def test_a_hub_that_is_not_there_is_named(factory: Cli, tmp_path: Path) -> None:
    done = factory("plan", "demo", "--hub", "http://127.0.0.1:9")  # nobody listens on discard
    _is_two_lines(done, "http://127.0.0.1:9", "cannot be reached")


def test_plan_prints_every_step_with_state_and_reason(factory: Cli) -> None:
    done = factory("plan", "demo", "--json")
    assert done.returncode == 0, done.stderr
    steps = {step["step"]: step for step in json.loads(done.stdout)}
    assert list(steps) == [
        "prompts", "translate", "preferences", "questions", "reward", "generate", "score", "pair",
        "best", "sft[all]", "dpo[all]", "dpo[es]", "arena", "judge",
    ]  # fmt: skip
    assert all(step["state"] == "run" and step["reason"] for step in steps.values())


def test_help_and_version_need_no_torch_and_no_hub(factory: Cli, home: Path) -> None:
    assert "recipe" in factory("--help").stdout
    assert str(home) in factory("--version").stdout
    assert not home.exists()


def test_the_word_pass_rate_is_a_column_where_a_language_has_one():
    from types import SimpleNamespace
    from typing import cast

    from rich.console import Console

    from factory.artifacts.manifest import Manifest
    from factory.cli.tables import doubts_table

    row = {
        "model": "dpo", "language": "ru", "bounds": {"worst": 1.0, "best": 2.0},
        "line_pass_rate_model": 90.0, "line_pass_rate_reference": 80.0,
    }  # fmt: skip

    def shown(**more: float | None) -> str:
        stats = {"comparisons": [row | more], "seen_in_training": {}}
        console = Console(width=160)
        with console.capture() as caught:
            console.print(doubts_table(cast(Manifest, SimpleNamespace(stats=stats))))
        return caught.get()

    assert "WPR" not in shown(), "made before these were counted"
    assert "WPR" not in shown(word_pass_rate_model=None, word_pass_rate_reference=None)
    there = shown(word_pass_rate_model=None, word_pass_rate_reference=97.0)
    assert "80, 90" in there and "97, none" in there


def test_the_finish_rate_has_a_table_where_answers_say_how_they_ended():
    from types import SimpleNamespace
    from typing import cast

    from rich.console import Console

    from factory.artifacts.manifest import Manifest
    from factory.cli.tables import finish_table

    def manifest(row: dict[str, object]) -> Manifest:
        stats = {"comparisons": [{"model": "dpo", "language": "es"} | row]}
        return cast(Manifest, SimpleNamespace(stats=stats))

    rates = {"reference": 25.0, "model": 75.0, "answers": 24, "shown": "+50.0 [+20.0, +80.0]"}
    console = Console(width=120)
    with console.capture() as caught:
        console.print(finish_table(manifest({"finish_rates": rates})))
    for text in ("Finish rate", "25.0 %", "75.0 %", "+50.0 [+20.0, +80.0]"):
        assert text in caught.get()
    assert finish_table(manifest({})) is None

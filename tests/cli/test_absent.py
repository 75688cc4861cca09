"""What a recipe names and is not here: listed all at once, pulled by one command, or not needed,
since its rows are published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from factory.artifacts.resources import home_path
from factory.localhub.launcher import connect
from tests.conftest import Cli
from tests.support.tiny_recipe import RECIPE

MISSING = """
name: mine
org: local
languages: [en]
license: mit
models:
  policy: org/policy
  reward: {kind: classifier, name: org/reward}
stages:
  prompts: {source: org/prompts}
  questions: {source: questions.jsonl}
  generate: {n: 2}
  score: {}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A recipe whose models, dataset and file are all absent."""
    (tmp_path / "mine.yaml").write_text(MISSING)
    return tmp_path


def test_a_plan_lists_all_that_is_absent_with_sizes_and_a_pull_brings_it_in(
    mine: Path, factory: Cli
) -> None:
    with connect(mine / "elsewhere") as other:
        token = {"HF_TOKEN": other.token}
        api = HfApi(endpoint=other.url, token=other.token)
        for repo, kind, file in (
            ("org/policy", "model", "config.json"),
            ("org/reward", "model", "config.json"),
            ("org/prompts", "dataset", "train.jsonl"),
        ):
            api.create_repo(repo, repo_type=kind)
            content = b'{"prompt": "Why?"}\n' + b" " * 1_500
            card = f"---\nlicense: {'cc-by-nc-4.0' if 'reward' in repo else 'mit'}\n---\n"
            for path, text in ((file, content), ("README.md", card.encode())):
                api.upload_file(
                    path_or_fileobj=text, path_in_repo=path, repo_id=repo, repo_type=kind
                )
        planned = factory("plan", "mine.yaml", "--from", other.url, **token)
        assert planned.returncode == 1
        for word in (
            "mine.yaml:7",
            "model org/policy",
            "dataset org/prompts",
            "cc-by-nc-4.0",
            "4 kB",
            "Total: 10 kB",
        ):
            assert word in planned.stdout, planned.stdout
        conflict = "score: local/mine-score cannot be under mit: it is made from org/reward@main"
        checked = factory("check", "mine.yaml", "--from", other.url, **token)
        assert conflict in checked.stdout and checked.returncode == 1
        error, fix, licence, _ = planned.stderr.strip().splitlines()
        assert conflict in licence
        for word in ("org/policy", "org/reward", "org/prompts", "questions.jsonl"):
            assert word in error
        assert "factory pull mine.yaml" in fix
        assert not list(mine.glob("*.lock.yaml")), "a plan writes nothing"
        run = factory("run", "mine.yaml")
        assert run.returncode == 1 and "org/reward" in run.stderr
        pulled = factory("pull", "mine.yaml", "--from", other.url, **token)
        assert pulled.returncode == 0, pulled.stderr
        (mine / "questions.jsonl").write_text('{"prompt": "Who?"}\n')
        again = factory("plan", "mine.yaml", "--json")
        assert "org/policy" not in again.stderr


def test_what_is_not_known_without_a_network_is_named(mine: Path, factory: Cli) -> None:
    nowhere = "http://127.0.0.1:9"
    planned = factory("plan", "mine.yaml", "--from", nowhere, "--set", "license=null")
    assert f"Sizes and licences unknown: {nowhere} cannot be reached" in planned.stdout
    later = "not checked for prompts, generate, score and what is made of them: org/prompts"
    assert later in planned.stderr and "factory pull mine.yaml" in planned.stderr
    # a file that is not here yet is under what the recipe says
    unstated = "local/mine-questions: unknown licence: questions.jsonl"
    assert unstated in planned.stderr
    checked = factory("check", "mine.yaml", "--from", nowhere, "--set", "license=null")
    assert later in checked.stdout and unstated in checked.stdout


def test_a_dataset_of_the_local_hub_without_rows_is_told_before_a_run(
    mine: Path, factory: Cli, home: Path
) -> None:
    with connect(home / "hub") as local:
        api = HfApi(endpoint=local.url, token=local.token)
        for name, rows in (("empty", b"[]"), ("full", b'[{"prompt": "Why?"}]')):
            api.create_repo(f"org/{name}", repo_type="dataset")
            api.upload_file(
                path_or_fileobj=rows,
                path_in_repo="train.json",
                repo_id=f"org/{name}",
                repo_type="dataset",
            )
    (mine / "mine.yaml").write_text(RECIPE.replace("p.jsonl", "org/empty"))
    for command in ("plan", "check"):
        done = factory(command, "mine.yaml")
        assert done.returncode == 1
        assert "org/empty has no rows for en" in done.stdout + done.stderr
        assert "unknown licence: org/empty" in done.stdout + done.stderr
    (mine / "mine.yaml").write_text(
        RECIPE.replace("p.jsonl", "org/full") + "licenses: {org/full: mit}\n"
    )
    planned = factory("plan", "mine.yaml", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)[0]["rows"] == 1


def test_a_name_that_is_nearly_right_and_a_licence_nobody_states_are_told(
    mine: Path, factory: Cli
) -> None:
    (mine / "p.jsonl").write_text('{"prompt": "Why?"}\n')
    (mine / "mine.yaml").write_text(
        RECIPE.replace("{}", "{policy: local/SmolLM2-135M-Instruct}").replace(
            "license: apache-2.0\n", ""
        )
        + "  generate: {}\n"
    )
    planned = factory("plan", "mine.yaml")
    assert "did you mean 'local/SmolLM2-135M-Instruct-Q4_1'" in planned.stderr
    assert "unknown licence: p.jsonl" in planned.stderr
    checked = factory("check", "mine.yaml", "--set", "licenses={p.json: mit}")
    assert "nothing is read from 'p.json' (did you mean 'p.jsonl'?)" in checked.stdout
    assert checked.returncode == 1 and "unknown licence: p.jsonl" in checked.stdout
    (mine / "p.jsonl").write_text("")
    assert "p.jsonl has no rows for en" in factory("check", "mine.yaml").stdout


def test_a_recipe_without_its_file_starts_from_what_is_published(
    tmp_path: Path, factory: Cli
) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prompt": "Why?"}\n')
    assert factory("run", "tiny.yaml").returncode == 0
    (tmp_path / "p.jsonl").unlink()
    planned = factory("plan", "tiny.yaml", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)[0]["state"] == "reuse"
    (tmp_path / "tiny.lock.yaml").unlink()  # then the pin is that of what was published
    run = factory("run", "tiny.yaml")
    assert "prompts: reused" in run.stdout, run.stderr
    changed = factory("run", "tiny.yaml", "--set", "stages.prompts.first=3")
    assert changed.returncode == 1 and "tiny.yaml:9: no file at p.jsonl" in changed.stderr


def test_the_home_is_looked_for_upwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FACTORY_HOME", raising=False)
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    (tmp_path / ".factory").mkdir()
    assert home_path() == tmp_path / ".factory"
    (inner / ".factory").mkdir()
    assert home_path() == inner / ".factory"
    monkeypatch.setenv("FACTORY_HOME", "x")
    assert home_path() == inner / "x"

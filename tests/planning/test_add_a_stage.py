"""CONTRIBUTING.md's "Add a stage", done as it says in a copy of the package: one file, one line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from factory.artifacts.manifest import Manifest, read_manifest
from tests.conftest import run_factory

ROOT = Path(__file__).parents[2]
RECIPE = """
name: small
org: local
languages: [en]
license: {id: cc0-1.0, because: its rows are made up}
models:
  policy: local/tiny-random-llama
  reward: {name: local/tiny-random-llama, kind: generative}
stages:
  prompts: {source: prompts.jsonl}
  generate: {n: 4, max_tokens: 12, dtype: float32}
  brief: {chars: 40}
  score: {dtype: float32}
  pair: {keep: {chosen: {finished: false, language: any}}}
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with the stage of CONTRIBUTING.md, and a recipe that has it."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("factory", "cards", "recipes", "requirements", "slurm"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## Add a stage")[2].partition("\n## ")[0]
    stage, registration = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (root / "factory/sampling/brief.py").write_text(stage)
    registry = root / "factory/planning/stages.py"
    line = registry.read_text().replace("    Generate,\n", "    Generate,\n    Brief,\n")
    before = "from factory.sampling.dedup"
    registry.write_text(line.replace(before, registration + before))
    prompts = [{"prompt": text} for text in ("Hello", "Bread and water", "Salt?")]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (root / "small.yaml").write_text(RECIPE)
    return root


def factory(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = run_factory(*arguments, home=copy / "home")  # which runs it in the copy
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def newest(copy: Path) -> dict[str, tuple[Path, Manifest]]:
    """The last artifact of every step, and where it lies."""
    files = (copy / "home").rglob("factory.json")
    found = sorted(((file.parent, read_manifest(file.parent)) for file in files),
                   key=lambda one: one[1].created)  # fmt: skip
    return {manifest.step: (directory, manifest) for directory, manifest in found}


@pytest.mark.slow
def test_a_new_stage_is_planned_run_reused_and_has_a_card(copy: Path) -> None:
    factory(copy, "run", "small.yaml", "--until", "pair")
    first = newest(copy)
    directory, brief = first["brief"]
    rows = brief.slices["en"].rows
    assert rows.into == 12 and 0 < rows.out < 12
    assert rows.dropped == {"too_long": 12 - rows.out}
    read = {
        name: {i.role: i.step for i in first[name][1].slices["en"].inputs}
        for name in ("brief", "score", "pair")
    }
    assert read["brief"]["samples"] == "generate"
    assert read["score"]["samples"] == read["pair"]["samples"] == "brief"
    assert first["score"][1].slices["en"].rows.into == rows.out
    assert "Rows of the kind `samples`, as the stage `brief` leaves them." in (
        directory / "README.md"
    ).read_text(encoding="utf-8")

    planned = json.loads(factory(copy, "plan", "small.yaml", "--json").stdout)
    assert {row["step"]: row["state"] for row in planned} == dict.fromkeys(
        first.keys() - {"import"}, "reuse"
    )

    # two more answers to each prompt: those that are there stay, in every step
    factory(copy, "run", "small.yaml", "--until", "pair", "--set", "stages.generate.n=6")
    second = newest(copy)
    for name in ("brief", "score"):
        manifest = second[name][1]
        assert sum(manifest.slices["en"].taken_over.values()) == rows.out
        assert manifest.slices["en"].rows.balanced()
    assert second["brief"][1].slices["en"].rows.into == 18


@pytest.mark.slow
def test_somebody_elses_rows_may_stand_in_its_place(copy: Path) -> None:
    row = {"prompt": "Hello", "response": "Good day."}
    (copy / "rows.jsonl").write_text(json.dumps(row) + "\n")
    factory(
        copy, "run", "small.yaml", "--until", "brief", "--set", "stages.brief={from: rows.jsonl}"
    )
    _, brief = newest(copy)["brief"]
    assert brief.slices["en"].rows.out == 1
    assert [read.source for read in brief.slices["en"].inputs] == ["rows.jsonl"]

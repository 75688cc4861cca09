"""The command line among people: help that is there at once, quiet, JSON, and two lines for every
trouble that comes from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from factory.artifacts.resources import install_command, shipped
from factory.errors import HubError, RecipeError
from factory.hub.session import address as hub_address
from factory.localhub.launcher import Connection
from factory.planning.recipe import load
from tests.cli.test_cli import _is_two_lines, _recipe
from tests.conftest import FACTORY, Cli, run_factory
from tests.support.proxy import Fault, proxy_of

# What takes long to import and what no help needs.
SLOW = {
    "polars", "pyarrow", "pydantic", "numpy", "scipy", "rich", "huggingface_hub", "jinja2", "yaml",
    "matplotlib", "torch", "transformers", "uvicorn", "starlette", "py3langid", "english_words",
}  # fmt: skip
NAMED = "import sys; sys.argv[0] = 'factory'\nfrom factory.cli import main; main()"


def modules_after(*arguments: str) -> set[str]:
    """The packages that are imported when a command has ended."""
    code = (
        "import sys\nfrom factory.cli import main\n"
        f"sys.argv = ['factory', *{list(arguments)!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('|'.join({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.strip().splitlines()[-1].split("|"))


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["--version", "-v"]])
def test_help_imports_nothing_that_takes_long(arguments: list[str]) -> None:
    own = {"pydantic"} if arguments != ["--help"] else set()  # typer's, to check arguments with
    assert not SLOW & modules_after(*arguments) - own


def test_the_package_and_its_python_api_cost_nothing_until_they_are_used() -> None:
    code = "import sys, factory; print(len({n for n in sys.modules if n.startswith('factory')}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_version_says_where_state_is_kept_and_with_v_what_a_report_needs(
    factory: Cli, home: Path
) -> None:
    assert factory("--version").stdout.splitlines()[1] == f"state in {home}"
    whole = factory("--version", "-v").stdout
    assert "Python 3." in whole and f"state in {home}" in whole and "huggingface_hub 2." in whole
    assert not home.exists()


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("factory plan dem", {"demo"}),
        ("factory run sma", {"smart.yaml"}),
        ("factory doc", {"doctor"}),
    ],
)
def test_commands_recipes_and_files_are_completed(
    tmp_path: Path, words: str, completed: set[str]
) -> None:
    (tmp_path / "smart.yaml").touch()
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", NAMED], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, **asked, "_FACTORY_COMPLETE": "complete_bash"},
    )  # fmt: skip
    assert set(done.stdout.split()) == completed


def test_run_is_quiet_or_speaks_json_and_keeps_what_it_says_apart(
    factory: Cli, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prompt": "Hello"}\n')
    recipe = _recipe(tmp_path, policy="local/tiny-random-llama")
    only = ("--set", "models={}", "--set", "stages.generate=null")
    quiet = factory("run", recipe, *only, "--quiet")
    assert (quiet.returncode, quiet.stdout) == (0, ""), quiet.stderr
    spoken = factory("run", recipe, *only, "--json")
    [step] = json.loads(spoken.stdout)
    assert step["step"] == "prompts" and step["rows"]["en"]["out"] == 1
    assert step["repo"] == "local/mine-prompts" and step["tag"].startswith("fp-")
    assert "prompts: reused" in spoken.stderr
    assert "\x1b" not in spoken.stdout + spoken.stderr, "a log holds no colours"
    assert "\r" not in spoken.stdout + spoken.stderr, "and no bars"


@pytest.fixture
def asked(tmp_path: Path) -> str:
    """A recipe whose model has to be asked of a hub."""
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prompt": "Hello"}\n')
    return _recipe(tmp_path, policy="org/model")


def test_a_gated_repo_a_hidden_one_and_a_wrong_token_are_told_apart(
    factory: Cli, connection: Connection, asked: str
) -> None:
    with proxy_of(connection.url) as proxy:
        proxy.faults.append(Fault("/api/models/org/model", 403))
        gated = factory("plan", asked, "--hub", proxy.url, HF_TOKEN=connection.token)
        _is_two_lines(gated, "org/model is gated", f"accept its terms at {proxy.url}/org/model")
        absent = factory("plan", asked, "--hub", proxy.url, HF_TOKEN=connection.token)
        _is_two_lines(absent, f"{proxy.url} has no model org/model", "check the name")
        wrong = factory("plan", asked, "--hub", proxy.url, HF_TOKEN="hf_" + "w" * 30)
        _is_two_lines(wrong, "token")
        assert "www" not in wrong.stdout + wrong.stderr


@pytest.mark.parametrize(
    ("address", "word"),
    [("huggingface.co", "write it like https://huggingface.co"), ("", "not a hub's address"),
     ("http://eve:secret@127.0.0.1:9", "must not contain a user or password")],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(address: str, word: str) -> None:
    with pytest.raises(HubError) as caught:
        hub_address(address)
    assert word in str(caught.value) and "secret" not in str(caught.value)


def test_an_address_is_looked_at_before_anything_else(factory: Cli) -> None:
    _is_two_lines(factory("doctor", "--hub", ""), "not a hub's address")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.yaml", b"", ["holds no recipe"]),
        ("words.yaml", b"just words", ["holds no recipe"]),
        ("tab.yaml", b"name: x\n\tbad: [", ["tab.yaml:2", "not YAML"]),
        ("bytes.yaml", b"\xff\xfe\x00", ["not text in UTF-8"]),
        ("folder.yaml", None, ["is a directory"]),
        ("chain.yaml", b"extends: nowhere.yaml", ["chain.yaml:1", "nowhere.yaml"]),
        ("type.yaml", b"extends: smoke.yaml\nname: x\nstages: {generate: {n: four}}",
         ["type.yaml:3", "a number"]),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_named_with_its_line(
    tmp_path: Path, name: str, content: bytes | None, words: list[str]
) -> None:
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    for parent in ("smoke.yaml", "demo.yaml"):
        (tmp_path / parent).write_bytes((shipped("recipes") / parent).read_bytes())
    with pytest.raises(RecipeError) as caught:
        load(str(path))
    for word in words:
        assert word in caught.value.what


def test_an_extra_that_is_missing_is_named_with_the_command_that_brings_it(
    tmp_path: Path,
) -> None:
    """A program that has no torch, as a plain `pip install` leaves it."""
    blocked = (
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': raise ModuleNotFoundError(f'No {name}', name=name)\n"
        "sys.meta_path.insert(0, No())\n"
        "sys.argv[0] = 'factory'\n"
        "from factory.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked, "run", "smoke"], cwd=tmp_path, text=True, check=False,
        env={**os.environ, "FACTORY_HOME": str(tmp_path / "home")}, capture_output=True,
    )  # fmt: skip
    _is_two_lines(done, "torch is not installed", install_command("train"))


def test_a_home_that_cannot_be_is_told_with_the_fix(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = run_factory("plan", "demo", home=file)
    _is_two_lines(done, "local hub did not start", "set FACTORY_HOME")


def test_a_reader_that_goes_away_is_no_failure(home: Path) -> None:
    process = subprocess.Popen(
        [*FACTORY, "plan", "demo", "--json"],
        cwd=home.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "FACTORY_HOME": str(home)},
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 1  # as of any program whose output is cut off
    assert process.stderr.read() == b""
    process.stderr.close()


def test_ctrl_c_is_answered_in_a_line(home: Path) -> None:
    process = subprocess.Popen(
        [*FACTORY, "hub", "exec", "--", sys.executable, "-c",
         "import time; print('up', flush=True); time.sleep(60)"],
        cwd=home.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "FACTORY_HOME": str(home)}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped; run the same command again to resume" in told.splitlines()

"""Every command that docs, cards and the terminal print is run, as it is printed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from factory.localhub.launcher import await_end
from factory.planning.recipe import load
from tests.conftest import run_factory
from tests.test_docs import PAGES, commands

pytestmark = pytest.mark.slow

# What stands for something of the reader's own, and what it is here.
OURS = {
    "demo": "smoke", ".factory": "home", "RECIPE": "my.yaml", "../merged": "merged",
    "mine.yaml": "my.yaml", "danish.yaml": "my.yaml",
    "org/repo": "local/smoke-pair", "org/adapter": "local/smoke-dpo-all",
    "local/demo-pair": "local/smoke-pair", "local/demo-dpo-es": "local/smoke-dpo-es",
}  # fmt: skip
# Commands that need another hub, a cluster, a GPU, a converter, somebody's data or a person. The
# words that they begin with are checked against the command line by tests/test_docs.py.
ELSEWHERE = re.compile(
    r"(push|pull|submit|status|cancel|task|doctor|demo|chat|"
    r"hub (serve|open|exec|import|backup)|results my.yaml other.yaml|merge .*--gguf|"
    r"run .*--only|.*(--at|--site|--hub|--shard|--refresh|\.tar|…|NAME|DIR))\b"
)
PAGES_READ = ("README.md", "quick-start.md", "using.md", "report.md", "recipe.md")


@pytest.fixture(scope="module")
def desk(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the smoke recipe's artifacts, and a copy of that recipe as my.yaml."""
    await_end(smoke / "hub")
    home = tmp_path_factory.mktemp("desk") / "home"
    shutil.copytree(smoke, home)
    made = run_factory("new", "my.yaml", "--from", "smoke", home=home)
    assert made.returncode == 0, made.stderr
    path = home.parent / "my.yaml"
    path.write_text(path.read_text().replace("name: my\n", "name: smoke\n"))
    assert load(str(path)).recipe.name == "smoke"
    return home


def printed_by_docs() -> list[list[str]]:
    found = []
    for page in PAGES:
        if page.name in PAGES_READ:
            found += commands(page.read_text(encoding="utf-8"))
    ready = [[OURS.get(word, word) for word in words] for words in found]
    return [
        words
        for words in ready
        if len(words) > 1
        and not ELSEWHERE.match(" ".join(words))
        and not any(word.startswith(("org/", "my-org/", "lab/", "-")) for word in words[1:2])
    ]


DOCS = list({shlex.join(words): words for words in printed_by_docs()}.values())


@pytest.mark.parametrize("words", DOCS, ids=shlex.join)
def test_a_command_of_the_docs(desk: Path, words: list[str]) -> None:
    if words[:2] == ["new", "my.yaml"]:
        words = ["new", "other.yaml", *(words[2:] or ["--from", "demo"])]
        (desk.parent / "other.yaml").unlink(missing_ok=True)
    if words[0] == "serve" and "--print" not in words:
        words = [words[0], words[1], "--print", *words[2:]]
    if "local/smoke-pair@fp-one" in words or "org/repo@fp-one" in words:
        words = ["diff", "local/smoke-pair", "local/smoke-pair"]
    done = run_factory(*words, home=desk)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}{done.stderr}"


def test_the_commands_of_cards_and_of_a_run(desk: Path) -> None:
    cards = [
        path.parent / "README.md"
        for path in (desk / "work").glob("*/*/artifact/factory.json")
        if json.loads(path.read_text())["stage"] in ("prompts", "judge")
    ]
    texts = [card.read_text() for card in cards]
    texts.append(run_factory("run", "smoke", home=desk).stdout.replace("; factory", "\nfactory"))
    found = {
        line
        for text in texts
        for line in re.findall(r"^(?:Results: )?factory (.*)$", text, re.MULTILINE)
    }
    assert {words.split()[0] for words in found} == {"reproduce", "report", "results"}
    for line in sorted(found):
        if line.startswith("reproduce") and "--from" not in line:
            continue  # the whole line again, as test_reproduce does
        done = run_factory(*shlex.split(line), home=desk)
        assert done.returncode == 0, f"{line}\n{done.stderr}"

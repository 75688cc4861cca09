"""Every command that docs, cards and the terminal print is run, as it is printed: against a home
with the smoke recipe's artifacts, another hub in the place of huggingface.co."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from factory.localhub.launcher import await_end, connect
from factory.planning.recipe import load
from tests.conftest import FACTORY, run_factory
from tests.support.forked import Run, forked_commands
from tests.support.terminal import clean_environment, on_terminal, plain
from tests.support.tiny_recipe import RECIPE
from tests.test_docs import PAGES, commands

pytestmark = pytest.mark.slow

ADAPTER, BASE = "local/smoke-dpo-all", "local/tiny-random-llama"
# What stands for something of the reader's own, and what it is here. SLUG, TAG and URL are of the
# collection, its adapter, and the other hub.
OURS = {
    "demo": "smoke", ".factory": "home", "RECIPE": "my.yaml", "NAME": "my.yaml",
    "../merged": "merged",
    "mine.yaml": "my.yaml", "danish.yaml": "my.yaml", "tiny.yaml": "my.yaml", "A": "my.yaml",
    "B": "other.yaml", "C": "other.yaml", "DIR": "new-folder", "FILE": "base.tar",
    "COLLECTION": "SLUG", "COMMAND": "true", "https://huggingface.co": "URL",
    "10.0.0.5": "127.0.0.1",
    "8000": "0", "org/repo": "local/smoke-pair", "org/adapter": ADAPTER,
    "org/name": BASE, "org/base": BASE, "org/base@REVISION": f"{BASE}@main",
    "REPO[@REVISION]…": f"{BASE}@main", "[COLLECTION|REPO…]": BASE,
    "datasets/org/prompts": "datasets/local/smoke-prompts", "org/collection": "SLUG",
    "datasets/EuroEval/…": BASE, "my-org/croco-my-recipe-…": "SLUG",
    "utter-project/EuroLLM-9B-Instruct-2512": BASE, "Skywork/Skywork-Reward-V2-Qwen3-8B": BASE,
    "org/repo@fp-one": "local/smoke-pair", "org/repo@fp-other": "local/smoke-pair",
    "org/croco-dpo-da@fp-0123456789ab": ADAPTER, "org-again/croco-dpo-da@fp-0123456789ab": ADAPTER,
    "org/adapter@fp-0123456789ab": f"{ADAPTER}@TAG", "local/demo-pair": "local/smoke-pair",
    "local/demo-dpo-es": "local/smoke-dpo-es", "local/demo-dpo-all": ADAPTER,
    "local/demo-es-merged": "local/es-merged",
}  # fmt: skip
# Commands that cannot be run here, and why.
ELSEWHERE = {
    r"doctor --install": "builds an environment of gigabytes: make install-euroeval does",
    r"merge .*--gguf": "needs llama.cpp, minutes of compiling: tests/release/test_forms.py",
    r".* --site\b|status\b|cancel\b": "needs a cluster: tests/slurm types them on one",
    r"hub serve": "serves until it is told to stop: tests/cli/test_push_pull.py",
    r"doctor --deep": "loads every engine that is installed, for minutes",
    r"chat .*:checkpoints/": "the smoke run keeps no checkpoints: tests/training does",
    r"run world$": "needs models that are trained first: tests/world does",
}
# Names of commands in a sentence are none that can be typed; these can.
ALONE = ("doctor", "--version", "--help", "push", "pull")
HUB = ("push", "pull", "lock", "reproduce", "chat")


# So are these, which want an argument.
NAMES = (
    "hub export",
    "hub exec",
    "pairs compare",
    "serve --print",
    "chat --compare",
    "plan --site",
)


def _bare(word: str) -> str:
    """A word without the brackets around what may be left out."""
    return word if "[" in word[1:] else word.strip("[]")


def printed_by_docs() -> dict[str, list[str]]:
    """The commands of all pages with our names in them, each once."""
    found = {}
    for page in PAGES:
        for words in commands(page.read_text(encoding="utf-8")):
            words = words[: words.index("|")] if "|" in words else words
            slug = r"[\w-]+/croco-[\w-]+-0123456789abcdef01234567"
            words = [re.sub(slug, "SLUG", OURS.get(word, word)) for word in words]
            words = [OURS.get(bare, bare) for bare in map(_bare, words) if bare not in ("…", "")]
            line = shlex.join(words)
            line = re.sub(r" (publish on|bring in) .*", "", line)  # what a table says of it
            line = line.replace("pull my.yaml", "pull theirs.yaml")  # the smoke recipe names none
            line = line.replace("--from score", "--from judge")  # of its last steps: seconds
            line = line.replace("--plain-http true", "--plain-http plan my.yaml")
            if line in ALONE or (len(words) > 1 and line not in NAMES):
                found[line] = shlex.split(line)
    return found


DOCS = printed_by_docs()
CANNOT = {line for line in DOCS if any(re.match(pattern, line) for pattern in ELSEWHERE)}


@dataclass
class Desk:
    """A home, the hub in the place of huggingface.co, and what is known of both."""

    home: Path
    forked: Run
    url: str
    token: str
    names: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def desk(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A home with the smoke recipe's artifacts, a copy of that recipe as my.yaml, and files that
    the docs speak of. Its collection is on the other hub too."""
    await_end(smoke / "hub")
    home = tmp_path_factory.mktemp("desk") / "home"
    shutil.copytree(smoke, home)
    folder = home.parent
    with forked_commands(tmp_path_factory.mktemp("forked")) as forked, connect(
        folder / "elsewhere"
    ) as other:  # fmt: skip
        made = forked("new", "my.yaml", "--from", "smoke", home=home)
        assert made.returncode == 0, made.stderr
        path = folder / "my.yaml"
        path.write_text(path.read_text().replace("name: my\n", "name: smoke\n"))
        assert load(str(path)).recipe.name == "smoke"
        shutil.copy(path, folder / "other.yaml")
        (folder / "theirs.yaml").write_text(RECIPE.replace("p.jsonl", "local/smoke-prompts"))
        (folder / "train.py").write_text(
            "from huggingface_hub import HfApi\nprint(len(list(HfApi().list_models())))\n"
        )
        [snapshot] = home.glob(f"**/models--{BASE.replace('/', '--')}/snapshots/*")
        shutil.copytree(snapshot, folder / "merged")
        slug = forked("hub", "ls", home=home).stdout.split()[0]
        manifests = (json.loads(p.read_text()) for p in home.glob("work/*/*/artifact/factory.json"))
        tags = [m["fingerprint"] for m in manifests if m["repo"] == ADAPTER]
        assert forked("hub", "export", "base.tar", BASE, home=home).returncode == 0
        names = {"SLUG": slug, "TAG": f"fp-{tags[0][:12]}", "URL": other.url}
        pushed = run_factory(
            "push", "my.yaml", BASE, "--to", other.url, home=home, HF_TOKEN=other.token
        )
        assert pushed.returncode == 0, pushed.stderr
        yield Desk(home, forked, other.url, other.token, names)


def typed(desk: Desk, words: list[str]) -> list[str]:
    """A command with the names that are known by now, kept from what takes minutes."""
    for name, value in desk.names.items():
        words = [re.sub(rf"\b{name}\b", value, word) for word in words]
    match words:
        case ["new", *rest]:
            (desk.home.parent / "new.yaml").unlink(missing_ok=True)
            return ["new", "new.yaml", *(rest[1:] or ["--from", "demo"])]
        case ["serve", model, *rest]:
            return ["serve", model, "--print", *(word for word in rest if word != "--print")]
        case ["hub", "export", file, *_]:
            (desk.home.parent / file).unlink(missing_ok=True)
        case ["hub", "backup", directory]:
            shutil.rmtree(desk.home.parent / directory, ignore_errors=True)
        case ["merge", *rest]:
            if "--to" in rest:
                shutil.rmtree(desk.home.parent / rest[rest.index("--to") + 1], ignore_errors=True)
        case ["push", *rest] if "--to" not in rest:
            named = any(not word.startswith("-") for word in rest)
            return [*words, *([] if named else [BASE]), "--to", desk.url]
        case ["pull", *rest] if "--from" not in rest:
            named = any(not word.startswith("-") for word in rest)
            return [*words, *([] if named else [BASE]), "--from", desk.url]
        case ["run", *rest] if "--set" in rest:  # the line anew: test_smoke runs one
            at = words.index("--set")
            return words[:at] + words[at + 2 :]
    return words


def run_typed(desk: Desk, words: list[str], **environment: str) -> tuple[str, int]:
    """Run a command as it is printed: where it waits for a person, on a terminal."""
    words = typed(desk, words)
    keys, interrupt = [], None
    if words[0] == "chat" and "--prompt" not in words:
        keys = [("> ", "Hello\r"), ("> ", "\x04")]
    if words[:2] == ["hub", "open"]:
        interrupt = "Ctrl-C ends this"
    hub = {"HF_TOKEN": desk.token, "HF_ENDPOINT": desk.url} if words[0] in HUB else {}
    if keys or interrupt:
        known = clean_environment(FACTORY_HOME=str(desk.home), **hub, **environment)
        shown, code = on_terminal(
            [*FACTORY, *words],
            desk.home.parent,
            known,
            keys=keys,
            interrupt=interrupt,
            timeout=300,
        )
        return plain(shown), code
    if hub:  # settings of the Hub's clients: nothing imported before
        done = run_factory(*words, home=desk.home, **hub)
    elif environment:
        done = run_factory(*words, home=desk.home, **environment)
    else:
        done = desk.forked(*words, home=desk.home)
    return f"{done.stdout[-2000:]}{done.stderr}", done.returncode


def test_the_commands_of_cards_and_of_a_run(desk: Desk) -> None:
    cards = [
        path.parent / "README.md"
        for path in (desk.home / "work").glob("*/*/artifact/factory.json")
        if json.loads(path.read_text())["stage"] in ("prompts", "judge")
    ]
    texts = [card.read_text() for card in cards]
    texts.append(
        desk.forked("run", "smoke", home=desk.home).stdout.replace("; factory", "\nfactory")
    )
    found = {
        line
        for text in texts
        for line in re.findall(r"^(?:Results: |Look at it: )?factory (.*)$", text, re.MULTILINE)
    }
    assert {words.split()[0] for words in found} == {"reproduce", "report", "results", "hub"}
    for line in sorted(found):
        if line.startswith("reproduce") and "--from" not in line:
            continue  # the whole line again, as test_reproduce does
        shown, code = run_typed(desk, shlex.split(line))
        assert code == 0, f"{line}\n{shown}"


@pytest.mark.parametrize("line", [line for line in DOCS if line not in CANNOT])
def test_a_command_of_the_docs(desk: Desk, line: str) -> None:
    shown, code = run_typed(desk, DOCS[line])
    assert code == 0, f"{line}\n{shown}"
    assert "Traceback" not in shown, f"{line}\n{shown}"


def test_what_cannot_be_run_is_still_printed() -> None:
    for pattern in ELSEWHERE:
        assert any(re.match(pattern, line) for line in DOCS), f"no page has {pattern}"


def test_programs_beside_the_interpreter_are_there_for_hub_exec(desk: Desk) -> None:
    """As .venv/bin/factory is started: with nothing of the environment on the PATH."""
    hf = ["hub", "exec", "--", "hf", "download", "local/smoke-pair", "--repo-type", "dataset"]
    known = clean_environment(FACTORY_HOME=str(desk.home), PATH="/usr/bin:/bin")
    done = subprocess.run(
        [*FACTORY, *hf], cwd=desk.home.parent, env=known, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (Path(sys.executable).parent / "hf").exists()

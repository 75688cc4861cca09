"""Docs match the code: links, commands, files, trees and layers; and sentences are short."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from factory.cli import app
from tests.test_imports import LAYERS
from tools import sentences

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = re.compile(r"^(?:\$ |[A-Z_]+=\S+ )*(?:\.venv/bin/)?factory (.*)$")


def blocks(text: str) -> list[str]:
    """Code blocks, fenced without a language or as a shell's, or indented; and code in a line."""
    fenced = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    bare = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", bare)]
    return [*fenced, *re.findall(r"^ {4}(factory .*)$", text, re.MULTILINE), *inline]


def commands(text: str) -> list[list[str]]:
    """The words after `factory` of every command that a page names."""
    found = []
    for line in "\n".join(blocks(text)).splitlines():
        if named := OURS.match(line.strip()):
            words = shlex.split(re.sub(r"(\s{2,}|\s)#\s.*$", "", named[1]))
            # a table of commands has what each does behind some blanks
            if re.search(r"\s{3,}", named[1]):
                words = shlex.split(re.split(r"\s{3,}", named[1])[0])
            found.append(words)
    return found


def fault(words: list[str]) -> str | None:
    """What is wrong with a command, going by the application itself."""
    command: Any = typer.main.get_command(app)
    words = [word for word in words if word]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"no command {words[0]}"
        command = command.commands[words.pop(0)]
    known = {name for part in command.params for name in (*part.opts, *part.secondary_opts)}
    known |= {"--help", "--install-completion", "--show-completion"}
    for word in words:
        if word in ("--", "…"):
            break
        option = word.strip("[]").partition("=")[0]
        if re.match(r"--?[a-z]", option) and option not in known:
            return f"no option {option}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_named_exists_with_its_options(page: Path) -> None:
    found = commands(page.read_text(encoding="utf-8"))
    faults = {" ".join(words): fault(words) for words in found}
    assert not {command: wrong for command, wrong in faults.items() if wrong}


def test_commands_are_found_and_faults_are_faults() -> None:
    together = sum(len(commands(page.read_text(encoding="utf-8"))) for page in PAGES)
    assert together > 80
    [words] = commands("```\nfactory plan demo --set a=1   # and why\n```")
    assert words == ["plan", "demo", "--set", "a=1"]
    assert fault(["plam"]) == "no command plam"
    assert fault(["plan", "demo", "--sett", "a=1"]) == "no option --sett"
    assert fault(["hub", "exec", "--", "hf", "--nothing"]) is None


def anchors(page: Path) -> set[str]:
    """Where a link into a page may lead, as GitHub and the Hub make it of headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path) if path else page
        assert place.exists(), f"{page.name}: {target}"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_ours_that_is_named_exists(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    rooms = "factory|tests|benchmarks|recipes|cards|slurm|requirements|docs"
    ours = rf"(?<![\w./$-])((?:{rooms})/[\w./-]+)"
    named = {path for code in re.findall(r"`([^`]+)`", text) for path in re.findall(ours, code)}
    examples = set(re.findall(r"Put this into `([^`]+)`", text))  # for the reader to write
    assert not {path for path in named - examples if not (ROOT / path).exists()}


def test_every_test_that_is_named_exists() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    tests = {name for text in texts for name in re.findall(r"def (test_\w+)", text)}
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / "comparison.md").read_text("utf-8"))
    assert len(named) > 45 and set(named) <= tests


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert not {name for name in pages if f"({name}" not in index}


def tree(text: str) -> set[str]:
    """The files that the tree in the architecture names, without their endings."""
    block = re.search(r"^```text\nfactory/\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    found, folders = set(), [""]
    for line in filter(None, block[1].splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"[\w/]+(?:, \w+)*", line.strip())
        assert names is not None, line
        folders = folders[:depth]
        if names[0].endswith("/"):
            folders.append(folders[-1] + names[0])
        else:
            found |= {folders[-1] + name for name in names[0].split(", ")}
    return found


def test_the_tree_in_the_architecture_is_the_tree_of_the_package() -> None:
    named = tree((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    package = ROOT / "factory"
    files = {
        path.relative_to(package).with_suffix("").as_posix()
        for path in package.rglob("*.py")
        if "inside" not in path.parts
    }
    said = {"__init__", "engines/__init__"}  # the others say in a line what their folder is
    assert named == {name for name in files if not name.endswith("__init__")} | said


def test_the_layers_in_the_architecture_are_those_that_are_held() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (`[^|]*) \|", page, re.MULTILINE)
    named = [tuple(re.findall(r"`(\w+)`", folders)) for _, folders in reversed(rows)]
    assert [set(names) for names in named] == [set(names) for names in LAYERS]


@pytest.mark.parametrize(
    "page", sentences.PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_sentences_are_short(page: Path) -> None:
    middle, _, long = sentences.measure(page.read_text(encoding="utf-8"))
    assert middle <= 17
    assert not long


def test_long_sentences_are_detected_in_prose_alone() -> None:
    words = " ".join(["word"] * 41)
    shown = f"# {words}\n\n| {words} |\n\n```\n{words}\n```\n\n    {words}\n\n"
    assert sentences.sentences(f"{shown}One two three. `a b` is code, see [four](x.md).\n") == [
        "One two three.",
        "code is code, see four.",
    ]
    assert sentences.measure(f"Short it is.\n\n- {words}.\n- {words[5:]}.")[2] == [f"{words}."]


def test_the_afternoon_of_reading_is_an_afternoon() -> None:
    page = (ROOT / "docs" / "reading-the-code.md").read_text(encoding="utf-8")
    files = re.findall(r"^\| `([\w./]+)` \| .+ \|$", page, re.MULTILINE)
    assert 28 <= len(files) == len(set(files)) <= 36
    lines = sum((ROOT / name).read_text(encoding="utf-8").count("\n") for name in files)
    assert 6_000 <= lines <= 9_000


def test_the_tree_in_the_readme_has_every_folder() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```\nfactory/\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    folders = {
        path.name for path in (ROOT / "factory").iterdir() if (path / "__init__.py").exists()
    }
    assert set(re.findall(r"^  (\w+)/ ", block[1], re.MULTILINE)) == folders

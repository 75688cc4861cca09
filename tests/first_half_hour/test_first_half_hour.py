"""Four people's first half hour: each `*.txt` beside this file is typed on a terminal of 80 columns.

`$ ` begins a command, and `| ` goes on with it. `> ` is what it prints, in this order, white space
aside. `? 1` is its exit code, if not 0. Everything else is told to the reader.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from factory.localhub.launcher import Connection, connect
from tests.support.builders import tiny_model
from tests.support.terminal import clean_environment, on_terminal, plain

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
WIDTH = 80


@dataclass
class Command:
    text: str
    prints: list[str] = field(default_factory=list)
    exit_code: int = 0


def session(name: str) -> list[Command]:
    """Read the commands of a person's session."""
    commands: list[Command] = []
    for line in (HERE / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        mark, _, rest = line.partition(" ")
        if mark == "$":
            commands.append(Command(rest))
        elif mark == "|":
            commands[-1].text += "\n" + rest
        elif mark == ">":
            commands[-1].prints.append(rest)
        elif mark == "?":
            commands[-1].exit_code = int(rest)
    return commands


def type_in(name: str, cwd: Path, **environment: str) -> None:
    """Type a session's commands on a terminal, and hold what is printed against it."""
    programs = cwd.parent / "bin"
    programs.mkdir(exist_ok=True)
    for program, module in (("factory", "-m factory"), ("python", "")):
        path = programs / program
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        path.chmod(0o755)
    cwd.mkdir(exist_ok=True)
    known = clean_environment(
        **{"HOME": str(cwd), "COLUMNS": str(WIDTH), "LINES": "40", "TERM": "xterm-256color"},
        **environment,
    )
    known["PATH"] = f"{programs}:{known['PATH']}"
    for command in session(name):
        shown, code = on_terminal(["bash", "-c", command.text], cwd, known, timeout=300)
        text = plain(shown)
        print(f"$ {command.text}\n{text}")
        assert code == command.exit_code, f"$ {command.text}\n{text}"
        assert "Traceback" not in text, f"$ {command.text}\n{text}"
        rest = _one_line(text)
        for expected in command.prints:
            _, there, rest = rest.partition(_one_line(expected))
            assert there, f"$ {command.text}\n{text}\ndoes not print: {expected}"
        wide = [line for line in text.splitlines() if re.match("[│┃┏└]", line) and len(line) > WIDTH]
        assert not wide, f"$ {command.text}\nwider than {WIDTH} columns:\n" + "\n".join(wide)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def test_a_researcher_with_a_laptop(tmp_path: Path) -> None:
    type_in("laptop", tmp_path / "desk")


def test_a_language_pair_of_ones_own(tmp_path: Path) -> None:
    tiny_model(tmp_path / "desk" / "our-model")
    type_in("language-pair", tmp_path / "desk")


def test_a_user_of_a_released_adapter(tmp_path: Path, published: Mapping[str, str]) -> None:
    type_in("adapter", tmp_path / "desk", **published)


@pytest.fixture
def published(smoke: Path) -> Iterator[Mapping[str, str]]:
    """Another hub, where somebody published the smoke recipe's collection."""
    raise NotImplementedError

"""Sessions: text files of commands that a person types on a terminal of 80 columns, and of what is
printed then.

`$ ` begins a command, and `| ` goes on with it. `> ` is what it prints, in this order, white space
aside. `? 1` is its exit code, if not 0. Any other line is a remark.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.terminal import clean_environment, on_terminal, plain

WIDTH = 80


@dataclass
class Command:
    """A command, what it has to print, in this order, and its exit code."""

    text: str
    prints: list[str] = field(default_factory=list)
    exit_code: int = 0


def read(path: Path) -> list[Command]:
    """Return the commands of a session."""
    commands: list[Command] = []
    for line in path.read_text(encoding="utf-8").splitlines():
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


def type_in(session: Path, cwd: Path, **environment: str) -> None:
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
    known["PATH"] = f"{programs}:{Path(sys.executable).parent}:{known['PATH']}"
    for command in read(session):
        shown, code = on_terminal(["bash", "-c", command.text], cwd, known, timeout=300)
        text = plain(shown)
        print(f"$ {command.text}\n{text}")
        assert code == command.exit_code, f"$ {command.text}\n{text}"
        assert "Traceback" not in text, f"$ {command.text}\n{text}"
        rest = _one_line(text)
        for expected in command.prints:
            _, there, rest = rest.partition(_one_line(expected))
            assert there, f"$ {command.text}\n{text}\ndoes not print: {expected}"
        lines = text.replace("┘┏", "┘\n┏").splitlines()  # a table that is drawn again in its place
        wide = [line for line in lines if re.match("[│┃┏└]", line) and len(line) > WIDTH]
        assert not wide, f"$ {command.text}\nwider than {WIDTH} columns:\n" + "\n".join(wide)


def _one_line(text: str) -> str:
    return " ".join(text.split())

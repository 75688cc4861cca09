"""status --watch as people see it, over commands that stand in for SLURM's: on a terminal, in a
file, and when they have seen enough. And what is said where there is no SLURM at all."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import FACTORY, run_factory
from tests.slurm.cluster import program
from tests.support.terminal import clean_environment, on_terminal, plain
from tests.support.tiny_recipe import RECIPE

SITE = "cpu: {partition: small, time: '5'}\n" + "".join(
    f"{name}: {{partition: small, time: '5'}}\n" for name in ("generate", "train")
)
# A queue in a file, a line a look: how the one job stands then. The last line stays.
COMMANDS = {
    "sbatch": "echo 7",
    "squeue": """
state=$(head -n 1 {queue}); [ $(wc -l < {queue}) -gt 1 ] && sed -i 1d {queue}
[ "$state" = gone ] || echo "7|7|N/A|$state|Priority|n1|N/A|x"
""",
    "scontrol": "exit 1",
    "scancel": "",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a recipe that was submitted, by the stand-ins in bin/."""
    root = tmp_path_factory.mktemp("lab")
    (root / "bin").mkdir()
    for name, text in COMMANDS.items():
        program(root / "bin" / name, text.format(queue=root / "queue"))
    (root / "tiny.yaml").write_text(RECIPE)
    (root / "p.jsonl").write_text('{"id": "a", "prompt": "Why?"}\n')
    (root / "lab.yaml").write_text(SITE)
    (root / "queue").write_text("gone\n")
    made = factory(root, "submit", "tiny.yaml", "--site", "lab.yaml")
    assert made.returncode == 0, made.stdout + made.stderr
    return root


def factory(
    root: Path, *arguments: str, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    path = f"{root / 'bin'}:{os.environ['PATH']}" if path is None else path
    return run_factory(*arguments, home=root / "home", PATH=path)


def on_a_terminal(root: Path, stop: bool = False, **environment: str) -> tuple[str, int]:
    """Return what `status --watch` shows on a terminal until it ends, or until Ctrl-C after its
    first look; and its exit code."""
    path = f"{root / 'bin'}:{os.environ['PATH']}"
    return on_terminal(
        [*FACTORY, "status", "tiny.yaml", "--watch", "--every", "1"],
        root,
        clean_environment(
            **{"FACTORY_HOME": str(root / "home"), "COLUMNS": "120", "PATH": path, **environment}
        ),
        interrupt="waiting" if stop else None,
    )


@pytest.mark.slow
def test_it_looks_until_nothing_is_in_the_queue(lab: Path) -> None:
    (lab / "queue").write_text("PENDING\nRUNNING\ngone\n")
    shown, code = on_a_terminal(lab)
    assert code == 0
    looks = [plain(look) for look in shown.split("\x1b[2J")[1:]]  # cleared before each
    stands = ("waiting", "running", "failed")
    assert [word for look in looks for word in stands if word in look] == list(stands)
    assert "left the queue" in " ".join(looks[-1].replace("│", " ").split())


def test_ctrl_c_ends_it_and_leaves_the_terminal_as_it_was(lab: Path) -> None:
    (lab / "queue").write_text("PENDING\n")
    shown, code = on_a_terminal(lab, stop=True)
    assert code == 0 and "the jobs go on" in shown and "Traceback" not in shown
    assert shown.count("\x1b[?25l") == shown.count(
        "\x1b[?25h"
    )  # a cursor that is hidden comes back
    assert "\x1b[?1049h" not in shown  # and what was on the screen before stays in its history


@pytest.mark.slow
def test_a_file_and_no_color_get_plain_lines(lab: Path) -> None:
    (lab / "queue").write_text("PENDING\ngone\n")
    done = factory(lab, "status", "tiny.yaml", "--watch", "--every", "1")
    assert done.returncode == 0 and "\x1b" not in done.stdout
    assert done.stdout.count("Status") == 2
    (lab / "queue").write_text("gone\n")
    shown, _ = on_a_terminal(lab, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown)
    shown, _ = on_a_terminal(lab, TERM="dumb")
    assert "\x1b[2J" not in shown


def test_scripts_can_be_read_where_there_is_no_slurm(lab: Path) -> None:
    nowhere = str(lab / "none")
    done = factory(lab, "submit", "tiny.yaml", "--site", "lab.yaml", "--dry-run", path=nowhere)
    assert done.returncode == 0
    assert "#SBATCH --partition=small" in done.stdout
    assert "there is no squeue here" in done.stderr and "as if the queue were empty" in done.stderr

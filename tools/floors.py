"""Run the quick tests of a family of stages with the oldest versions that pyproject.toml allows.

    python -m tools.floors FAMILY [--newest] [--torch] [TEST FILE OR OPTION…]

Makes a virtual environment with the lowest version of each direct dependency of the family, as uv
resolves them, and runs the family's quick tests in it. torch is the one that is here; `--torch`
resolves it too, which is some GB where that is built for CUDA. `--newest` takes the newest version
of everything instead.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The quick tests of each family. `core` is the package without an extra, as a login node has it.
FAMILIES = {
    "core": ["tests/artifacts"],
    "generate": ["tests/engines", "tests/sampling/test_generate.py", "tests/rewards/test_score.py"],
    "train": ["tests/training"],
}
RUNNERS = ("pytest", "pytest-xdist", "hypothesis", "html5lib")
_OF_TORCH = re.compile(r"torch|triton|nvidia|cuda")


def uv(*arguments: str | Path) -> str:
    """Run uv and return what it prints. Ends this program where uv is not there, or fails."""
    program = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        sys.exit("uv resolves the versions, and is not here: pip install uv")
    links = os.environ.get("PIP_FIND_LINKS")
    settings = os.environ | ({"UV_FIND_LINKS": links} if links else {})
    command = [program, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def resolved(family: str, newest: bool, torch: bool) -> list[str]:
    """Return `name==version` of all that the package and the family's extra need, with the lowest,
    or highest, version of each direct dependency; without torch and what it brings for GPUs unless
    `torch`."""
    extra = [] if family == "core" else ["--extra", family]
    way = "highest" if newest else "lowest-direct"
    out = uv("pip", "compile", "--quiet", "--no-header", "--no-annotate", f"--resolution={way}",
             f"--python={sys.executable}", *extra, "pyproject.toml")  # fmt: skip
    lines = [line for line in out.splitlines() if "==" in line]
    return lines if torch else [line for line in lines if not _OF_TORCH.match(line)]


def environment(directory: Path, pins: list[str], torch: bool) -> Path:
    """Make a virtual environment with these versions, the package, and what runs its tests. Returns
    its Python."""
    venv.create(directory)
    python = directory / "bin" / "python"
    requirements = directory / "requirements.txt"
    requirements.write_text("\n".join([*pins, f"-e {ROOT}"]))
    install = ("pip", "install", "--quiet", f"--python={python}")
    uv(*install, "--no-deps", "-r", requirements)
    tested = (ROOT / "requirements" / "tested.txt").read_text().splitlines()
    uv(*install, *(line for line in tested if line.partition("==")[0] in RUNNERS))
    # by links: torch, and the chat templates of TRL, which tests of every family read
    [packages] = directory.glob("lib/python3.*/site-packages")
    for borrowed in ("trl", *(() if torch else ("torch",))):
        here = importlib.metadata.distribution(borrowed)
        for name in {file.parts[0] for file in here.files or ()} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(str(here.locate_file(name)))
    return python


def main() -> int:
    """Make the environment of a family, run its tests, and return pytest's exit code."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("family", choices=FAMILIES)
    options.add_argument("--newest", action="store_true", help="the newest versions instead")
    options.add_argument("--torch", action="store_true", help="resolve torch too")
    asked, tests = options.parse_known_args()
    began = time.monotonic()
    pins = resolved(asked.family, asked.newest, asked.torch)
    with tempfile.TemporaryDirectory(prefix="floors-") as name:
        python = environment(Path(name), pins, asked.torch)
        print(f"{asked.family}, installed in {time.monotonic() - began:.0f} s:", *pins, flush=True)
        command = [python, "-m", "pytest", "-q", "-m", "not slow", "-n", "2", "--dist=loadscope"]
        files = [] if any(not word.startswith("-") for word in tests) else FAMILIES[asked.family]
        return subprocess.run([*command, *files, *tests], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

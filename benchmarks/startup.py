"""How long a command line takes before it says anything: ours beside those of its neighbours.

    python benchmarks/startup.py            # every command that is installed, best and median
    python benchmarks/startup.py --json     # the same, with one last line of JSON

Each command runs `--rounds` times after one that is not counted, in turn, so that a busy moment of
the machine falls on all of them. Wall time is what people wait; processor time says what it was on
a busy machine. `python -c pass` is the floor that all of them stand on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BESIDE = Path(sys.executable).parent
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import factory": [sys.executable, "-c", "import factory"],
    "factory --help": ["factory", "--help"],
    "factory --version": ["factory", "--version"],
    "factory run --help": ["factory", "run", "--help"],
    "hf --help": ["hf", "--help"],
    "trl --help": ["trl", "--help"],
    "accelerate --help": ["accelerate", "--help"],
}


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds of wall and of processor time that a command takes."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, capture_output=True, check=False)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    known = {
        name: [shutil.which(command[0], path=f"{BESIDE}{os.pathsep}{os.environ['PATH']}"),
               *command[1:]]
        for name, command in COMMANDS.items()
    }  # fmt: skip
    there = {name: [str(w) for w in command] for name, command in known.items() if command[0]}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in there}
    with tempfile.TemporaryDirectory() as home:
        os.environ["FACTORY_HOME"] = home
        for number in range(given.rounds + 1):
            for name, command in there.items():
                taken = measured(command)
                if number:
                    found[name].append(taken)
    print(f"{os.cpu_count()} CPU cores, Python {sys.version.split()[0]}, "
          f"load {os.getloadavg()[0]:.1f}, {given.rounds} rounds")  # fmt: skip
    print(f"{'':22}{'best':>8}{'median':>8}{'CPU':>8}   seconds")
    results = []
    for name, times in found.items():
        walls, cpu = [wall for wall, _ in times], statistics.median(cpu for _, cpu in times)
        best, middle = min(walls), statistics.median(walls)
        print(f"{name:22}{best:8.3f}{middle:8.3f}{cpu:8.3f}")
        results.append({"command": name, "best": best, "median": middle, "cpu": cpu})
    if given.json:
        print(json.dumps({"load": os.getloadavg()[0], "results": results}))


if __name__ == "__main__":
    main()

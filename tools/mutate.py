"""Break the code in one place at a time, and see whether the tests of the world fail.

python -m tools.mutate              # every mutation: minutes each
python -m tools.mutate NAME …       # some of them
python -m tools.mutate --list

Each mutation is made in a copy of the files that git tracks, where tests/world runs. A mutation
that the tests fail on is caught; one that they pass on survives, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in `file`, where it stands once."""

    file: str
    old: str
    new: str


MUTATIONS = {
    "sides-swapped-in-pair": Mutation(
        "factory/pairs/pair.py",
        '_sides: ClassVar[dict[str, str]] = {"chosen": "chosen", "rejected": "rejected"}',
        '_sides: ClassVar[dict[str, str]] = {"chosen": "rejected", "rejected": "chosen"}',
    ),
    "sides-swapped-in-training": Mutation(
        "factory/training/train.py",
        'return {name: row[name] for name in ("prompt_id", *self.columns)}',
        'other = {"chosen": "rejected", "rejected": "chosen"} if self.name == "dpo" else {}\n'
        "        return {n: row[other.get(n, n)] for n in "
        '("prompt_id", *self.columns)}',
    ),
    "preferences-swapped": Mutation(
        "factory/training/train.py",
        'return {name: row[name] for name in ("prompt_id", *self.columns)}',
        'other = {"chosen": "rejected", "rejected": "chosen"} if self.name == "reward" else {}\n'
        "        return {n: row[other.get(n, n)] for n in "
        '("prompt_id", *self.columns)}',
    ),
    "reward-negated": Mutation(
        "factory/rewards/backends/backend.py",
        'return cls(score, n_tokens, "ok")',
        'return cls(-score, n_tokens, "ok")',
    ),
    "adapter-not-applied": Mutation(
        "factory/engines/transformers.py",
        "        self._adapter = adapter\n\n    def _active_adapter",
        "        self._adapter = None\n\n    def _active_adapter",
    ),
    "stop-token-not-learned": Mutation(  # an answer ends in the stop token and a line break
        "factory/training/dataset.py",
        '"labels": [-100] * start + tokens[start:]}',
        '"labels": [-100] * start + tokens[start:-2] + [-100, -100]}',
    ),
    "language-filter-inverted": Mutation(
        "factory/pairs/rules.py",
        '"wrong_language": (in_language, ~pl.col("in_language").fill_null(True)),',
        '"wrong_language": (in_language, pl.col("in_language").fill_null(True)),',
    ),
    "language-filter-off": Mutation(
        "factory/pairs/rules.py",
        '"wrong_language": (in_language, ~pl.col("in_language").fill_null(True)),',
        '"wrong_language": (False, ~pl.col("in_language").fill_null(True)),',
    ),
    "unfinished-chosen": Mutation(
        "factory/pairs/rules.py",
        '"unfinished": (finished, ~pl.col("finished")),',
        '"unfinished": (finished, pl.col("finished")),',
    ),
    "alarms-of-the-curve-silenced": Mutation(
        "factory/training/monitoring.py",
        "    if len(steps) >= 5:\n        messages += [",
        "    if False:\n        messages += [",
    ),
    "alarms-of-the-answers-silenced": Mutation(
        "factory/training/train.py",
        'alarms = stats["alarms"] + probed["alarms"] + behaviour.alarms(behaved)',
        'alarms = stats["alarms"] + probed["alarms"]',
    ),
    "verdict-exchanged": Mutation(
        "factory/evaluation/judging/verdicts.py",
        '"model" if ours > theirs else "reference"',
        '"model" if ours < theirs else "reference"',
    ),
}


def check(name: str, copy: Path) -> bool:
    """Make one mutation in `copy`, run the tests of the world, undo it. Return whether they failed.
    Raises ValueError where its text does not stand there once."""
    mutation = MUTATIONS[name]
    path = copy / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise ValueError(f"{name}: {mutation.old!r} stands {text.count(mutation.old)} times")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        return run(copy).returncode != 0
    finally:
        path.write_text(text, encoding="utf-8")


def run(copy: Path) -> subprocess.CompletedProcess[str]:
    """Run the tests of the world in a copy of the repository. Its base model is kept beside it, or
    where WORLD_BASE says."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/world"],
        cwd=copy,
        env={"WORLD_BASE": str(copy.parent / "base"), **os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )


def copied(into: Path) -> Path:
    """Copy the files that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    copy = into / "repository"
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            path = copy / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / name).read_bytes())
    return copy


def main() -> None:
    """Run the mutations that are named, or all."""
    parser = argparse.ArgumentParser(description="Break the code, and see whether tests fail.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        print(*MUTATIONS, sep="\n")
        return
    names = options.names or list(MUTATIONS)
    if unknown := [name for name in names if name not in MUTATIONS]:
        parser.error(f"no mutation {', '.join(unknown)}: see --list")
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        sound = run(copy)
        if sound.returncode:
            sys.exit(f"the tests fail without any mutation:\n{sound.stdout[-3000:]}")
        survived = []
        for name in names:
            began = time.monotonic()
            caught = check(name, copy)
            survived += [] if caught else [name]
            outcome = "caught" if caught else "survived"
            print(f"{name:28} {outcome:9} {time.monotonic() - began:.0f} s", flush=True)
    print(f"{len(names) - len(survived)} of {len(names)} caught")
    if survived:
        print("survived:", ", ".join(survived))
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()

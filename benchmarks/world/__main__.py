"""The world from the command line.

python -m benchmarks.world data OUT                    # prompts, questions, preferences, pairs
python -m benchmarks.world model OUT [--careful]       # a model, trained from a seed; --judge
python -m benchmarks.world answers ARENA               # greedy answers of a run, by the truth
python -m benchmarks.world pairs PAIR                  # is the chosen answer truly better?
python -m benchmarks.world draws BASE QUESTIONS NAME=ADAPTER …   # drawn at temperature 1
python -m benchmarks.world findings OUT [--seeds 3]    # every recipe of the world, by the truth

ARENA, PAIR and ADAPTER are folders: downloaded repos, or artifacts at rest. `findings` runs the
command `factory`; what is done is not done again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.world import data, findings, measure, model
from benchmarks.world.town import CAREFUL, CARELESS


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("data", "model", "answers", "pairs", "draws", "findings"):
        commands.add_parser(name).add_argument("folder", type=Path)
    base = commands.choices["model"]
    kinds = base.add_mutually_exclusive_group()
    kinds.add_argument("--careful", action="store_true")
    kinds.add_argument("--judge", action="store_true")
    base.add_argument("--seed", type=int, default=0)
    base.add_argument("--steps", type=int)
    drawn = commands.choices["draws"]
    drawn.add_argument("questions", type=Path, help="the folder that `data` wrote")
    drawn.add_argument("adapters", nargs="+", metavar="NAME=ADAPTER")
    drawn.add_argument("--n", type=int, default=4)
    drawn.add_argument("--seed", type=int, default=0)
    commands.choices["findings"].add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    match options.command:
        case "data":
            data.write(options.folder)
        case "model":
            habits = CAREFUL if options.careful else CARELESS
            if options.judge:
                habits = None
            steps = options.steps or (model.STEPS if habits else model.JUDGE_STEPS)
            print(model.train(options.folder, habits, options.seed, steps))
        case "answers":
            answers = measure.greedy(options.folder)
            base_answers = answers.pop("policy")
            for name, tuned in answers.items():
                _print(name, measure.compare(tuned, base_answers))
        case "pairs":
            for code, (count, share) in measure.pairs(options.folder).items():
                print(f"{code}: {count} pairs, the chosen answer is truly better in {share:.1%}")
        case "findings":
            findings.run(options.folder, range(options.seeds))
        case "draws":
            asked = data.questions(options.questions)
            before, ended = measure.draw(options.folder, None, asked, options.n, options.seed)
            print(f"base: {ended:.1%} of the answers ended")
            for item in options.adapters:
                name, _, path = item.partition("=")
                after, ended = measure.draw(
                    options.folder, Path(path), asked, options.n, options.seed
                )
                print(f"{name}: {ended:.1%} of the answers ended")
                _print(name, measure.compare(after, before))


def _print(name: str, changes: dict[str, measure.Change]) -> None:
    print(f"{name}: language, true quality of the base, change with its 95 % interval, answers")
    for code, change in changes.items():
        print(f"  {code:4} {change}")


if __name__ == "__main__":
    main()

"""Run every recipe of the world with several seeds, and hold what came of it against the paper.

All seeds have one base model. Each has a home of its own, where it draws, trains and judges with
its number. A recipe's adapter then draws four answers to every question at temperature 1, by
transformers and PEFT alone; the truth is that of town.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.world import data, measure, model
from benchmarks.world.town import CAREFUL, CARELESS, LANGUAGES

RECIPES = Path(__file__).parents[2] / "recipes" / "world"
DRAWN = 4
FIRST = "(max, mean - 2 sigma)"  # the one run to its end, with the judge
# name -> recipe, and what is set in it
CHAT = "judged by a chat model"  # what is judged is that of the first
RUNS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    FIRST: ("world", ()),
    CHAT: ("world-chat-judge", ()),
    "exchanged preferences": ("world-exchanged", ()),
    "(max, min)": ("world-min", ()),
    "(mean, mean - sigma)": ("world-narrow", ()),
    "no language filter": ("world-any-language", ()),
    "pairs of another model": ("world-off-policy", ()),
    "SFT on the best": ("world-sft", ()),
    "online": ("world-online", ()),
    "implicit reward": ("world-implicit", ()),
    "a rate that ruins": ("world-high-rate", ()),
    "(max, mean - 2 sigma), half precision": (
        "world",
        tuple(f"stages.{stage}.dtype=bfloat16" for stage in ("reward", "generate", "score", "dpo")),
    ),
    "pairs of English alone": ("world", ("stages.dpo.each=[en]",)),
    "pairs over all languages": (
        "world",
        ("stages.pair.pool=all_lang", "stages.dpo.each=[all_lang]"),
    ),
    "n = 64: (max, mean - 2 sigma)": ("world", ("stages.generate.n=64", "stages.prompts.first=75")),
    "n = 64: (max, min)": ("world-min", ("stages.generate.n=64", "stages.prompts.first=75")),
    "n = 64: (mean, mean - sigma)": (
        "world-narrow",
        ("stages.generate.n=64", "stages.prompts.first=75"),
    ),
}


def run(out: Path, seeds: Iterable[int]) -> None:
    """Run everything with each seed, write `out`/seed-N.json and print the table of all seeds."""
    results = [one_seed(out, seed) for seed in seeds]
    for line in table(results):
        print(line)


def one_seed(out: Path, seed: int) -> dict[str, Any]:
    """Return, by the name of a run, the true change of quality by language, and what the run said
    of itself; a run that is done is read from the file."""
    home, path = out / f"seed-{seed}", out / f"seed-{seed}.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    recipes = home / "recipes"  # a copy: the lock of a recipe is written beside it
    shutil.copytree(RECIPES, recipes, dirs_exist_ok=True)
    asked = data.questions(RECIPES / "data")
    base = out / "careless"
    for name, habits in (("careless", CARELESS), ("careful", CAREFUL), ("judge", None)):
        if not (out / name / "config.json").exists():
            model.train(out / name, habits, 0, model.STEPS if habits else model.JUDGE_STEPS)
        _factory(home, "hub", "exec", "--", "hf", "upload", f"world/{name}", str(out / name), ".")
    before: dict[tuple[str, str], list[str]] | None = None
    for name, (recipe, settings) in RUNS.items():
        if name in results:
            continue
        known = {folder for folder, _ in _artifacts(home)}
        sets = [word for one in (f"seed={seed}", *settings) for word in ("--set", one)]
        until = () if name in (FIRST, CHAT) else ("--until", _trained_by(recipe))
        _factory(home, "run", str(recipes / f"{recipe}.yaml"), "--quiet", *until, *sets)
        if before is None:
            before, _ = measure.draw(base, None, asked, DRAWN, seed)
        result: dict[str, Any] = {}
        for folder, manifest in _artifacts(home):
            if folder in known:
                continue
            if manifest["kind"] == "adapter":
                after, ended = measure.draw(base, folder, asked, DRAWN, seed)
                changes = measure.compare(after, before)
                result["truth"] = {code: _figures(one) for code, one in changes.items()}
                result["ended"] = ended
                result["alarms"] = manifest["stats"]["alarms"]
            elif manifest["stage"] == "pair":
                result["pairs"] = measure.pairs(folder)
            elif manifest["stage"] == "judge":
                arena = next(path for path, of in _artifacts(home) if of["stage"] == "arena")
                result["verdicts"] = measure.verdicts(folder, arena)
        results[name] = result
        path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        print(f"seed {seed}: {name}: {result.get('truth', {}).get('all')}", flush=True)
    return results


def table(results: list[dict[str, Any]]) -> list[str]:
    """Return a table in Markdown: the mean over seeds of the true change of quality, and its 95 %
    interval over seeds (Student's t)."""
    codes = [*LANGUAGES, "all"]
    lines = [
        "| run | " + " | ".join(codes) + " | ended | chosen truly better |",
        "|---|" + "---|" * (len(codes) + 2),
    ]
    base = [[one["truth"][code]["base"] for one in _first(results)] for code in codes]
    shown = " | ".join(f"{np.mean(values):.3f}" for values in base)
    lines.append(f"| base, its quality | {shown} | | |")
    for name in RUNS:
        done = [one[name] for one in results if "truth" in one.get(name, {})]
        if not done:
            continue
        cells = [_interval([one["truth"][code]["change"] for one in done]) for code in codes]
        ended = f"{np.mean([one['ended'] for one in done]):.0%}"
        shares = [
            np.mean([share for _, share in one["pairs"].values()]) for one in done if "pairs" in one
        ]
        better = f"{np.mean(shares):.0%}" if shares else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {ended} | {better} |")
    return lines


def _first(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [next(one for one in result.values() if "truth" in one) for result in results]


def _interval(values: list[float]) -> str:
    from scipy.special import stdtrit

    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:+.3f}"
    half = float(stdtrit(len(values) - 1, 0.975)) * float(np.std(values, ddof=1))
    half /= len(values) ** 0.5
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def _figures(change: measure.Change) -> dict[str, float]:
    figures = {"base": change.base, "change": change.change, "low": change.low, "high": change.high}
    return {key: round(value, 4) for key, value in figures.items()}


def _artifacts(home: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the folders of all artifacts in a home, with their manifests."""
    paths = sorted((home / "home").glob("work/world/*/artifact/factory.json"))
    return [(path.parent, json.loads(path.read_text())) for path in paths]


def _trained_by(recipe: str) -> str:
    return {"world-sft": "sft", "world-online": "online"}.get(recipe, "dpo")


def _factory(home: Path, *arguments: str) -> None:
    """Run the command. Raises CalledProcessError."""
    subprocess.run(
        [sys.executable, "-m", "factory", *arguments],
        env={**os.environ, "FACTORY_HOME": str(home / "home")},
        check=True,
    )

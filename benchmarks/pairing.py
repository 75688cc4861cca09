"""Pairing: the stage against a straightforward implementation of the same rule, in time and memory.

    python benchmarks/pairing.py            # 134,400 scored rows: both sides
    python benchmarks/pairing.py --scale    # … and growth up to 4.5 million rows, ours alone
    python benchmarks/pairing.py --json     # the same, with one last line of JSON

Each side runs in a process of its own, from input files to an output file, and is measured after
its imports: wall time, and the peak of resident memory above what the imports left. The rows are
generated from arithmetic on their indices, the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peak import Peak

import factory  # noqa: F401  (says which allocator Arrow takes, before Arrow is there)

LANGUAGES = ("da", "nl", "en", "fr", "de", "it", "es")
SAMPLES = 64
WORDS = 120
SMALL = 300  # prompts, in each of seven languages: 134,400 rows
LARGE = 10_000  # 4.48 million rows
SIDES = ("factory", "dicts", "dicts, without parsing")
CROSS = "factory, all_lang"  # one pool of all languages: everything is in memory at once


# the data


def corpus(length: int = 2**20) -> tuple[str, Any]:
    """A long text of made-up words of two to eleven letters, and where each word starts."""
    import numpy as np

    letters = "etaoinshrdlucmfw"
    vocabulary = [
        "".join(letters[(number * 7 + place * (number % 13 + 3)) % 16] for place in range(size))
        for number in range(4096)
        for size in [2 + number % 10]
    ]
    dice = np.random.Generator(np.random.PCG64(0))
    words = [vocabulary[number] for number in dice.integers(0, 4096, length)]
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    return " ".join(words) + " ", starts


def generate(directory: Path, prompts: int, jsonl: bool) -> None:
    """Artifacts of prompts, samples and scores as the stages leave them: answers of about 120
    words, rewards that differ from prompt to prompt and answer to answer. With `jsonl` also the
    scored rows as JSON lines, a file a language, for the other side."""
    import numpy as np
    import pyarrow as pa

    from factory.artifacts import shards
    from factory.artifacts import tables as files
    from factory.artifacts.schemas import SCHEMAS, conform

    whole, starts = corpus()
    n = prompts * SAMPLES
    ids = [f"p{prompt:06d}" for prompt in range(prompts)]
    of_prompt = np.repeat(np.arange(prompts), SAMPLES)
    for number, code in enumerate(LANGUAGES):
        dice = np.random.Generator(np.random.PCG64([number, prompts]))
        reward = dice.normal(dice.normal(0, 4, prompts)[of_prompt], 3).round(4)
        length = dice.integers(WORDS - 40, WORDS + 41, n)
        first = dice.integers(0, len(starts) - WORDS - 41, n)
        cuts = zip(starts[first].tolist(), (starts[first + length] - 1).tolist(), strict=True)
        texts = [whole[low:high] for low, high in cuts]
        mark = dice.integers(0, 2**63, n).tolist()
        shared = {
            "prompt_id": pa.array(ids).take(pa.array(of_prompt)),
            "language": pa.repeat(code, n),
            "k": pa.array(np.tile(np.arange(SAMPLES), prompts)),
            "response_hash": pa.array([f"{value:016x}" for value in mark]),
            "n_tokens": pa.array(length),
        }
        tables = {
            "prompts": {
                "prompt_id": pa.array(ids),
                "language": pa.repeat(code, prompts),
                "messages": pa.array(
                    [[{"role": "user", "content": f"Question {name}"}] for name in ids]
                ),
                "prompt_hash": pa.array(ids),
                "source_dataset": pa.nulls(prompts, pa.string()),
                "domain": pa.nulls(prompts, pa.string()),
            },
            "samples": {
                **shared,
                "prompt_hash": shared["prompt_id"],
                "response": pa.array(texts),
                "n_chars": pa.array([len(text) for text in texts]),
                "finish_reason": pa.repeat("stop", n),
                "seed": pa.repeat(0, n),
                "detected_language": pa.repeat(code, n),
            },
            "scores": {**shared, "reward": pa.array(reward), "status": pa.repeat("ok", n)},
        }
        for kind, columns in tables.items():
            known = {name: columns[name] for name in SCHEMAS[kind].names if name in columns}
            table = conform(pa.table(known), kind, "the benchmark")
            if kind == "prompts":
                files.write_slice(directory / kind / "data" / code, table)
                continue
            whole_slice = shards.cut({code: n}, n)  # row-wise stages compact what they made
            [shard] = whole_slice.shards
            files.write_table(shard.file(directory / "made" / kind), table)
            shards.compact(
                directory / "made" / kind, whole_slice, code, directory / kind / "data" / code
            )
            shard.file(directory / "made" / kind).unlink()
        if jsonl:
            with (directory / f"{code}.jsonl").open("w") as file:
                for row, text in enumerate(texts):
                    name = ids[row // SAMPLES]
                    messages = [
                        {"role": "user", "content": f"Question {name}"},
                        {"role": "assistant", "content": text},
                    ]
                    line = {"id": name, "language": code, "reward_score": float(reward[row])}
                    file.write(json.dumps({**line, "messages": messages}) + "\n")


# ours


def ours(directory: Path, cross: bool = False) -> Callable[[], dict[str, int]]:
    """The stage itself, all but the drawing: reads parquet, pairs, describes, writes parquet."""
    import pyarrow.compute  # noqa: F401  (the first `take` would import it)

    from factory.pairs import normalize, rules, statistics  # noqa: F401
    from factory.pairs.pair import Pair
    from factory.stage.inputs import SliceSpec, StepInput
    from factory.stage.job import Job, Place

    stages = {"prompts": "prompts", "samples": "generate", "scores": "score"}
    needs = {
        code: tuple(StepInput(role, step, code) for role, step in stages.items())
        for code in LANGUAGES
    }
    every = tuple(need for reads in needs.values() for need in reads)
    single = tuple(SliceSpec("pair", code, code, reads) for code, reads in needs.items())
    stage = Pair(pool="all_lang" if cross else "in_lang")
    job = Job(
        step="pair",
        seed=0,
        slices=(SliceSpec("pair", "all_lang", None, every),) if cross else single,
        places={need: Place(directory / need.role) for need in every},
        work=directory / "work",
        out=directory / "out",
        progress=lambda done, total, unit, tokens=0: None,
    )

    def run() -> dict[str, int]:
        made = stage.make(job)
        return {"pairs": sum(counts.out for _, counts in made.values())}

    return run


# the other side: the published rule, from its description, over dicts


def parsed(directory: Path) -> list[dict[str, Any]]:
    """Every scored row of every language, whole."""
    found = []
    for code in LANGUAGES:
        with (directory / f"{code}.jsonl").open() as file:
            found += [json.loads(line) for line in file]
    return found


def paired(scored: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Highest reward against the one nearest to mean - 2 population sigma strictly below it."""
    pools: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in scored:
        pools.setdefault((row["language"], row["id"]), []).append(row)
    pairs = []
    for (language, prompt), pool in pools.items():
        rewards = [row["reward_score"] for row in pool]
        mean = sum(rewards) / len(rewards)
        sigma = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
        chosen = max(pool, key=lambda row: row["reward_score"])
        below = [row for row in pool if row["reward_score"] < chosen["reward_score"]]
        if not below:
            continue
        target = mean - 2 * sigma
        rejected = min(below, key=lambda row: abs(row["reward_score"] - target))
        pairs.append(
            {
                "id": prompt,
                "language": language,
                "prompt": chosen["messages"][0]["content"],
                "chosen": chosen["messages"][1]["content"],
                "rejected": rejected["messages"][1]["content"],
                "chosen_score": chosen["reward_score"],
                "rejected_score": rejected["reward_score"],
                "pool_size": len(pool),
            }
        )
    return pairs


def dicts(directory: Path, parse: bool) -> Callable[[], dict[str, int]]:
    """The rule over dicts, from JSON lines to JSON lines; without `parse` the rows are there."""
    there = None if parse else parsed(directory)

    def run() -> dict[str, int]:
        pairs = paired(parsed(directory) if there is None else there)
        with (directory / "dicts.jsonl").open("w") as file:
            for row in pairs:
                file.write(json.dumps(row) + "\n")
        return {"pairs": len(pairs)}

    return run


# measuring


def measure(side: str, directory: Path) -> dict[str, float]:
    """One run of one side in this process."""
    mine = side in (SIDES[0], CROSS)
    run = ours(directory, side == CROSS) if mine else dicts(directory, parse=side == SIDES[1])
    peak = Peak()
    peak.start()
    started, worked = time.perf_counter(), time.process_time()
    found = run()
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    return {"seconds": seconds, "cpu": cpu, "mb": peak.stop(), **found}


def apart(sides: Sequence[str], directory: Path, repeats: int) -> list[dict[str, Any]]:
    """Some rounds of all sides, each run in its own process: the median of each figure. In rounds,
    so that what else the machine does falls on all sides alike."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, runs in found.items():
            command = [sys.executable, __file__, "--side", side, "--directory", str(directory)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout))
    return [
        {"side": side, **{key: sorted(run[key] for run in runs)[repeats // 2] for key in runs[0]}}
        for side, runs in found.items()
    ]


def agree(directory: Path) -> bool:
    """Whether both sides chose the same answers, prompt by prompt."""
    import pyarrow.parquet as pq

    theirs = {}
    with (directory / "dicts.jsonl").open() as file:
        for line in file:
            row = json.loads(line)
            theirs[row["language"], row["id"]] = (row["chosen"], row["rejected"])
    mine = {}
    for code in LANGUAGES:
        for file in sorted((directory / "out" / "data" / code).glob("*.parquet")):
            for row in pq.ParquetFile(file).read().to_pylist():
                sides = (row["chosen"][0]["content"], row["rejected"][0]["content"])
                mine[code, row["prompt_id"]] = sides
    return mine == theirs


def main() -> None:
    """Generate, measure, print."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--scale", action="store_true", help="ours up to 4.5 million rows too")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--json", action="store_true", help="one last line of JSON")
    options.add_argument("--side", choices=(*SIDES, CROSS), help=argparse.SUPPRESS)
    options.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.side:
        print(json.dumps(measure(asked.side, asked.directory)))
        return
    machine, before = f"{os.cpu_count()}-core CPU machine", os.getloadavg()[0]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        small = Path(temporary) / "small"
        generate(small, SMALL, jsonl=True)
        for figures in apart(SIDES, small, asked.repeats):
            results.append({"rows": SMALL * len(LANGUAGES) * SAMPLES, **figures})
        same = agree(small)
        for prompts in (LARGE // 16, LARGE // 4, LARGE) if asked.scale else ():
            large = Path(temporary) / str(prompts)
            generate(large, prompts, jsonl=False)
            for figures in apart((SIDES[0], CROSS), large, 1):
                results.append({"rows": prompts * len(LANGUAGES) * SAMPLES, **figures})
    first, other = results[0], results[1]
    load = f"load {before:.1f} before, {os.getloadavg()[0]:.1f} after"
    print(f"{machine}, {load}; median of {asked.repeats} rounds at {first['rows']:,} rows\n")
    heads = ("rows", "seconds", "CPU s", "MB", "us a row", "pairs")
    print(f"{'side':24} {heads[0]:>10} " + " ".join(f"{head:>8}" for head in heads[1:]))
    for row in results:
        each = row["seconds"] / row["rows"] * 1e6
        print(
            f"{row['side']:24} {row['rows']:>10,} {row['seconds']:>8.3f} {row['cpu']:>8.3f} "
            f"{row['mb']:>8.0f} {each:>8.2f} {row['pairs']:>8,}"
        )
    faster = other["seconds"] / first["seconds"]
    print(
        f"\nBoth sides chose the same answers: {'yes' if same else 'NO'}. "
        f"{faster:.1f} times faster ({other['cpu'] / first['cpu']:.1f} in CPU time), "
        f"{first['mb'] / other['mb']:.2f} of the memory."
    )
    if asked.json:
        figures = {"machine": machine, "load": load, "same_pairs": same, "results": results}
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

"""Evaluation at full size: 11 languages of 500 questions, each judged in both orders.

    python benchmarks/evaluation.py            # the statistics, beside a plain Python loop
    python benchmarks/evaluation.py --judge    # … and a small model as judge: its loads
    python benchmarks/evaluation.py --coverage # … and how often intervals hold the truth:
                                               # both kinds, or `--coverage rates`, `lengths`
    python benchmarks/evaluation.py --json     # the same, with one last line of JSON

The statistics are win rates, bounds, consistency and length-controlled win rates (two lengths) of
all languages together and of each, with their intervals. The plain loop works out the win rate and
the length control of all languages together, without intervals, a comparison at a time, which gives
the same figures. Seconds of statistics are of the processor, which a busy machine does not change.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

LANGUAGES = ("en", "it", "es", "fr", "de", "nl", "da", "gl", "cy", "mt", "ga")
QUESTIONS = 500


def verdicts(questions: int = QUESTIONS) -> list[Any]:
    """Made-up verdicts: questions of differing hardness, a taste for length and for the first, 2 %
    unread."""
    from factory.evaluation.statistics.table import JudgedAnswer, JudgedQuestion

    dice = random.Random(0)
    orders = ("model_first", "reference_first")
    found = []
    for number in range(questions):
        hard = dice.gauss(0, 0.7)
        for code in LANGUAGES:
            sides = [JudgedAnswer(dice.randint(80, 4000), 0, dice.random() < 0.02) for _ in "ab"]
            sides = [JudgedAnswer(one.chars, one.chars // 4, one.wrong_language) for one in sides]
            longer = math.tanh((sides[0].chars - sides[1].chars) / 1500)
            said = []
            for order in orders:
                first = 0.3 if order == "model_first" else -0.3
                won = 1 / (1 + math.exp(-(0.2 + hard + longer + first)))
                roll = dice.random()
                said.append(
                    "unparseable" if dice.random() < 0.02
                    else "tie" if abs(roll - won) < 0.04
                    else "model" if roll < won
                    else "reference"
                )  # fmt: skip
            category = "hard_prompt" if number % 2 else "creative_writing"
            found.append(
                JudgedQuestion(
                    f"q{number}", code, category, None, orders, tuple(said), sides[0], sides[1]
                )
            )
    return found


def plain(items: list[Any]) -> dict[str, float]:
    """The same win rate and length control by loops over comparisons."""
    worth = {"model": 1.0, "tie": 0.5, "reference": 0.0}
    rows: dict[str, list[tuple[float, float]]] = {}
    for item in items:
        read = [worth[verdict] for verdict in item.verdicts if verdict in worth]
        if read:
            value = sum(read) / len(read)
            rows.setdefault(item.question, []).append(
                (value, item.model.chars - item.reference.chars)
            )

    def controlled(drawn: list[tuple[float, float]]) -> float:
        mean = sum(d for _, d in drawn) / len(drawn)
        spread = math.sqrt(sum((d - mean) ** 2 for _, d in drawn) / len(drawn))
        xs = [math.tanh(d / spread) for _, d in drawn]
        theta = phi = 0.0
        for _ in range(50):
            g0, g1, a, b, c = 0.0, -2 * phi, 0.0, 0.0, 2.0
            for (y, _), x in zip(drawn, xs, strict=True):
                p = 1 / (1 + math.exp(-(theta + phi * x)))
                g0, g1 = g0 + y - p, g1 + (y - p) * x
                w = p * (1 - p)
                a, b, c = a + w, b + w * x, c + w * x * x
            if max(abs(g0), abs(g1)) < 1e-8 * len(drawn):
                break
            determinant = a * c - b * b
            theta, phi = (
                theta + (c * g0 - b * g1) / determinant,
                phi + (a * g1 - b * g0) / determinant,
            )
        return 1 / (1 + math.exp(-theta))

    every = [row for one in rows.values() for row in one]
    return {
        "win_rate": 100 * sum(y for y, _ in every) / len(every),
        "lc_minimal": 100 * controlled(every),
    }


def statistics() -> dict[str, Any]:
    """Seconds of both sides, and what they found."""
    from factory.evaluation.statistics.table import by_category, by_language

    items = verdicts()
    started = time.process_time()
    rows = by_language("dpo", "policy", items)
    ours = time.process_time() - started
    started = time.process_time()
    by_category("dpo", "policy", items)
    categories = time.process_time() - started
    started = time.process_time()
    found = plain(items)
    loop = time.process_time() - started
    every = rows[0]
    assert abs(every["win_rate"]["rate"] - found["win_rate"]) < 1e-6
    assert abs(every["lc_minimal_chars"]["rate"] - found["lc_minimal"]) < 1e-3
    return {
        "verdicts": sum(len(item.verdicts) for item in items),
        "factory_seconds": round(ours, 2),
        "factory_categories_seconds": round(categories, 2),
        "plain_seconds": round(loop, 2),
        "win_rate": every["win_rate"],
        "lc_minimal": every["lc_minimal_chars"],
    }


def judge(questions: int = 4) -> dict[str, Any]:
    """A model of two layers as judge of all languages in both orders: in one run, and in one run a
    language. What differs is how often the model is loaded."""
    from factory.engines import choose
    from factory.evaluation.judging.stage import Judge
    from factory.execution.builtin_models import POCKET
    from tests.evaluation.judging.test_stage import LLM, answers
    from tests.support.jobs import job

    found: dict[str, Any] = {"questions": questions, "languages": len(LANGUAGES)}
    real, loads = choose.sampler, [0]

    def counted(*arguments: Any, **more: Any) -> Any:
        loads[0] += 1
        return real(*arguments, **more)

    choose.sampler = counted  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        POCKET["local/tiny-random-llama"].build(root / "model")
        texts = {code: [f"answer {n}" for n in range(questions)] for code in LANGUAGES}
        others = {code: [f"other {n}" for n in range(questions)] for code in LANGUAGES}
        reads = {
            "answers": answers(root / "ours", "dpo", texts),
            "reference": answers(root / "theirs", "policy", others),
        }
        how = {"engine": "transformers", "shard": 64}
        ask = {"max_tokens": 8, "context": 512}
        stage = Judge(judge="asked", dtype="float32", ask=ask, how=how)
        warm = job(root / "warm", ["en"], reads, {LLM: root / "model"})
        stage.run(warm)  # the imports of both
        for name, groups in (
            ("one run", [LANGUAGES]),
            ("a run a language", [[c] for c in LANGUAGES]),
        ):
            loads[0], started = 0, time.perf_counter()
            for number, codes in enumerate(groups):
                place = root / f"{name}-{number}"
                stage.run(job(place, list(codes), reads, {LLM: root / "model"}))
            found[name] = {
                "loads": loads[0],
                "seconds": round(time.perf_counter() - started, 1),
                "verdicts": 2 * questions * len(LANGUAGES),
            }
    choose.sampler = real
    return found


def coverage(times: int = 1000) -> list[dict[str, Any]]:
    """How often in 100 a 95 % interval holds the truth, for few and many questions: ours, the
    percentile bootstrap and the plain cluster-robust t interval."""
    import numpy as np
    from scipy.special import ndtr, ndtri, stdtrit

    from factory.evaluation.statistics.intervals import residuals, score

    rng = np.random.default_rng(0)
    found = []
    for questions in (10, 20, 60, 500):
        for languages, alike in ((1, 0.0), (11, 0.5)):
            for won, tied in ((0.45, 0.1), (0.7, 0.1), (0.88, 0.04)):
                truth, hits = won + tied / 2, np.zeros(4)
                cluster = np.repeat(np.arange(questions), languages)
                for _ in range(times if questions < 500 else times // 4):
                    at = rng.normal(size=(questions, 1)) * math.sqrt(alike) + rng.normal(
                        size=(questions, languages)
                    ) * math.sqrt(1 - alike)
                    points = np.select(
                        [at > ndtri(1 - won), at > ndtri(1 - won - tied)], [1.0, 0.5]
                    )
                    means = points.mean(axis=1)
                    rate = float(means.mean())
                    t = -float(stdtrit(questions - 1, 0.025))
                    wide = t * means.std(ddof=1) / math.sqrt(questions)
                    drawn = means[rng.integers(questions, size=(1000, questions))].mean(axis=1)
                    tail = float(ndtr(-math.sqrt(questions / (questions - 1)) * t))
                    spans = (
                        score(rate, residuals(points.ravel(), cluster)),
                        tuple(np.quantile(drawn, [0.025, 0.975])),
                        tuple(np.quantile(drawn, [tail, 1 - tail])),
                        (rate - wide, rate + wide),
                    )
                    hits += [low - 1e-12 <= truth <= high + 1e-12 for low, high in spans]
                count = times if questions < 500 else times // 4
                names = ("score", "percentile", "expanded", "t")
                found.append(
                    {"questions": questions, "languages": languages, "truth": round(truth, 2)}
                    | {n: round(100 * h / count, 1) for n, h in zip(names, hits, strict=True)}
                )
    return found


def length_coverage(times: int = 1000) -> list[dict[str, Any]]:
    """How often in 100 the 95 % interval of the length-controlled rate holds the truth, to a judge
    to whom length is worth PHI logits and whose verdicts in several languages hang together (half
    of their variance is the question's); beside it the same interval around the raw rate, which
    takes longer answers for better ones. A model writes 150 characters more, give or take 200."""
    import numpy as np
    from scipy.special import expit, logit, ndtr

    from factory.evaluation.statistics.intervals import residuals, score
    from factory.evaluation.statistics.length_control import lc_minimal

    phi, rng, found = 1.0, np.random.default_rng(0), []
    sizes = itertools.product((10, 20, 60, 500), (1, 3, 11))
    for questions, languages in sizes:
        for truth in (0.5, 0.7, 0.9):
            count = times
            alike = 0.5 if languages > 1 else 0.0
            cluster = np.repeat(np.arange(questions), languages)
            held, raw, without = 0, 0, 0
            for _ in range(count):
                shared = rng.normal(size=(questions, 1)) * math.sqrt(alike)
                own = rng.normal(size=(questions, languages)) * math.sqrt(1 - alike)
                apart = rng.normal(150, 200, size=(questions, languages))
                chance = expit(logit(truth) + phi * np.tanh(apart / 200))
                points = (ndtr(shared + own) < chance).astype(float).ravel()
                one = lc_minimal(points, apart.ravel(), cluster)
                low, high = score(float(points.mean()), residuals(points, cluster))
                raw += low <= truth <= high
                if one.low is None or one.high is None:
                    without += 1
                    continue
                held += one.low <= 100 * truth <= one.high
            shares = {"lc_minimal": held / max(1, count - without), "raw": raw / count}
            found.append(
                {"questions": questions, "languages": languages, "truth": truth, "times": count}
                | {name: round(100 * share, 1) for name, share in shares.items()}
                | {"no rate": without}
            )
    return found


def main() -> None:
    """Run what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("judge", "json"):
        parser.add_argument(f"--{name}", action="store_true")
    kinds = {"rates": coverage, "lengths": length_coverage}
    parser.add_argument("--coverage", nargs="?", const="both", choices=("both", *kinds))
    asked = parser.parse_args()
    found: dict[str, Any] = {"statistics": statistics()}
    figures = found["statistics"]
    print(f"{figures['verdicts']:,} verdicts")
    print(f"{'':34}{'seconds':>10}")
    print(f"{'factory, 12 tables, 2 lengths':34}{figures['factory_seconds']:>10}")
    print(f"{'factory, categories':34}{figures['factory_categories_seconds']:>10}")
    print(f"{'plain loop, 1 table, 1 length':34}{figures['plain_seconds']:>10}")
    if asked.judge:
        found["judge"] = judge()
        print(f"\n{'judge':20}{'verdicts':>10}{'loads':>8}{'seconds':>10}")
        for name in ("one run", "a run a language"):
            row = found["judge"][name]
            print(f"{name:20}{row['verdicts']:>10}{row['loads']:>8}{row['seconds']:>10}")
    for kind, measure in kinds.items():
        if asked.coverage in (kind, "both"):
            rows = found[f"coverage of {kind}"] = measure()
            print(f"\n{kind}: times in 100 that a 95 % interval held the truth")
            print("".join(f"{key:>12}" for key in rows[0]))
            for row in rows:
                print("".join(f"{value:>12}" for value in row.values()))
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()

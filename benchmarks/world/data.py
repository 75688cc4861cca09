"""Prompts, questions, preferences and audit pairs of the world, as JSON Lines beside a recipe."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.world.town import CAREFUL, CARELESS, LANGUAGES, Request, answer, quality, requests

PROMPTS, QUESTIONS, AUDIT, PREFERENCES = 150, 150, 80, 800
EXCHANGED = 0.05  # share of preferences that are the wrong way round, as people's are
GAP = 0.1  # of quality, between the sides of a pair


def write(out: Path) -> None:
    """Write every file into `out`; the same bytes each time."""
    out.mkdir(parents=True, exist_ok=True)
    every = requests()
    random.Random(1).shuffle(every)
    prompts, rest = every[:PROMPTS], every[PROMPTS:]
    questions, rest = rest[:QUESTIONS], rest[QUESTIONS:]
    audit, rest = rest[:AUDIT], rest[AUDIT:]
    for code in LANGUAGES:
        for name, part in (("prompts", prompts), ("questions", questions)):
            rows = ({"id": one.id, "prompt": one.text(code)} for one in part)
            _lines(out / f"{name}-{code}.jsonl", rows)
        rng = random.Random(f"audit {code}")
        _lines(out / f"audit-{code}.jsonl", (pair(one, code, rng) for one in audit))
    rng = random.Random("preferences")
    rows = [pair(rng.choice(rest), "en", rng, EXCHANGED) for _ in range(PREFERENCES)]
    numbered = (row | {"id": f"{row['id']}-{number}"} for number, row in enumerate(rows))
    _lines(out / "preferences-en.jsonl", numbered)


def questions(folder: Path) -> list[tuple[str, str, str]]:
    """Return (request id, language, text) of every question in a folder that `data` wrote."""
    return [
        (row["id"], code, row["prompt"])
        for code in LANGUAGES
        for line in (folder / f"questions-{code}.jsonl").read_text(encoding="utf-8").splitlines()
        for row in [json.loads(line)]
    ]


def pair(request: Request, code: str, rng: random.Random, exchanged: float = 0.0) -> dict[str, str]:
    """Return two answers to a request whose qualities differ, the better one as chosen."""
    gap = 0.0
    while abs(gap) < GAP:
        one, two = (answer(request, code, rng.choice((CARELESS, CAREFUL)), rng) for _ in range(2))
        gap = quality(request, code, one) - quality(request, code, two)
    if (gap < 0) != (rng.random() < exchanged):
        one, two = two, one
    return {"id": request.id, "prompt": request.text(code), "chosen": one, "rejected": two}


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")

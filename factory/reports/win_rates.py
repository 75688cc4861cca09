"""What judges found of a model, gathered from the manifests of its collection. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from factory.artifacts.manifest import InputRecord, Manifest


@dataclass(frozen=True)
class Comparison:
    """A model against its reference in one language (`all`: over all of them), in questions won,
    tied and lost. `rate`, `low` and `high` are percent; None where no verdict could be read.
    `judged` and `asked` are the repos, at their tags, of the verdicts and of the questions.

    `in_language`: the win rate with answers in another language counted as lost. `controlled`: for
    answers of equal length (in characters), with what is to be said of it. `worst`, `best`: had the
    verdicts that nobody could read gone one way or the other. `consistency`: how often the judge
    said the same in both orders. `seen`: questions among the prompts of training."""

    reference: str
    judge: str
    notes: tuple[str, ...]
    language: str
    won: int
    tied: int
    lost: int
    unparseable: int
    rate: float | None
    low: float | None
    high: float | None
    shown: str
    in_language: float | None
    controlled: str
    worst: float | None
    best: float | None
    consistency: float | None
    seen: int
    template: str | None
    revision: str | None
    served: bool
    judged: tuple[str, str]
    asked: tuple[str, str]

    @property
    def who(self) -> str:
        """The judge, at its revision, and how it was asked."""
        at = f" at {self.revision[:15]}" if self.revision else ""
        at = ", served, not pinned" if self.served else at
        how = f", asked in the words of the template {self.template}" if self.template else ""
        return f"{self.judge}{at}{how}"


def comparisons(model: Manifest, others: Iterable[Manifest]) -> list[Comparison]:
    """What the judges among `others` say of `model`, by the content that was really compared: a
    verdict on another draw of the same recipe is not one on this."""
    every = list(others)
    mine = {record.digest for record in model.slices.values()}
    answers: dict[str, tuple[str, InputRecord | None]] = {}  # by content: label, questions
    for arena in every:
        for name, record in arena.slices.items():
            if any(read.role == "adapter" and read.digest in mine for read in record.inputs):
                asked = next((read for read in record.inputs if read.role == "questions"), None)
                answers[record.digest] = (name.partition("/")[2], asked)
    found: list[Comparison] = []
    for judge in every:
        read = [one for record in judge.slices.values() for one in record.inputs]
        compared = [answers[one.digest] for one in read if one.digest in answers]
        labels = dict(compared)
        for row in judge.stats.get("comparisons", []):
            if row["model"] in labels:
                found.append(_comparison(judge, row, labels[row["model"]]))
    return found


def model_index(name: str, found: Iterable[Comparison]) -> list[dict[str, Any]]:
    """The same as the Hub's `model-index`: one result for each question set and language."""
    results = []
    for one in found:
        if one.rate is None:
            continue
        repo, tag = one.asked
        dataset = {"name": repo, "type": repo, "split": "train", "revision": tag}
        if one.language != "all":
            dataset["config"] = one.language
        metric = {
            "type": "win_rate",
            "name": f"win rate against {one.reference}, judged by {one.judge}, in percent",
            "value": round(one.rate, 2),
            "args": {
                "low": round(one.low or 0.0, 2),
                "high": round(one.high or 0.0, 2),
                "won": one.won,
                "tied": one.tied,
                "lost": one.lost,
            },
        }
        result = {
            "task": {"type": "text-generation", "name": "Answers compared by a judge"},
            "dataset": dataset,
            "metrics": [metric],
        }
        if not one.judged[0].startswith("local/"):  # which no public hub has
            url = f"https://huggingface.co/datasets/{one.judged[0]}/tree/{one.judged[1]}"
            result["source"] = {"name": "verdicts", "url": url}
        results.append(result)
    return [{"name": name, "results": results}] if results else []


def controlled(row: Mapping[str, Any], unit: str = "chars") -> str:
    """The length-controlled win rate of a row of `comparisons` as a sentence: with its interval and
    phi, and with what there is to be wary of. Empty where none was worked out."""
    found = row.get(f"lc_minimal_{unit}")
    if not found:
        return ""
    if found["rate"] is None:
        return f"none: {found['flag']}"
    said = f"{found['rate']:.1f} %"
    if found["low"] is not None:
        said += f" [{found['low']:.1f}, {found['high']:.1f}]"
    said += f", phi {found['phi']:+.2f}"
    return f"{said}, {found['flag']}" if found["flag"] else said


def _comparison(judge: Manifest, row: dict[str, Any], asked: InputRecord | None) -> Comparison:
    rate = row.get("win_rate") or {}
    judged = (judge.repo, judge.tag)
    return Comparison(
        reference=row["reference"],
        judge=judge.stats["judge"],
        notes=tuple(judge.stats.get("notes", ())),
        language=row["language"],
        won=row["won"],
        tied=row["tied"],
        lost=row["lost"],
        unparseable=row.get("unparseable", 0),
        rate=rate.get("rate"),
        low=rate.get("low"),
        high=rate.get("high"),
        shown=row.get("shown", "no verdict could be read"),
        in_language=(row.get("in_language") or {}).get("rate"),
        controlled=controlled(row),
        worst=(row.get("bounds") or {}).get("worst"),
        best=(row.get("bounds") or {}).get("best"),
        consistency=(row.get("consistency") or {}).get("same_share"),
        seen=row.get("seen_in_training", 0),
        template=(judge.stats.get("template") or {}).get("name"),
        revision=judge.stats.get("judge_revision"),
        served="served" in judge.stats,
        judged=judged,
        asked=(asked.repo, asked.tag or "main") if asked and asked.repo else judged,
    )

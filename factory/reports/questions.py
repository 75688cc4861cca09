"""Held-out questions to read: the answers of the base model and of a tuned one, with verdicts.

The texts are in the rows of arenas and verdicts, not in manifests. Questions are chosen by their
position alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.artifacts.hashing import text_hash
from factory.artifacts.manifest import InputRecord, Manifest
from factory.artifacts.samples import cut
from factory.artifacts.tables import slice_directory
from factory.reports import values

NUMBER = 10  # questions in each language
LIMIT = 1500  # characters of one text, and on a card
CARD_LIMIT = 500
# Returns the directory of an artifact that holds the rows of a slice; None if it is not at hand.
Place = Callable[[str, str, str], Path | None]


@dataclass(frozen=True)
class ReadAnswer:
    """An answer as it is shown: text, detected language, tokens, whether it was cut off."""

    text: str
    language: str
    tokens: int | None
    cut_off: bool


@dataclass(frozen=True)
class ReadVerdict:
    """What a judge decided: `won`, `tied`, `lost` or `unreadable`, of the tuned model; `order` is
    in words, empty for a judge that reads answers one at a time."""

    judge: str
    outcome: str
    order: str
    reason: str


@dataclass(frozen=True)
class ReadQuestion:
    """A question with the answers of a model and of its reference, and the verdicts on them."""

    language: str
    question_id: str
    turns: tuple[tuple[str, str], ...]
    model: str
    reference: str
    tuned: ReadAnswer
    base: ReadAnswer
    verdicts: tuple[ReadVerdict, ...]

    @property
    def shown(self) -> dict[str, str]:
        """The texts as a card shows them."""
        texts = {role: cut(text, CARD_LIMIT) for role, text in self.turns}
        sides = (("base model", self.base), ("tuned", self.tuned))
        return texts | {name: cut(side.text, CARD_LIMIT) for name, side in sides}


def questions(
    manifests: Iterable[Manifest],
    place: Place,
    number: int = NUMBER,
    only: Callable[[Manifest, str], bool] = lambda manifest, name: True,
) -> list[ReadQuestion]:
    """Read `number` questions of every compared model in each language, for the slices of verdicts
    that `only` allows. Slices whose rows are not at hand are left out."""
    read: dict[tuple[str, str, str], ReadQuestion] = {}
    for manifest in manifests:
        if manifest.kind != "verdicts":
            continue
        for name, record in manifest.slices.items():
            if not only(manifest, name):
                continue
            sides = {source.role: source for source in record.inputs}
            if not {"answers", "reference"} <= sides.keys():
                continue
            tuned, base = (_answers(sides[role], place) for role in ("answers", "reference"))
            verdicts = _rows(place(manifest.repo, manifest.tag, name), name)
            for question in _spread([key for key in tuned if key in base], number):
                pair = _question(name, question, tuned[question], base[question])
                pair = read.setdefault((pair.language, pair.model, question), pair)
                decided = tuple(
                    _verdict(manifest, row)
                    for row in verdicts
                    if row.get("question_id") == question
                    and row.get("answer_hash") in (None, text_hash(tuned[question]["answer"]))
                    and row.get("reference_hash") in (None, text_hash(base[question]["answer"]))
                )
                together = ReadQuestion(**{**vars(pair), "verdicts": pair.verdicts + decided})
                read[pair.language, pair.model, question] = together
    return list(read.values())


def _answers(source: InputRecord, place: Place) -> dict[str, dict[str, Any]]:
    if source.repo is None or source.tag is None or source.slice is None:
        return {}
    rows = _rows(place(source.repo, source.tag, source.slice), source.slice)
    answers: dict[str, dict[str, Any]] = {}
    for row in rows:  # of several drawn answers to a question, the first
        answers.setdefault(str(row.get("question_id")), row)
    return answers


def _rows(root: Path | None, name: str) -> list[dict[str, Any]]:
    """Return the rows of a slice; none where its files are absent or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for file in sorted(slice_directory(root, name).glob("*.parquet")) if root else ():
        try:
            rows += pq.read_table(file).to_pylist()
        except (pa.ArrowException, OSError, ValueError):
            return []
    return rows


def _spread(ids: Sequence[str], number: int) -> list[str]:
    """Return `number` ids at even distances."""
    count = min(number, len(ids))
    return [ids[i * len(ids) // count] for i in range(count)]


def _question(name: str, key: str, tuned: dict[str, Any], base: dict[str, Any]) -> ReadQuestion:
    language, _, model = name.partition("/")
    return ReadQuestion(
        language=language,
        question_id=key,
        turns=tuple(
            (str(turn.get("role")), cut(turn.get("content"), LIMIT))
            for turn in values.mappings(tuned.get("prompt"))
        ),
        model=model or str(tuned.get("model")),
        reference=str(base.get("model")),
        tuned=_answer(tuned),
        base=_answer(base),
        verdicts=(),
    )


def _answer(row: dict[str, Any]) -> ReadAnswer:
    tokens = values.number(row.get("n_tokens"))
    return ReadAnswer(
        text=cut(row.get("answer"), LIMIT),
        language=str(row.get("detected_language") or ""),
        tokens=None if tokens is None else int(tokens),
        cut_off=row.get("finish_reason") == "length",
    )


def _verdict(manifest: Manifest, row: dict[str, Any]) -> ReadVerdict:
    outcomes = {"model": "won", "reference": "lost", "tie": "tied"}
    orders = {"model_first": "tuned first", "reference_first": "base first"}
    return ReadVerdict(
        judge=str(manifest.stats.get("judge", manifest.repo)),
        outcome=outcomes.get(str(row.get("verdict")), "unreadable"),
        order=orders.get(str(row.get("order")), ""),
        reason=str(row.get("reason") or "").replace("_", " "),
    )

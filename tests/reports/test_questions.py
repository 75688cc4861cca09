"""Questions to read: rows of an arena and of verdicts, matched by id, chosen by position."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from factory.artifacts import schemas
from factory.reports.cards import card
from factory.reports.questions import ReadQuestion, questions
from tools.golden import manifests

KEPT = manifests()


def rows_of_a_run(root: Path) -> None:
    """Answers and verdicts as the golden run has them: ten questions, the tuned model in front."""
    ids = [f"q{n:02d}" for n in range(10)]
    for name in KEPT["arena"].slices:
        language, model = name.split("/")
        answers = [
            {"model": model, "question_id": key, "language": language,
             "prompt": [{"role": "user", "content": f"{language} {key}?"}],
             "answer": f"{model} to {key}", "n_tokens": 7,
             "finish_reason": "length" if key == "q00" else "stop", "detected_language": "sv"}
            for key in (ids if model == "policy" else reversed(ids))
        ]  # fmt: skip
        write(root / "arena" / "data" / name, answers, "answers")
    for name in KEPT["judge"].slices:
        language, model = name.split("/")
        verdicts = [
            {"model": model, "reference": "policy", "judge": "j", "question_id": key,
             "language": language, "order": order, "verdict": verdict, "reason": reason}
            for key in ids
            for order, verdict, reason in (
                ("model_first", "model", None), ("reference_first", "unparseable", "cut_off"))
        ]  # fmt: skip
        write(root / "verdicts" / "data" / name, verdicts, "verdicts")


def write(folder: Path, rows: list[dict[str, object]], kind: str) -> None:
    folder.mkdir(parents=True)
    pq.write_table(schemas.from_rows(rows, kind), folder / "part-00000.parquet")


@pytest.fixture
def read(tmp_path: Path) -> list[ReadQuestion]:
    rows_of_a_run(tmp_path)
    return questions(
        KEPT.values(), lambda repo, tag, name: tmp_path / repo.rpartition("-")[2], number=4
    )


def test_each_question_has_both_answers_and_its_verdicts(read: list[ReadQuestion]) -> None:
    assert len(read) == 4 * len(KEPT["judge"].slices)
    first = next(one for one in read if (one.language, one.model) == ("es", "dpo-es"))
    key = first.question_id
    assert (first.tuned.text, first.base.text) == (f"dpo-es to {key}", f"policy to {key}")
    assert first.turns == (("user", f"es {key}?"),)
    assert [(v.outcome, v.order, v.reason) for v in first.verdicts] == [
        ("won", "tuned first", ""), ("unreadable", "base first", "cut off")]  # fmt: skip
    assert len({one.question_id for one in read if one.language == "es"}) == 4


def test_a_card_shows_a_few_of_them(read: list[ReadQuestion]) -> None:
    text = card.render(KEPT["dpo-es"], answered=read[:1])
    assert "## Answers before and after" in text
    assert f"English, `{read[0].question_id}`; local/smoke-reward (tuned first): the tuned" in text
    assert f'"base model": "policy to {read[0].question_id}"' in text


def test_rows_that_are_gone_or_damaged_are_left_out(tmp_path: Path) -> None:
    assert questions(KEPT.values(), lambda repo, tag, name: None) == []
    for name in (*KEPT["arena"].slices, *KEPT["judge"].slices):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "part-00000.parquet").write_bytes(b"no parquet")
    assert questions(KEPT.values(), lambda repo, tag, name: tmp_path) == []

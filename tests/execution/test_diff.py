"""Two artifacts side by side."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factory.artifacts import schemas, tables
from factory.artifacts.hashing import MANIFEST
from factory.artifacts.manifest import Manifest
from factory.cli.reproduce import difference_tables
from factory.errors import InputError
from factory.execution.diff import Change, RowExample, compare, row_changes
from factory.planning.plan import plan
from tests.support.builders import by_name, demo, done, lock_of, manifest_of, walked


def manifest(name: str, *overrides: str, stats: dict[str, Any] | None = None) -> Manifest:
    """The manifest of one step of the demo."""
    recipe = demo(*overrides)
    lock = lock_of(recipe)
    steps = plan(recipe, lock, walked(recipe, lock, until=name))
    return manifest_of(recipe, lock, by_name(steps)[name], done(steps), stats=stats)


def artifact(root: Path, said: Manifest, *rows: dict[str, Any]) -> Path:
    """An artifact at rest, with these rows in English."""
    root.mkdir()
    (root / MANIFEST).write_text(said.dump())
    if rows:
        tables.write_slice(root / "data" / "en", schemas.from_rows(list(rows), said.kind))
    return root


def prompt(name: str, text: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"prompt_id": name, "language": "en", "messages": messages, "prompt_hash": text}


def test_an_artifact_differs_from_itself_in_nothing(tmp_path):
    one = artifact(tmp_path / "one", manifest("prompts"), prompt("a", "A"))
    found = compare(one, one)
    assert found.same_bytes
    assert not found.changes
    assert (found.rows["en"].same, found.rows["en"].changed) == (1, 0)


def test_rows_are_told_apart_by_address_and_column(tmp_path):
    said = manifest("prompts")
    one = artifact(tmp_path / "one", said, prompt("a", "A"), prompt("b", "B"), prompt("c", "C"))
    other = artifact(tmp_path / "two", said, prompt("c", "C"), prompt("a", "X"), prompt("d", "D"))
    rows = compare(one, other).rows["en"]
    assert (rows.same, rows.changed, rows.only_one, rows.only_other) == (1, 1, 1, 1)
    assert rows.columns == {"messages": 1, "prompt_hash": 1}


def test_a_language_that_one_lacks_is_in_the_other_alone(tmp_path):
    one = artifact(tmp_path / "one", manifest("prompts"), prompt("a", "A"))
    other = artifact(tmp_path / "two", manifest("prompts"))
    rows = compare(one, other).rows["en"]
    assert (rows.same, rows.only_one, rows.only_other) == (0, 1, 0)


def test_manifests_are_compared_field_by_field(tmp_path):
    stats = {"by_language": {"en": {"mean": 1.5}}, "curve": [1, 2], "nan": math.nan}
    other_stats = {"by_language": {"en": {"mean": 2.5}}, "curve": [3, 4], "nan": math.nan}
    one = artifact(tmp_path / "one", manifest("generate", stats=stats))
    changed = manifest("generate", "stages.generate.temperature=0.5", stats=other_stats)
    other = artifact(tmp_path / "two", changed.model_copy(update={"environment": {"python": "4"}}))
    found = compare(one, other)
    assert Change("fields", "temperature", 1.0, 0.5) in found.changes
    assert Change("figures", "by_language.en.mean", 1.5, 2.5) in found.changes
    assert Change("environment", "python", "3.11", "4") in found.changes
    assert {change.part for change in found.changes} == {"fields", "figures", "environment"}
    assert not found.same_bytes


def test_weights_are_compared_by_norm(tmp_path):
    import torch
    from safetensors.torch import save_file

    said = manifest("dpo[es]")
    one, other = (artifact(tmp_path / name, said) for name in ("one", "two"))
    weights = {"a": torch.ones(3, 4), "b": torch.ones(4)}
    save_file({**weights, "c": torch.ones(1)}, one / "adapter_model.safetensors")
    save_file({**weights, "b": torch.tensor([1.0, 1, 1, 3])}, other / "adapter_model.safetensors")
    found = compare(one, other).weights
    assert found is not None
    assert found.relative == pytest.approx(2 / 4)  # ||(0, 0, 0, 2)|| over ||16 ones||
    assert found.largest == {"b": pytest.approx(1.0)}
    assert found.only_one == ["c"]


def said(question: str, order: str, verdict: str, **more: str) -> dict[str, Any]:
    return {
        "model": "dpo", "reference": "policy", "judge": "j", "question_id": question,
        "language": "en", "order": order, "verdict": verdict, "prompt_hash": question,
        "answer_hash": "a", "reference_hash": "r", **more,
    }  # fmt: skip


def test_two_judges_of_the_same_answers_are_compared_by_question(tmp_path):
    both = ("model_first", "reference_first")
    one = artifact(
        tmp_path / "one",
        manifest("judge"),
        *(said(q, order, "model") for q in ("a", "b", "c") for order in both),
        *(said("d", order, v) for order, v in zip(both, ("model", "reference"), strict=True)),
        *(said("e", order, "unparseable") for order in both),
        *(said("f", order, "tie", reason="identical") for order in both),
        said("g", "apart", "model", answer_hash="old"),
    )
    words = {"a": "model", "b": "reference", "c": "model", "d": "tie", "e": "tie", "f": "tie"}
    other = artifact(
        tmp_path / "two",
        manifest("judge"),
        *(said(q, "apart", v, **({"reason": "identical"} if q == "f" else {}))
          for q, v in words.items()),
        said("g", "apart", "model"),
    )  # fmt: skip
    name = next(name for name in manifest("judge").slices if name.startswith("en/"))
    for root in (one, other):  # a slice of verdicts is language/model
        shutil.move(root / "data" / "en", root / "old")
        shutil.move(root / "old", root / "data" / name)
    found = compare(one, other).judges[name]
    assert (found.compared, found.questions, found.unread, found.other_answers) == (4, 4, 1, 1)
    assert found.share == 75, "a question that two orders decide otherwise is a tie"
    # of model, tie, reference: 3 1 0 against 2 1 1
    chance = (3 * 2 + 1 * 1) / 16
    assert found.kappa == pytest.approx((0.75 - chance) / (1 - chance))
    tables = difference_tables(compare(one, other))
    text = "".join(str(cell) for table in tables for c in table.columns for cell in c._cells)
    assert "75.0 %" in text


def test_what_is_no_artifact_is_said(tmp_path):
    with pytest.raises(InputError, match="holds no artifact"):
        compare(tmp_path, tmp_path)


def test_rows_of_one_address_are_compared_in_their_order(tmp_path):
    said = manifest("prompts")
    one = artifact(tmp_path / "one", said, prompt("a", "A"), prompt("a", "B"))
    other = artifact(tmp_path / "two", said, prompt("a", "A"), prompt("a", "C"), prompt("a", "D"))
    rows = compare(one, other).rows["en"]
    assert (rows.same, rows.changed, rows.only_one, rows.only_other) == (1, 1, 0, 1)


def test_examples_name_the_cells_that_differ(tmp_path):
    said = manifest("prompts")
    one = artifact(tmp_path / "one", said, prompt("a", "A"), prompt("b", "B"))
    other = artifact(tmp_path / "two", said, prompt("a", "X"), prompt("c", "C"))
    files = [sorted(root.glob("data/en/*.parquet")) for root in (one, other)]
    changed, gone, new = row_changes(*files, ("prompt_id",), n_examples=9).examples
    assert (changed.key, changed.fate, changed.cells[-1]) == (
        "a",
        "changed",
        ("prompt_hash", "A", "X"),
    )
    assert (gone, new) == (RowExample("b", "gone"), RowExample("c", "new"))


@pytest.mark.parametrize(
    "broken", [b"PAR1 and nothing else", None], ids=["torn file", "lacks the id"]
)
def test_rows_that_cannot_be_compared_are_refused(tmp_path, broken):
    said = manifest("prompts")
    one = artifact(tmp_path / "one", said, prompt("a", "A"))
    other = artifact(tmp_path / "two", said, prompt("a", "A"))
    file = next(other.glob("data/en/*.parquet"))
    if broken is None:
        pq.write_table(pa.table({"text": ["A"]}), file)
    else:
        file.write_bytes(broken)
    with pytest.raises(InputError, match="cannot be compared"):
        compare(one, other)


def test_a_column_of_another_type_counts_as_changed(tmp_path):
    said = manifest("prompts")
    one = artifact(tmp_path / "one", said, prompt("a", "A"))
    other = artifact(tmp_path / "two", said, prompt("a", "A"))
    pq.write_table(
        pa.table({"prompt_id": ["a"], "prompt_hash": [1]}), next(other.glob("data/en/*.parquet"))
    )
    assert compare(one, other).rows["en"].columns == {"prompt_hash": 1}

"""The pure parts of training: the split and the checkpoints. The trainings run in test_smoke."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from factory.training.checkpoints import COMPLETE, last_checkpoint
from factory.training.rows import split

IDS = st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=30, unique=True)
SHARES = st.floats(0, 0.99)


def _rows(ids: list[str]) -> list[dict[str, str]]:
    return [{"prompt_id": name, "language": code} for name in ids for code in ("en", "es")]


@given(IDS, SHARES, st.integers(0, 5))
def test_a_split_loses_nothing_and_keeps_a_prompt_whole(
    ids: list[str], share: float, seed: int
) -> None:
    train, held = split(_rows(ids), share, seed)
    assert len(train) + len(held) == 2 * len(ids)
    assert not {r["prompt_id"] for r in train} & {r["prompt_id"] for r in held}
    assert train
    assert bool(held) == bool(share)


@given(IDS, SHARES, st.integers(0, 5))
def test_the_split_is_the_same_whatever_the_order_of_rows(
    ids: list[str], share: float, seed: int
) -> None:
    one, other = split(_rows(ids), share, seed), split(_rows(ids)[::-1], share, seed)
    for mine, theirs in zip(one, other, strict=True):
        assert {r["prompt_id"] for r in mine} == {r["prompt_id"] for r in theirs}


def test_another_seed_holds_others_out() -> None:
    ids = [f"p{i}" for i in range(200)]
    held = [{r["prompt_id"] for r in split(_rows(ids), 0.2, seed)[1]} for seed in (0, 1)]
    assert held[0] != held[1]
    assert all(20 <= len(one) <= 60 for one in held)


def test_a_half_written_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert not (tmp_path / "checkpoint-10").exists()
    assert last_checkpoint(tmp_path / "none") is None

"""Example rows: chosen by place alone, whole rows, cut and clean."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.artifacts import samples


def write(root: Path, sizes: dict[str, list[int]], text: str = "x") -> None:
    """Slices of files of so many rows each, numbered through a slice, in several row groups."""
    for name, files in sizes.items():
        directory = root / "data" / name
        directory.mkdir(parents=True)
        start = 0
        for number, size in enumerate(files):
            rows = {"n": range(start, start + size), "said": [{"content": text}] * size}
            table = pa.table({"n": list(rows["n"]), "said": pa.array(rows["said"])})
            pq.write_table(
                table,
                directory / f"part-{number:05}.parquet",
                row_group_size=4 if size < 100 else 900,
            )
            start += size


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"en": [30]}, [("en", 0), ("en", 10), ("en", 20)]),
        ({"en": [10, 20]}, [("en", 0), ("en", 10), ("en", 20)]),
        ({"en": [9], "da": [9]}, [("en", 0), ("da", 3), ("en", 6)]),
        ({"en": [9], "da": [6], "nl": [3], "fr": [9]}, [("en", 0), ("da", 2), ("nl", 2)]),
        ({"en": [0], "da": [3]}, [("da", 0), ("da", 1), ("da", 2)]),
        ({"en": [1]}, [("en", 0)]),
        ({"en": [1500]}, [("en", 0), ("en", 500), ("en", 1000)]),
        ({"en": [0]}, []),
        ({"en/policy": [3], "en/dpo-all": [3]},
         [("en/policy", 0), ("en/dpo-all", 1), ("en/policy", 2)]),
    ],
)  # fmt: skip
def test_the_rule(
    tmp_path: Path, sizes: dict[str, list[int]], expected: list[tuple[str, int]]
) -> None:
    write(tmp_path, sizes)
    found = samples.take(tmp_path, list(sizes))
    assert [(sample.slice, sample.row) for sample in found] == expected
    assert [sample.cells["n"] for sample in found] == [row for _, row in expected]


def test_long_texts_are_cut_wherever_they_are_and_tokens_hidden(tmp_path: Path) -> None:
    write(tmp_path, {"en": [1]}, "hf_plantedPlantedPlanted " + "y" * 1000)
    [sample] = samples.take(tmp_path, ["en"])
    said = sample.cells["said"]["content"]
    assert "planted" not in said.lower()
    assert said.endswith("more characters")
    assert len(said) < samples.LIMIT + 40


@settings(deadline=None)
@given(st.text(max_size=500))
def test_a_cut_text_begins_as_it_did(text: str) -> None:
    cut = samples._cut(text)
    assert cut == text or cut.startswith(text[: samples.LIMIT])

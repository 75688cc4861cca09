"""The manifest as it is documented: docs/manifest.md and its JSON schema are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from factory.artifacts import manifest
from factory.artifacts.manifest import License, Manifest, Record
from tools.golden import SCHEMA, manifests, schema

PAGE = (Path(__file__).parents[2] / "docs" / "manifest.md").read_text(encoding="utf-8")
SECTIONS = {
    "The artifact": Manifest,
    "A slice": manifest.SliceRecord,
    "An input": manifest.InputRecord,
    "Rows": manifest.Rows,
    "A file": manifest.FileRecord,
    "A licence": License,
    "An example row": manifest.Sample,
    "Cost": manifest.Cost,
}


def test_every_record_of_the_manifest_has_its_section() -> None:
    records = {
        value
        for value in vars(manifest).values()
        if isinstance(value, type) and issubclass(value, Record) and value is not Record
    }
    assert records == set(SECTIONS.values())


@pytest.mark.parametrize("title", SECTIONS)
def test_every_field_has_its_row_in_order_with_an_example(title: str) -> None:
    section = PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| `.+` \|$", section, re.MULTILINE)
    assert [name for name, _ in rows] == list(SECTIONS[title].model_fields)
    assert all(said.rstrip().endswith((".", ")", "below.")) for _, said in rows)


def test_the_schema_is_the_codes() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema(), "python -m tools.golden"


def test_the_examples_are_of_the_run_that_is_kept() -> None:
    shown = manifests()["dpo-es"]
    for value in (shown.repo, shown.step, shown.fingerprint, shown.created[:10]):
        assert f"`{value}" in PAGE
    for record in shown.slices.values():
        assert f"`{record.fingerprint}`" in PAGE
        assert f"`{record.row_key}`" in PAGE


@pytest.mark.parametrize("name", manifests())
def test_a_manifest_is_the_same_when_it_was_written_and_read(name: str) -> None:
    manifest = manifests()[name]
    again = Manifest.model_validate_json(manifest.dump())
    assert again == manifest
    assert again.dump() == manifest.dump()


def test_a_licence_is_written_as_its_id_where_that_says_all() -> None:
    assert License(id="mit").model_dump(mode="json") == "mit"
    full = License(id="other", name="Mine", link="https://example.org", because="so")
    assert License.model_validate_json(full.model_dump_json()) == full
    assert License.model_validate("mit") == License(id="mit")
    with pytest.raises(ValidationError):
        License.model_validate({"id": "mit", "spdx": "MIT"})


def test_an_unknown_field_is_refused() -> None:
    data = json.loads(manifests()["prompts"].dump())
    with pytest.raises(ValidationError, match="extra"):
        Manifest.model_validate(data | {"note": "x"})

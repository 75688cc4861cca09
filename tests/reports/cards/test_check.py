"""What is said of a card that is wrong: a line a mistake, with its fix; nothing of a right one."""

from __future__ import annotations

from typing import Any

import pytest

from factory.planning.plan import repo_type
from factory.reports.cards import card
from factory.reports.cards import check as card_check
from tools.golden import manifests

RIGHT = {
    "dataset": "license: mit\nlanguage: [da, 'no', fao]\nconfigs:\n- config_name: da\n"
    "  data_files:\n  - split: train\n    path: data/da/*.parquet\nsize_categories: [n<1K]",
    "model": "license: apache-2.0\nbase_model: org/base\nbase_model_relation: adapter\n"
    "library_name: peft",
}
ADAPTER = {"base_model_name_or_path": "org/base"}


def check(
    header: str | None = None,
    body: str = "# It\n",
    kind: str = "dataset",
    paths: tuple[str, ...] = ("README.md", "data/da/part-0.parquet"),
    has: Any = lambda *_: True,
    adapter: dict[str, Any] | None = None,
) -> list[str]:
    text = f"---\n{RIGHT[kind] if header is None else header}\n---\n{body}"
    found = card_check.check(text, kind, paths, has, adapter)
    assert all(problem.fix and "\n" not in problem.seen + problem.fix for problem in found)
    return [problem.seen for problem in found]


def test_a_right_card_has_no_problem() -> None:
    assert check() == []
    assert check(kind="model", adapter=ADAPTER) == []


@pytest.mark.parametrize("name", manifests())
def test_the_cards_of_a_real_run_are_right(name: str) -> None:
    manifest = manifests()[name]
    kind = repo_type(manifest.kind)
    drawn = [f"{name}.png" for name in ("anatomy", "curve", "rewards", "deltas")]
    paths, asked = [*(file.path for file in manifest.files), *drawn], []

    def has(*what: str) -> bool:
        asked.append(what)
        return True

    assert card_check.check(card.render(manifest), kind, paths, has) == []
    assert (manifest.repo, kind, manifest.tag) in asked, "the snippet's revision is looked up"


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("license: mit", "license: MITT", "license 'MITT' is not known"),
        ("license: mit", "", "no license is stated"),
        ("license: mit", "license: other", "license other has no license_name and no license_link"),
        ("[da, 'no', fao]", "[da, english]", "language 'english' is no code of ISO 639"),
        ("[da, 'no', fao]", "[xx]", "language 'xx' is no code of ISO 639"),
        ("language: [da, 'no', fao]", "", "no language is stated"),
        ("data/da/*.parquet", "data/nl/*.parquet", "config 'da': no file fits 'data/nl/*.parquet'"),
        ("config_name: da", "name: da", "a config without a name"),
        ("[n<1K]", "[small]", "size_categories 'small' is none of the Hub's"),
        ("[n<1K]", "[n<1K]\ntags: [1.5]", "tags holds 1.5, which is not text"),
        ("[n<1K]", "[n<1K]\nbase_model: a/b", "a dataset with base_model"),
    ],
)
def test_a_mistake_in_a_datasets_metadata_is_one_line(was: str, now: str, said: str) -> None:
    assert was in RIGHT["dataset"]
    [found] = check(RIGHT["dataset"].replace(was, now))
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("base_model: org/base\n", "", "an adapter without base_model"),
        ("org/base", "org/other", "base_model is org/other, but adapter_config.json says org/base"),
        ("library_name: peft", "library_name: transformers", "an adapter whose library_name is"),
        ("base_model_relation: adapter\n", "", "an adapter whose base_model_relation is None"),
    ],
)
def test_an_adapter_names_its_base(was: str, now: str, said: str) -> None:
    [found] = check(RIGHT["model"].replace(was, now), kind="model", adapter=ADAPTER)
    assert found.startswith(said)


def test_a_base_model_on_somebodys_disk_is_told() -> None:
    header = RIGHT["model"].replace("org/base", "/home/me/model")
    found = check(header, kind="model", adapter={"base_model_name_or_path": "/home/me/model"})
    assert found == ["base_model '/home/me/model' is not a repo"]


def test_metadata_that_cannot_be_read_is_told_with_its_line() -> None:
    [problem] = card_check.check("---\nlicense: [\n---\n", "model", [], lambda *_: True)
    assert "README.md:" in problem.seen
    [problem] = card_check.check("# It\n", "model", [], lambda *_: True)
    assert "no metadata" in problem.seen
    [problem] = card_check.check("---\n- a\n---\n", "model", [], lambda *_: True)
    assert "not a mapping" in problem.seen


def test_revisions_that_a_card_names_are_looked_up() -> None:
    body = (
        "[x](https://huggingface.co/datasets/org/pairs/tree/fp-1) and again "
        "[x](https://huggingface.co/datasets/org/pairs/tree/fp-1)\n"
        "[y](https://huggingface.co/org/base/blob/abc/README.md)\n"
        '```python\nAutoModel.from_pretrained(base, "org/it", revision="fp-2")\n'
        'load_dataset("org/rows", "da", split="train", revision="fp-3")\n```\n'
        "![here](a.png) ![there](https://example.org/b.png) ![gone](c.png)\n"
    )
    found = check(body=body, has=lambda repo, kind, rev: repo == "org/base", paths=(
        "data/da/x.parquet", "a.png",
    ))  # fmt: skip
    assert [line.split(",")[0] for line in found] == [
        "it names dataset org/pairs at fp-1",
        "it names model org/it at fp-2",
        "it names dataset org/rows at fp-3",
        "it shows c.png",
    ]

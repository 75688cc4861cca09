"""Errors of recipes: what people paste and misspell, all at once, in words of the field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from factory.cli import error_message
from factory.errors import RecipeError
from factory.planning.recipe import load

RECIPE = """\
name: mine
org: local
languages: [en]
license: mit
models:
  policy: org/policy
stages:
  prompts: {source: p.jsonl}
  generate: {n: 2}
"""
FOREIGN = re.compile(
    r"Input should|Field required|String should|pydantic|yaml\.|block mapping|<block|"
    r"found character|from_\b|extra_forbidden|Value error"
)


def refusal(tmp_path: Path, old: str, new: str) -> RecipeError:
    """Return the error of the recipe after a change."""
    assert old in RECIPE
    (tmp_path / "r.yaml").write_text(RECIPE.replace(old, new))
    with pytest.raises(RecipeError) as raised:
        load(str(tmp_path / "r.yaml"))
    message, code = error_message(raised.value)
    assert code == 1
    assert not FOREIGN.search(message), message
    return raised.value


@pytest.mark.parametrize(
    ("old", "new", "what", "fix"),
    [
        ("org/policy", "https://huggingface.co/org/policy", "r.yaml:6: models.policy: ",
         "write org/policy"),
        ("org/policy", "huggingface.co/org/policy/tree/v2", "is an address", "org/policy@v2"),
        ("p.jsonl", "https://huggingface.co/datasets/org/rows", "r.yaml:8", "write org/rows"),
        ("p.jsonl", "https://example.org/p.jsonl", "is an address, not a file", "beside"),
        ("p.jsonl", "p.xlsx", "r.yaml:8: p.xlsx: no rows are read from .xlsx", ".parquet"),
        ("p.jsonl", "data/", "r.yaml:8: data/ is a directory", "data/p.jsonl"),
        ("p.jsonl", "./data", "r.yaml:8: ./data is a directory", "p.jsonl"),
        ("org/policy", "../merged", "is a directory",
         "factory hub exec -- hf upload local/merged ../merged"),
        ("org/policy", "merged", "not of the form org/name", "hf upload"),
        ("p.jsonl}", "p.jsonl, columns: {promt: text}}",
         "r.yaml:8: stages.prompts.columns has no column 'promt' (did you mean 'prompt'?)",
         "messages"),
        ("license: mit", "license: mit\ndepartures: {generate.temprature: why}",
         "r.yaml:5: generate has no knob 'temprature' (did you mean 'temperature'?)", ""),
        ("{n: 2}", "{n: two}", "must be a number, not 'two'", ""),
        ("{n: 2}", "{n: [2]}", "must be a whole number", ""),
        ("{n: 2}", "{n: 0}", "must be at least 1, not 0", ""),
        ("{n: 2}", "{form: x}", "has no key 'form' (did you mean 'from'?)", "from"),
        ("{n: 2}", "2", "r.yaml:9: stages.generate: must be a map", ""),
        ("name: mine", "name: my recipe", "r.yaml:1: name: must be letters", ""),
        ("name: mine", "name: a: b", "r.yaml:1: not YAML: a second ': '", "quotes"),
        ("[en]", "[en", "a list [ is not closed", ""),
        ("org: local", "org: *local", "*local stands for nothing", "quotes"),
        ("org: local", "org: @local", "a value begins with @", "quotes"),
        ("org: local", "\torg: local", "a tab", "spaces"),
        ("  generate", " generate", "not indented", "indentation"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_fix(
    tmp_path: Path, old: str, new: str, what: str, fix: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "p.jsonl").touch()
    error = refusal(tmp_path, old, new)
    assert what in error.what
    assert fix in error.fix


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = "{n: zero, temprature: 1, top_p: 7}\n  scoer: {}"
    message, _ = error_message(refusal(tmp_path, "{n: 2}", text))
    assert message.count("error: ") == 4
    for word in ("'temprature'", "'zero'", "at most 1, not 7", "'scoer'"):
        assert word in message
    assert len(message.splitlines()) == 8

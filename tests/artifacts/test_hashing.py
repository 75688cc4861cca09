"""Identity: canonical JSON, fingerprints, digests, and the manifest that carries them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.artifacts.hashing import (
    MANIFEST,
    UNHASHED,
    canonical,
    content_digest,
    file_sha256,
    fingerprint,
    text_hash,
)
from factory.artifacts.manifest import Manifest, Rows, read_manifest
from factory.planning.plan import plan
from tests.support.builders import demo, done, lock_of, manifest_of, walked

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


def shuffled(value):
    """The same value: keys the other way round, tuples for lists, 1.0 for 1."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return tuple(shuffled(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    return value


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_the_same_value_written_otherwise_has_the_same_fingerprint(value):
    assert canonical(shuffled(value)) == canonical(value)
    assert fingerprint(shuffled(value)) == fingerprint(value)


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_canonical_json_is_json_for_the_same_value(value):
    assert json.loads(canonical(value)) == value


@pytest.mark.parametrize(
    ("one", "other"), [(1, "1"), (1, True), (0, False), (None, "null"), ([], {}), (1, 1.5), ("", 0)]
)
def test_values_of_different_kinds_are_different(one, other):
    assert fingerprint({"x": one}) != fingerprint({"x": other})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_names_nothing(number):
    with pytest.raises(ValueError, match=r"JSON compliant"):
        fingerprint({"deep": [{"lr": number}]})


def test_a_fingerprint_is_twelve_hex_digits_and_the_same_on_every_machine():
    assert fingerprint({"b": [1.0, "æ"], "a": None}) == "7aea6ccdb4a2"
    assert canonical({"b": [1.0, "æ"], "a": None}) == '{"a":null,"b":[1,"æ"]}'


def test_a_text_hash_bears_any_text():
    assert text_hash("half a pair \ud800") != text_hash("half a pair ")
    assert len(text_hash("")) == 16


def test_a_file_hash_is_that_of_its_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f").startswith("ba7816bf")


SHA = st.text("0123456789abcdef", min_size=8, max_size=8)
PATHS = st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}){0,2}\.(md|txt)", fullmatch=True)
FILES = st.dictionaries(PATHS, SHA, min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(FILES, st.randoms(use_true_random=False), SHA)
def test_a_content_digest_knows_neither_order_nor_what_a_hub_adds(files, dice, sha):
    listed = [*files.items(), *((name, sha) for name in UNHASHED)]
    dice.shuffle(listed)
    assert content_digest(listed) == content_digest(files.items())


@settings(max_examples=100, deadline=None)
@given(FILES, st.data())
def test_a_content_digest_changes_with_any_content_or_path(files, data):
    path = data.draw(st.sampled_from(sorted(files)))
    before = content_digest(files.items())
    assert content_digest({**files, path: files[path][::-1] + "0"}.items()) != before
    without = {name: sha for name, sha in files.items() if name != path}
    assert content_digest(without.items()) != before
    assert content_digest({**without, f"new-{path}": files[path]}.items()) != before


def test_a_readme_in_a_folder_is_content():
    assert content_digest([("a/README.md", "1")]) != content_digest([])


@pytest.mark.parametrize(
    ("rows", "balanced"),
    [
        (Rows(into=0, out=0), True),
        (Rows(into=5, out=3, dropped={"empty": 1, "too_long": 1}), True),
        (Rows(into=5, out=3, dropped={"empty": 1}), False),
        (Rows(into=5, out=3), False),
        (Rows(into=3, out=5), False),
    ],
)
def test_rows_balance_when_nothing_went_missing(rows, balanced):
    assert rows.balanced() is balanced


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    recipe = demo()
    lock = lock_of(recipe)
    steps = plan(recipe, lock, walked(recipe, lock))
    pair = next(step for step in steps if step.name == "pair")
    stats = {"by_language": {"en": {"mean_margin": 0.1}}, "note": "æ\u2028|"}
    return manifest_of(recipe, lock, pair, done(steps), {"en": 7, "es": 3}, stats=stats)


def test_a_manifest_with_a_figure_that_is_no_number_is_still_json(manifest):
    def refuse(word):
        pytest.fail(f"{word} is not JSON")

    odd = manifest.model_copy(update={"stats": {"final": {"eval_loss": math.nan}}})
    text = odd.dump()
    assert json.loads(text, parse_constant=refuse)["stats"] == {"final": {"eval_loss": None}}


def test_reading_a_manifest_where_there_is_none_or_half_of_one_raises(manifest, tmp_path):
    with pytest.raises(OSError, match=MANIFEST):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text(manifest.dump()[:100])
    with pytest.raises(ValueError, match="JSON"):
        read_manifest(tmp_path)


def test_a_manifest_adds_its_slices_up(manifest):
    assert manifest.rows() == Rows(into=36, out=22, dropped={"lost": 14})
    assert manifest.tag == f"fp-{manifest.fingerprint}"


def test_two_draws_of_one_recipe_differ_in_content_alone(manifest):
    en = manifest.slices["en"].model_copy(update={"digest": "another"})
    other = manifest.model_copy(update={"slices": {**manifest.slices, "en": en}})
    assert other.tag == manifest.tag
    assert other.content() != manifest.content()

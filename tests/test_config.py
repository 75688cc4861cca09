"""YAML 1.2 scalars, places, and what is refused."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.config import dump, parse
from factory.errors import RecipeError


def data(text: str) -> object:
    return parse(text, "r.yaml").data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[da, no]", ["da", "no"]),
        ("[yes, on, off, y, n, Yes, NO]", ["yes", "on", "off", "y", "n", "Yes", "NO"]),
        ("48:00:00", "48:00:00"),
        ("1:30", "1:30"),
        ("0123", 123),
        ("-7", -7),
        ("5e-6", 5e-6),
        ("1.", 1.0),
        (".5", 0.5),
        ("+1.5E3", 1500.0),
        ("1_000", "1_000"),
        ("2026-01-31", "2026-01-31"),
        ("1.2.3", "1.2.3"),
        (".", "."),
        ("e5", "e5"),
        ("true", True),
        ("False", False),
        ("[null, ~, NULL, ]", [None, None, None]),
        ("key:", {"key": None}),
        ("no: 1", {"no": 1}),
        ("1: a", {"1": "a"}),
        ("null: a", {"null": "a"}),
        ("", None),
        ("# only a remark", None),
    ],
)
def test_a_plain_scalar_means_what_yaml_1_2_says(text, value):
    assert data(text) == value
    assert type(data(text)) is type(value)


@pytest.mark.parametrize("word", ["true", "null", "5", "5e-6", "", "~", "no"])
@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_quoted_scalar_is_always_text(word, quote):
    assert data(f"{quote}{word}{quote}") == word


def test_a_block_scalar_is_always_text():
    assert data("a: |\n  5\n") == {"a": "5\n"}


def test_an_alias_stands_for_its_anchor():
    assert data("a: &x [1, 2]\nb: *x") == {"a": [1, 2], "b": [1, 2]}


def test_a_value_that_holds_itself_is_refused():
    with pytest.raises(RecipeError):
        data("a: &x [1, *x]")


LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: " + "[" * 900 + "]" * 900,
        "a: " + "{b: " * 900,
        "- " * 900,
        "a: [" + "1," * 60_000 + "]",
        f"a: &a {'x' * 300_000}\nb: [{'*a, ' * 20}]",
        "# " + "x" * 2_000_001,
    ],
    ids=["aliases", "lists", "mappings", "blocks", "values", "characters", "text"],
)
def test_too_much_or_too_deep_is_refused_at_once(text):
    began = time.perf_counter()
    with pytest.raises(RecipeError, match=r"^r\.yaml.*too large") as raised:
        data(text)
    assert "\n" not in raised.value.what
    assert time.perf_counter() - began < 15


def test_what_is_of_a_sane_size_is_read():
    assert data("a: " + "[" * 60 + "]" * 60) and len(data("[" + "1, " * 5000 + "]")) == 5000
    assert data("a: &a [1]\nb: [" + "*a, " * 1000 + "]")["b"] == [[1]] * 1000


def test_a_number_of_thousands_of_digits_is_refused():
    with pytest.raises(RecipeError, match=r"r\.yaml:1"):
        data("a: " + "9" * 5000)


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "{a: 1, b: 2,\n\n a: 3}"])
def test_a_key_twice_is_refused_with_the_line_of_the_second(text):
    with pytest.raises(RecipeError, match=r"r\.yaml:3: the key 'a' is defined twice"):
        data(text)


def test_a_quoted_and_a_plain_key_are_the_same_key():
    with pytest.raises(RecipeError, match="twice"):
        data("a: 1\n'a': 2")


@pytest.mark.parametrize(
    "text",
    [
        "\nkey: !!python/object:os.system x",
        "\nkey: !x 1",
        "\nkey: !!str 1",
        "\n- !x [1]",
        "\n!x a: 1",
        "\n{!x a: 1}",
        "\n!x {a: 1}",
        "\nkey: !x",
        "\nkey: &anchor !x 1",
        "\nkey: !x &anchor 1",
    ],
)
def test_a_tag_is_refused_with_its_line(text):
    with pytest.raises(RecipeError, match=r"r\.yaml:2: YAML tags are not read"):
        data(text)


def test_an_exclamation_mark_in_text_is_no_tag():
    assert data("a: '!x'\nb: wow!\nc: \"!!\"") == {"a": "!x", "b": "wow!", "c": "!!"}


def test_two_documents_are_refused():
    with pytest.raises(RecipeError, match=r"r\.yaml:2: not YAML"):
        data("a: 1\n---\nb: 2")


def test_a_list_as_a_key_is_refused():
    with pytest.raises(RecipeError, match=r"r\.yaml:1: a key must be text"):
        data("? [a, b]\n: 1")


@pytest.mark.parametrize("text", ["a: [1", "a: 'x", "a: b: c", "\ta: 1", "a: @x", "a: \x01", "*x"])
def test_what_is_not_yaml_is_an_error_of_one_line_and_its_fix(text):
    with pytest.raises(RecipeError, match=r"^r\.yaml") as raised:
        data(text)
    assert "\n" not in raised.value.what
    assert "\n" not in raised.value.fix


def test_every_value_has_its_place():
    document = parse("a: 1\nb:\n  c: [x,\n      y]\n", "r.yaml")
    assert document.places[("a",)] == "r.yaml:1"
    assert document.places[("b",)] == "r.yaml:2"
    assert document.places[("b", "c")] == "r.yaml:3"
    assert document.places[("b", "c", 1)] == "r.yaml:4"


def test_the_place_of_what_is_not_there_is_that_of_what_is_around_it():
    document = parse("a: 1\nb:\n  c: 2\n", "r.yaml")
    assert document.place(("b", "missing", 3)) == "r.yaml:2"


# json.dumps escapes what lies beyond 16 bits as two halves, which YAML does not put together.
TEXT = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(JSON, st.sampled_from([None, 1]))
def test_json_is_read_as_what_it_is(value, indent):
    assert data(json.dumps(value, indent=indent)) == value


@given(st.recursive(st.text() | st.integers() | st.booleans() | st.none(), st.lists))
def test_what_is_dumped_is_read_back_the_same(data):
    assert parse(dump({"key": data}), "x").data == {"key": data}


def test_a_digest_that_looks_like_a_number_is_quoted():
    for text in ("12345e67", "0" * 64, "0x1f", "no", "48:00:00", "1_000"):
        assert parse(dump([text]), "x").data == [text]

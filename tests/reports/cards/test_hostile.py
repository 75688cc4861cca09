"""No text that somebody else chose breaks a card: not its metadata, tables, fences or page."""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cache
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from factory.artifacts import front_matter, licenses
from factory.artifacts.manifest import InputRecord, License, Manifest, Rows, Sample
from factory.reports.cards import card, markdown
from tools.golden import manifests

KEPT = manifests()
TERMS = "https://example.org/terms"
PARSER = MarkdownIt("commonmark").enable("table")
EVIL = [
    "a|b", "a\\|b", "\\", "a\nb", "a\r\nb", "a\rb", "\n---\n", "---", "# no", "* no", "> no",
    "a\n\n| x | y |\n|---|---|\n", "`code` ```", "```\n\n# out\n", "~~~\n# out", "    indented",
    "{{ m.repo }}{% raw %}{# #}", "<script>alert(1)</script>", "<!-- ", "<img src=x onerror=y>",
    "<details>", "&lt;b&gt;", "key: [value", "!!python/object:os.system", "no", "null", "1e3",
    "\u2028x\u0085y", "\u202eevil\u202c", "\u2066x\u2069", "\u200b", "\ufeff", "\x00", "\x1b[31m",
    "[a](javascript:alert(1))", "![x](http://track.example/p.png)", "[a]: http://x.example",
    "[a][b]", "http://x.example", "www.x.example", "__b__", "_i_", "'\"", "", "x" * 5000,
    "\U000e0041", "\ud800", "'''", '"""', "$x$", "@user",
]  # fmt: skip
words = st.one_of(
    st.sampled_from(EVIL),
    st.text(max_size=60),
    st.lists(st.sampled_from([*EVIL, "calm", " "]), min_size=2, max_size=4).map("".join),
)


def poisoned(manifest: Manifest, text: str) -> Manifest:
    """The manifest with `text` wherever a person or a model may have put it."""
    stats = dict(manifest.stats)
    if "judge" in stats:
        rows = [{**row, "model": text, "shown": text} for row in stats["comparisons"]]
        stats |= {"judge": text, "notes": [text], "comparisons": rows, "judge_revision": text}
        stats["template"] = {"name": text, "hash": text, "ties": True, "text": text}
        stats["by_category"] = [{**row, "category": text} for row in rows]
        seen = {"questions": 2, "prompts": 1, "seen": 1, "ids": [text]}
        stats["seen_in_training"] = {text: seen}
    if "final" in stats:
        stats["final"] = {text: 1.0, "list": [text]}
        stats["curve"] = [{text: 1.0, "loss": 0.5}, {text: 2.0, "loss": 0.4}]
    # names are refused when a manifest is read; a page holds even if one slips through
    outside = InputRecord(role=text, digest="e" * 64, source=text)
    outside = outside.model_copy(update={"revision": text})
    ours = InputRecord(role="samples", digest="f" * 64, license=text or "x")
    ours = ours.model_copy(update={"repo": text, "tag": text})
    cells = {"prompt": [{"role": text, "content": text}], text: text, "n": 1}
    sample = Sample(slice="en", row=0, cells=cells)
    return manifest.model_copy(
        update={
            "license": License(id="other", name=text or "x", link=TERMS, because=text),
            "recipe": text or "x",  # an import has none, and another shape
            "step": text,
            "fields": {**manifest.fields, "source": text, "nested": {text: [text, {text: 1}]}},
            "how": {text: text},
            "models": [*manifest.models, outside],
            "stats": stats,
            "samples": [sample.model_copy(update={"slice": text})],
            "environment": {text: text},
            "template": {
                "template_hash": text, "leading_bos": 1, "stop_ids": [2], "stop_tokens": [text],
                "example": text,
            },
            "slices": {
                name: record.model_copy(
                    update={
                        "rows": Rows(into=3, out=1, dropped={text: 2}),
                        "inputs": [*record.inputs, outside, ours],
                    }
                )
                for name, record in manifest.slices.items()
            },
        }
    )  # fmt: skip


# The only HTML of a card: what folds a table, in fixed words.
FOLD = re.compile(
    r"(<details><summary>(BibTeX|Settings at their defaults|Checks of these win rates|"
    r"Execution settings, which do not change the result)</summary>|</details>)\n"
)
KNOWN = (TERMS, "anatomy.png", "curve.png", "/local/collections")
PAPER = re.compile(
    r"https://arxiv\.org/abs/\d{4}\.\d{4,5}|/spaces/local/croco-(?:[a-z0-9-]+-)?results"
)


def inside(tokens: list[Token]) -> list[Token]:
    return [inner for token in tokens for inner in [token, *(token.children or [])]]


def shape(tokens: list[Token]) -> list[str]:
    """The blocks of a page, without its text."""
    return [token.type for token in tokens]


@cache
def calm(name: str) -> list[str]:
    """The blocks of the same page when the text is an ordinary word."""
    return shape(
        PARSER.parse(front_matter.front_matter(card.render(poisoned(KEPT[name], "calm")))[1])
    )


@given(st.sampled_from(["prompts", "generate", "reward", "dpo-es", "judge", "pair"]), words)
@settings(max_examples=40, deadline=None)
@example("prompts", "```\n\n# out\n")
@example("pair", "a\\|b")
@example("judge", "\u202eevil\u202c")
@example("reward", "<!-- ")
@example("generate", "\n---\n")
@example("dpo-es", "x" * 5000)
@example("prompts", "1e3")  # a number in YAML 1.2, as the Hub reads it, but not in 1.1
def test_no_text_changes_the_shape_of_a_page(name: str, text: str) -> None:
    manifest = poisoned(KEPT[name], text)
    rendered = card.render(manifest)
    rendered.encode()  # no lone surrogate is left

    data, body = front_matter.front_matter(rendered)
    assert data == card.header(manifest) == yaml.safe_load(rendered.split("\n---\n", 1)[0])
    assert front_matter.front_matter(body)[0] is None

    tokens = PARSER.parse(body)
    assert shape(tokens) == calm(name), "the blocks are those of ordinary words"
    for token in inside(tokens):
        assert token.type != "html_inline"
        assert token.type != "html_block" or FOLD.fullmatch(token.content), token.content
        if token.type in ("link_open", "image"):
            address = token.attrs.get("href") or token.attrs.get("src")
            assert address in KNOWN or PAPER.fullmatch(address)
    unseen = {c for c in body if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert unseen <= {"\n", "\u200c", "\u200d"}
    assert not markdown._TAG.search(FOLD.sub("", body))


@settings(deadline=None)
@given(words)
def test_a_value_is_one_cell_and_one_line(text: str) -> None:
    shown = markdown.inline(text)
    assert "\n" not in shown
    assert "|" not in shown
    page = PARSER.parse(f"| a | b |\n|---|---|\n| {shown} | {markdown.cell(text)} |\n")
    assert [token.type for token in page].count("td_open") == 2


@settings(deadline=None)
@given(words)
@example("\\'")
@example('\\"')
def test_a_quoted_string_is_the_string_again(text: str) -> None:
    quoted = markdown.quoted(text)
    assert eval(quoted) == text
    assert quoted.isascii()


@settings(deadline=None)
@given(st.recursive(words | st.integers() | st.none(), lambda x: st.dictionaries(words, x)))
def test_a_block_is_json_of_the_same_value(value: Any) -> None:
    block = markdown.block(value)
    assert json.loads(block) == json.loads(json.dumps(value))
    assert not any(line.lstrip().startswith(("```", "~~~")) for line in block.splitlines())


@pytest.mark.parametrize("text", ["javascript:x", "http://a b", "https://x)y", "https://x\u202ey"])
def test_an_address_that_could_leave_its_link_is_none(text: str) -> None:
    assert markdown.url(text) == "#"


def test_a_plain_value_stays_as_it_is() -> None:
    for plain in ("dpo[all]", "48.3 % [36.7, 60.0]", "org/name", "é ü 中文", "a_b", "(x), y: z"):
        assert markdown.inline(plain) == plain
    assert markdown.inline("<b>") == "`‹b>`"
    assert markdown.code("<|im_end|>") == "`<|im_end|>`"
    assert markdown.inline("a|b") == "`a¦b`"
    assert licenses.terms(License(id="mit")).name == "MIT"

"""The small rules that need no server: attributes, ignores, cards, names."""

from __future__ import annotations

import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.localhub.attributes import Glob, default_attributes, is_ignored, is_large
from factory.localhub.cards import dataset_tags, model_tags, read_card
from factory.localhub.errors import BadRequest
from factory.localhub.names import check_ref_name


@pytest.mark.parametrize(
    ("path", "large"),
    [
        ("model.safetensors", True),
        ("a/b/model.safetensors", True),
        ("runs/events.out.tfevents.1", True),
        ("saved_model/x", True),
        ("saved_model/a/b", True),
        ("other/saved_model/x", False),
        ("x.tar.gz", True),
        ("README.md", False),
        ("safetensors", False),
        ("config.json", False),
    ],
)
def test_large_by_name(path, large):
    assert is_large(path, 10, default_attributes("model")) is large


def test_the_usual_attributes_have_the_size_they_have_on_the_hub():
    assert [len(default_attributes(kind)) for kind in ("model", "dataset")] == [1519, 2504]


def test_large_by_size_and_by_kind():
    assert is_large("x.json", 10_000_001, "") and not is_large("x.json", 10_000_000, "")
    assert not is_large("x.bin", 0, default_attributes("model"))
    assert is_large("x.png", 1, default_attributes("dataset"))
    assert not is_large("x.png", 1, default_attributes("model"))


def test_the_last_matching_line_counts():
    text = (
        "*.bin filter=lfs\n# a remark\n*.bin -filter\n/data/*.txt filter=lfs\n[ab].x filter=lfs\n"
    )
    assert not is_large("x.bin", 1, text)
    assert is_large("data/a.txt", 1, text) and not is_large("b/data/a.txt", 1, text)
    assert is_large("sub/a.x", 1, text) and not is_large("c.x", 1, text)


IGNORES = [
    "*.log",
    "!keep.log",
    "build/",
    "/top",
    "a/*.txt",
    "**/deep",
    "x/**",
    "d?c",
    "[!ab].y",
    "*a*b*",
    "a*/**/*.t?t",
    "**",
    "*/b.txt",
    "[a/]x",
    "/q/**/y",
    "bui[k-m]d/",
    "\\*x",
    "",
]
PATHS = ["a.log", "keep.log", "build/x", "q/build/y", "build", "top", "q/top", "a/b.txt",
         "a/b/c.txt", "u/v/deep", "x/1/2", "doc", "q/dxc/r", "c.y", "a.y", "xaxbx", "ax", "*x",
         "a/b", "aa/b/c/d.txt", "q/y", "q/1/2/y"]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(IGNORES), max_size=5), st.sampled_from(PATHS))
def test_ignores_as_git_does(tmp_path_factory, lines, path):
    repo = tmp_path_factory.getbasetemp() / "ignores"
    if not repo.exists():
        subprocess.run(["git", "init", "-q", str(repo)], check=True)
    text = "\n".join(lines) + "\n"
    (repo / ".gitignore").write_text(text)
    done = subprocess.run(["git", "-C", str(repo), "check-ignore", "-q", "--no-index", path])
    assert is_ignored(path, text) is (done.returncode == 0)


@settings(max_examples=300, deadline=None)
@given(st.text("ab/*?", min_size=1, max_size=9), st.text("ab/", min_size=1, max_size=9))
def test_a_glob_is_what_trying_everything_finds(glob, path):
    """Against the plain definition, which tries every way to share a path among the stars."""

    def matches(parts: tuple[str, ...], names: tuple[str, ...]) -> bool:
        if not parts:
            return not names
        if parts == ("**",):
            return bool(names)
        if parts[0] == "**":
            return any(matches(parts[1:], names[skip:]) for skip in range(len(names) + 1))
        return bool(names) and within(parts[0], names[0]) and matches(parts[1:], names[1:])

    def within(part: str, name: str) -> bool:
        if not part:
            return not name
        if part[0] == "*":
            return any(within(part[1:], name[skip:]) for skip in range(len(name) + 1))
        return bool(name) and part[0] in ("?", name[0]) and within(part[1:], name[1:])

    names = tuple(path.split("/"))
    parts = tuple(glob.removeprefix("/").split("/"))
    expected = matches(parts if "/" in glob else ("**", *parts), names)
    assert Glob(glob).along(path.split("/"))[-1] is expected


def test_a_pattern_with_many_stars_costs_no_time():
    began = time.perf_counter()
    for text in ("*a*a*a*a*a*a*a*b", "[ab]*[ab]*[ab]*[ab]*[ab]*b", "**/a/" * 20 + "b",
                 "**/" * 1300 + "b", "".join(f"*{number}\n" for number in range(50))):  # fmt: skip
        for path in ("a" * 250, "/".join(["a" * 100] * 9), "/".join("a" * 500)):
            assert not is_ignored(path, text)
            assert not is_large(path, 1, f"{text.splitlines()[0]} filter=lfs")
    # where every way is tried, or each `**` anew, it would be for ever
    assert time.perf_counter() - began < 5


def test_a_line_for_each_of_many_files_is_quick_and_too_many_wildcards_are_refused():
    lines = [f"data/{number}.json filter=lfs" for number in range(20_000)]
    text = "\n".join([*lines, "*.txt filter=lfs", "data/7.json -filter"])
    began = time.perf_counter()
    for number in range(2000):
        assert is_large(f"data/{number}.json", 1, text) is (number != 7)
        assert not is_large(f"other/{number}.json", 1, text)
    assert time.perf_counter() - began < 3
    with pytest.raises(BadRequest, match="1000 patterns with wildcards"):
        is_ignored("x", "".join(f"*{number}\n" for number in range(1001)))


def test_cards():
    assert read_card("no metadata").data is None
    assert read_card("---\n---\n").data is None
    assert read_card("---\nlicense: mit\n---").data == {"license": "mit"}
    assert read_card("\ufeff---\r\nlicense: mit\r\n---\r\nx").data == {"license": "mit"}
    assert read_card("---\nlicense: mit\n--- not the end\n").data is None
    assert read_card("---\n- a\n---\n").errors and read_card("---\na: [\n---\n").errors
    norwegian = read_card("---\nlanguage: no\ndate: 2024-01-01\nscore: .nan\n---\n")
    assert norwegian.data == {"language": "no", "date": "2024-01-01", "score": "nan"}
    assert dataset_tags(norwegian) == ["language:no"]
    assert read_card("---\ntags: [1]\npipeline_tag: [x]\n---\n").errors == [
        '"tags[0]" must be a string, not 1: put it in quotes',
        '"pipeline_tag" must be a string',
    ]


def refused_at_once(yaml: str, why: str) -> None:
    began = time.perf_counter()
    card = read_card(f"---\n{yaml}\n---\n")
    assert card.data is None and why in card.errors[0] and "\n" not in card.errors[0]
    assert time.perf_counter() - began < 3


def test_a_card_that_holds_itself_or_too_much_is_refused_before_it_unfolds():
    merges = ["a0: &a0 {k0: x}"]
    merges += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], k{n}: x}}"
               for n in range(1, 11)]  # fmt: skip
    refused_at_once("\n".join(merges), "too large or too deep")
    refused_at_once("a: &a [*a]", "too large or too deep")
    refused_at_once("a: " + "[" * 65, "too large or too deep")
    refused_at_once("a: [" + "1," * 60_000 + "]", "too large or too deep")
    refused_at_once(f"a: &a {'x' * 300_000}\nb: [{'*a, ' * 20}]", "too large or too deep")
    refused_at_once("a: 1" + ":59" * 400_000, "too many digits")
    refused_at_once(f"a: 0x{'f' * 400_000}", "too many digits")
    for text in ("!!timestamp x", "!!int ''", "!!bool x", "!!python/name:os.system", "!!float ''",
                 "!!binary x", "*nothing", "{? {} : 1}", "!!omap x", "!!set x"):  # fmt: skip
        refused_at_once(f"a: {text}", "not valid YAML")
    shared = read_card("---\na: &a [x, y]\nb: *a\nc: {<<: &m {k: 1}, l: *a}\n---\n")
    assert shared.data == {"a": ["x", "y"], "b": ["x", "y"], "c": {"k": 1, "l": ["x", "y"]}}


def test_a_card_that_unfolds_without_end_is_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    card = read_card("---\n" + "\n".join(lines) + "\n---\n")
    assert card.data is None and "too large" in card.errors[0]
    assert read_card("---\n" + "[" * 20000 + "\n---\n").errors


@pytest.mark.parametrize(
    ("extra", "relation"),
    [
        ("library_name: peft", "adapter"),
        ("tags: [lora]", "adapter"),
        ("base_model_relation: quantized", "quantized"),
        ("", "finetune"),
    ],
)
def test_how_a_model_comes_from_its_base(extra, relation):
    card = read_card(f"---\nbase_model: org/base\n{extra}\n---\n")
    assert f"base_model:{relation}:org/base" in model_tags(card)


@settings(max_examples=80, deadline=None)
@given(st.text(st.sampled_from("ab./~^:?*[\\@{-\x7f lock"), min_size=1, max_size=8))
def test_ref_names_as_git_does(name):
    done = subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True)
    refused = False
    try:
        check_ref_name(name)
    except BadRequest:
        refused = True
    # git expands "@{-1}" and the like before it looks.
    assert refused is (done.returncode != 0 or name == "@")

"""Names and docstrings in plain English, held over the syntax trees of the whole package."""

from __future__ import annotations

import ast

import pytest

from tools.measure import (
    PACKAGE,
    Source,
    bare_names,
    bindings,
    docstrings,
    doubled_classes,
    read_package,
    vague_docstrings,
)

BARE_NAMES = 0.005  # of all bindings
VAGUE_DOCSTRINGS = 0.02  # of all docstrings


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return read_package(PACKAGE)


def worst(counts: dict[str, int]) -> str:
    """The five files with the most, for a message."""
    first = sorted(counts.items(), key=lambda item: -item[1])[:5]
    return ", ".join(f"{path} {count}" for path, count in first)


def test_a_name_says_what_it_holds(sources: list[Source]) -> None:
    counts = {str(s.path.relative_to(PACKAGE)): len(bare_names(s.tree)) for s in sources}
    total = sum(1 for source in sources for _ in bindings(source.tree))
    assert sum(counts.values()) < BARE_NAMES * total, (
        f"{sum(counts.values())} of {total}; name what it is (rows, manifest, reasons); "
        f"python -m tools.measure --files lists them: {worst(counts)}"
    )


def test_a_docstring_says_what_a_function_does(sources: list[Source]) -> None:
    counts = {str(s.path.relative_to(PACKAGE)): len(vague_docstrings(s.tree)) for s in sources}
    total = sum(1 for source in sources for _ in docstrings(source.tree))
    assert sum(counts.values()) < VAGUE_DOCSTRINGS * total, (
        f"{sum(counts.values())} of {total}; begin with a verb (Return, Read), a class's with a "
        f"noun; python -m tools.measure --files lists them: {worst(counts)}"
    )


def test_no_two_classes_have_one_name(sources: list[Source]) -> None:
    assert doubled_classes(sources) == []


def test_the_lint_sees_what_it_should() -> None:
    tree = ast.parse(
        '"""What it is."""\n'
        "def read(given):\n"
        '    """Return the rows."""\n'
        "    for one in given:\n"
        "        self._held = one\n"
        "    rows = found = []\n"
        "class Rows:\n"
        '    """Of one slice."""\n'
        "    told: int = 0\n"
    )
    assert sorted(name for name, _ in bare_names(tree)) == [
        "found", "given", "held", "one", "told",
    ]  # fmt: skip
    assert [line for _, line in vague_docstrings(tree)] == [1, 8]

"""Measure how a package reads: size, names and docstrings, from its syntax trees alone.

    python -m tools.measure [DIRECTORY]

Prints one figure a line for `factory/`, or for the package in DIRECTORY. The figures are bounds for
review, not a score: tests hold those that matter.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Bare participles and pronouns: as names they say that there is something, not what it is.
BARE = {
    "found", "made", "said", "told", "asked", "there", "held", "given", "one", "others", "left",
    "kept", "wanted", "taken", "known", "seen", "mine", "whole", "beside",
}  # fmt: skip
OPENINGS = ("What ", "Who ", "Where ", "How ", "The same", "Of ")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One file of a package, with its syntax tree."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def n_lines(self) -> int:
        """Lines of the file, blank ones and comments included."""
        return self.text.count("\n")


def read_package(root: Path) -> list[Source]:
    """Read every Python file below `root`, in the order of paths."""
    paths = sorted(path for path in root.rglob("*.py") if "__pycache__" not in path.parts)
    texts = [(path, path.read_text(encoding="utf-8")) for path in paths]
    return [Source(path, text, ast.parse(text)) for path, text in texts]


def bindings(tree: ast.AST) -> Iterator[str]:
    """Yield each name that a tree binds: assignments, loops, arguments, functions and classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, Function | ast.ClassDef):
            yield node.name


def docstrings(tree: ast.AST) -> Iterator[str]:
    """Yield the docstrings of the module, its classes and its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function):
            text = ast.get_docstring(node)
            if text:
                yield text


def n_arguments(function: Function) -> int:
    """Count the arguments of a function, without self and cls."""
    spec = function.args
    named = [arg.arg for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
    return sum(name not in ("self", "cls") for name in named)


def measure(root: Path) -> dict[str, str]:
    """Return the figures of the package at `root`, by what they measure."""
    sources = read_package(root)
    entries = [path for path in root.iterdir() if path.suffix == ".py" or _has_code(path)]
    functions = [
        (node.end_lineno - node.lineno + 1, n_arguments(node), f"{source.path}:{node.name}")
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, Function) and node.end_lineno is not None
    ]
    classes = Counter(
        node.name
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
    )
    double = sorted(name for name, count in classes.items() if count > 1)
    names = [name for source in sources for name in bindings(source.tree)]
    bare = Counter(name for name in names if name in BARE)
    docs = [text for source in sources for text in docstrings(source.tree)]
    vague = sum(text.startswith(OPENINGS) for text in docs)
    largest = max(sources, key=lambda source: source.n_lines)
    longest, widest = max(functions), max(functions, key=lambda function: function[1])
    return {
        "entries at the top": str(len(entries)),
        "files": str(len(sources)),
        "lines": str(sum(source.n_lines for source in sources)),
        "largest file": f"{largest.n_lines} ({largest.path})",
        "longest function": f"{longest[0]} ({longest[2]})",
        "most arguments": f"{widest[1]} ({widest[2]})",
        "class names defined more than once": f"{len(double)} of {len(classes)} "
        f"({len(double) / len(classes):.1%}): {', '.join(double)}",
        "bare names": f"{bare.total()} of {len(names)} ({bare.total() / len(names):.2%}): "
        + ", ".join(f"{name} {count}" for name, count in bare.most_common()),
        "vague docstrings": f"{vague} of {len(docs)} ({vague / len(docs):.1%})",
    }


def _has_code(path: Path) -> bool:
    return path.is_dir() and any(path.rglob("*.py"))


def main() -> None:
    """Print the figures of `factory/`, or of the directory that the command line names."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "factory"
    for name, value in measure(root).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()

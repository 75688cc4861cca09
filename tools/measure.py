"""Measure how a package reads: size, names and docstrings, from its syntax trees alone.

    python -m tools.measure [DIRECTORY] [--files]

Prints one figure a line for `factory/`, or for the folder in DIRECTORY. With `--files` it prints
the bare names and the vague docstrings of each file instead, with their lines.
The figures are bounds for review, not a score: tests hold those that matter.
"""

from __future__ import annotations

import argparse
import ast
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
PACKAGE = Path(__file__).parent.parent / "factory"
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


def bindings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield each name that a tree binds, with its line: assignments (attributes without their
    leading underscores included), loops, arguments, functions and classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr.lstrip("_"), node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, Function | ast.ClassDef):
            yield node.name, node.lineno


def docstrings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the docstrings of the module, its classes and its functions, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function):
            text = ast.get_docstring(node)
            if text:
                yield text, node.body[0].lineno


def bare_names(tree: ast.AST) -> list[tuple[str, int]]:
    """Return the bindings of a tree that are in `BARE`, with their lines."""
    return [(name, line) for name, line in bindings(tree) if name in BARE]


def vague_docstrings(tree: ast.AST) -> list[tuple[str, int]]:
    """Return the docstrings of a tree that begin with one of `OPENINGS`, with their lines."""
    return [(text, line) for text, line in docstrings(tree) if text.startswith(OPENINGS)]


def doubled_classes(sources: list[Source]) -> list[str]:
    """Return the names that more than one class has, in order."""
    return sorted(name for name, count in _classes(sources).items() if count > 1)


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
    classes, double = _classes(sources), doubled_classes(sources)
    n_names = sum(1 for source in sources for _ in bindings(source.tree))
    bare = Counter(name for source in sources for name, _ in bare_names(source.tree))
    n_docs = sum(1 for source in sources for _ in docstrings(source.tree))
    vague = sum(len(vague_docstrings(source.tree)) for source in sources)
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
        f"({len(double) / max(len(classes), 1):.1%}): {', '.join(double)}",
        "bare names": f"{bare.total()} of {n_names} ({bare.total() / n_names:.2%}): "
        + ", ".join(f"{name} {count}" for name, count in bare.most_common()),
        "vague docstrings": f"{vague} of {n_docs} ({vague / max(n_docs, 1):.1%})",
    }


def by_file(root: Path) -> Iterator[str]:
    """Yield a line for each file below `root` with bare names or vague docstrings, and theirs."""
    for source in read_package(root):
        bare, vague = bare_names(source.tree), vague_docstrings(source.tree)
        if bare or vague:
            yield f"{source.path}: {len(bare)} bare, {len(vague)} vague"
        for text, line in sorted([*bare, *vague], key=lambda pair: pair[1]):
            yield f"  {line}: {text.splitlines()[0]}"


def _classes(sources: list[Source]) -> Counter[str]:
    nodes = (node for source in sources for node in ast.walk(source.tree))
    return Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))


def _has_code(path: Path) -> bool:
    return path.is_dir() and any(path.rglob("*.py"))


def main() -> None:
    """Print the figures of `factory/`, or of the directory that the command line names."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("directory", nargs="?", type=Path, default=PACKAGE)
    options.add_argument("--files", action="store_true", help="bare names and docstrings by file")
    arguments = options.parse_args()
    if arguments.files:
        print("\n".join(by_file(arguments.directory)))
        return
    for name, value in measure(arguments.directory).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()

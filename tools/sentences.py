"""Measure the sentences of Markdown pages: median, 90th percentile, and those that are too long.

    python -m tools.sentences [PAGE ...]

Prints one line for each page, then its sentences over 40 words. Without arguments it reads the
pages of this repository. Only prose counts: code, tables, headings and generated parts do not.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).parent.parent
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "recipes/README.md")
    ),
    *sorted((ROOT / "docs").glob("*.md")),
]
LONGEST = 40  # words in a sentence
SHORTEST = 3  # words; anything below is a label, not a sentence


def prose(text: str) -> list[str]:
    """Return the paragraphs and list items of a page, each on one line.

    A code span counts as one word, a link as its text.
    """
    text = re.sub(r"<!-- [\w ]+: made by .*?<!-- end of .*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^( *)```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    paragraphs: list[str] = []
    start = True
    for line in text.splitlines():
        bare = line.strip()
        if not bare or bare.startswith(("#", "|")) or (start and line.startswith("    ")):
            start = True
            continue
        item = re.match(r"\s*(?:[-*]|\d+\.) ", line)
        if start or item:
            paragraphs.append("")
        paragraphs[-1] += " " + (line[item.end() :] if item else bare)
        start = False
    return [_words_only(paragraph) for paragraph in paragraphs]


def _words_only(text: str) -> str:
    text = re.sub(r"`[^`]+`", "code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\*+", "", text).strip()


def sentences(text: str) -> list[str]:
    """Return the sentences of a page in order, without labels of one or two words."""
    ends = r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z0-9¿]|code\b)"
    split = [sentence for part in prose(text) for sentence in re.split(ends, part)]
    return [sentence for sentence in split if n_words(sentence) >= SHORTEST]


def n_words(sentence: str) -> int:
    """Count the words of a sentence; a dash or a sign by itself is none."""
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def measure(text: str) -> tuple[float, float, list[str]]:
    """Return median and 90th percentile in words, and the sentences over `LONGEST` words."""
    sentence_list = sentences(text)
    lengths = [n_words(sentence) for sentence in sentence_list]
    if len(lengths) < 2:
        return float(sum(lengths)), float(sum(lengths)), []
    long = [sentence for sentence in sentence_list if n_words(sentence) > LONGEST]
    return median(lengths), quantiles(lengths, n=10)[-1], long


def main(pages: list[Path]) -> None:
    """Print the figures of `pages`."""
    for page in pages:
        middle, high, long = measure(page.read_text(encoding="utf-8"))
        print(f"{page.name:22} median {middle:4.1f}  90 % {high:4.1f}  over {LONGEST}: {len(long)}")
        for sentence in long:
            print(f"    {n_words(sentence)}: {sentence}")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or PAGES)

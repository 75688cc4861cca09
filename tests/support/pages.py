"""HTML as tests look at it: a tree of elements, from a parser that takes no mistake."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

import html5lib

_SPACES = ("{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}")


def parse(text: str) -> Element:
    """The tree of a page. Raises html5lib's ParseError for whatever is not HTML."""
    return html5lib.HTMLParser(strict=True).parse(text)


def name(element: Element) -> str:
    """A tag without its namespace."""
    for space in _SPACES:
        if str(element.tag).startswith(space):
            return str(element.tag).removeprefix(space)
    return str(element.tag)


def every(tree: Element, *names: str) -> Iterator[Element]:
    """All elements of these tags, in order."""
    return (one for one in tree.iter() if isinstance(one.tag, str) and name(one) in names)


def told(element: Element) -> str:
    """The text inside, as one line: a space between what stands in different elements."""
    return " ".join(" ".join(element.itertext()).split())

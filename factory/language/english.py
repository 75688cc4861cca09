"""The list of English words by which an answer in another script is looked through."""

from __future__ import annotations

import functools

from factory.language.confusion import listed


@functools.cache
def english() -> frozenset[str]:
    """The words of web2 (Webster's Second, the `words` file of BSD and macOS) that count: 209,000
    in lower case and of four letters and more. It has no plural and no word younger than 1934."""
    from english_words import get_english_words_set

    return listed(get_english_words_set(["web2"]))

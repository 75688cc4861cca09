"""The list of English words that are searched for in answers in another script."""

from __future__ import annotations

import functools
import io
import pickle
from importlib import resources
from typing import Any, NoReturn

from factory.language.confusion import counted_words

_FILE = "data/web2.pickle"  # of the package english-words


@functools.cache
def english() -> frozenset[str]:
    """Return the words of web2 (Webster's Second, the `words` file of BSD and macOS) that count:
    209,000 in lower case and of four letters and more. It has no plural and no word younger than
    1934."""
    return counted_words(load_plain((resources.files("english_words") / _FILE).read_bytes()))


class _Plain(pickle.Unpickler):
    """Unpickler of built-in values alone. Code in a pickle is named and looked up here, so nothing
    of a file is ever called."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


def load_plain(content: bytes) -> Any:
    """Return the sets, lists, texts and numbers of a pickle, which is how the package stores its
    words. Raises UnpicklingError for anything else."""
    return _Plain(io.BytesIO(content)).load()

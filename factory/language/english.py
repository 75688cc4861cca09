"""The list of English words by which an answer in another script is looked through."""

from __future__ import annotations

import functools
import io
import pickle
from importlib import resources
from typing import Any, NoReturn

from factory.language.confusion import listed

_FILE = "data/web2.pickle"  # of the package english-words


@functools.cache
def english() -> frozenset[str]:
    """The words of web2 (Webster's Second, the `words` file of BSD and macOS) that count: 209,000
    in lower case and of four letters and more. It has no plural and no word younger than 1934."""
    return listed(plain((resources.files("english_words") / _FILE).read_bytes()))


class _Plain(pickle.Unpickler):
    """Reads a pickle of built-in values. What may run code is named by a pickle and looked up
    here, so nothing of a file is ever called."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


def plain(content: bytes) -> Any:
    """The sets, lists, texts and numbers of a pickle, in which the package keeps its words. Raises
    UnpicklingError for one that asks for anything else."""
    return _Plain(io.BytesIO(content)).load()

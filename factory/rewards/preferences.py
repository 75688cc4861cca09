"""Preference pairs of which the better answer is known: their sources and their rows. score audits
a reward model with them, transfer compares several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from factory.engines.chat_template import Message
from factory.stage import presets
from factory.stage.preference_pairs import read_pair
from factory.stage.readers import Row
from factory.stage.rows_from import RowsFrom

Known = tuple[dict[str, Any], list[Message], str, str]
_ALL = "all"  # languages


class Pairs(RowsFrom):
    """Preference pairs of which the better answer is known, in rows of prompt, chosen and rejected
    as M-RewardBench has them; `config` is the one of the pairs' language where a dataset's configs
    are not language codes (its are like deu_Latn)."""

    split: str = "test"

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else presets.expanded(value, "pairs")

    def read(self, path: Path, code: str) -> tuple[list[Known], dict[str, int]]:
        """Return the pairs of a language (row, prompt, better answer, worse answer), and how many
        rows were dropped by reason. Raises InputError that names the rows."""

        def convert(row: Row, where: str) -> Row | str:
            pair = read_pair(row, where)
            if isinstance(pair, str):
                return pair
            return {"pair": (row, list(pair.prompt), pair.chosen, pair.rejected)}

        dropped: Counter[str] = Counter()
        rows = self.converted_rows(path, code, convert, dropped, name=self.source)
        return [row["pair"] for row in rows], dict(dropped)


def for_all(value: Any) -> Any:
    """Take one source without a language for all of them."""
    one = isinstance(value, Mapping) and bool({"source", "preset"} & value.keys())
    single = isinstance(value, str) or one
    return {_ALL: value} if single else value


def of_language(pairs: Mapping[str, Pairs], code: str) -> Pairs | None:
    """Return the source of the pairs of a language, if it has one."""
    return pairs.get(code, pairs.get(_ALL))

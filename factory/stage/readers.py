"""Reading rows from outside: a JSONL or parquet file, or a Hub dataset as it lies on this disk.

Every row comes with where it stands, so that a complaint can name it. A column map and a row
filter are applied here, before anything looks at the row.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from factory.artifacts.hashing import text_hash
from factory.config import Knobs
from factory.errors import InputError, nearest
from factory.language.languages import LANGUAGES

FILE_TYPES = (".jsonl", ".json", ".parquet")
# ShareGPT's names for who speaks
_SHAREGPT = {"human": "user", "gpt": "assistant"}
Row = dict[str, Any]
Cell = str | int | float | bool


def is_file(source: str) -> bool:
    """Whether a source names a local file (by its ending) rather than a Hub dataset."""
    return source.endswith(FILE_TYPES)


class View(Knobs):
    """Reading of rows from somebody else's dataset: a Hub dataset with a config or a column that
    says the language (by code or English name), a JSONL, JSON or parquet file, or one such file of
    a dataset that the library does not load."""

    split: str = "train"
    config: str | None = None  # where its configs are not languages
    # one file of it, read as it lies; {language} is filled in
    file: str | None = None
    # our name for a column to theirs, with dots into what is nested: {prompt: turns.0.text}
    columns: dict[str, str] = Field(default_factory=dict)
    # their columns to the value, or the values, that a row must have
    where: dict[str, Cell | tuple[Cell, ...]] = Field(default_factory=dict)

    @field_validator("file")
    @classmethod
    def _a_file_of_rows(cls, value: str | None) -> str | None:
        if value is not None and not is_file(value):
            raise ValueError(f"ends in one of {', '.join(FILE_TYPES)}, not as {value!r}")
        return value

    def rows(self, path: Path, language: str) -> Iterator[tuple[str, Row | None]]:
        """Yield the rows in `language` of a file or dataset on disk, each with its position; None
        for a row that `where` leaves out.

        A dataset with a config named by the language gives that config; one with a `language`
        column gives its rows in that language, by code or by English name. Raises InputError for
        what cannot be read.
        """
        file = self._file(path, language)
        mixed = True
        if file is not None:
            rows = _READERS[file.suffix](file)
        else:
            config, rows = _read_dataset(path, language, self)
            mixed = config != language
        words = (language, LANGUAGES[language].name.lower() if language in LANGUAGES else language)
        for where, row in rows:
            named = row | {ours: _dig(row, theirs, where) for ours, theirs in self.columns.items()}
            # what a config of one language calls it in a column is its own affair
            if not mixed or str(named.get("language", language)).lower() in words:
                yield where, named if self._matches(row, where) else None

    def _file(self, path: Path, language: str) -> Path | None:
        """Return the one file that is read, or None for a whole dataset."""
        if is_file(path.name):
            return path
        if self.file is None:
            return None
        name = self.file.replace("{language}", language)
        file = (path / name).resolve()
        if not file.is_relative_to(path.resolve()) or not file.is_file():
            raise InputError(f"{path.name} has no file {name}", "check file:")
        return file

    def _matches(self, row: Row, where: str) -> bool:
        for column, value in self.where.items():
            values = value if isinstance(value, tuple) else (value,)
            if _dig(row, column, where) not in values:
                return False
        return True


def _dig(row: Row, path: str, where: str) -> Any:
    value: Any = row
    for part in [path] if path in row else path.split("."):
        if isinstance(value, list) and part.lstrip("-").isdigit() and len(value) > int(part):
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            columns = value if isinstance(value, Mapping) else ()
            raise InputError(
                f"{where}: no column {path!r}{nearest(part, columns)}",
                f"it has {', '.join(map(str, columns))}"
                if columns
                else "check columns: and where:",
            )
    return value


def messages(row: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    """Return the conversation in a row's `messages`, or the text in its `prompt` as one user turn.
    Turns in ShareGPT's form (`from`, `value`) are converted. Raises InputError."""
    value = row.get("messages") or row.get("prompt")
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise InputError(
            f"{where}: no messages{nearest('messages', row)}",
            "give each row 'messages' (a list of role and content) or 'prompt' (text)",
        )
    value = [_turn(message) for message in value]
    for message in value:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(part), str) for part in ("role", "content")
        ):
            raise InputError(
                f"{where}: a message without role or content", "both are text: mend that row"
            )
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _turn(message: Any) -> Any:
    if not isinstance(message, Mapping) or "role" in message or "from" not in message:
        return message
    speaker = message["from"]
    return {"role": _SHAREGPT.get(speaker, speaker), "content": message.get("value")}


def address(
    row: Mapping[str, Any], conversation: list[dict[str, str]], source: str
) -> dict[str, str]:
    """Return id and hash of a prompt: equal in every stage that reads the same dataset."""
    text = json.dumps(conversation, sort_keys=True, ensure_ascii=False)
    return {
        "prompt_id": given_id(row) or text_hash(source + text),
        "prompt_hash": text_hash(text),
    }


def answer(value: Any, where: str) -> list[dict[str, str]]:
    """Return the assistant's turn of a preference: text, or the last message of a conversation."""
    [*_, last] = messages({"messages": value}, where)
    return [{"role": "assistant", "content": last["content"]}]


def given_id(row: Mapping[str, Any]) -> str:
    """Return the id that the source gives a row, `""` for none. 0 is an id."""
    value = next((row[key] for key in ("prompt_id", "id") if row.get(key) is not None), "")
    return str(value)


def unlike(names: Collection[str], name: str) -> str:
    """Return `name`, with -2, -3, … if it is taken: two prompts under one id stay two prompts."""
    tries = (f"{name}-{times}" for times in itertools.count(2))
    return name if name not in names else next(other for other in tries if other not in names)


def _read_json(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError:
        raise InputError(f"{path.name}: not UTF-8", "save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"{path.name} line {error.lineno}"
        raise InputError(f"{where}: not JSON: {error.msg}", "mend that line") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path.name}: not a list of objects", "write [{…}, …], or JSON lines")
    for number, row in enumerate(rows, start=1):
        yield f"{path.name} row {number}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        table = pq.ParquetFile(path).read()
    except pa.ArrowInvalid:
        raise InputError(f"{path.name} is not a parquet file", "check what is in it") from None
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{path.name} row {number}", row


def _read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError:
                raise InputError(f"{where}: not UTF-8", "save the file as UTF-8") from None
            except json.JSONDecodeError as error:
                raise InputError(f"{where}: not JSON: {error.msg}", "mend that line") from None
            if not isinstance(row, dict):
                raise InputError(f"{where}: not an object", "each line is one {…}")
            yield where, row


def _read_dataset(path: Path, language: str, view: View) -> tuple[str, Iterator[tuple[str, Row]]]:
    """Return the config that is read, and its rows."""
    import datasets

    configs = datasets.get_dataset_config_names(str(path))
    name = view.config or language
    config = name if name in configs else configs[0]
    if config != name and (len(configs) > 1 or view.config):
        raise InputError(
            f"{path.name} has no config {name!r}{nearest(name, configs)}, "
            f"only {', '.join(configs)}",
            "name one as config:, or a dataset with a config for every language of the recipe",
        )
    try:
        rows = datasets.load_dataset(str(path), config, split=view.split)
    except ValueError as error:
        raise InputError(f"split {view.split!r} cannot be read: {error}", "set split:") from None
    language_column = view.columns.get("language", "language").partition(".")[0]
    if config != language and language_column not in rows.column_names and language != "en":
        raise InputError(
            f"the dataset does not say which rows are in {language!r}",
            "use a dataset with a config or a 'language' column per language",
        )
    numbered = enumerate(rows, start=1)
    return config, ((f"{config} row {number}", dict(row)) for number, row in numbered)


_READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}

"""Files of rows, each row with its place in the file: JSON, JSON lines, CSV and parquet, compressed
or not. A row that cannot be read is a BadRow in its place; the others are still read.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import lzma
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from factory.errors import InputError

Row = dict[str, Any]
FILE_TYPES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip")  # endings; what a file is, its first bytes say
_COMPRESSION = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}  # for pyarrow
_XZ, _ZIP, _LFS = b"\xfd7zXZ\0", b"PK\x03\x04", b"version https://git-lfs"
# how a cell of CSV is written that has no value, by pandas and polars
_NO_VALUE = frozenset({"", "nan", "NaN", "<NA>"})
_BATCH = 256  # rows of parquet that are in memory at once


class BadRow(InputError):
    """A row that cannot be read. `reason`: what it is counted by."""

    def __init__(self, where: str, what: str, fix: str, reason: str) -> None:
        super().__init__(f"{where}: {what}", fix)
        self.reason = reason


def is_file(source: str) -> bool:
    """Return whether a source names a local file (by its ending) rather than a Hub dataset."""
    return _type(source) in FILE_TYPES


def read_file(path: Path, name: str) -> Iterator[tuple[str, Row | BadRow]]:
    """Yield the rows of a file, each with its place in `name`, in the order of the file. Raises
    InputError for a file that is not what it is called."""
    kind = _type(path.name)
    with path.open("rb") as start:
        if start.read(len(_LFS)) == _LFS:
            raise InputError(f"{name} is a pointer of Git LFS, not the file", "git lfs pull")
    if kind == ".parquet":
        yield from _read_parquet(path, name)
        return
    try:
        with _open(path) as file:
            yield from _READERS[kind](file, name)
    except (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{name}: {error.strerror}", "check who may read it") from None
        raise InputError(f"{name} is not compressed as it says", "compress it again") from None


def _type(name: str) -> str:
    path = Path(name.lower())
    if path.suffix in _PACKED and Path(path.stem).suffix != ".parquet":
        path = Path(path.stem)
    return path.suffix


def _open(path: Path) -> BinaryIO:
    """Open a file for reading bytes, decompressed, after a byte order mark of UTF-8."""
    file = io.BufferedReader(_unpacked(path))
    if file.peek(3)[:3] == b"\xef\xbb\xbf":
        file.read(3)
    start = file.peek(4)[:4]
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(start) == 4 and b"\0" in start):
        raise InputError(f"{path.name} is in UTF-16", "save the file as UTF-8")
    return file


def _unpacked(path: Path) -> Any:
    """Open a file of bytes, decompressed by what its first bytes say it is."""
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(_XZ):
        return lzma.open(path)
    if start.startswith(_ZIP):
        archive = zipfile.ZipFile(path)
        files = [member for member in archive.infolist() if not member.is_dir()]
        files = [member for member in files if not member.filename.startswith("__MACOSX")]
        if len(files) != 1:
            raise InputError(f"{path.name} holds {len(files)} files", "unpack it")
        return archive.open(files[0])
    kind = next((kind for magic, kind in _COMPRESSION.items() if start.startswith(magic)), None)
    return pa.input_stream(str(path), compression=kind) if kind else io.FileIO(path)


def _read_json(file: BinaryIO, name: str) -> Iterator[tuple[str, Row | BadRow]]:
    """Read a list of objects or JSON lines, whatever the file is called."""
    lines = _filled_lines(file, 1)
    first = next(lines, None)
    if first is None:
        return
    at, text = first
    # an object over several lines is no line of its own
    if text.lstrip()[:1] == b"[" or text.rstrip()[-1:] != b"}":
        text += file.read()
        try:
            document = _parse(text, name, at)
        except BadRow as error:
            if text.lstrip()[:1] == b"[":
                raise InputError(error.what, error.fix) from None
        else:
            yield from _of_document(document, name)
            return
        lines, first = _filled_lines(io.BytesIO(text), at), None
    for number, line in itertools.chain([first] if first else [], lines):
        where = f"{name} line {number}"
        try:
            row = _parse(line.strip(), name, number)
        except BadRow as error:
            row = error
        if not isinstance(row, dict | BadRow):
            row = BadRow(where, "not an object", "each line is one {…}", "not_json")
        yield where, row


def _of_document(document: Any, name: str) -> Iterator[tuple[str, Row]]:
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        keys = document.items() if isinstance(document, dict) else ()
        under = next(
            (f", but one under {key!r}" for key, rows in keys if isinstance(rows, list)), ""
        )
        raise InputError(
            f"{name}: not a list of objects{under}", "write [{…}, …], or an object a line"
        )
    for number, row in enumerate(document, start=1):
        yield f"{name} row {number}", row


def _filled_lines(file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in enumerate(file, start) if line.strip())


def _parse(text: bytes, name: str, at: int) -> Any:
    """Return the value of a JSON text that begins at line `at` of a file. Raises BadRow."""
    where = f"{name} line {at}"
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadRow(where, "not UTF-8", "save the file as UTF-8", "not_utf8") from None
    except json.JSONDecodeError as error:
        where = f"{name} line {at + error.lineno - 1}"
        raise BadRow(where, f"not JSON: {error.msg}", "mend that line", "not_json") from None
    except RecursionError:
        raise BadRow(where, "nested too deep", "mend that line", "not_json") from None
    except ValueError:
        raise BadRow(where, "a number is too long", "mend that line", "not_json") from None


def _read_csv(file: BinaryIO, name: str) -> Iterator[tuple[str, Row | BadRow]]:
    """Read cells as text; an empty cell is None. A comma, a semicolon, a tab or a bar is between
    cells, whichever the first line has most of, or what a line `sep=` before it says; without any
    a line is a cell."""
    csv.field_size_limit(sys.maxsize)
    # what is not UTF-8 becomes lone surrogates, which no text of a row may have
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    header, before = text.readline(), 1
    delimiter = max(",;\t|", key=header.count)
    if header.lower().startswith("sep=") and len(header.strip()) == 5:
        delimiter, header, before = header[4], text.readline(), 2
    cells = csv.reader(itertools.chain([header], text), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        where = f"{name} line {cells.line_num + before}"
        try:
            row = next(cells)
        except StopIteration:
            return
        except csv.Error as error:
            yield where, BadRow(where, f"not CSV: {error}", "mend its quotes", "not_csv")
            continue
        if not _is_unicode("".join(row)):
            bad = BadRow(where, "not UTF-8", "save the file as UTF-8", "not_utf8")
            if not names:
                raise InputError(bad.what, bad.fix)
            yield where, bad
        elif not names:
            names = [column.strip() for column in row]
            twice = next((column for column in names if names.count(column) > 1), None)
            if twice is not None:
                raise InputError(f"{name}: two columns {twice!r}", "rename one of them")
        elif len(names) == 1 and row:
            yield where, {names[0]: _cell(delimiter.join(row))}
        elif row and len(row) != len(names):
            what = f"{len(row)} cells, where the first line has {len(names)}"
            yield where, BadRow(where, what, "put quotes around text with commas", "not_csv")
        elif row:
            yield where, {key: _cell(cell) for key, cell in zip(names, row, strict=True)}


def _cell(text: str) -> str | None:
    return None if text in _NO_VALUE else text


def _is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path, name: str) -> Iterator[tuple[str, Row | BadRow]]:
    """Read a row group when its rows are asked for."""
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(_BATCH, row_groups=[group]):
                    for row in _as_text(batch).to_pylist():
                        number += 1
                        yield f"{name} row {number}", row
    except (pa.ArrowException, OSError, ValueError) as error:
        what = "is not a parquet file" if not number else f"is damaged after row {number}"
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{name} {what}: {reason}", "check what is in it") from None


def _as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows whose columns of bytes are text where they hold UTF-8, as in files of writers
    that do not mark text."""
    for at, field in enumerate(batch.schema):
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            with suppress(pa.ArrowInvalid):
                batch = batch.set_column(at, field.name, batch.column(at).cast(pa.string()))
    return batch


_READERS: Mapping[str, Callable[[BinaryIO, str], Iterator[tuple[str, Row | BadRow]]]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}

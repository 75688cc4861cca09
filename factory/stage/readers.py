"""Reading rows from outside: a file, or a Hub dataset as it lies on this disk.

Every row comes with where it stands, so that a complaint can name it. A column map and a row
filter are applied here, before anything looks at the row. A row that cannot be read is counted by
its reason, up to the share that the recipe allows.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import yaml
from pydantic import Field, field_validator, model_validator

from factory.artifacts.hashing import text_hash
from factory.config import GATE, Knobs
from factory.errors import InputError, nearest
from factory.language.detect import detect, matches
from factory.language.languages import code_of, iso3, speaks
from factory.language.languages import language as known_language
from factory.stage.row_files import FILE_TYPES, BadRow, Row, is_file, read_file

__all__ = ["FILE_TYPES", "BadRow", "DistinctIds", "Row", "View", "address", "answer",
           "conversation", "given_id", "is_file", "messages", "numeric", "transcript"]  # fmt: skip

# who speaks, by the names that datasets have for it
_ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bard", "bing", "claude", "model", "bot", "ai",
                  "function_call"),
    "tool": ("tool", "observation", "function", "function_response", "tool_response", "ipython"),
}  # fmt: skip
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
_SPEAKER, _CONTENT_NAMES = {"role", "from"}, ("content", "value", "text")
_CONTENT = frozenset(_CONTENT_NAMES)
_LANGUAGE_COLUMNS = ("lang", "locale", "language_code", "lang_code", "prompt_language")
_HEAD = 100  # rows that are looked at for which columns there are
_SHOWN = 5  # rows that cannot be read, in an error
_SHARED = 10  # rows that may have one id before that is said
_LABELS = 20  # languages of rows that are counted apart
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_TURNS = tuple(re.compile(rf"(?:^\s*|{gap}[ \t]*)(Human|Assistant):") for gap in (r"\n\n", r"\n"))
Cell = str | int | float | bool
Talk = list[dict[str, str]]


class Range(Knobs):
    """Bounds of a number in a column, such as what a classifier made of the row."""

    least: float | None = None
    most: float | None = None

    @model_validator(mode="after")
    def _bounds(self) -> Range:
        if self.least is None and self.most is None:
            raise ValueError("needs least, most or both")
        return self

    def holds(self, value: Any) -> bool:
        """Return whether a value is a number within the bounds."""
        value = numeric(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.least, self.most
        return (low is None or value >= low) and (high is None or value <= high)


class View(Knobs):
    """Reading of rows from somebody else's dataset: a Hub dataset with a config or a column that
    says the language (a code or its English name), a file, or one file of a dataset that the
    library does not load."""

    split: str = "train"  # of several, a + between them
    # where its configs are not languages; or by language: {en: set1, da: set2}
    config: str | dict[str, str] | None = None
    # one file of it, read as it lies; {language}, {Language} and {iso3} are filled in
    file: str | None = None
    # our name for a column to theirs, with dots into what is nested: {prompt: turns.0.text}; texts
    # of several are joined, an empty line between them: {prompt: [instruction, input]}
    columns: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    # their columns to the value, or the values, that a row must have; of a number also
    # {least: 0.5, most: 1}
    where: dict[str, Cell | tuple[Cell, ...] | Range] = Field(default_factory=dict)
    # their column that is equal in all answers to one prompt, where each row is an answer of its
    # own with its rank or score: the rows are read as one with `answers`
    group: str | None = Field(None, exclude_if=lambda value: value is None)
    # where no column says the language of a row, it is that of its prompt as far as one can tell
    detect: bool = Field(False, exclude_if=lambda value: not value)
    # share of rows that may be left out since they cannot be read; one row always may, unless 0%
    bad_rows: Annotated[str, GATE, Field(pattern=r"^([0-9]|[1-9][0-9]|100)(\.[0-9]+)?%$")] = "1%"

    @field_validator("file")
    @classmethod
    def _a_file_of_rows(cls, value: str | None) -> str | None:
        if value is not None and not is_file(value):
            raise ValueError(f"ends in one of {', '.join(FILE_TYPES)}, not as {value!r}")
        return value

    def converted_rows(
        self,
        path: Path,
        language: str,
        convert: Callable[[Row, str], Row | str],
        dropped: Counter[str],
        *,
        name: str,
        languages: Sequence[str] = (),
        first: int | None = None,
    ) -> Iterator[Row]:
        """Yield the rows in `language` of a file or dataset on disk, converted, and count the
        others in `dropped` by reason.

        Args:
            convert: Returns the row in another form, or the reason to leave it out. It is given the
                row and its place, and raises InputError for a row that cannot be read.
            name: Of the dataset or the file, for errors.
            languages: All that are read from the same source. With the first of them rows of
                none are counted, by what they say.
            first: Rows to yield at most.

        A dataset with a config of the language gives that config; one whose rows say a language
        gives those in this one. Raises InputError for what cannot be read, for more bad rows than
        `bad_rows`, and where no row is left.
        """
        bad: list[tuple[str, InputError]] = []
        n_bad = n_read = 0
        rows = self._labelled(path, language, name, languages or (language,))
        for where, row in rows if self.group is None else _grouped(rows, self.group):
            try:
                converted = _converted(row, where, convert)
            except InputError as error:
                dropped[getattr(error, "reason", "unreadable")] += 1
                n_bad += 1
                bad = [*bad, (where, error)][:_SHOWN]
                continue
            if isinstance(converted, str):
                dropped[converted] += 1
                continue
            n_read += 1
            yield converted
            if n_read == first:
                break
        total = n_read + dropped.total()
        if bad and not (n_read and self.allows(n_bad, total)):
            raise InputError(
                f"{n_bad} of {total} rows of {name} cannot be read: {_listed(bad)}",
                f"{bad[0][1].fix}; or allow a share of them: bad_rows: 5%",
            )
        if not n_read:
            reasons = "".join(f", {reason} {count}" for reason, count in dropped.items())
            raise InputError(
                f"{name} has no rows for {language}{reasons}",
                "check what is in it, and columns: and where:",
            )

    def allows(self, n_bad: int, total: int) -> bool:
        """Return whether so many of the rows may be left out since they cannot be read."""
        return n_bad <= math.ceil(float(self.bad_rows.rstrip("%")) / 100 * total)

    def _labelled(
        self, path: Path, language: str, name: str, languages: Sequence[str]
    ) -> Iterator[tuple[str, Row | BadRow | str]]:
        """Yield rows in `language` under our names, or the reason why a row is left out."""
        rows, mixed, assumed = self._open(path, language, name)
        head = list(itertools.islice(rows, _HEAD))
        first_rows = [row for _, row in head if isinstance(row, dict)]
        self._check_columns(first_rows, name)
        column = self.columns.get("language", "language")
        has_language = any(_says(_dig(row, column)) for row in first_rows)
        detects = self.detect and mixed and not has_language
        if (
            mixed
            and first_rows
            and not has_language
            and not detects
            and not (assumed and len(languages) == 1)
        ):
            theirs = next((c for c in _LANGUAGE_COLUMNS if _says(first_rows[0].get(c))), "theirs")
            raise InputError(
                f"{name} does not say the language of its rows",
                "use a file, a config or a 'language' column for each language; or name the "
                f"column: columns: {{language: {theirs}}}; or let it be detected: detect: true",
            )
        strays = languages[0] == language  # whether rows of no language that is read count here
        labels: set[str] = set()
        for where, row in itertools.chain(head, rows):
            if isinstance(row, BadRow):
                if strays or not mixed:
                    yield where, row
                continue
            named = row | {ours: _value(row, theirs) for ours, theirs in self.columns.items()}
            label = named.get("language")
            if detects:
                label = _detected(named, where, language)
                if not matches(label, language):
                    if strays and not any(matches(label, code) for code in languages):
                        yield where, _stray(label, labels)
                    continue
            elif mixed and _says(label) and not has_language:
                raise InputError(
                    f"{where} says a language, and the first rows do not",
                    "fill in that column for all rows",
                )
            if mixed and has_language and not _names(label, language):
                if strays and not any(_names(label, code) for code in languages):
                    yield where, _stray(label, labels)
                continue
            yield where, named if self._matches(row) else "filtered"

    def _open(
        self, path: Path, language: str, name: str
    ) -> tuple[Iterator[tuple[str, Row | BadRow]], bool, bool]:
        """Return rows as they lie, whether they may be of several languages, and whether they are
        in `language` if none says so."""
        if is_file(path.name):
            return read_file(path, path.name), True, True
        if self.file is None:
            return self._open_dataset(path, language, name)
        file = named(self.file, language)
        spelt = as_spelt(path / file)
        # the files of a repo may be links to where its client keeps their content
        if ".." in Path(file).parts or Path(file).is_absolute() or not spelt.is_file():
            raise InputError(f"{name} has no file {file}", "check file:")
        return read_file(spelt, f"{name} {file}"), file == self.file, True

    def _open_dataset(
        self, path: Path, language: str, name: str
    ) -> tuple[Iterator[tuple[str, Row | BadRow]], bool, bool]:
        """Ask `datasets` which files a split is, and read these: it refuses files of which one has
        a column that is null, or of another type, in another."""
        import datasets
        from datasets.exceptions import DatasetsError

        reasons = (DatasetsError, ValueError, TypeError, KeyError, OSError, RuntimeError,
                   yaml.YAMLError, pa.ArrowException)  # fmt: skip
        try:
            config = self._config(datasets.get_dataset_config_names(str(path)), language, name)
            builder = datasets.load_dataset_builder(str(path), config)
            data_files = builder.config.data_files or {}
            parts = self.split.split("+")  # datasets reads train+test as both
            known_parts = parts if all(part in data_files for part in parts) else ()
            files = [file for part in known_parts for file in data_files[part]]
            splits = data_files or builder.info.splits or {}
            missing = [part for part in parts if part.isidentifier() and part not in splits]
            if missing and splits:
                listed = ", ".join(map(str, splits))
                right = next(iter(splits)) if len(splits) == 1 else "one of them"
                raise InputError(
                    f"{name} has no split {missing[0]!r}, only {listed}", f"set split: {right}"
                )
            mixed = not isinstance(self.config, dict) and not _names(config, language)
            assumed = self.config is not None or language == "en"
            folders = [_folder_language(path, file) for file in files]
            if files and mixed and all(folders) and len(set(folders)) > 1:
                files = [f for f, of in zip(files, folders, strict=True) if _names(of, language)]
                if not files:
                    raise InputError(
                        f"{name} has no folder for {language}", "name its file as file:"
                    )
                mixed = False
            if (
                files
                and all(is_file(file) for file in files)
                and not getattr(builder.config, "field", None)
            ):
                read = [(Path(file), f"{name} {_inside(path, file)}") for file in files]
                rows = itertools.chain.from_iterable(itertools.starmap(read_file, read))
                features = builder.info.features or {}
                names = {column: feature.names for column, feature in features.items()
                         if isinstance(feature, datasets.ClassLabel)}  # fmt: skip
                return (_with_names(rows, names) if names else rows), mixed, assumed
            built = datasets.load_dataset(str(path), config, split=self.split)
        except reasons as error:
            reason = _shortened(str(error.__cause__ or error))
            raise InputError(
                f"{name} cannot be read: {reason}", "name one of its files as file:"
            ) from None
        numbered = enumerate(built, start=1)
        return ((f"{name} {config} row {n}", dict(row)) for n, row in numbered), mixed, assumed

    def _config(self, configs: Sequence[str], language: str, name: str) -> str:
        if isinstance(self.config, dict) and language not in self.config:
            raise InputError(f"config: names none for {language}", "add it there")
        config_name = self.config[language] if isinstance(self.config, dict) else self.config
        if config_name is not None and config_name in configs:
            return config_name
        of_language = [c for c in configs if _names(c, language)]
        if config_name is None and language in configs:
            return language
        if config_name is None and len(of_language) == 1:
            return of_language[0]
        if config_name is None and len(configs) == 1:
            return configs[0]
        wanting = config_name or language
        raise InputError(
            f"{name} has no config {wanting!r}{nearest(wanting, configs)}, "
            f"only {', '.join(configs)}",
            "name one as config:, or one for each language: config: {en: theirs}",
        )

    def _check_columns(self, rows: Sequence[Row], name: str) -> None:
        """Raise InputError for a column that the recipe names and no row has."""
        group = () if self.group is None else (self.group,)
        mapped = (_paths(path) for path in self.columns.values())
        theirs = itertools.chain(*mapped, self.where, group)
        for path in theirs:
            if rows and all(_dig(row, path) is _ABSENT for row in rows):
                columns = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
                near = nearest(path.partition(".")[0], columns)
                raise InputError(
                    f"{name}: no column {path!r}{near}", f"it has {', '.join(columns)}"
                )

    def _matches(self, row: Row) -> bool:
        for column, allowed in self.where.items():
            value = _dig(row, column)
            if isinstance(allowed, Range):
                if not allowed.holds(value):
                    return False
                continue
            values = allowed if isinstance(allowed, tuple) else (allowed,)
            # in CSV every value is text
            if value not in values and not (isinstance(value, str) and value in map(str, values)):
                return False
        return True


def placeholders(code: str) -> dict[str, str]:
    """Return what stands for a language in the names of files and repos, by placeholder: its code,
    its English name in lower case, and its code of ISO 639-3."""
    name = known_language(code).name if code else ""
    return {"language": code, "Language": name.lower(), "iso3": iso3(code)}


def named(text: str, code: str) -> str:
    """Return a name of a file or repo with the placeholders of a language filled in."""
    for name, value in placeholders(code).items():
        text = text.replace(f"{{{name}}}", value)
    return text


def as_spelt(path: Path) -> Path:
    """Return a path as its last part is spelt on disk, whatever the case; itself if there is
    none."""
    if path.exists() or not path.parent.is_dir():
        return path
    same = (p for p in path.parent.iterdir() if p.name.casefold() == path.name.casefold())
    return next(same, path)


_ABSENT = object()


def _paths(theirs: str | tuple[str, ...]) -> tuple[str, ...]:
    return (theirs,) if isinstance(theirs, str) else theirs


def _dig(row: Row, path: str | tuple[str, ...]) -> Any:
    """Return the value at a path of a row, _ABSENT where there is none."""
    value: Any = row
    [path] = _paths(path)[:1]
    for part in [path] if path in row else path.split("."):
        if value is None:
            return None
        if isinstance(value, list) and part.lstrip("-").isdecimal():
            at = int(part)
            value = value[at] if -len(value) <= at < len(value) else _ABSENT
        else:
            value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if value is _ABSENT:
            return _ABSENT
    return value


def _value(row: Row, theirs: str | tuple[str, ...]) -> Any:
    """Return the value of a column, or the texts of several with an empty line between them; None
    where a row has none."""
    values = [_dig(row, path) for path in _paths(theirs)]
    if isinstance(theirs, str):
        return None if values[0] is _ABSENT else values[0]
    return "\n\n".join(str(v) for v in values if v not in (None, "", _ABSENT)) or None


def numeric(value: Any) -> Any:
    """Return the number that a text holds, since every cell of CSV is text, and any other value as
    it is."""
    if not isinstance(value, str) or "_" in value:
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number


def _grouped(
    rows: Iterator[tuple[str, Row | BadRow | str]], column: str
) -> Iterator[tuple[str, Row | BadRow | str]]:
    """Yield the first row of each value of a column, with all rows of that value as its `answers`;
    the others as `joined`."""
    groups: dict[str, tuple[str, Row]] = {}
    for where, row in rows:
        if not isinstance(row, dict):
            yield where, row
            continue
        key = json.dumps(_dig(row, column), default=str)
        if key in groups:
            groups[key][1]["answers"].append(row)
            yield where, "joined"
        else:
            groups[key] = where, row | {"answers": [row]}
    yield from groups.values()


def _detected(row: Row, where: str, code: str) -> str | None:
    """Return the label of the language that the questions of a row are in, `code` or another; None
    where nobody can tell."""
    try:
        turns = conversation(row, where)
        return detect("\n".join(text() for role, text in turns if role == "user"), code)
    except BadRow:
        return None


def _names(label: Any, code: str) -> bool:
    return speaks(label, code) if isinstance(label, str) else str(label) == code


def _says(label: Any) -> bool:
    """Return whether a value is the label of a language: neither absent nor null, as pandas and CSV
    have it."""
    return label is not _ABSENT and label not in (None, "") and label == label


def _stray(label: Any, labels: set[str]) -> str:
    """Return the reason that a row of another language is counted by."""
    text = " ".join(str(label).split())[:40]
    if not _says(label) or not text:
        return "no_language"
    if text not in labels and len(labels) == _LABELS:
        return "other_language"
    labels.add(text)
    return f"language {text}"


def _converted(
    row: Row | BadRow | str, where: str, convert: Callable[[Row, str], Row | str]
) -> Row | str:
    if isinstance(row, BadRow):
        raise row
    if isinstance(row, str):
        return row
    try:
        converted = convert(row, where)
        json.dumps(converted, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise BadRow(
            where, "half of a surrogate pair in a text", "mend that row", "not_unicode"
        ) from None
    except OverflowError:
        raise BadRow(where, "a number is too large", "mend that row", "not_a_number") from None
    return converted


def _with_names(
    rows: Iterator[tuple[str, Row | BadRow]], names: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Row | BadRow]]:
    """Yield rows with the names of classes in the place of their numbers, as their card has
    them."""
    for where, row in rows:
        if isinstance(row, dict):
            numbers = {column: row.get(column) for column in names}
            row |= {column: names[column][number] for column, number in numbers.items()
                    if isinstance(number, int) and 0 <= number < len(names[column])}  # fmt: skip
        yield where, row


def _folder_language(path: Path, file: str) -> str | None:
    """Return the language that a folder of a dataset names, as in `en/train.jsonl`."""
    return next(filter(code_of, Path(_inside(path, file)).parts[:-1]), None)


def _inside(path: Path, file: str) -> str:
    return str(Path(file).relative_to(path)) if Path(file).is_relative_to(path) else Path(file).name


def _listed(bad: Sequence[tuple[str, InputError]]) -> str:
    """Return places of rows and their errors as text; an error stands once, with all its places."""
    places: dict[str, list[str]] = {}
    for where, error in bad:
        places.setdefault(error.what.removeprefix(f"{where}: "), []).append(where)
    parts = []
    for reason, (first, *more) in places.items():
        numbered = [re.sub(r"^.* ((line|row) \d+)$", r"\1", where) for where in more]
        also = f" (also {', '.join(numbered)})" if numbered else ""
        parts.append(f"{first}: {_shortened(reason)}{also}")
    return "; ".join(parts)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:199]}…"


def messages(row: Mapping[str, Any], where: str) -> Talk:
    """Return the conversation in a row's `messages`, or the text in its `prompt` as one user turn.
    Raises BadRow for an empty one and as `conversation` does."""
    turns = [{"role": role, "content": text()} for role, text in conversation(row, where)]
    if not turns:
        raise BadRow(where, "no messages", "fill in 'messages' or 'prompt'", "no_messages")
    return turns


def conversation(row: Mapping[str, Any], where: str) -> list[tuple[str, Callable[[], str]]]:
    """Return the turns of a row's `messages` or `prompt`, none where these are empty: role, and a
    function that returns the text. Both raise BadRow for what is something else.

    Understood are `role` and `content`, ShareGPT's `from` and `value` with its names for who
    speaks, content in parts of text, a struct of lists in the place of a list of structs, and a
    transcript that begins with two line ends."""
    value = row.get("messages") or row.get("prompt")
    if not value and not {"messages", "prompt"} & row.keys():
        raise BadRow(
            where,
            f"no messages{nearest('messages', row)}",
            "give each row 'messages' (a list of role and content) or 'prompt' (text), or name "
            f"theirs: columns: {{prompt: theirs}}; it has {', '.join(map(str, row)) or 'nothing'}",
            "no_messages",
        )
    if not value:
        return []
    value = decoded(value)
    if isinstance(value, str):
        turns = transcript(value) if value.startswith("\n\n") else None
        return [_turn(turn, where) for turn in turns or [{"role": "user", "content": value}]]
    if isinstance(value, Mapping) and all(isinstance(part, list) for part in value.values()):
        columns = itertools.zip_longest(*value.values())
        value = [dict(zip(value, turn, strict=True)) for turn in columns]
    if not isinstance(value, list):
        stated = _shortened(repr(value))
        raise _odd(where, f"messages are not a list, nor is the prompt text: {stated}")
    return [_turn(message, where) for message in value]


def decoded(value: Any) -> Any:
    """Return the messages that a text holds in JSON, or as Python writes them, since a cell of CSV
    is text; any other value as it is."""
    if not isinstance(value, str) or not re.match(r"\s*\[\s*\{", value):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            turns = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if all(isinstance(turn, Mapping) and _SPEAKER & turn.keys() for turn in turns):
            return turns
    return value


def transcript(text: str) -> Talk | None:
    """Return the turns of a transcript, "\\n\\nHuman: …\\n\\nAssistant: …", without an opening for
    the next answer at its end; None for any other text."""
    for turn in _TURNS:
        starts = list(turn.finditer(text))
        if not starts or starts[0].start():
            return None
        if text.startswith("\n\n") or {start[1] for start in starts} == _SPEAKERS.keys():
            ends = [*(start.start() for start in starts[1:]), len(text)]
            turns = [
                {"role": _SPEAKERS[start[1]], "content": text[start.end() : end].strip()}
                for start, end in zip(starts, ends, strict=True)
            ]
            return turns if turns[-1] != {"role": "assistant", "content": ""} else turns[:-1]
    return None


def _turn(message: Any, where: str) -> tuple[str, Callable[[], str]]:
    if isinstance(message, str):
        fix = "name the one that is the prompt, as columns: {prompt: theirs.0}"
        raise BadRow(where, "messages that are text alone: whose is not said", fix, "no_messages")
    if not isinstance(message, Mapping):
        raise _odd(where, "a message without role or content")
    speaker = message.get("role", message.get("from"))
    if not isinstance(speaker, str) or not _CONTENT & message.keys():
        raise _odd(where, "a message without role or content")
    role = _ROLE_OF.get(speaker.strip().lower())
    if role is None:
        fix = f"name it one of {', '.join(_ROLE_OF)}"
        raise BadRow(where, f"unknown role {_shortened(speaker)!r}", fix, "unknown_role")
    return role, lambda: _text(message, where)


def _text(message: Mapping[str, Any], where: str) -> str:
    """Return the text of a message. Raises BadRow for calls of tools and what is no text: a prompt
    of ours has no place for them."""
    content = next((message[name] for name in _CONTENT_NAMES if name in message), None)
    if message.get("tool_calls") or message.get("function_call"):
        raise BadRow(where, "a message with tool calls", "leave that row out", "tool_calls")
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if any(not isinstance(text, str | None) for text in texts) or (
        isinstance(content, list) and None in texts
    ):
        raise BadRow(where, "content that is not text", "leave that row out", "not_text")
    return "".join(text or "" for text in texts)


def _odd(where: str, what: str) -> BadRow:
    return BadRow(where, what, "both are text: mend that row", "no_messages")


def address(
    row: Mapping[str, Any], conversation: list[dict[str, str]], source: str
) -> dict[str, str]:
    """Return id and hash of a prompt: equal in every stage that reads the same dataset."""
    text = json.dumps(conversation, sort_keys=True, ensure_ascii=False)
    return {
        "prompt_id": given_id(row) or text_hash(source + text),
        "prompt_hash": text_hash(text),
    }


def answer(value: Any, where: str) -> Talk:
    """Return the assistant's turn of a preference: text, or the last message of a conversation."""
    [*_, last] = messages({"messages": value}, where)
    return [{"role": "assistant", "content": last["content"]}]


def given_id(row: Mapping[str, Any]) -> str:
    """Return the id that the source gives a row, `""` for none. 0 is an id, 1.0 is 1, also as
    text."""
    value = next((row[key] for key in ("prompt_id", "id") if row.get(key) is not None), "")
    if isinstance(value, float):
        value = "" if math.isnan(value) else int(value) if value.is_integer() else value
    text = str(value).strip()
    return text.partition(".")[0] if re.fullmatch(r"\d+\.0", text) else text  # as pandas writes 1


class DistinctIds:
    """Ids of rows, each once: of several rows with one id the later ones get -2, -3, …"""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}  # number of the last row with an id, by id

    def __call__(self, name: str) -> str:
        """Return the id of the next row, which calls itself `name`."""
        number = self._last.get(name, 0) + 1
        distinct = name if number == 1 else f"{name}-{number}"
        while number > 1 and distinct in self._last:
            number += 1
            distinct = f"{name}-{number}"
        self._last[name] = number
        self._last.setdefault(distinct, 1)
        return distinct

    def alarms(self, source: str) -> list[str]:
        """Return a warning where many rows have one id: it is hardly theirs."""
        name, number = max(self._last.items(), key=lambda item: item[1], default=("", 0))
        if number <= _SHARED:
            return []
        return [
            f"{number:,} rows of {source} share the id {name!r}, so later ones are {name}-2, "
            f"{name}-3, …: name another column as columns: {{id: theirs}}"
        ]

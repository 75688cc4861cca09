"""Where rows come in from outside: prompts, evaluation questions, English preferences.

Each stage turns a Hub dataset or a local file into canonical rows, so that the collection holds
everything it was made from and a stranger can start from it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import field_validator

from factory import schemas, shards
from factory.artifact import Rows, text_hash
from factory.errors import InputError, nearest
from factory.knobs import REFERENCE
from factory.stages.contract import Outside, Scope, SliceSpec, Stage
from factory.stages.job import Job, Outcome, slice_directory

FILE_TYPES = (".jsonl", ".parquet")


def is_file(source: str) -> bool:
    """Whether a source names a local file (by its ending) rather than a Hub dataset."""
    return source.endswith(FILE_TYPES)


class _Source(Stage):
    """A stage that reads one outside dataset, a slice a language."""

    row_wise: ClassVar[bool] = True

    source: Annotated[str, REFERENCE]  # org/name[@revision], or a file; {language} is filled in
    split: str = "train"

    @field_validator("source")
    @classmethod
    def _fills_in(cls, value: str) -> str:
        if set("{}") & set(value.replace("{language}", "")):
            raise ValueError(f"{value!r} has a placeholder other than {{language}}")
        return value

    def _spec(self, language: str) -> SliceSpec:
        source = self.source.replace("{language}", language)
        need = Outside("source", source, "dataset", extent=True)
        return SliceSpec(self.name, language, language, (need,))

    def slices(self, scope: Scope) -> list[SliceSpec]:
        return [self._spec(language) for language in scope.languages]

    def run(self, job: Job) -> Outcome:
        rows: dict[str, Rows] = {}
        for number, spec in enumerate(job.slices):
            place = job.place(spec, "source")
            language = str(spec.language)
            source = place.name or place.path.name
            kept: list[dict[str, Any]] = []
            dropped: dict[str, int] = {}
            seen: set[str] = set()
            total = 0
            for where, row in read_rows(place.path, language, self.split):
                total += 1
                made = self.row(row, where, source, language)
                if made is None:
                    dropped["empty"] = dropped.get("empty", 0) + 1
                    continue
                made["prompt_id"] = _unlike(seen, made["prompt_id"])
                seen.add(made["prompt_id"])
                kept.append(made)
            if not kept:
                raise InputError(f"{source} has no rows for {language}", "check what is in it")
            table = schemas.from_rows(kept, self.kind)
            shards.write_slice(slice_directory(job.out, spec.name), table)
            rows[spec.name] = Rows(into=total, out=len(kept), dropped=dropped)
            job.progress(number + 1, len(job.slices), "languages")
        return Outcome(rows, determinism="exact")

    def row(
        self, row: Mapping[str, Any], where: str, source: str, language: str
    ) -> dict[str, Any] | None:
        """A row of the source in canonical form; None for one without text. Raises InputError."""
        raise NotImplementedError


class Prompts(_Source):
    """Prompts to sample answers to, in each language; the same id in every language."""

    name: ClassVar[str] = "prompts"
    kind: ClassVar[str] = "prompts"
    repo: ClassVar[str] = "prompts"

    turns: Literal["first", "all"] = "first"  # CroCo used the first user turn alone

    def row(
        self, row: Mapping[str, Any], where: str, source: str, language: str
    ) -> dict[str, Any] | None:
        messages = _messages(row, where)
        users = [i for i, message in enumerate(messages) if message["role"] == "user"]
        if not users:
            raise InputError(f"{where}: no user turn", "a prompt needs a message of role 'user'")
        messages = messages[users[0] : users[0] + 1] if self.turns == "first" else messages
        messages = messages[: users[-1] + 1]
        text = json.dumps(messages, sort_keys=True, ensure_ascii=False)
        if not messages[-1]["content"].strip():
            return None
        domain = row.get("domain")
        return {
            "prompt_id": _given_id(row) or text_hash(source + text),
            "language": language,
            "messages": messages,
            "prompt_hash": text_hash(text),
            "source_dataset": source,
            "domain": None if domain is None else str(domain),
        }


class Questions(Prompts):
    """Held-out prompts that the models are compared on."""

    name: ClassVar[str] = "questions"
    repo: ClassVar[str] = "questions"


class Preferences(_Source):
    """English preference pairs that the reward stage learns from."""

    name: ClassVar[str] = "preferences"
    kind: ClassVar[str] = "preferences"
    repo: ClassVar[str] = "preferences"

    def slices(self, scope: Scope) -> list[SliceSpec]:
        return [self._spec("en")]

    def row(
        self, row: Mapping[str, Any], where: str, source: str, language: str
    ) -> dict[str, Any] | None:
        for name in ("prompt", "chosen", "rejected"):
            if not row.get(name):
                raise InputError(
                    f"{where}: no {name!r}{nearest(name, row)}",
                    "a preference needs prompt, chosen and rejected",
                )
        prompt = _messages({"prompt": row["prompt"]}, where)
        sides = {side: _answer(row[side], f"{where}: {side}") for side in ("chosen", "rejected")}
        if not all(said[-1]["content"].strip() for said in (prompt, *sides.values())):
            return None
        margin = row.get("margin")
        if not isinstance(margin, int | float | None):
            raise InputError(f"{where}: margin {margin!r} is not a number", "mend that row")
        return {
            "prompt_id": _given_id(row) or text_hash(source + prompt[0]["content"]),
            "language": language,
            "prompt": prompt,
            **sides,
            "margin": None if margin is None else float(margin),
        }


def _messages(row: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    value = row.get("messages") or row.get("prompt")
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise InputError(
            f"{where}: no messages{nearest('messages', row)}",
            "give each row 'messages' (a list of role and content) or 'prompt' (text)",
        )
    for message in value:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(part), str) for part in ("role", "content")
        ):
            raise InputError(
                f"{where}: a message without role or content", "both are text: mend that row"
            )
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _answer(value: Any, where: str) -> list[dict[str, str]]:
    """The assistant's part of a preference: text, or the last message of a conversation."""
    [*_, last] = _messages({"messages": value}, where)
    return [{"role": "assistant", "content": last["content"]}]


def _given_id(row: Mapping[str, Any]) -> str:
    """The id that the source gives a row, `""` for none; 0 is one."""
    found = next((row[key] for key in ("prompt_id", "id") if row.get(key) is not None), "")
    return str(found)


def _unlike(seen: Collection[str], name: str) -> str:
    """`name`, with -2, -3, … if it is taken: two prompts under one id stay two prompts."""
    tries = (f"{name}-{times}" for times in itertools.count(2))
    return name if name not in seen else next(other for other in tries if other not in seen)


def read_rows(path: Path, language: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a file or of a Hub dataset on disk, each with where it stands.

    A dataset with a config named by the language gives that config; one with a `language`
    column gives its rows in that language. Raises InputError for what cannot be read.
    """
    if is_file(path.name):
        read = _read_jsonl if path.suffix == ".jsonl" else _read_parquet
        for where, row in read(path):
            if row.get("language", language) == language:
                yield where, row
    else:
        yield from _read_dataset(path, language, split)


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        table = pq.ParquetFile(path).read()
    except pa.ArrowInvalid:
        raise InputError(f"{path.name} is not a parquet file", "check what is in it") from None
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{path.name} row {number}", row


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
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


def _read_dataset(path: Path, language: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    configs = datasets.get_dataset_config_names(str(path))
    config = language if language in configs else configs[0]
    if len(configs) > 1 and config != language:
        raise InputError(
            f"{path.name} has no config {language!r}, only {', '.join(configs)}",
            "name a dataset with a config for every language of the recipe",
        )
    try:
        rows = datasets.load_dataset(str(path), config, split=split)
    except ValueError as error:
        raise InputError(f"split {split!r} cannot be read: {error}", "set split:") from None
    if config != language and "language" not in rows.column_names and language != "en":
        raise InputError(
            f"the dataset does not say which rows are in {language!r}",
            "use a dataset with a config or a 'language' column per language",
        )
    for number, row in enumerate(rows, start=1):
        if row.get("language", language) == language:
            yield f"{config} row {number}", dict(row)

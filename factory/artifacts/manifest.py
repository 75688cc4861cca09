"""The manifest: the record of what an artifact is and how it came about.

A *slice* (one language of one artifact, or one model in one language) is the unit of identity.
Its fingerprint hashes everything that gives its rows their meaning; see docs/architecture.md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from factory.artifacts import untrusted
from factory.artifacts.hashing import MANIFEST, content_digest

# A manifest may be anybody's: what could become a path or an address is checked when it is read.
RepoId = Annotated[str, AfterValidator(untrusted.repo)]
Revision = Annotated[str, AfterValidator(untrusted.revision)]
Tag = Annotated[str, AfterValidator(untrusted.ref)]
FilePath = Annotated[str, AfterValidator(untrusted.path)]
Fingerprint = Annotated[str, AfterValidator(untrusted.fingerprint)]
Word = Annotated[str, AfterValidator(untrusted.word)]
StepName = Annotated[str, AfterValidator(untrusted.step)]
Size = Annotated[int, AfterValidator(untrusted.size)]


class Record(BaseModel):
    """Base of everything written to a manifest: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class License(Record):
    """A licence by the Hub's id, written as that alone or with more. `other` needs `name` and
    `link`; `because` is why a person says so although the inputs do not."""

    id: str
    name: str | None = None
    link: str | None = None
    because: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_id(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _short(self, dump: SerializerFunctionWrapHandler) -> str | dict[str, Any]:
        values: dict[str, Any] = {k: v for k, v in dump(self).items() if v is not None}
        return self.id if values.keys() == {"id"} else values

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, handler.resolve_ref_schema(handler(schema))]}


class FileRecord(Record):
    """One file of an artifact: path from its root, sha256, bytes, and rows if it is a table."""

    path: FilePath
    sha256: str
    size: Size
    rows: int | None = None


class InputRecord(Record):
    """One input of a slice: an artifact's slice (`step`, `slice`, `fingerprint`, at `repo` and
    `tag`) or something from outside (`source`, `revision`). `digest` is the content that was read,
    `license` its licence. `served`: a model behind a server, by the name `source`; its weights are
    not known, and `digest` is of the name."""

    role: str
    digest: str
    step: StepName | None = None
    slice: FilePath | None = None
    fingerprint: Fingerprint | None = None
    repo: RepoId | None = None
    tag: Tag | None = None
    source: str | None = None
    revision: Revision | None = None
    license: License | None = None
    # of an adapter that was read as it was after this share of its training
    checkpoint: FilePath | None = Field(None, exclude_if=lambda value: value is None)
    served: bool = Field(False, exclude_if=lambda value: not value)


class Rows(Record):
    """Row counts of one slice: `into` = `out` + the sum of `dropped` by reason.

    `into` counts the rows that the stage was asked to make (for generate: prompts x n).
    """

    into: int
    out: int
    dropped: dict[str, int] = Field(default_factory=dict)

    def balanced(self) -> bool:
        """Return whether every row that is missing has a reason."""
        return self.into == self.out + sum(self.dropped.values())

    @classmethod
    def total(cls, slices: Iterable[Rows]) -> Rows:
        """Sum the row counts of several slices."""
        counts, dropped = list(slices), Counter[str]()
        for rows in counts:
            dropped.update(rows.dropped)
        into, out = sum(rows.into for rows in counts), sum(rows.out for rows in counts)
        return cls(into=into, out=out, dropped=dict(dropped))


class SliceRecord(Record):
    """One slice: its identity as hashed, its inputs, row counts, content digest, and how many of
    its rows were reused."""

    fingerprint: Fingerprint
    row_key: Fingerprint
    identity: dict[str, Any]
    inputs: list[InputRecord]
    rows: Rows
    digest: str
    taken_over: dict[str, int] = Field(default_factory=dict)  # rows, by repo@tag they stood in


class Sample(Record):
    """A row as an example, chosen by its position alone; long texts are cut."""

    slice: FilePath
    row: int
    cells: dict[str, Any]


class Cost(Record):
    """Cost of a step over all attempts: seconds of wall time and GPU-hours. Where it was measured,
    also how many `engines` ran at once, and their seconds of work and of loading models, summed
    over engines."""

    wall_seconds: float
    gpu_hours: float = 0.0
    tokens: int = 0
    engines: int = 0
    working_seconds: float = 0.0
    loading_seconds: float = 0.0


class Manifest(Record):
    """Manifest of one artifact: `factory.json` at its root, written last."""

    manifest_version: int = 1
    repo: RepoId
    license: License | None = None
    recipe: Word
    step: StepName
    stage: Word
    kind: Word
    fingerprint: Fingerprint
    languages: list[str]
    fields: dict[str, Any]
    how: dict[str, Any]
    seed: int
    slices: dict[FilePath, SliceRecord]
    files: list[FileRecord]
    models: list[InputRecord] = Field(default_factory=list)
    stats: dict[str, Any] = Field(default_factory=dict)
    samples: list[Sample] = Field(default_factory=list)
    references: list[str] = Field(default_factory=list)  # keys of cards/references.bib
    departures: dict[str, str] = Field(default_factory=dict)  # from what its recipe follows: why
    determinism: str  # exact | rounding | distribution
    template: dict[str, Any] | None = None
    cost: Cost
    environment: dict[str, str]
    created: str

    @property
    def tag(self) -> str:
        """The Hub tag that names this artifact's identity."""
        return f"fp-{self.fingerprint}"

    def content(self) -> str:
        """Return the digest of all slices together. Two draws of one recipe differ here alone."""
        return content_digest((name, record.digest) for name, record in self.slices.items())

    def digest_of(self, folder: str) -> str:
        """Return the digest of the files below a folder, as if there were no others."""
        below = f"{folder}/"
        return content_digest(
            (record.path.removeprefix(below), record.sha256)
            for record in self.files
            if record.path.startswith(below)
        )

    def damaged(self, contents: Mapping[str, str]) -> list[str]:
        """Return the files that are not as they were recorded, by the sha256 of every file that is
        there."""
        return [file.path for file in self.files if contents.get(file.path) != file.sha256]

    def rows(self) -> Rows:
        """Sum the row counts of all slices."""
        return Rows.total(record.rows for record in self.slices.values())

    def dump(self) -> str:
        """Serialize the manifest as the text of `factory.json`."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of an artifact on disk. Raises OSError or ValueError when there is none."""
    return Manifest.model_validate_json((directory / MANIFEST).read_bytes())

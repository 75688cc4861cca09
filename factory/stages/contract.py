"""What a stage is: its knobs, what it reads, and the job it is handed.

A stage is a pydantic model. Its fields are the semantic knobs, hashed into fingerprints unless
marked otherwise:

- `EXTENT` fields say how much (n samples), not what: they are in the fingerprint but not in the
  row key, so that rows of a smaller artifact can serve a larger one;
- `REFERENCE` fields name another stage or model: what they resolve to is hashed, not the name;
- `GATE` fields say when to refuse to run: they change no row that is made;
- `how` says how it is run and is never hashed.

It sees tables and directories, never a hub, a queue or a card.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from factory import schemas, shards
from factory.artifact import Rows
from factory.errors import InputError, RecipeError, nearest
from factory.shards import Shard

if TYPE_CHECKING:
    import polars as pl


class _Mark:
    """A mark on a field, read by Stage._fields."""

    def __init__(self, name: str) -> None:
        self.name = name


_BATCH = 2048  # rows of long text in memory at once
_BUFFER = 2**20  # bytes of the file read ahead

EXTENT, REFERENCE, GATE = _Mark("extent"), _Mark("reference"), _Mark("gate")


class Knobs(BaseModel):
    """Base of every part of a recipe: immutable, unknown keys refused, no number from a string."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _not_coerced(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes "5", yes and 1 for numbers and booleans alike; people mean one."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if kind in (int, float) and isinstance(value, str | bool):
            raise ValueError(f"must be a number, not {value!r}")
        if kind is bool and not isinstance(value, bool):
            raise ValueError(f"must be true or false, not {value!r}")
        return value


@dataclass(frozen=True)
class Read:
    """One slice of another step's artifact, read under the name `role`."""

    role: str
    step: str
    slice: str


@dataclass(frozen=True)
class Outside:
    """A file or Hub repo from outside, as the recipe names it, read under the name `role`.

    `extent` marks data whose content only says how much there is (a list of prompts)."""

    role: str
    source: str
    kind: Literal["model", "dataset"]
    extent: bool = False


Need = Read | Outside


@dataclass(frozen=True)
class SliceSpec:
    """One slice to be made: the step it belongs to, its name (also its folder under `data/`),
    its language (None when it mixes several) and what it reads."""

    step: str
    name: str
    language: str | None
    needs: tuple[Need, ...]
    notes: tuple[str, ...] = ()  # what the card should say of it; never hashed

    def need(self, role: str) -> Need | None:
        """The one need of `role`, if it has one."""
        return next((need for need in self.needs if need.role == role), None)


class ModelRef(Knobs):
    """A model: a Hub repo by `name` (with `revision`), or `step`, a stage that trains it here."""

    name: str | None = None
    revision: str = "main"
    step: str | None = None
    kind: Literal["causal", "classifier"] = "causal"

    @model_validator(mode="after")
    def _names_one(self) -> ModelRef:
        if (self.name is None) == (self.step is None):
            raise ValueError("needs either a name or a step")
        if self.name is not None and self.name.count("/") != 1:
            raise ValueError(f"{self.name!r} is not of the form org/name")
        return self


@dataclass(frozen=True)
class Scope:
    """What a stage may know of its recipe to lay out its slices."""

    languages: tuple[str, ...]
    models: Mapping[str, ModelRef]
    stages: Mapping[str, Stage]

    def stage(self, name: str, asked_by: str) -> Stage:
        """The stage called `name`. Raises RecipeError when the recipe has none."""
        if name not in self.stages:
            raise RecipeError(
                f"stages.{asked_by} needs the stage {name!r}, which the recipe does not have"
                + nearest(name, self.stages),
                f"add {name!r} under stages:",
            )
        return self.stages[name]

    def slices(self, name: str, asked_by: str) -> list[SliceSpec]:
        """All slices of the stage called `name`."""
        return self.stage(name, asked_by).slices(self)

    def model(self, name: str, role: str, asked_by: str) -> Need:
        """What reading the model called `name` under models: means."""
        if name not in self.models:
            raise RecipeError(
                f"stages.{asked_by} names the model {name!r}{nearest(name, self.models)}",
                f"use one under models: ({', '.join(self.models)})",
            )
        ref = self.models[name]
        if ref.step is not None:
            [made] = self.slices(ref.step, asked_by)
            return Read(role, made.step, made.name)
        return Outside(role, f"{ref.name}@{ref.revision}", "model")

    def classifier(self, name: str, role: str, asked_by: str) -> Need:
        """The same for a model that gives rewards. Raises RecipeError for a causal one."""
        need = self.model(name, role, asked_by)
        if self.models[name].kind != "classifier":
            raise RecipeError(
                f"stages.{asked_by}: the model {name!r} is not a classifier",
                f"give models.{name} as {{kind: classifier, name: …}} or {{…, step: reward}}",
            )
        return need


class Progress(Protocol):
    """How a stage tells that it moves: `done` of `total` units, `tokens` so far in this run."""

    def __call__(self, done: int, total: int, unit: str, tokens: int = 0) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where a need lies on this disk, and its name and revision on the Hub (None for a file)."""

    path: Path
    name: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Job:
    """One step's work: its slices, where their inputs lie, and where output goes.

    `work` survives a kill (shards, checkpoints); what is left in `out` becomes the artifact.
    """

    step: str
    seed: int
    slices: tuple[SliceSpec, ...]
    places: Mapping[Need, Place]
    work: Path
    out: Path
    progress: Progress

    def place(self, spec: SliceSpec, role: str) -> Place:
        """Where the one need of `role` lies. Raises KeyError when the slice has none."""
        need = spec.need(role)
        if need is None:
            raise KeyError(role)
        return self.places[need]

    def table(self, spec: SliceSpec, role: str, kind: str) -> pa.Table:
        """All rows of the artifact slices read as `role`, as a table of `kind`."""
        reads = [n for n in spec.needs if isinstance(n, Read) and n.role == role]
        parts = [self.rows(need, kind) for need in reads]
        return pa.concat_tables(parts) if parts else schemas.SCHEMAS[kind].empty_table()

    def rows(self, need: Read, kind: str, columns: Collection[str] | None = None) -> pa.Table:
        """All rows of one slice, or only these columns of them."""
        return read_slice(self.places[need].path, need.slice, kind, columns)

    def pick(self, need: Read, column: str, rows: Iterable[int]) -> pl.Series:
        """The texts of one column at these rows of one slice, in their order."""
        return pick_rows(self.places[need].path, need.slice, column, rows)

    def make_rows(
        self,
        sizes: Mapping[str, int],
        per_shard: int,
        make: Callable[[Shard], tuple[pa.Table, int]],
    ) -> dict[str, pa.Table]:
        """The loop of a row-wise stage: every shard that is not there yet is made and kept, then
        each slice is written whole. `make` gives a shard's rows and how many tokens they cost.

        sizes: units (prompts, samples, questions) of each slice. Returns the rows of each slice.
        """
        grid = shards.grid(self.work, sizes, per_shard)
        tokens = 0

        def counted(shard: Shard) -> pa.Table:
            nonlocal tokens
            table, cost = make(shard)
            tokens += cost
            return table

        shards.run(
            self.work, grid, counted, lambda done, of: self.progress(done, of, "shards", tokens)
        )
        tables = {name: shards.rows(self.work, grid, name) for name in sizes}
        for name, table in tables.items():
            shards.write_slice(slice_directory(self.out, name), table)
        return tables


@dataclass
class Outcome:
    """What a stage reports beside its files: counts by slice, figures for the card, and what a
    second run would give: equal bytes (`exact`), equal but for the last digits (`rounding`), or
    another draw (`distribution`)."""

    rows: dict[str, Rows]
    determinism: Literal["exact", "rounding", "distribution"]
    stats: dict[str, Any] = field(default_factory=dict)
    template: dict[str, Any] | None = None
    tokens: int = 0


class How(Knobs):
    """How a stage is run; never part of its identity."""


class Stage(Knobs):
    """Base of all stages. Subclasses set `name`, `kind`, `repo` and, when the meaning of their
    output changes, raise `version`."""

    name: ClassVar[str]
    kind: ClassVar[str]  # a kind of row in schemas.py, or "adapter" or "model"
    repo: ClassVar[str]  # `{org}/{recipe}-{repo}`
    version: ClassVar[int] = 1
    seeded: ClassVar[bool] = False  # whether the recipe's seed changes the output

    how: How = How()

    def slices(self, scope: Scope) -> list[SliceSpec]:
        """Every slice of every step of this stage, in order. Raises RecipeError."""
        raise NotImplementedError

    def run(self, job: Job) -> Outcome:
        """Do the work of one step. Raises FactoryError."""
        raise NotImplementedError

    def least(self) -> dict[str, int]:
        """By role, the fewest rows this stage can do anything with."""
        return {}

    def semantic(self, spec: SliceSpec) -> dict[str, Any]:
        """The fields that give the rows of a slice their meaning and are not at their default."""
        return self._fields(lambda marks: not marks)

    def draws(self, spec: SliceSpec) -> bool:
        """Whether the recipe's seed changes the rows of a slice."""
        return self.seeded

    def extent(self) -> dict[str, Any]:
        """The fields that say how much."""
        return self._fields(lambda marks: EXTENT in marks)

    def _fields(self, wanted: Any) -> dict[str, Any]:
        names = {
            name
            for name, info in type(self).model_fields.items()
            if name != "how" and wanted([m for m in info.metadata if isinstance(m, _Mark)])
        }
        return self.model_dump(mode="json", include=names, exclude_defaults=True)


def slice_directory(root: Path, name: str) -> Path:
    """Where the files of slice `name` lie in an artifact of rows."""
    return root / "data" / name


def read_slice(
    root: Path, name: str, kind: str, columns: Collection[str] | None = None
) -> pa.Table:
    """The rows of one slice of an artifact at rest, checked against its contract. With
    `columns`, these alone are read, and of the others only the names."""
    found = []
    for file in _files(root, name):
        # ParquetFile and not read_table, which brings in pyarrow.dataset and with it pandas
        with pq.ParquetFile(file) as parquet:
            there = parquet.schema_arrow.names
            schemas.check_names(there, schemas.SCHEMAS[kind], kind, str(file.parent))
            table = parquet.read([n for n in columns if n in there] if columns else None)
        found.append(schemas.conform(table, kind, str(file.parent), columns))
    return pa.concat_tables(found)


def pick_rows(root: Path, name: str, column: str, rows: Iterable[int]) -> pl.Series:
    """The texts of one column of a slice at `rows`, in their order. Read batch by batch: a column
    of long texts is never in memory as a whole."""
    import numpy as np
    import polars as pl  # also to make arrays: pyarrow's own way to make one imports pandas

    places, back = np.unique(np.fromiter(rows, np.int64), return_inverse=True)
    found, start = [pl.Series(dtype=pl.String)], 0
    for file in _files(root, name):
        with pq.ParquetFile(file, buffer_size=_BUFFER) as parquet:
            for batch in parquet.iter_batches(_BATCH, columns=[column], use_threads=False):
                low, high = np.searchsorted(places, (start, start + len(batch)))
                found.append(pl.Series(batch.column(0))[places[low:high] - start])
                start += len(batch)
    pa.default_memory_pool().release_unused()  # it would keep what the column needed
    return pl.concat(found)[back]


def _files(root: Path, name: str) -> list[Path]:
    directory = slice_directory(root, name)
    files = sorted(directory.glob("*.parquet"))
    if not files:
        raise InputError(f"no rows at {directory}", "fetch the artifact again")
    return files

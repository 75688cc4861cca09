"""A job: the slices of one step, the places of their inputs, and where their rows go.

It sees tables and directories, never a hub, a queue or a card.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from factory.artifacts import files, reuse, schemas, shards
from factory.artifacts.reuse import ReusableSlice, ReusedRows
from factory.artifacts.shards import Shard, ShardTotals
from factory.artifacts.tables import Reader, pick_rows, read_slice, slice_directory, slice_files
from factory.stage import shard_loop
from factory.stage.inputs import Need, SliceSpec, StepInput
from factory.stage.outcome import gpus

if TYPE_CHECKING:
    import polars as pl

_REPORT_EVERY = 5.0  # seconds


class Progress(Protocol):
    """Receives progress of a stage: `done` of `total` units, `tokens` so far in this run."""

    def __call__(self, done: int, total: int, unit: str, tokens: int = 0) -> None: ...


@dataclass(frozen=True)
class Place:
    """Path of an input on this disk, with its name and revision on the Hub (None for a file) and
    its folder in that repo, if it is not all of it."""

    path: Path
    name: str | None = None
    revision: str | None = None
    folder: str = ""

    @property
    def label(self) -> str:
        """Return its repo, revision and folder on the Hub."""
        return f"{self.name}@{self.revision}" + (f":{self.folder}" if self.folder else "")


class PartDone(Exception):
    """A process that was to make a part of the shards has made them: there is no result yet."""

    def __init__(self, done: int, total: int) -> None:
        """Count all shards of the job, however many processes make them."""
        super().__init__(f"{done} of {total} shards")
        self.done, self.total = done, total


@dataclass(frozen=True)
class Job:
    """Work of one step: its slices, where their inputs lie, and where output goes.

    `work` survives a kill (shards, checkpoints); what is left in `out` becomes the artifact.
    `part` (number, of) is given to a process that makes one part of the shards and no result.
    """

    step: str
    seed: int
    slices: tuple[SliceSpec, ...]
    places: Mapping[Need, Place]
    work: Path
    out: Path
    progress: Progress
    earlier: Mapping[str, tuple[ReusableSlice, ...]] = field(default_factory=dict)  # by slice
    part: tuple[int, int] | None = None
    digests: Mapping[Need, str] = field(default_factory=dict)  # of slices that have rivals

    def place(self, spec: SliceSpec, role: str) -> Place:
        """Return the place of the one input of `role`. Raises KeyError if the slice has none."""
        need = spec.need(role)
        if need is None:
            raise KeyError(role)
        return self.places[need]

    def table(self, spec: SliceSpec, role: str, kind: str) -> pa.Table:
        """Return all rows of the slices read as `role`, as a table of `kind`."""
        reads = [n for n in spec.needs if isinstance(n, StepInput) and n.role == role]
        parts = [self.rows(need, kind) for need in reads]
        if not parts:
            return schemas.SCHEMAS[kind].empty_table()
        return pa.concat_tables(parts, promote_options="default")

    def rows(self, need: StepInput, kind: str, columns: Collection[str] | None = None) -> pa.Table:
        """Return all rows of one slice, or only these columns of them."""
        return read_slice(self.places[need].path, need.slice, kind, columns)

    def pick(self, need: StepInput, column: str, rows: Iterable[int]) -> pl.Series:
        """Return the texts of one column at these rows of one slice, in their order."""
        return pick_rows(self.places[need].path, need.slice, column, rows)

    def missing(self, name: str, kind: str, rows: pl.DataFrame) -> list[int]:
        """Return the rows of slice `name` that have to be made, as row numbers of `rows`. The
        others are reused from earlier artifacts.

        rows: the address and input hashes of every row of the slice; see `reuse.take`.
        """
        with files.file_lock(self.work):
            reused = reuse.take(self.work, name, kind, self.earlier.get(name, ()), rows)
        return [] if reused.whole else reuse.missing(reused, rows)

    def reused(self, name: str, kind: str) -> ReusedRows:
        """Return the rows of earlier artifacts that slice `name` reuses."""
        with files.file_lock(self.work):
            return reuse.take(self.work, name, kind, self.earlier.get(name, ()), None)

    def reader(self, need: Need | None, kind: str) -> Reader:
        """Return a reader of one slice, which gives rows by their numbers."""
        assert isinstance(need, StepInput)
        return Reader(slice_files(self.places[need].path, need.slice), kind)

    def make_shards(
        self,
        kind: str,
        sizes: Mapping[str, int],
        per_shard: int,
        make: Callable[[Shard], tuple[pa.Table, int]],
        lanes: Callable[[Shard], int] = lambda shard: 1,
        apart: Callable[[Shard], object] = lambda shard: None,
        spent: Callable[[], int] | None = None,
        work_only: Mapping[str, int] | None = None,
        began: float | None = None,
    ) -> dict[str, ShardTotals]:
        """Make every shard that does not exist yet, then write each slice: reused rows first.

        kind: of the rows that `make` returns.
        sizes: units (prompts, samples, questions) to be made of each slice. A slice that is
            reused as a whole has none, whatever is given.
        per_shard: units of a shard.
        make: returns the rows of a shard and the tokens that they cost.
        lanes, apart: see shard_loop.run.
        spent: returns the tokens that all shards have cost so far, unfinished ones included.
        work_only: units of shards that are no rows of a slice, by name, such as pairs of an audit.
            They are made with the others and stay in the work directory: see shard_rows.
        began: when the work on these shards began, by time.monotonic, if before this call.

        Returns the totals of the shards of each slice. Raises PartDone where this process was to
        make only a part.
        """
        reused = {name: self.reused(name, kind) for name in sizes}
        todo = {name: 0 if reused[name].whole else size for name, size in sizes.items()}
        grid = shards.grid(self.work, {**todo, **(work_only or {})}, per_shard)
        part = grid.part(*self.part) if self.part else grid
        maker = "{}/{}".format(*(self.part or (0, 1)))
        tokens, last, loading = 0, began or time.monotonic(), 0.0
        warm, wide = 0, 1  # shards that were made since it was loaded, and that are made at once

        def opened(shard: Shard) -> int:
            nonlocal loading, warm, wide
            began = time.monotonic()
            wide = lanes(shard)  # which loads what makes the shards, where that is to be loaded
            loading, warm = loading + time.monotonic() - began, 0
            return wide

        def counted(shard: Shard) -> pa.Table:
            nonlocal tokens, last, loading, warm
            if shard.start == shard.stop:
                return schemas.from_rows([], kind)
            table, cost = make(shard)
            tokens += cost
            # since the last shard was done, in whichever lane: all lanes share the devices
            seconds, last = time.monotonic() - last, time.monotonic()
            loaded, loading, warm = loading, 0.0, warm + 1
            return shards.with_metadata(
                table,
                tokens=cost,
                gpu_seconds=round(seconds * gpus(), 3),
                seconds=round(max(0.0, seconds - loaded), 3),
                loading=round(loaded, 3),
                maker=maker,
                first=warm <= wide,
            )

        with _ProgressReport(self.progress, spent or (lambda: tokens)) as report:
            shard_loop.run(self.work, part, counted, report, opened, apart)
        if self.part:
            raise PartDone(grid.done(self.work), len(grid.shards))
        totals = {}
        for name in sizes:
            directory = slice_directory(self.out, name)
            totals[name] = shards.shard_totals(self.work, grid, name)
            first = reuse.place(reused[name], directory)
            if totals[name].rows or not first:  # a slice without rows still leaves a file
                shards.compact(self.work, grid, name, directory, first)
        return totals

    def append(self, work_only: str, name: str) -> ShardTotals:
        """Append the rows of the shards of `work_only` to slice `name`. Returns their totals."""
        grid, directory = shards.read_grid(self.work), slice_directory(self.out, name)
        totals = shards.shard_totals(self.work, grid, work_only)
        if totals.rows:
            first = len(slice_files(self.out, name))
            shards.compact(self.work, grid, work_only, directory, first)
        return totals

    def shard_rows(self, name: str) -> pa.Table:
        """Return the rows of the shards of one name, once all are made."""
        return shards.rows(self.work, shards.read_grid(self.work), name)

    def make_rows(
        self,
        kind: str,
        sizes: Mapping[str, int],
        per_shard: int,
        make: Callable[[Shard], tuple[pa.Table, int]],
    ) -> dict[str, pa.Table]:
        """Make shards as `make_shards` does, and return all rows of each slice: for few rows."""
        self.make_shards(kind, sizes, per_shard, make)
        return {name: read_slice(self.out, name, kind) for name in sizes}


class _ProgressReport:
    """Reports progress whenever a shard is done, and every few seconds in between, since one may
    take ten minutes."""

    def __init__(self, progress: Progress, tokens: Callable[[], int]) -> None:
        self._progress, self._tokens = progress, tokens
        self._last = (0, 0)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            self._last = done, total
            self._progress(done, total, "shards", self._tokens())

    def _repeat(self) -> None:
        while not self._over.wait(_REPORT_EVERY):
            self(*self._last)

    def __enter__(self) -> _ProgressReport:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def policy(job: Job, spec: SliceSpec, number: str = "") -> tuple[Place, Path | None]:
    """Return the model that a slice is sampled from, and its adapter, if it has one; `-2` is the
    number of a second model."""
    adapter = job.place(spec, f"adapter{number}").path if spec.need(f"adapter{number}") else None
    return job.place(spec, f"model{number}"), adapter

"""A job: what one step is handed, where its inputs lie, and what it reports when it is done.

It sees tables and directories, never a hub, a queue or a card.
"""

from __future__ import annotations

import bisect
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from factory import earlier, schemas, shards
from factory.artifact import Rows
from factory.earlier import Earlier, Taken
from factory.errors import InputError
from factory.shards import Shard, Sum
from factory.stages.needs import Need, Read, SliceSpec

if TYPE_CHECKING:
    import polars as pl

AS_BEFORE = "as_before"  # dropped when the slice was first made, which no longer says why
_BATCH = 2048  # rows of long text in memory at once
_TELL_EVERY = 5.0  # seconds
_BUFFER = 2**20  # bytes of the file read ahead


class Progress(Protocol):
    """How a stage tells that it moves: `done` of `total` units, `tokens` so far in this run."""

    def __call__(self, done: int, total: int, unit: str, tokens: int = 0) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where a need lies on this disk, and its name and revision on the Hub (None for a file), with
    the folder of that repo that it is, where it is not all of it."""

    path: Path
    name: str | None = None
    revision: str | None = None
    folder: str = ""

    @property
    def said(self) -> str:
        """It on the Hub: repo, revision and folder."""
        return f"{self.name}@{self.revision}" + (f":{self.folder}" if self.folder else "")


class PartDone(Exception):
    """A process that was to make a part of the shards has made them: there is no result yet."""

    def __init__(self, done: int, total: int) -> None:
        """Of all shards of the job, however many processes make them."""
        super().__init__(f"{done} of {total} shards")
        self.done, self.total = done, total


@dataclass(frozen=True)
class Job:
    """One step's work: its slices, where their inputs lie, and where output goes.

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
    earlier: Mapping[str, tuple[Earlier, ...]] = field(default_factory=dict)  # by slice
    part: tuple[int, int] | None = None

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

    def missing(self, name: str, kind: str, asked: pl.DataFrame) -> list[int]:
        """Which rows of slice `name` have to be made, as row numbers of `asked`; the others are
        taken over from earlier artifacts. See `earlier.take` for what `asked` holds."""
        with shards.alone(self.work):
            taken = earlier.take(self.work, name, kind, self.earlier.get(name, ()), asked)
        return [] if taken.whole else earlier.missing(taken, asked)

    def taken(self, name: str, kind: str) -> Taken:
        """What slice `name` takes over from earlier artifacts."""
        with shards.alone(self.work):
            return earlier.take(self.work, name, kind, self.earlier.get(name, ()), None)

    def reader(self, need: Need | None, kind: str) -> Reader:
        """The rows of one slice by number, read as they are asked for."""
        assert isinstance(need, Read)
        return Reader(_files(self.places[need].path, need.slice), kind)

    def make_shards(
        self,
        kind: str,
        sizes: Mapping[str, int],
        per_shard: int,
        make: Callable[[Shard], tuple[pa.Table, int]],
        lanes: Callable[[Shard], int] = lambda shard: 1,
        apart: Callable[[Shard], object] = lambda shard: None,
        spent: Callable[[], int] | None = None,
    ) -> dict[str, Sum]:
        """The loop of a row-wise stage: every shard that is not there yet is made and kept, then
        each slice is written whole, what it takes over first. `make` gives a shard's rows and how
        many tokens they cost; see shards.run for `lanes` and `apart`. `spent` says how many tokens
        all shards have cost so far, those that are under way among them.

        sizes: units (prompts, samples, questions) to be made of each slice; a slice that stands
        as a whole has none, whatever is said. Returns what the shards of each slice say. Raises
        PartDone where only a part was to be made.
        """
        taken = {name: self.taken(name, kind) for name in sizes}
        todo = {name: 0 if taken[name].whole else size for name, size in sizes.items()}
        grid = shards.grid(self.work, todo, per_shard)
        mine = grid.part(*self.part) if self.part else grid
        maker = "{}/{}".format(*(self.part or (0, 1)))
        tokens, last, loading = 0, time.monotonic(), 0.0
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
                return schemas.SCHEMAS[kind].empty_table()
            table, cost = make(shard)
            tokens += cost
            # since the last shard was done, in whichever lane: all lanes share the devices
            seconds, last = time.monotonic() - last, time.monotonic()
            loaded, loading, warm = loading, 0.0, warm + 1
            return shards.noted(
                table,
                tokens=cost,
                gpu_seconds=round(seconds * gpus(), 3),
                seconds=round(max(0.0, seconds - loaded), 3),
                loading=round(loaded, 3),
                maker=maker,
                first=warm <= wide,
            )

        with _Told(self.progress, spent or (lambda: tokens)) as told:
            shards.run(self.work, mine, counted, told, opened, apart)
        if self.part:
            raise PartDone(grid.done(self.work), len(grid.shards))
        made = {}
        for name in sizes:
            directory = slice_directory(self.out, name)
            made[name] = shards.summed(self.work, grid, name)
            first = earlier.place(taken[name], directory)
            if made[name].rows or not first:  # a slice without rows still leaves a file
                shards.compact(self.work, grid, name, directory, first)
        return made

    def make_rows(
        self,
        kind: str,
        sizes: Mapping[str, int],
        per_shard: int,
        make: Callable[[Shard], tuple[pa.Table, int]],
    ) -> dict[str, pa.Table]:
        """The same for a stage whose rows are few: returns all rows of each slice."""
        self.make_shards(kind, sizes, per_shard, make)
        return {name: read_slice(self.out, name, kind) for name in sizes}


class Reader:
    """Rows of one slice by their numbers. One row group is in memory at a time, so neighbours
    should be asked for together."""

    def __init__(self, files: Sequence[Path], kind: str) -> None:
        self._kind = kind
        self._groups: list[tuple[int, Path, int]] = []  # first row, file, row group
        self._held: tuple[int, pa.Table] | None = None
        rows = 0
        for file in files:
            metadata = pq.read_metadata(file)
            for group in range(metadata.num_row_groups):
                self._groups.append((rows, file, group))
                rows += metadata.row_group(group).num_rows
        self._starts = [start for start, _, _ in self._groups]
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """These rows, in this order."""
        wanted: dict[int, list[int]] = {}
        for number in numbers:
            wanted.setdefault(bisect.bisect_right(self._starts, number) - 1, []).append(number)
        found: dict[int, dict[str, Any]] = {}
        for group, inside in wanted.items():
            start, table = self._starts[group], self._group(group)
            picked = table.take([number - start for number in inside]).to_pylist()
            found.update(zip(inside, picked, strict=True))
        return [found[number] for number in numbers]

    def _group(self, number: int) -> pa.Table:
        if self._held is None or self._held[0] != number:
            _, file, group = self._groups[number]
            with pq.ParquetFile(file) as parquet:
                table = parquet.read_row_group(group)
            self._held = number, schemas.conform(table, self._kind, str(file))
        return self._held[1]


class _Told:
    """Tells how far the shards are: whenever one is done, and every few seconds in between, since
    one may take ten minutes."""

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
        while not self._over.wait(_TELL_EVERY):
            self(*self._last)

    def __enter__(self) -> _Told:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def gpus() -> int:
    """How many GPUs this process has a hold of: none before torch is there to ask."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.device_count()) if torch else 0


@dataclass
class Outcome:
    """What a stage reports beside its files: counts by slice, figures for the card, and what a
    second run would give: equal bytes (`exact`), equal but for the last digits and the tokens that
    hang on them (`rounding`), or another draw (`distribution`)."""

    rows: dict[str, Rows]
    determinism: Literal["exact", "rounding", "distribution"]
    stats: dict[str, Any] = field(default_factory=dict)
    template: dict[str, Any] | None = None
    tokens: int = 0
    spent: Spent | None = None  # None where this process alone did all, and nobody looked closer


@dataclass(frozen=True)
class Spent:
    """Where the time of a step went, for those who want to know what a larger one would take:
    seconds that `engines` processes beside one another were at work, and that loading what they
    work with took, all of them together; and of GPUs, None where this process held all there
    were."""

    working: float
    loading: float = 0.0
    engines: int = 1
    gpu_seconds: float | None = None


def spent(made: Mapping[str, Sum]) -> Spent:
    """The same, of a step that is made in shards. The first that an engine makes are slower (it
    warms up, its lanes fill): where there are others, these say how fast it goes, token by token,
    and what the first took beyond that counts as loading."""
    sums = made.values()
    seconds, tokens = sum(found.seconds for found in sums), sum(found.tokens for found in sums)
    steady = seconds - sum(found.first_seconds for found in sums)
    of = tokens - sum(found.first_tokens for found in sums)
    working = tokens * steady / of if of > 0 and steady > 0 else seconds
    return Spent(
        working=working,
        loading=sum(found.loading for found in sums) + max(0.0, seconds - working),
        engines=len(set().union(*(found.makers for found in sums))),
        gpu_seconds=sum(found.gpu_seconds for found in sums),
    )


def greedy(made: Mapping[str, Sum]) -> Literal["exact", "rounding"]:
    """What a second run gives of greedy answers. Ordinary batches of transformers are the same ones
    each time; other engines form theirs as requests come and go, and of two tokens that are all but
    equal the other may be taken."""
    ordinary = re.compile(r"transformers [^,]*")
    return "exact" if all(map(ordinary.fullmatch, engines(made))) else "rounding"


def counted(into: int, out: int, found: Sum) -> Rows:
    """The counts of a slice: what its shards say they dropped, and what was dropped before where
    it was taken over."""
    dropped = Counter(found.dropped)
    dropped[AS_BEFORE] = into - out - dropped.total()
    return Rows(into=into, out=out, dropped=dict(+dropped))


def engines(made: Mapping[str, Sum]) -> dict[str, int]:
    """Shards by the engine that made them: more than one where a job went on elsewhere."""
    found: Counter[str] = Counter()
    for one in made.values():
        found.update(one.engines)
    return dict(sorted(found.items()))


def policy(job: Job, spec: SliceSpec) -> tuple[Place, Path | None]:
    """The model that a slice is drawn from, and the adapter on it, if it has one."""
    adapter = job.place(spec, "adapter").path if spec.need("adapter") else None
    return job.place(spec, "model"), adapter


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
    import polars as pl

    wanted, back = np.unique(np.fromiter(rows, np.int64), return_inverse=True)
    found, start = [pl.Series(dtype=pl.String)], 0
    for file in _files(root, name):
        # without pre_buffer: it would first read the whole column
        with pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as parquet:
            for batch in parquet.iter_batches(_BATCH, columns=[column], use_threads=False):
                low, high = np.searchsorted(wanted, (start, start + len(batch)))
                # by Arrow, which copies what is taken: polars would keep the batch behind it.
                # And the places by polars, since Arrow's way from numpy imports pandas.
                places = pl.Series(wanted[low:high] - start).to_arrow()
                found.append(pl.Series(batch.column(0).take(places)))
                start += len(batch)
    return pl.concat(found)[back]


def _files(root: Path, name: str) -> list[Path]:
    directory = slice_directory(root, name)
    files = sorted(directory.glob("*.parquet"))
    if not files:
        raise InputError(f"no rows at {directory}", "fetch the artifact again")
    return files

"""Compare two artifacts: manifests by field, rows by address, weights by norm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.artifacts.manifest import Manifest, read_manifest
from factory.errors import InputError
from factory.evaluation.statistics.agreement import Agreement, agreement, outcome
from factory.evaluation.statistics.table import ALL, POINTS

if TYPE_CHECKING:
    import polars as pl

# What tells one row of a slice from another, by kind.
ADDRESS = {
    "prompts": ("prompt_id",),
    "samples": ("prompt_id", "k"),
    "scores": ("prompt_id", "k"),
    "preferences": ("prompt_id",),
    "pairs": ("id",),
    "sft": ("id",),
    "answers": ("question_id",),
    "verdicts": ("question_id", "order"),
    "results": ("dataset", "metric"),
}

# What a verdict is about: two judges of other texts cannot agree.
_READ = ("prompt_hash", "answer_hash", "reference_hash")


@dataclass(frozen=True)
class Change:
    """A field that differs between two manifests, with both values (None if absent)."""

    part: str
    name: str
    one: Any
    other: Any


@dataclass(frozen=True)
class RowExample:
    """A row that is not the same: its address, what became of it (changed, gone or new), and of a
    changed one the cells (column, before, after)."""

    key: str
    fate: str
    cells: tuple[tuple[str, Any, Any], ...] = ()


@dataclass(frozen=True)
class RowChanges:
    """Rows of one slice: counts of rows that are the same, changed, or in one artifact only, and of
    changed rows by column; the first of those that are not the same."""

    same: int
    changed: int
    only_one: int
    only_other: int
    columns: dict[str, int] = field(default_factory=dict)
    examples: tuple[RowExample, ...] = ()


@dataclass(frozen=True)
class WeightChanges:
    """Weights: ||one - other|| / ||one|| over all shared tensors, the tensors that differ most by
    the same measure, and tensors that are in one artifact only."""

    relative: float
    largest: dict[str, float]
    only_one: list[str]
    only_other: list[str]


@dataclass(frozen=True)
class Difference:
    """Everything that differs between two artifacts. `rows` and `weights` need artifacts of the
    same kind; `judges` is the agreement of two sets of verdicts, by slice and over all."""

    same_bytes: bool
    changes: list[Change]
    rows: dict[str, RowChanges]
    weights: WeightChanges | None
    judges: dict[str, Agreement] = field(default_factory=dict)


def compare(first: Path, second: Path) -> Difference:
    """Compare two artifacts in directories. Raises InputError where there is no manifest."""
    ours, theirs = _manifest(first), _manifest(second)
    rows: dict[str, RowChanges] = {}
    weights = None
    if ours.kind == theirs.kind and ours.kind in ADDRESS:
        for name in dict.fromkeys((*ours.slices, *theirs.slices)):
            rows[name] = row_changes(_files(first, name), _files(second, name), ADDRESS[ours.kind])
    elif ours.kind == theirs.kind:
        weights = _weights(first, second)
    judges = {}
    if ours.kind == theirs.kind == "verdicts":
        judges = _judges(first, second, [name for name in ours.slices if name in theirs.slices])
    changes = list(manifest_changes(ours, theirs))
    return Difference(ours.content() == theirs.content(), changes, rows, weights, judges)


def _manifest(directory: Path) -> Manifest:
    try:
        return read_manifest(directory)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{directory} holds no artifact: {str(error).splitlines()[0]}",
            "name a directory or a repo with factory.json at its root",
        ) from None


def _fields_by_part(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Return the fields of a manifest by part, each flattened to dotted keys."""
    return {
        "made by": {"stage": manifest.stage, "kind": manifest.kind, "recipe": manifest.recipe},
        "fields": flat({**manifest.fields, "seed": manifest.seed}),
        "how": flat(manifest.how),
        "models": {
            record.role: f"{record.source or record.step} {record.digest[:12]}"
            for record in manifest.models
        },
        "inputs": {
            f"{name} {read.role} {number}": read.digest[:12]
            for name, record in manifest.slices.items()
            for number, read in enumerate(record.inputs)
        },
        "rows": flat({n: record.rows.model_dump() for n, record in manifest.slices.items()}),
        "figures": {key: value for key, value in flat(manifest.stats).items() if _figure(value)},
        "environment": dict(manifest.environment),
    }


def _figure(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings, and lists of mappings, to dotted keys; other lists are values."""
    entries: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, list) and item and all(isinstance(entry, Mapping) for entry in item):
            item = {str(number): entry for number, entry in enumerate(item)}
        if isinstance(item, Mapping):
            entries |= flat(item, f"{prefix}{key}.")
        else:
            entries[f"{prefix}{key}"] = item
    return entries


def manifest_changes(one: Manifest, other: Manifest) -> Iterator[Change]:
    """Yield the fields that differ between two manifests."""
    first, second = _fields_by_part(one), _fields_by_part(other)
    for part in first:
        for name in dict.fromkeys((*first[part], *second[part])):
            ours, theirs = first[part].get(name), second[part].get(name)
            both_nan = all(isinstance(v, float) and math.isnan(v) for v in (ours, theirs))
            if ours != theirs and not both_nan:
                yield Change(part, name, ours, theirs)


def row_changes(
    first: Sequence[Path], second: Sequence[Path], address: tuple[str, ...], n_examples: int = 0
) -> RowChanges:
    """Compare the rows in the files of a slice with those in others, by address; rows of equal
    address in their order. Raises InputError."""
    import polars as pl

    try:
        ours, theirs = _table(first, address), _table(second, address)
        return _row_changes(ours, theirs, address, n_examples)
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        raise InputError(
            f"these rows cannot be compared: {str(error).splitlines()[0]}",
            "check with factory card --check which of the two is damaged",
        ) from None


def _row_changes(
    ours: pl.DataFrame, theirs: pl.DataFrame, address: tuple[str, ...], n_examples: int
) -> RowChanges:
    import polars as pl

    if "draw" in ours.columns and "draw" in theirs.columns:
        address = (*address, "draw")
    if "order" in address and any(f.select(address).is_duplicated().any() for f in (ours, theirs)):
        address = (*address, *_READ)  # verdicts on several draws
    place = " place"  # among rows of one address
    keys = (*address, place)
    ours, theirs = (
        f.with_columns(pl.col(address).cast(pl.String).fill_null("")).with_columns(
            pl.int_range(pl.len()).over(address).alias(place)
        )
        for f in (ours, theirs)
    )
    columns = [c for c in ours.columns if c in theirs.columns and c not in keys]
    joined = ours.join(theirs, on=keys, how="inner", suffix=" of other")
    unequal = {
        column: pl.col(column).ne_missing(pl.col(f"{column} of other"))
        if ours.schema[column] == theirs.schema[column]
        else pl.lit(True)
        for column in columns
    }
    differs = joined.select(pl.repeat(False, pl.len()).alias(place), **unequal)
    changed = joined.filter(differs.select(pl.any_horizontal(pl.all())).to_series())
    gone = ours.join(theirs, on=keys, how="anti")
    new = theirs.join(ours, on=keys, how="anti")
    examples: list[RowExample] = []
    for fate, rows in (("changed", changed), ("gone", gone), ("new", new)):
        for row in rows.head(n_examples - len(examples)).iter_rows(named=True):
            cells = ((c, row[c], row.get(f"{c} of other", row[c])) for c in columns)
            differing = tuple(cell for cell in cells if repr(cell[1]) != repr(cell[2]))
            examples.append(RowExample(" ".join(row[c] for c in address), fate, differing))
    return RowChanges(
        same=len(joined) - len(changed),
        changed=len(changed),
        only_one=len(gone),
        only_other=len(new),
        columns={column: count for column in columns if (count := int(differs[column].sum()))},
        examples=tuple(examples),
    )


def _judges(first: Path, second: Path, names: list[str]) -> dict[str, Agreement]:
    """Return the agreement of two sets of verdicts by slice.

    Judges may have seen answers in other orders, so the mean verdict of each question is compared.
    Identical answers tie by rule without a judge and are left out.
    """
    import polars as pl

    joined_rows = {}
    for name in names:
        ours, theirs = _verdicts(first, name), _verdicts(second, name)
        joined = ours.join(theirs, on="question_id", suffix=" of other")
        same = pl.all_horizontal(
            pl.col(text).eq_missing(pl.col(f"{text} of other")) for text in _READ
        )
        alike = joined.filter(same)
        # of several drawn answers to a question, those that both judges read are compared
        unmatched = joined.join(alike, on="question_id", how="anti")["question_id"].n_unique()
        joined_rows[name] = alike, unmatched
    if len(joined_rows) > 1:
        frames, n_other = zip(*joined_rows.values(), strict=True)
        joined_rows = {ALL: (pl.concat(frames), sum(n_other)), **joined_rows}
    return {
        name: agreement(
            [outcome(mean) for mean in rows["mean"]],
            [outcome(mean) for mean in rows["mean of other"]],
            rows["question_id"].to_list(),
            n_other,
        )
        for name, (rows, n_other) in joined_rows.items()
    }


def _verdicts(root: Path, name: str) -> pl.DataFrame:
    """Return one row for each question: the mean score of its verdicts, null if none could be
    parsed, with hashes of what the judge read (null in older artifacts)."""
    import polars as pl

    columns = ("question_id", "verdict", "reason", *_READ)
    rows = _table(_files(root, name), columns)
    missing = [pl.lit(None, pl.String).alias(c) for c in columns if c not in rows.columns]
    shown = rows.with_columns(missing).filter(pl.col("reason").ne_missing("identical"))
    worth = pl.col("verdict").replace_strict(POINTS, default=None, return_dtype=pl.Float64)
    return shown.group_by("question_id", *_READ, maintain_order=True).agg(mean=worth.mean())


def _files(root: Path, name: str) -> list[Path]:
    return sorted((root / "data" / name).glob("*.parquet"))


def _table(files: Sequence[Path], columns: Sequence[str]) -> pl.DataFrame:
    """Return the rows of a slice, nested columns as text; of no files no rows of these columns."""
    import polars as pl

    if not files:
        return pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    frames = [pl.from_arrow(pq.ParquetFile(file).read()) for file in files]
    rows = pl.concat([f for f in frames if isinstance(f, pl.DataFrame)], how="diagonal")
    nested = [column for column, kind in rows.schema.items() if kind.is_nested()]
    talk = pl.element().struct.json_encode()
    return rows.with_columns(pl.col(column).list.eval(talk).list.join("\n") for column in nested)


def _weights(first: Path, second: Path) -> WeightChanges:
    import torch
    from safetensors import safe_open

    ours, theirs = _tensors(first), _tensors(second)
    shared, total, parts = [name for name in ours if name in theirs], [0.0, 0.0], {}
    for name in shared:
        with safe_open(ours[name], "pt") as a, safe_open(theirs[name], "pt") as b:
            own, their = (f.get_tensor(name).to(torch.float64) for f in (a, b))
        if own.shape != their.shape:
            parts[name] = math.inf
            continue
        gap, size = float((own - their).norm()), float(own.norm())
        total = [total[0] + gap**2, total[1] + size**2]
        parts[name] = gap / size if size else (math.inf if gap else 0.0)
    largest = sorted(parts.items(), key=lambda item: -item[1])[:5]
    return WeightChanges(
        relative=math.sqrt(total[0] / total[1]) if total[1] else 0.0,
        largest={name: value for name, value in largest if value},
        only_one=sorted(set(ours) - set(theirs)),
        only_other=sorted(set(theirs) - set(ours)),
    )


def _tensors(root: Path) -> dict[str, Path]:
    from safetensors import safe_open

    files: dict[str, Path] = {}
    for file in sorted(root.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            files |= dict.fromkeys(opened.keys(), file)
    if not files:
        raise InputError(f"{root} holds no safetensors", "name an adapter or a model")
    return files

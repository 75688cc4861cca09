"""Differences between two versions of a repo: manifests by field, rows by id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from factory.errors import InputError
from factory.localhub.errors import BadRequest
from factory.pages import rows
from factory.pages.visit import Version, Visit

if TYPE_CHECKING:
    from factory.execution.diff import Change, RowChanges

MOST_ROWS = 50_000  # of one slice that is compared
_SHOWN = 20


@dataclass(frozen=True)
class SliceDifference:
    """Rows of one slice that differ; `why` says why they were not compared."""

    name: str
    rows: RowChanges | None = None
    why: str = ""


@dataclass(frozen=True)
class VersionDifference:
    """All that differs between two versions; `files` are (path, what became of it)."""

    fields: tuple[Change, ...]
    files: tuple[tuple[str, str], ...]
    slices: tuple[SliceDifference, ...]


def between(visit: Visit, old: Version, new: Version) -> VersionDifference:
    """Compare two versions of a repo."""
    from factory.execution.diff import ADDRESS, manifest_changes  # slow: brings in scipy

    fields: tuple[Change, ...] = ()
    if old.manifest is not None and new.manifest is not None:
        fields = tuple(manifest_changes(old.manifest, new.manifest))
    before, after = (
        {p: e for p, e in visit.hub.trees.walk(version.commit.tree) if not e.is_directory}
        for version in (old, new)
    )
    fates = [
        (path, "new" if path not in before else "gone" if path not in after else "changed")
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
    tables = visit.tables(old), visit.tables(new)
    kind = new.manifest.kind if new.manifest else ""
    slices = tuple(
        _rows(name, tables[0].get(name, []), tables[1].get(name, []), ADDRESS.get(kind, ()))
        for name in dict.fromkeys((*tables[0], *tables[1]))
        if tables[0].get(name) != tables[1].get(name)
    )
    return VersionDifference(fields, tuple(fates), slices)


def _rows(
    name: str, old: Sequence[Path], new: Sequence[Path], address: tuple[str, ...]
) -> SliceDifference:
    from factory.execution.diff import row_changes

    try:
        if max(rows.count(files) for files in (old, new)) > MOST_ROWS:
            return SliceDifference(name, why=f"more than {MOST_ROWS:,} rows: see factory diff")
        if not address:
            return SliceDifference(name, why="nothing is known that tells its rows apart")
        return SliceDifference(name, row_changes(old, new, address, _SHOWN))
    except (InputError, BadRequest) as error:
        return SliceDifference(name, why=str(error))

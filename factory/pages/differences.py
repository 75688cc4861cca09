"""Differences between two versions of a repo: manifests by field, rows by id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from factory.pages import rows
from factory.pages.visit import Version, Visit

if TYPE_CHECKING:
    from factory.execution.diff import Change

MOST_ROWS = 50_000  # of one slice that is compared
_SHOWN = 20


@dataclass(frozen=True)
class ChangedRow:
    """A row by its id: what became of it; of a changed one its cells (column, before, after)."""

    key: str
    fate: str
    cells: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class SliceDifference:
    """Rows of one slice: how many are the same, changed, gone and new, and the first of those that
    are not the same; `why` says why they were not compared."""

    name: str
    same: int = 0
    changed: int = 0
    gone: int = 0
    new: int = 0
    shown: tuple[ChangedRow, ...] = ()
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


def _rows(name: str, old: Any, new: Any, address: tuple[str, ...]) -> SliceDifference:
    sizes = [rows.count(files) if files else 0 for files in (old, new)]
    if max(sizes) > MOST_ROWS:
        return SliceDifference(name, why=f"more than {MOST_ROWS:,} rows: see factory diff")
    if not address:
        return SliceDifference(name, why="nothing is known that tells its rows apart")
    before, after = ({_key(r, address): r for r in rows.records(files)} for files in (old, new))
    shown, same, changed = [], 0, 0
    for key, row in after.items():
        if key not in before:
            shown.append(ChangedRow(key, "new"))
        elif before[key] == row:
            same += 1
        else:
            changed += 1
            cells = tuple(
                (column, rows.as_text(before[key].get(column), 400), rows.as_text(value, 400))
                for column, value in row.items()
                if before[key].get(column) != value
            )
            shown.append(ChangedRow(key, "changed", cells))
    gone = [ChangedRow(key, "gone") for key in before if key not in after]
    shown = sorted([*shown, *gone], key=lambda row: row.fate)
    new_rows = len(after) - same - changed
    return SliceDifference(name, same, changed, len(gone), new_rows, tuple(shown[:_SHOWN]))


def _key(row: dict[str, Any], address: tuple[str, ...]) -> str:
    return " ".join(str(row.get(column)) for column in address)

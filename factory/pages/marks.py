"""Marks of readers: which answer of a pair is the better one, kept as a dataset on the hub.

Its rows are preferences, a file for each language, so that the stage `preferences` reads them and a
reward model is audited by what native speakers say. Each reader has marks of their own; where two
disagree, both rows stay.
"""

from __future__ import annotations

import io
import threading
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from factory.artifacts.schemas import SCHEMAS
from factory.localhub.changes import Put, Words
from factory.localhub.errors import BadRequest, NotFound, RepoNotFound
from factory.localhub.refs import MAIN
from factory.localhub.repos import Repo
from factory.pages import rows
from factory.pages.pools import turns
from factory.pages.visit import Version, Visit

_SUFFIX = "-marks"
_MOST = 90  # characters of a repo's name before the suffix
_SCHEMA = SCHEMAS["preferences"].append(pa.field("reader", pa.string()))  # name of the account
_writing = threading.Lock()


def repo_of(visit: Visit, version: Version) -> Repo | None:
    """Return the repo of the marks on an artifact of pairs; None while there is none."""
    try:
        return visit.hub.repos.find(
            "dataset", version.repo.namespace, _name(version), visit.account
        )
    except RepoNotFound:
        return None


def read(visit: Visit, version: Version, language: str) -> list[dict[str, Any]]:
    """Return the marked preferences of a language."""
    repo = repo_of(visit, version)
    files = visit.tables(visit.version(repo, MAIN)).get(language, []) if repo else []
    return rows.records(files, _SCHEMA.names)


def verdict(marked: dict[str, Any], pair: dict[str, Any]) -> str:
    """Return what a marked preference says of a pair: `right`, `wrong`, or nothing, as it is of
    another prompt or of the pair that another version made."""
    if marked["prompt_id"] != pair["prompt_id"]:
        return ""
    own, theirs = ([turns(row[side]) for side in ("chosen", "rejected")] for row in (marked, pair))
    return "right" if own == theirs else "wrong" if own == theirs[::-1] else ""


def mark(visit: Visit, version: Version, language: str, key: str, says: str) -> None:
    """Keep what a reader says of a prompt's pair: `right`, `wrong` (the answers change places), or
    `none`, which takes their mark away. Raises BadRequest, NotFound, Forbidden."""
    visit.account.require_write()
    if says not in ("right", "wrong", "none"):
        raise BadRequest("a mark is right, wrong or none")
    pairs = rows.lookup(
        visit.slice(version, language),
        "prompt_id",
        key,
        ("prompt_id", "prompt", "chosen", "rejected"),
    )
    if not pairs or version.manifest is None or language not in version.manifest.slices:
        raise NotFound(f"there is no pair of {key!r} in {language}")
    pair, reader = pairs[0], visit.account.user
    sides = ("chosen", "rejected") if says == "right" else ("rejected", "chosen")
    with _writing:
        marks = [
            row
            for row in read(visit, version, language)
            if row["reader"] not in (reader, None) or not verdict(row, pair)
        ]
        if says != "none":
            row = {"prompt_id": key, "language": language, "prompt": pair["prompt"]}
            row |= {"chosen": pair[sides[0]], "rejected": pair[sides[1]], "reader": reader}
            marks.append(row)
        _write(visit, version, language, marks, f"Mark {key} as {says}")


def _write(
    visit: Visit, version: Version, language: str, marks: list[dict[str, Any]], title: str
) -> None:
    hub, user = visit.hub, visit.account.user
    repo = repo_of(visit, version) or hub.create_repo(
        "dataset", version.repo.namespace, _name(version), owner=user, private=version.repo.private
    )
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(marks, schema=_SCHEMA), content)
    file = ("data", language, "part-00000.parquet")
    names = set(visit.tables(visit.version(repo, MAIN))) | {language}
    configs = "".join(
        f"- config_name: {name}\n  data_files: data/{name}/*.parquet\n" for name in sorted(names)
    )
    stated = version.manifest.license if version.manifest else None
    license = f"license: {stated.id}\n" if stated and stated.id != "other" else ""
    card = (
        f"---\n{license}configs:\n{configs}---\n\n# Marks on {version.repo.id}\n\n"
        "Pairs that readers marked on the pages of the local hub. `chosen` is the answer that "
        "`reader` calls better. Readers who disagree have a row each.\n\n"
        "An audit of a reward model reads them:\n\n```yaml\n"
        f"preferences: {{source: {repo.id}, languages: [{', '.join(sorted(names))}]}}\n```\n"
    )
    puts = [
        Put(file, hub.store_file(file[-1], content.getvalue())),
        Put(("README.md",), hub.store_file("README.md", card.encode())),
    ]
    hub.history.commit(repo, MAIN, puts, Words(user, title))


def _name(version: Version) -> str:
    return version.repo.name[:_MOST].rstrip("-.") + _SUFFIX

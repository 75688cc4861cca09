"""Marks of readers: which answer of a pair is the better one, kept as a dataset on the hub.

Its rows are preferences, a file for each language, so that the stage `preferences` reads them and a
reward model is audited by what native speakers say.
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
from factory.pages.visit import Version, Visit

_SUFFIX = "-marks"
_MOST = 90  # characters of a repo's name before the suffix
_writing = threading.Lock()


def repo_of(visit: Visit, version: Version) -> Repo | None:
    """Return the repo of the marks on an artifact of pairs; None while there is none."""
    try:
        return visit.hub.repos.find(
            "dataset", version.repo.namespace, _name(version), visit.account
        )
    except RepoNotFound:
        return None


def read(visit: Visit, version: Version, language: str) -> dict[str, list[dict[str, Any]]]:
    """Return the marked preferences of a language, by the id of their prompt."""
    repo = repo_of(visit, version)
    files = visit.tables(visit.version(repo, MAIN)).get(language, []) if repo else []
    marked: dict[str, list[dict[str, Any]]] = {}
    for row in rows.records(files):
        marked.setdefault(row["prompt_id"], []).append(row)
    return marked


def mark(visit: Visit, version: Version, language: str, key: str, verdict: str) -> None:
    """Keep what a reader says of a prompt's pair: `right`, `wrong` (the answers change places), or
    `none`, which takes a mark away. Raises BadRequest, NotFound, Forbidden."""
    visit.account.require_write()
    if verdict not in ("right", "wrong", "none"):
        raise BadRequest("a mark is right, wrong or none")
    pairs = rows.lookup(
        visit.slice(version, language),
        "prompt_id",
        key,
        ("prompt_id", "prompt", "chosen", "rejected"),
    )
    if not pairs or version.manifest is None or language not in version.manifest.slices:
        raise NotFound(f"there is no pair of {key!r} in {language}")
    pair = pairs[0]
    sides = ("chosen", "rejected") if verdict == "right" else ("rejected", "chosen")
    with _writing:
        marked = read(visit, version, language)
        marked.pop(key, None)
        if verdict != "none":
            row = {"prompt_id": key, "language": language, "prompt": pair["prompt"]}
            row |= {"chosen": pair[sides[0]], "rejected": pair[sides[1]], "margin": None}
            marked[key] = [row]
        marks = [row for of_prompt in marked.values() for row in of_prompt]
        _write(visit, version, language, marks, f"Mark {key} as {verdict}")


def _write(
    visit: Visit, version: Version, language: str, marks: list[dict[str, Any]], title: str
) -> None:
    hub, user = visit.hub, visit.account.user
    repo = repo_of(visit, version) or hub.create_repo(
        "dataset", version.repo.namespace, _name(version), owner=user, private=version.repo.private
    )
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(marks, schema=SCHEMAS["preferences"]), content)
    file = ("data", language, "part-00000.parquet")
    names = set(visit.tables(visit.version(repo, MAIN))) | {language}
    configs = "".join(
        f"- config_name: {name}\n  data_files: data/{name}/*.parquet\n" for name in sorted(names)
    )
    stated = version.manifest.license if version.manifest else None
    license = f"license: {stated.id}\n" if stated and stated.id != "other" else ""
    card = (
        f"---\n{license}configs:\n{configs}---\n\n# Marks on {version.repo.id}\n\n"
        "Pairs that readers marked on the pages of the local hub. `chosen` is the answer that a "
        "reader calls better.\n\nAn audit of a reward model reads them:\n\n```yaml\n"
        f"preferences: {{source: {repo.id}, languages: [{', '.join(sorted(names))}]}}\n```\n"
    )
    puts = [
        Put(file, hub.store_file(file[-1], content.getvalue())),
        Put(("README.md",), hub.store_file("README.md", card.encode())),
    ]
    hub.history.commit(repo, MAIN, puts, Words(user, title))


def _name(version: Version) -> str:
    return version.repo.name[:_MOST].rstrip("-.") + _SUFFIX

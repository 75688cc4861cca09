"""The pages one by one: what each is made from."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from starlette.responses import FileResponse, Response

from factory.artifacts.hashing import MANIFEST
from factory.localhub.cards import PATH as README
from factory.localhub.errors import Forbidden, NotFound, ProtocolError
from factory.localhub.refs import BRANCH, PULL
from factory.localhub.repos import Repo
from factory.pages import board, card, comparisons, differences, live, marks, pools, render, rows
from factory.pages.visit import Version, Visit, languages
from factory.reports.page import gather, lineage, lineage_graph
from factory.reports.page import page as results_page

_COMMITS = 50
_FILES = 1000
_FIELDS = 400  # of one part of a manifest
_SHOWN_BYTES = 200_000  # of a file
_CELL, _WHOLE_CELL = 240, 100_000  # characters
_COLUMNS = 200  # that a form offers
_QUESTIONS = 10  # on a page
# A file may be anybody's: as a page of its own it runs nothing and asks for nothing.
_FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
_TYPES = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "gif": "image/gif",
          "webp": "image/webp", "svg": "image/svg+xml"}  # fmt: skip
_SPOKEN = (("detected_language", "language"), ("chosen_language", "prompt_language"),
           ("rejected_language", "prompt_language"))  # fmt: skip


def home(visit: Visit) -> Response:
    """Collections, and repos in none; or all repos of the kind or namespace that the path names.
    Raises NotFound for a namespace without any."""
    kind, namespace = visit.params["kind"], visit.params.get("namespace")
    owners = (namespace,) if namespace else ()
    shelves = [] if kind else visit.hub.collections.visible(visit.account, owners)
    shelved = {(item.kind, item.repo_id) for shelf in shelves for item in shelf.items}
    repos = [
        repo
        for each in ("dataset", "model", "space")
        for repo in visit.hub.repos.visible(each, visit.account)
        if kind in ("", f"{each}s")
        and (repo.namespace == namespace if namespace else (each, repo.id) not in shelved)
    ]
    if namespace and not (shelves or repos):
        raise NotFound(f"there is nothing of {namespace} on this hub")
    steps = live.underway(visit.home) if visit.owns_hub else []
    running = sum(step.state == "running" for step in steps)
    of = namespace or kind.capitalize()
    return render.page("home", visit, of=of, shelves=shelves, repos=repos, running=running)


def collection(visit: Visit) -> Response:
    """A collection: its line, drawn, and every artifact with its note."""
    shelf = visit.shelf()
    versions = list(visit.artifacts(shelf))
    places = {(v.manifest.repo, v.manifest.content()): v for v in versions if v.manifest}
    chain = lineage.choose([v.manifest for v in versions if v.manifest])
    steps = [gather.PublishedStep(number, m) for number, m in enumerate(chain.manifests, 1)]
    # an artifact pulled under another name is known by its content
    placed = [(step, places[step.manifest.repo, step.manifest.content()]) for step in steps]
    drawn = {(version.repo.kind, version.repo.id) for _, version in placed}
    unplaced = [item for item in shelf.items if (item.kind, item.repo_id) not in drawn]
    notes = {item.repo_id: item.note for item in shelf.items}
    picture = lineage_graph.draw(steps) if steps else None
    return render.page(
        "collection", visit, shelf=shelf, made=placed, others=unplaced, notes=notes,
        picture=picture, reads=_reads,
    )  # fmt: skip


def results(visit: Visit) -> Response:
    """The results page of a collection, as factory report writes it."""
    shelf = visit.shelf()
    chain = lineage.choose([v.manifest for v in visit.artifacts(shelf) if v.manifest])
    if not chain.manifests:
        raise NotFound("this collection has no artifact with a manifest")
    report = gather.gather(chain, shelf.title, shelf.slug)
    headers = {**render.HEADERS, "Content-Security-Policy": "frame-ancestors 'none'"}
    return Response(results_page.render(report), 200, headers, "text/html")


def card_page(visit: Visit) -> Response:
    """The front page of a repo: its card, rendered."""
    version = visit.version()
    text = visit.hub.text(version.commit, README)
    trees, tree = visit.hub.trees, version.commit.tree
    body = card.render(
        text, version.link("blob"), version.files,
        lambda path: trees.find(tree, tuple(path.split("/"))) is not None,
        lambda path: _page_here(visit, version.repo, path),
    )  # fmt: skip
    requests = [
        discussion
        for discussion in visit.hub.discussions.all(version.repo)
        if discussion.base is not None
    ]
    return _repo_page(
        visit, version, "card", body=body, shelves=visit.shelves(version.repo), requests=requests
    )


def _page_here(visit: Visit, repo: Repo, path: str) -> str | None:
    """Return the page of this hub for a path that a repo's card links to on the public one: of a
    repo, of the repo's collection, or of the results of that."""
    kind = next((kind for kind in ("dataset", "space") if path.startswith(f"{kind}s/")), "model")
    namespace, _, name = path.partition("/tree/")[0].removeprefix(f"{kind}s/").partition("/")
    with suppress(ProtocolError):
        return f"/{visit.hub.repos.find(kind, namespace, name, visit.account).web_path}"
    shelf = next(iter(visit.shelves(repo)), None)
    if shelf is None or namespace != repo.namespace:
        return None
    if kind == "space":
        return f"/collections/{shelf.slug}/results"
    return f"/collections/{shelf.slug}" if name == "collections" else None


def files(visit: Visit) -> Response:
    """The files of a folder."""
    version, path = visit.version(), visit.params.get("path", "").strip("/")
    tree = version.commit.tree
    if path:
        entry = visit.entry(version, path)
        if not entry.is_directory:
            return file(visit)
        tree = entry.oid
    entries = list(visit.hub.trees.walk(tree, deep=False))
    entries.sort(key=lambda item: (not item[1].is_directory, item[0]))
    return _repo_page(
        visit, version, "files", path=path, entries=entries[:_FILES], more=len(entries) - _FILES
    )


def pull_request(visit: Visit) -> Response:
    """The files of a pull request."""
    at = {"revision": f"{PULL}{visit.params['number']}"}
    return files(replace(visit, params={**visit.params, **at}))


def file(visit: Visit) -> Response:
    """The text of a small file; of any other its size."""
    version, path = visit.version(), visit.params["path"].strip("/")
    entry = visit.entry(version, path)
    if entry.is_directory:
        return files(visit)
    with visit.hub.blobs.open(entry.sha256 or "") as opened:
        begin = opened.read(_SHOWN_BYTES)
    text = None if b"\0" in begin else begin.decode("utf-8", "replace")
    picture = path.rpartition(".")[2].lower() in _TYPES
    return _repo_page(visit, version, "file", path=path, entry=entry, text=text, picture=picture)


def raw(visit: Visit) -> Response:
    """A file as it is: pictures are shown, all others are saved."""
    version, path = visit.version(), visit.params["path"].strip("/")
    entry = visit.entry(version, path)
    if entry.is_directory or entry.sha256 is None:
        raise NotFound(f"a folder is at {path}")
    with visit.hub.blobs.open(entry.sha256) as opened:
        place = opened.name
    kind = _TYPES.get(path.rpartition(".")[2].lower())
    headers = {**render.HEADERS, "Content-Security-Policy": _FILE_POLICY}
    if kind is None:
        headers["Content-Disposition"] = f"attachment; filename*=utf-8''{quote(entry.name)}"
    return FileResponse(place, headers=headers, media_type=kind or "application/octet-stream")


def commits(visit: Visit) -> Response:
    """The history of a branch or tag, newest first."""
    version, skip = visit.version(), visit.number("skip", 10**6)
    log = visit.hub.history.log(version.repo, version.commit, skip, _COMMITS + 1)
    named: dict[str, list[str]] = {}
    for tag, oid in visit.refs(version.repo).items():
        named.setdefault(oid, []).append(tag)
    after = skip + _COMMITS if len(log) > _COMMITS else None
    return _repo_page(visit, version, "commits", log=log[:_COMMITS], named=named, after=after)


def manifest(visit: Visit) -> Response:
    """A manifest, part by part."""
    version = visit.version()
    if version.manifest is None:
        raise NotFound(f"{version.repo.id} has no manifest ({MANIFEST})")
    from factory.execution.diff import flat

    record = version.manifest
    parts = {
        "Fields": flat({**record.fields, "seed": record.seed}),
        "Not part of its identity": flat(record.how),
        "Statistics": flat(record.stats),
        "Environment": dict(record.environment),
        "Cost": record.cost.model_dump(),
    }
    shown = {name: list(values.items())[:_FIELDS] for name, values in parts.items() if values}
    sources = {
        (read.repo, read.tag): visit.source(read)
        for piece in record.slices.values()
        for read in piece.inputs
        if read.repo
    }
    return _repo_page(visit, version, "manifest", parts=shown, sources=sources, limit=_FIELDS)


def compare(visit: Visit) -> Response:
    """Show what differs between two revisions of a repo."""
    repo = visit.repo()
    names = [*visit.refs(repo, BRANCH), *visit.refs(repo)]
    new = visit.version(repo, visit.query.get("new") or names[0])
    old = visit.version(repo, visit.query.get("old") or names[-1])
    between = differences.between(visit, old, new)
    return _repo_page(visit, new, "compare", old=old, names=names, between=between)


def rows_page(visit: Visit) -> Response:
    """Rows of a table: some columns, searched and filtered, a page at a time."""
    version, query = visit.version(), visit.query
    tables = visit.tables(version)
    if not tables:
        raise NotFound(f"{version.repo.id} has no rows: its files hold no parquet")
    name = query.get("table") or next(iter(tables))
    if name not in tables:
        raise NotFound(f"{version.repo.id} has no rows of {name!r}")
    paths = tables[name]
    schema, total = rows.schema(paths), rows.count(paths)
    filters = _filters(visit, version, name, schema)
    names = schema.names
    chosen = [c for c in dict.fromkeys(query.getlist("column")) if c in names]
    shown = chosen or [n for n in names if "hash" not in n][: rows.COLUMNS] or names[: rows.COLUMNS]
    text, start = query.get("search", "")[:200], visit.number("start")
    picked = [key for key in query.getlist("filter") if key in filters]
    tests = [filters[key][0] for key in picked]
    also = [column for key in picked for column in filters[key][1]]
    if text:
        tests.append(rows.contains(text, shown))
    if "row" in query:
        read = rows.page(paths, chosen or names[:_COLUMNS], visit.number("row"), 1)
        return _repo_page(
            visit, version, "row", table=name, read=read, total=total, limit=_WHOLE_CELL
        )
    read = rows.page(paths, shown, start, test=rows.all_of(tests), also=also)
    return _repo_page(
        visit, version, "rows", table=name, tables=list(tables), names=names, shown=shown,
        chosen=chosen, text=text, filters=list(filters), picked=picked, read=read, start=start,
        total=total, limit=_CELL, offered=names[:_COLUMNS], size=rows.PAGE,
    )  # fmt: skip


def _filters(
    visit: Visit, version: Version, name: str, schema: pa.Schema
) -> dict[str, tuple[rows.Test, list[str]]]:
    """Return the filters that a table can have, each with the columns that it reads."""
    filters: dict[str, tuple[rows.Test, list[str]]] = {}
    if "finish_reason" in schema.names:
        filters["cut off"] = rows.equals("finish_reason", "length"), ["finish_reason"]
    spoken = [both for both in _SPOKEN if set(both) <= set(schema.names)]
    if spoken:
        filters["other language"] = rows.other_language(spoken), [c for b in spoken for c in b]
    if {"prompt_id", "k"} <= set(schema.names):
        by, roles = ["prompt_id", "k"], _roles(visit, version, name)
        selected = (roles[role] for role in visit.query.getlist("filter") if role in roles)
        either = set().union(*selected)  # hardly an answer is both
        filters |= {role: (rows.one_of(by, either), by) for role in roles}
    return filters


def _roles(visit: Visit, version: Version, name: str) -> dict[str, set[tuple[str, ...]]]:
    """Return the answers of a table that became chosen and rejected in pairs beside it, where one
    of these is asked for."""
    roles: dict[str, set[tuple[str, ...]]] = {"chosen": set(), "rejected": set()}
    own = version.manifest.content() if version.manifest else None
    exists = False
    for pairs in visit.beside(version, "pairs"):
        record = pairs.manifest.slices.get(name) if pairs.manifest else None
        sources = [visit.source(read) for read in record.inputs] if record else []
        if not any(s and s.manifest and s.manifest.content() == own for s in sources):
            continue
        exists = True
        if roles.keys() & set(visit.query.getlist("filter")):
            for row in rows.records(
                visit.slice(pairs, name), ("prompt_id", "chosen_k", "rejected_k")
            ):
                for role, keys in roles.items():
                    keys.add((str(row["prompt_id"]), str(row.get(f"{role}_k"))))
    return roles if exists else {}


def read(visit: Visit) -> Response:
    """The reader: pools of answers, or compared answers with their verdicts."""
    version = visit.version()
    kind = version.manifest.kind if version.manifest else ""
    if version.manifest is None or kind not in ("pairs", "verdicts"):
        raise NotFound("only pairs and verdicts have a reader")
    names = languages(version.manifest.slices)
    name = visit.query.get("slice") or (names[0] if names else "")
    if name not in names:
        raise NotFound(f"{version.repo.id} has no {name!r}")
    if kind == "verdicts":
        return _compared(visit, version, names, name)
    opened = pools.open_pools(visit, version, name)
    last = len(opened.ids) - 1
    if last < 0:
        raise NotFound(f"{version.repo.id} has no prompts in {name!r}")
    number = min(max(visit.number("n"), 1) - 1, last)
    pool = pools.read(visit, opened, number)
    marked = [
        (row["reader"], verdict)
        for row in marks.read(visit, version, name)
        if pool.pair and (verdict := marks.verdict(row, pool.pair))
    ]
    mark = next((verdict for reader, verdict in marked if reader == visit.account.user), "")
    marks_repo = marks.repo_of(visit, version)
    return _repo_page(
        visit, version, "pool", slices=names, name=name, pool=pool, number=number, last=last,
        mark=mark, marked=marked, kept=marks_repo, may_mark=visit.account.role == "write",
    )  # fmt: skip


def _compared(visit: Visit, version: Version, names: list[str], name: str) -> Response:
    everything = comparisons.read(visit, version, name)
    filters = [f for f in visit.query.getlist("filter") if f in comparisons.FILTERS]
    passed = [answers for answers in everything if answers.marks.issuperset(filters)]
    counts = {f: sum(f in answers.marks for answers in everything) for f in comparisons.FILTERS}
    start = min(visit.number("n"), max(len(passed) - 1, 0)) // _QUESTIONS * _QUESTIONS
    return _repo_page(
        visit, version, "compared", slices=names, name=name, wanted=filters, counts=counts,
        shown=passed[start : start + _QUESTIONS], start=start, passed=len(passed),
        total=len(everything), step=_QUESTIONS,
    )  # fmt: skip


def live_page(visit: Visit) -> Response:
    """Show what is under way in the home that the hub lies in, for its owner."""
    if not visit.owns_hub:
        raise Forbidden("only the owner of the hub sees what is under way")
    return render.page(
        "live", visit, steps=live.underway(visit.home), jobs=list(live.submissions(visit.home))
    )


def board_page(visit: Visit) -> Response:
    """Recipes by languages: win rates and differences of benchmarks."""
    versions: dict[tuple[int, str], Version] = {}
    for shelf in visit.hub.collections.visible(visit.account):
        for version in visit.artifacts(shelf):
            versions.setdefault((version.repo.key, version.commit.oid), version)
    return render.page("board", visit, board=board.board(versions.values()))


def _reads(version: Version) -> bool:
    return bool(version.manifest and version.manifest.kind in ("pairs", "verdicts"))


def _repo_page(visit: Visit, version: Version, template: str, **values: Any) -> Response:
    """Render a page of a repo, with what all of them show."""
    tags = visit.refs(version.repo)
    has_rows = version.repo.kind == "dataset" and bool(visit.tables(version))
    return render.page(
        template, visit, v=version, m=version.manifest, tags=tags,
        branches=visit.refs(version.repo, BRANCH), has_rows=has_rows, has_reader=_reads(version),
        here=template, **values,
    )  # fmt: skip

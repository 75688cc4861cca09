"""Repos: making and removing them, what is known of one, and lists of many."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from factory.localhub.cards import Card, dataset_tags, model_tags
from factory.localhub.errors import (
    BadRequest,
    Conflict,
    RepoNotFound,
    RevisionNotFound,
    Unauthorized,
)
from factory.localhub.fields import Fields
from factory.localhub.git_objects import Commit, Entry, lfs_pointer
from factory.localhub.hub import LocalHub
from factory.localhub.refs import MAIN
from factory.localhub.replies import answer
from factory.localhub.repos import KINDS, Kind, Repo, web_path
from factory.localhub.wire import Call, route

_LIST_PAGE = 1000
_SORT_KEYS = {
    "createdAt": "createdAt", "created_at": "createdAt",
    "lastModified": "lastModified", "last_modified": "lastModified",
}  # fmt: skip
_EQUAL_FOR_ALL = ("likes", "downloads", "trendingScore", "trending_score")
_LIST_WORDS = (
    "author search filter pipeline_tag gated sort direction limit cursor"
    " full expand config fetch_config cardData withCardData securityStatus"
)
# What clients can ask to be told of a repo, whether this hub knows it or not.
_PROPERTIES = (
    "_id author baseModels cardData childrenModelCount citation config createdAt datasets"
    " description disabled downloads downloadsAllTime evalResults gated gguf id inference"
    " inferenceProviderMapping lastModified library_name likes mainSize mask_token model-index"
    " modelId models paperswithcode_id pipeline_tag private region resourceGroup runtime"
    " safetensors sdk sha siblings spaces subdomain tags transformersInfo trendingScore"
    " usedStorage widgetData xetEnabled"
)


def create(call: Call) -> Response:
    """A new repo, or 409 with the address of the one that exists."""
    call.account.require_write()
    kind, namespace, name = _named(call, call.json())
    if kind == "space" and (sdk := call.json().text_or_none("sdk")) != "static":
        raise BadRequest(f"this hub has static Spaces alone, none of sdk {sdk!r}")
    url = {"url": f"{call.base}/{web_path(kind, f'{namespace}/{name}')}"}
    try:
        call.hub.create_repo(
            kind, namespace, name, owner=call.account.user, private=_wants_private(call.json())
        )
    except Conflict as error:
        raise Conflict(error.message, fields=dict(url)) from error
    return answer({**url, "name": f"{namespace}/{name}"})


def delete(call: Call) -> Response:
    """Take a repo off the hub."""
    kind, namespace, name = _named(call, call.json())
    repo = call.hub.repos.find(kind, namespace, name, call.account)
    call.account.require_write()
    call.hub.repos.remove(repo)
    return answer({})


def move(call: Call) -> Response:
    """Give a repo another name; the old one is free again."""
    body = call.json()
    kind = body.text_or_none("type") or "model"
    (namespace, name), (to_namespace, to_name) = (
        _split(body.text(key)) for key in ("fromRepo", "toRepo")
    )
    repo = call.hub.repos.find(kind, namespace, name, call.account)
    call.account.require_write()
    call.hub.repos.rename(repo, to_namespace, to_name)
    return answer({})


def duplicate(call: Call) -> Response:
    """A new repo with the files of another, in one commit; large files are not copied."""
    source, body = call.repo(), call.json()
    call.account.require_write()
    namespace, name = _split(body.text("repository"))
    url = f"{call.base}/{web_path(source.kind, f'{namespace}/{name}')}"
    try:
        call.hub.duplicate(
            source, namespace, name, owner=call.account.user, private=_wants_private(body)
        )
    except Conflict as error:
        raise Conflict(error.message, fields={"url": url}) from error
    return answer({"url": url})


def change_settings(call: Call) -> Response:
    """Hide a repo or let others see it."""
    repo = call.repo_to_write()
    body = call.json()
    if body.value("gated"):
        raise BadRequest("this hub has no gated repos: make it private")
    if body.value("visibility") is not None or body.flag_or_none("private") is not None:
        call.hub.repos.show(repo, call.account, private=_wants_private(body))
    return answer({})


def info(call: Call) -> Response:
    """All that is known of a repo at a revision."""
    call.knows("blobs expand securityStatus", "describe a repo")
    properties = _properties(call)
    repo = call.repo()
    commit = call.commit(repo)
    description = describe(call.hub, repo, commit)
    description["siblings"] = _siblings(call.hub, commit, details=call.flag("blobs"))
    return answer(_only(description, properties))


def auth_check(call: Call) -> Response:
    """200 if the repo may be read."""
    call.repo()
    return answer({})


def list_all(call: Call) -> Response:
    """Repos by author, words in the name, and tags; those last changed first."""
    kind = call.kind()
    call.knows(_LIST_WORDS, "list repos")
    properties = _properties(call)
    if (by := call.query.get("sort")) and by not in (*_SORT_KEYS, *_EQUAL_FOR_ALL):
        raise BadRequest(f"this hub cannot sort repos by {by!r}")
    if call.query.get("gated", "false").lower() != "false":  # there is none
        return answer([])
    author = call.query.get("author")
    words = [word.lower() for word in call.query.getlist("search")]
    tags = set(call.query.getlist("filter"))
    if pipeline := call.query.get("pipeline_tag"):
        tags.add(pipeline)
    repos = []
    for repo in call.hub.repos.visible(kind, call.account):
        if author is not None and repo.namespace != author:
            continue
        if not all(word in repo.id.lower() for word in words):
            continue
        try:
            commit = call.hub.history.resolve(repo, MAIN)
        except RevisionNotFound:  # removed since we listed it
            continue
        item = describe(call.hub, repo, commit)
        if tags.issubset(item["tags"]):
            repos.append((item, commit))
    if key := _SORT_KEYS.get(by or ""):
        repos.sort(key=lambda pair: str(pair[0][key]), reverse=True)
    start = call.count("cursor", 0, len(repos))
    limit = max(call.count("limit", _LIST_PAGE, _LIST_PAGE), 1)
    page = [
        _for_list(call, item, commit, properties) for item, commit in repos[start : start + limit]
    ]
    headers = {}
    if start + limit < len(repos):
        parameters = [(key, value) for key, value in call.query.multi_items() if key != "cursor"]
        query = urlencode([*parameters, ("cursor", start + limit)])
        headers["Link"] = f'<{call.base}/api/{call.params["kind"]}?{query}>; rel="next"'
    return answer(page, headers=headers)


def list_storage(call: Call) -> Response:
    """The repos that the caller made, or those of a namespace, each with its room on the disk."""
    call.knows("", "list storage")
    user, namespace = call.account.user, call.params.get("namespace")
    if not user:
        raise Unauthorized("without a token you are nobody here: set HF_TOKEN")
    sizes = call.hub.repos.sizes()
    repos = [
        repo
        for kind in KINDS
        for repo in call.hub.repos.visible(kind, call.account)
        if (repo.owner == user if namespace is None else repo.namespace == namespace)
    ]
    total = sum(sizes.get(repo.key, 0) for repo in repos)
    return answer(
        [
            {
                "id": repo.id,
                "type": repo.kind,
                "updatedAt": iso_date(repo.modified),
                "visibility": "private" if repo.private else "public",
                "storage": sizes.get(repo.key, 0),
                "storagePercent": 100 * sizes.get(repo.key, 0) / (total or 1),
            }
            for repo in repos
        ]
    )


def describe(hub: LocalHub, repo: Repo, commit: Commit) -> dict[str, Any]:
    """A repo at a commit in the words of the protocol, its files aside."""
    card = hub.card(commit)
    described: dict[str, Any] = {
        "_id": f"{repo.key:024x}",
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit.oid,
        "createdAt": iso_date(repo.created),
        "lastModified": iso_date(repo.modified),
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": dataset_tags(card) if repo.kind == "dataset" else model_tags(card),
    }
    if card.data is not None:
        described["cardData"] = card.data
    if repo.kind == "model":
        described |= _about_model(repo, card)
    if repo.kind == "space":  # files alone: nothing runs here
        described |= {"sdk": "static", "tags": ["static", *card.texts("tags")]}
    return described


def iso_date(seconds: float) -> str:
    """A date as clients parse it."""
    date = datetime.fromtimestamp(seconds, UTC)
    return date.strftime("%Y-%m-%dT%H:%M:%S.") + f"{date.microsecond // 1000:03d}Z"


def lfs_facts(entry: Entry) -> dict[str, Any]:
    """Return the sizes of a large file and of its pointer, in the fields of the protocol."""
    pointer = lfs_pointer(entry.sha256 or "", entry.size)
    return {"size": entry.size, "pointerSize": len(pointer)}


def _named(call: Call, body: Fields) -> tuple[Kind, str, str]:
    """Kind, namespace and name from a body; the namespace is the caller's own if none is given."""
    word = body.text_or_none("type") or "model"
    kind = next((kind for kind in KINDS if kind == word), None)
    name = body.text("name")
    namespace = body.text_or_none("organization")
    if namespace is None and "/" in name:
        namespace, _, name = name.partition("/")
    if kind is None:
        raise RepoNotFound(f"this hub holds models, datasets and static Spaces, no {word!r}")
    return kind, namespace or call.account.user, name


def _split(name: str) -> tuple[str, str]:
    namespace, slash, short = name.partition("/")
    if not slash:
        raise BadRequest(f"{name!r} needs a namespace: namespace/name")
    return namespace, short


def _wants_private(body: Fields) -> bool:
    visibility = body.text_or_none("visibility")
    if visibility not in (None, "public", "private"):
        raise BadRequest(f"visibility must be 'public' or 'private', not {visibility!r}")
    return visibility == "private" or bool(body.flag_or_none("private"))


def _about_model(repo: Repo, card: Card) -> dict[str, Any]:
    facts: dict[str, Any] = {"modelId": repo.id}
    for key in ("pipeline_tag", "library_name"):
        if value := card.text(key):
            facts[key] = value
    return facts


def _siblings(hub: LocalHub, commit: Commit, details: bool = False) -> list[dict[str, Any]]:
    siblings = []
    for path, entry in hub.trees.walk(commit.tree):
        if entry.is_directory:
            continue
        sibling: dict[str, Any] = {"rfilename": path}
        if details:
            sibling |= {"size": entry.size, "blobId": entry.oid}
            if entry.lfs:
                sibling["lfs"] = {"sha256": entry.sha256, **lfs_facts(entry)}
        siblings.append(sibling)
    return siblings


def _properties(call: Call) -> list[str]:
    """The properties of a repo that a request asks for; none means the usual. Raises
    BadRequest."""
    fields = call.query.getlist("expand")
    if unknown := [word for word in fields if word not in _PROPERTIES.split()]:
        raise BadRequest(f"no repo has a property {unknown[0]!r}")
    return fields


def _for_list(
    call: Call, item: dict[str, Any], commit: Commit, expand: list[str]
) -> dict[str, Any]:
    """One repo as a list shows it: with its card or its files only if asked."""
    if call.flag("full") or "siblings" in expand:
        item["siblings"] = _siblings(call.hub, commit)
    if not (expand or call.flag("full") or call.flag("cardData")):
        item.pop("cardData", None)
    return _only(item, expand)


def _only(item: dict[str, Any], expand: list[str]) -> dict[str, Any]:
    if not expand:
        return item
    return {key: value for key, value in item.items() if key in ("_id", "id", *expand)}


ROUTES = [
    route("POST", "/api/repos/create", create),
    route("DELETE", "/api/repos/delete", delete),
    route("POST", "/api/repos/move", move),
    route("GET", "/api/settings/repositories", list_storage),
    route("GET", "/api/organizations/{namespace}/settings/repositories", list_storage),
    route("GET", "/api/{kind}", list_all),
    route("GET", "/api/{kind}/{namespace}/{name}", info),
    route("GET", "/api/{kind}/{namespace}/{name}/revision/{revision}", info),
    route("GET", "/api/{kind}/{namespace}/{name}/auth-check", auth_check),
    route("POST", "/api/{kind}/{namespace}/{name}/duplicate", duplicate),
    route("PUT", "/api/{kind}/{namespace}/{name}/settings", change_settings),
]

"""Collections: named shelves of repos."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from factory.localhub.collection import Collection, Item
from factory.localhub.errors import BadRequest, NotFound
from factory.localhub.replies import answer
from factory.localhub.repos import KINDS
from factory.localhub.routes.repos import iso_date
from factory.localhub.wire import Call, route

_LIST_PAGE = 100
# The last two are equal for all.
_SORTS = ("lastModified", "trending", "upvotes")
# A list shows the first few items of each collection.
_ITEMS_IN_LIST = 4


def create(call: Call) -> Response:
    """A new, empty collection."""
    body = call.json()
    collection = call.hub.collections.create(
        body.text_or_none("namespace") or call.account.user,
        body.text("title"),
        call.account,
        description=body.text_or_none("description"),
        private=bool(body.flag_or_none("private")),
    )
    return answer(_shown(collection))


def list_all(call: Call) -> Response:
    """Collections by owner and by what they hold, those last changed first."""
    call.knows("owner item sort limit cursor", "list collections")
    if (by := call.query.get("sort", _SORTS[0])) not in _SORTS:
        raise BadRequest(f"this hub cannot sort collections by {by!r}")
    collections = call.hub.collections.visible(
        call.account, call.query.getlist("owner"), call.query.getlist("item")
    )
    start = call.count("cursor", 0, len(collections))
    limit = max(call.count("limit", _LIST_PAGE, _LIST_PAGE), 1)
    page = []
    for collection in collections[start : start + limit]:
        shown = _shown(collection)
        del shown["position"]  # clients count for themselves, and fail on a second position
        shown["items"] = shown["items"][:_ITEMS_IN_LIST]
        page.append(shown)
    headers = {}
    if start + limit < len(collections):
        parameters = [(key, value) for key, value in call.query.multi_items() if key != "cursor"]
        query = urlencode([*parameters, ("cursor", start + limit)])
        headers["Link"] = f'<{call.base}/api/collections?{query}>; rel="next"'
    return answer(page, headers=headers)


def get(call: Call) -> Response:
    """One collection with all its items."""
    return answer(_shown(_asked(call)))


def update(call: Call) -> Response:
    """Change title, description, theme, position or who may see it."""
    body = call.json()
    changed = call.hub.collections.update(
        _asked(call),
        call.account,
        title=body.text_or_none("title"),
        description=body.text_or_none("description"),
        private=body.flag_or_none("private"),
        theme=body.text_or_none("theme"),
        position=body.number_or_none("position"),
    )
    return answer({"success": True, "data": _shown(changed)})


def delete(call: Call) -> Response:
    """Take a collection away."""
    call.hub.collections.delete(_asked(call), call.account)
    return answer({})


def add_item(call: Call) -> Response:
    """Put a repo on the shelf."""
    body = call.json()
    kind, name = body.inner("item").text("type"), body.inner("item").text("id")
    if kind not in KINDS:
        raise NotFound(f"this hub holds models, datasets and static Spaces, no {kind!r}")
    namespace, _, short = name.partition("/")
    repo = call.hub.repos.find(kind, namespace, short, call.account)
    note = body.text_or_none("note")
    return answer(_shown(call.hub.collections.add_item(_asked(call), call.account, repo, note)))


def update_item(call: Call) -> Response:
    """Change an item's note or place."""
    body = call.json()
    note, position = body.text_or_none("note"), body.number_or_none("position")
    if note is None and position is None:
        raise BadRequest("give a 'note' or a 'position'")
    changed = call.hub.collections.update_item(
        _asked(call), call.account, call.params["item"], note=note, position=position
    )
    return answer(_shown(changed))


def delete_item(call: Call) -> Response:
    """Take an item off the shelf."""
    changed = call.hub.collections.delete_item(_asked(call), call.account, call.params["item"])
    return answer(_shown(changed))


def _asked(call: Call) -> Collection:
    return call.hub.collections.find(call.params["owner"], call.params["slug"], call.account)


def _shown(collection: Collection) -> dict[str, Any]:
    return {
        "slug": collection.slug,
        "title": collection.title,
        "description": collection.description,
        "owner": {"name": collection.namespace, "type": "user"},
        "lastUpdated": iso_date(collection.modified),
        "position": collection.position,
        "private": collection.private,
        "theme": collection.theme,
        "upvotes": 0,
        "gating": False,
        "items": [_shown_item(item, place) for place, item in enumerate(collection.items)],
    }


def _shown_item(item: Item, place: int) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "_id": item.id,
        "id": item.repo_id,
        "type": item.kind,
        "position": place,
        "author": item.repo_id.partition("/")[0],
        "lastModified": iso_date(item.modified),
    }
    if item.note:
        shown["note"] = {"text": item.note}
    return shown


_ONE = "/api/collections/{owner}/{slug}"
ROUTES = [
    route("GET", "/api/collections", list_all),
    route("POST", "/api/collections", create),
    route("GET", _ONE, get),
    route("PATCH", _ONE, update),
    route("DELETE", _ONE, delete),
    route("POST", f"{_ONE}/items", add_item),
    route("PATCH", f"{_ONE}/items/{{item}}", update_item),
    route("DELETE", f"{_ONE}/items/{{item}}", delete_item),
]

"""Discussions and pull requests, as far as this hub has them."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from factory.localhub.discussions import Discussion, Event
from factory.localhub.errors import BadRequest, NotFound
from factory.localhub.replies import answer
from factory.localhub.repos import Repo
from factory.localhub.routes.repos import iso_date
from factory.localhub.wire import Call, route

_PAGE = 50


def list_all(call: Call) -> Response:
    """The discussions of a repo, newest first; by sort, status and author if asked."""
    call.knows("type status author p", "list discussions")
    repo = call.repo()
    filters = {key: call.query.get(key) for key in ("type", "status", "author")}
    discussions = [
        discussion
        for discussion in call.hub.discussions.all(repo)
        if filters["type"] in (None, "all", "pull_request" if discussion.base else "discussion")
        and filters["status"] in (None, "all", discussion.status)
        and filters["author"] in (None, discussion.author)
    ]
    start = call.count("p", 0, 10**9) * _PAGE
    page = [_shown(repo, discussion) for discussion in discussions[start : start + _PAGE]]
    return answer({"discussions": page, "count": len(discussions), "start": start})


def create(call: Call) -> Response:
    """A new discussion, or a pull request to which commits are yet to come."""
    repo, body = call.repo_to_write(), call.json()
    discussion = call.hub.discussions.open(
        repo,
        call.account,
        body.text("title").strip(),
        body.text_or_none("description") or "",
        pull_request=bool(body.flag_or_none("pullRequest")),
    )
    return answer({"num": discussion.number, "pullRequest": discussion.base is not None})


def details(call: Call) -> Response:
    """One discussion, how it was opened and what was changed since."""
    repo = call.repo()
    discussion = call.hub.discussions.find(repo, _number(call))
    shown = _shown(repo, discussion)
    text = {"raw": discussion.description}
    data = {"edited": False, "hidden": False, "latest": text}
    opened = Event(
        f"{discussion.number:024x}", "comment", discussion.author, discussion.created, data
    )
    changes = call.hub.discussions.events(repo, discussion.number)
    shown["events"] = [_event(event) for event in (opened, *changes)]
    if discussion.base is not None:
        shown |= {"changes": {"base": discussion.base}, "filesWithConflicts": False, "diff": None}
    return answer(shown)


def rename(call: Call) -> Response:
    """Another title."""
    repo, number, title = call.repo_to_write(), _number(call), call.json().text("title").strip()
    event = call.hub.discussions.change(repo, number, call.account.user, title=title)
    return answer({"newTitle": _event(event)})


def change_status(call: Call) -> Response:
    """Closed, or open again."""
    repo, number, status = call.repo_to_write(), _number(call), call.json().text("status")
    event = call.hub.discussions.change(repo, number, call.account.user, status=status)
    return answer({"newStatus": _event(event)})


def refuse(call: Call) -> Response:
    """Comments and merges. Raises BadRequest."""
    call.hub.discussions.find(call.repo_to_write(), _number(call))
    raise BadRequest("this hub keeps no comments and merges nothing: commit to the branch itself")


def _number(call: Call) -> int:
    text = call.params["number"]
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise NotFound(f"a discussion has a number, not {text[:20]!r}")
    return int(text)


def _shown(repo: Repo, discussion: Discussion) -> dict[str, Any]:
    return {
        "num": discussion.number,
        "title": discussion.title,
        "author": {"name": discussion.author},
        "createdAt": iso_date(discussion.created),
        "status": discussion.status,
        "isPullRequest": discussion.base is not None,
        "repo": {"name": repo.id, "type": repo.kind},
    }


def _event(event: Event) -> dict[str, Any]:
    """Return an event as clients read it."""
    return {
        "id": event.id,
        "type": event.type,
        "author": {"name": event.author},
        "createdAt": iso_date(event.created),
        "data": event.data,
    }


_ALL = "/api/{kind}/{namespace}/{name}/discussions"
_ONE = f"{_ALL}/{{number}}"
ROUTES = [
    route("GET", _ALL, list_all),
    route("POST", _ALL, create),
    route("GET", _ONE, details),
    route("POST", f"{_ONE}/title", rename),
    route("POST", f"{_ONE}/status", change_status),
    route("POST", f"{_ONE}/comment", refuse),
    route("POST", f"{_ONE}/merge", refuse),
]

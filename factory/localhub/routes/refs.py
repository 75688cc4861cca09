"""Branches, tags and the list of commits."""

from __future__ import annotations

import html
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from factory.localhub.changes import Words
from factory.localhub.refs import MAIN
from factory.localhub.replies import answer
from factory.localhub.routes.repos import iso_date
from factory.localhub.wire import Call, route

_PAGE = 50


def list_refs(call: Call) -> Response:
    """All branches and tags, and with `include_prs` the heads of pull requests."""
    call.knows("include_prs", "list refs")
    groups: dict[str, list[dict[str, str]]] = {"heads": [], "tags": [], "pr": []}
    for ref, target in call.hub.refs.all(call.repo()).items():
        _, group, name = ref.split("/", 2)
        groups[group].append({"name": name, "ref": ref, "targetCommit": target})
    listing = {"branches": groups["heads"], "converts": [], "tags": groups["tags"]}
    if call.flag("include_prs"):
        listing["pullRequests"] = groups["pr"]
    return answer(listing)


def create_tag(call: Call) -> Response:
    """A new tag at the revision in the path."""
    repo = call.repo_to_write()
    name = call.json().text("tag")
    call.hub.refs.create(repo, name, call.commit(repo).oid, tag=True)
    return answer({})


def delete_tag(call: Call) -> Response:
    """Take a tag away."""
    call.hub.refs.delete(call.repo_to_write(), call.params["revision"], tag=True)
    return answer({})


def create_branch(call: Call) -> Response:
    """A new branch, at main's head if no other starting point is given."""
    repo = call.repo_to_write()
    start = call.json().text_or_none("startingPoint") or MAIN
    target = call.hub.history.resolve(repo, start).oid
    call.hub.refs.create(repo, call.params["branch"], target, tag=False)
    return answer({})


def delete_branch(call: Call) -> Response:
    """Take a branch away."""
    call.hub.refs.delete(call.repo_to_write(), call.params["branch"], tag=False)
    return answer({})


def squash(call: Call) -> Response:
    """Make a branch a single commit."""
    repo, branch = call.repo_to_write(), call.params["branch"]
    title = call.json().text_or_none("message") or f"Squash {branch}"
    call.hub.history.squash(repo, branch, Words(call.account.user, title))
    return answer({})


def list_commits(call: Call) -> Response:
    """The commits of a revision, newest first; later pages hang on the commit of the first."""
    call.knows("p limit expand[]", "list commits")
    repo = call.repo()
    commit = call.commit(repo)
    page = call.count("p", 0, 10**9)
    limit = max(call.count("limit", _PAGE, 1000), 1)
    formatted = "formatted" in call.query.getlist("expand[]")
    commits = call.hub.history.log(repo, commit, page * limit, limit + 1)
    entries = []
    for item in commits[:limit]:
        shown: dict[str, Any] = {
            "id": item.oid,
            "title": item.title,
            "message": item.message,
            "authors": [{"user": item.author}],
            "date": iso_date(item.date),
        }
        if formatted:
            shown["formatted"] = {
                "title": html.escape(item.title),
                "message": html.escape(item.message),
            }
        entries.append(shown)
    headers = {}
    if len(commits) > limit:
        parameters = [(key, value) for key, value in call.query.multi_items() if key != "p"]
        query = urlencode([*parameters, ("p", page + 1)])
        path = f"/api/{repo.kind}s/{repo.id}/commits/{commit.oid}"
        headers["Link"] = f'<{call.base}{path}?{query}>; rel="next"'
    return answer(entries, headers=headers)


_REPO = "/api/{kind}/{namespace}/{name}"
ROUTES = [
    route("GET", f"{_REPO}/refs", list_refs),
    route("POST", f"{_REPO}/tag/{{revision}}", create_tag),
    route("DELETE", f"{_REPO}/tag/{{revision}}", delete_tag),
    route("POST", f"{_REPO}/branch/{{branch}}", create_branch),
    route("DELETE", f"{_REPO}/branch/{{branch}}", delete_branch),
    route("POST", f"{_REPO}/super-squash/{{branch}}", squash),
    route("GET", f"{_REPO}/commits/{{revision}}", list_commits),
]

"""Looking after the store, for whoever owns it, and the large files of a repo, for its writers."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

from factory.localhub import backup, garbage, integrity, upkeep
from factory.localhub.errors import BadRequest, Forbidden
from factory.localhub.replies import answer
from factory.localhub.routes.repos import iso_date
from factory.localhub.wire import Call, route

_DAY = 24 * 3600


def gc(call: Call) -> Response:
    """Count unreferenced objects; delete them if `remove` is set."""
    call.account.require_owner()
    if call.hub.read_only:
        raise Forbidden("this store can only be read here")
    body = call.json()
    grace = body.number_or_none("grace")
    remove = bool(body.flag_or_none("remove"))
    report = garbage.collect(call.hub, _DAY if grace is None else grace, remove=remove)
    return answer(vars(report) | {"removed": remove})


def fsck(call: Call) -> Response:
    """Check the store; return what is damaged. With `quick`, contents are not read."""
    call.account.require_owner()
    quick = bool(call.json().flag_or_none("quick"))
    counts, problems = integrity.check(call.hub, quick=quick)
    return answer({**counts, "problems": problems})


def back_up(call: Call) -> Response:
    """A whole copy of the store in another folder of this machine."""
    call.account.require_owner()
    count, size, problems = backup.copy(call.hub, Path(call.json().text("folder")))
    return answer({"contents": count, "copied": size, "problems": problems})


def tokens(call: Call) -> Response:
    """List tokens; make one for `create`, or revoke those of an id or user, `revoke`."""
    call.account.require_owner()
    body, accounts = call.json(), call.hub.accounts
    reply: dict[str, object] = {}
    if (user := body.text_or_none("create")) is not None:
        role = body.text_or_none("role") or "read"
        if role not in ("read", "write"):
            raise BadRequest(f"a token may 'read' or 'write', not {role!r}")
        reply["token"] = accounts.create_token(user, "write" if role == "write" else "read")
    if (which := body.text_or_none("revoke")) is not None:
        reply["revoked"] = accounts.revoke(which)
    return answer(reply | {"tokens": accounts.tokens()})


def list_large(call: Call) -> Response:
    """The large files that a repo was given, those of today's commits or not."""
    files = [
        {
            "fileOid": item["oid"],
            "oid": item["oid"],
            "filename": item["path"],
            "size": item["size"],
            "pushedAt": iso_date(item["pushed"]),
            "ref": item["ref"],
        }
        for item in upkeep.large_files(call.hub, call.repo_to_write())
    ]
    return answer(files)


def delete_large(call: Call) -> Response:
    """Forget large files; with `rewriteHistory` also take them out of every commit."""
    repo = call.repo_to_write()
    deletions = call.json().inner("deletions")
    hashes = deletions.value("sha")
    if not isinstance(hashes, list) or not all(isinstance(sha, str) for sha in hashes):
        raise BadRequest("'deletions' needs a list 'sha'")
    if deletions.flag_or_none("rewriteHistory"):
        call.hub.history.rewrite_without(repo, frozenset(hashes))
    upkeep.give_up(call.hub, repo, set(hashes))
    return answer({})


_LARGE = "/api/{kind}/{namespace}/{name}/lfs-files"
ROUTES = [
    route("POST", "/api/local/gc", gc),
    route("POST", "/api/local/fsck", fsck),
    route("POST", "/api/local/backup", back_up),
    route("POST", "/api/local/tokens", tokens),
    route("GET", _LARGE, list_large),
    route("POST", f"{_LARGE}/batch", delete_large),
]

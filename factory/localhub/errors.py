"""Everything the hub refuses, each with the HTTP status and the code by which clients know it.

HubError 500
├── BadRequest 400
├── Unauthorized 401
├── Forbidden 403
├── NotFound 404
│   ├── RepoNotFound        X-Error-Code: RepoNotFound
│   ├── RevisionNotFound    X-Error-Code: RevisionNotFound
│   └── EntryNotFound       X-Error-Code: EntryNotFound
├── Conflict 409
├── Stale 412
├── TooLarge 413
├── RangeNotSatisfiable 416
└── NoSpace 507
"""

from __future__ import annotations

import errno
from typing import ClassVar

# What a full disk looks like: no room left, or no room left for this user.
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})


class HubError(Exception):
    """An answer that is not 2xx; `fields` join the JSON body, `headers` the response."""

    status: ClassVar[int] = 500
    code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        fields: dict[str, object] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields or {}
        self.headers = headers or {}


class BadRequest(HubError):
    status = 400


class Unauthorized(HubError):
    status = 401


class Forbidden(HubError):
    status = 403


class NotFound(HubError):
    status = 404


class RepoNotFound(NotFound):
    code = "RepoNotFound"


class RevisionNotFound(NotFound):
    code = "RevisionNotFound"


class EntryNotFound(NotFound):
    code = "EntryNotFound"


class Conflict(HubError):
    status = 409


class Stale(HubError):
    status = 412


class TooLarge(HubError):
    status = 413


class RangeNotSatisfiable(HubError):
    status = 416


class NoSpace(HubError):
    status = 507

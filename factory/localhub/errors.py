"""Everything the hub refuses, each with its HTTP status; the name goes out as X-Error-Code.

ProtocolError 500
├── BadRequest 400
├── Unauthorized 401
├── Forbidden 403
├── NotFound 404
│   ├── RepoNotFound        these three clients know by their names
│   ├── RevisionNotFound
│   └── EntryNotFound
├── MethodNotAllowed 405
├── Timeout 408
├── Conflict 409
├── Stale 412
├── TooLarge 413
├── RangeNotSatisfiable 416
├── BadPath 422
├── Busy 503
└── NoSpace 507
"""

from __future__ import annotations

import errno
from typing import ClassVar

# What a full disk looks like: no room left, or no room left for this user.
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})


class ProtocolError(Exception):
    """An answer that is not 2xx; `fields` join the JSON body, `headers` the response."""

    status: ClassVar[int] = 500

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
        self.headers = {"X-Error-Code": type(self).__name__, **(headers or {})}


class BadRequest(ProtocolError):
    status = 400


class Unauthorized(ProtocolError):
    status = 401


class Forbidden(ProtocolError):
    status = 403


class NotFound(ProtocolError):
    status = 404


class RepoNotFound(NotFound):
    """There is no such repo, or it hides."""


class RevisionNotFound(NotFound):
    """The repo has no such branch, tag or commit."""


class EntryNotFound(NotFound):
    """There is no such file at this revision."""


class MethodNotAllowed(ProtocolError):
    status = 405


class Timeout(ProtocolError):
    status = 408


class Conflict(ProtocolError):
    status = 409


class Stale(ProtocolError):
    status = 412


class TooLarge(ProtocolError):
    status = 413


class RangeNotSatisfiable(ProtocolError):
    status = 416


class BadPath(BadRequest):
    """A path that a client could not hold safely."""

    status = 422


class Busy(ProtocolError):
    status = 503


class NoSpace(ProtocolError):
    status = 507

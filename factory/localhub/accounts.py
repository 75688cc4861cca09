"""Who is asking: tokens, kept only as hashes, and what their holders may see and do.

Every token names a user. A user with a write token may write in any namespace, as the members of
one group do; what is private is seen by the user who made it and by nobody else.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from factory.localhub.database import Database
from factory.localhub.errors import Forbidden, Unauthorized
from factory.localhub.names import check_repo_part

Role = Literal["read", "write"]
# The user whose token the launcher hands out.
FIRST_USER = "local"


@dataclass(frozen=True, slots=True)
class Account:
    """The holder of a token."""

    user: str
    role: Role

    def require_write(self) -> None:
        """Raises Forbidden for a token that may only read."""
        if self.role != "write":
            raise Forbidden("this token may only read: use one with the role 'write'")


class Accounts:
    """All tokens. They are read once: the server is not running while one is added."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known = {
            row["sha256"]: Account(row["user"], row["role"])
            for row in database.rows("SELECT sha256, user, role FROM tokens")
        }

    def identify(self, authorization: str | None) -> Account:
        """The account behind an Authorization header. Raises Unauthorized."""
        if not authorization:
            raise Unauthorized("this hub needs a token: set HF_TOKEN")
        scheme, _, token = authorization.partition(" ")
        account = self._known.get(_hashed(token.strip()))
        if scheme.lower() != "bearer" or account is None:
            # Clients know a bad token by these words.
            raise Unauthorized("Invalid credentials in Authorization header")
        return account

    def create_token(self, user: str, role: Role) -> str:
        """A new token for `user`; it is shown here and never again. Raises BadRequest."""
        token = "hf_local_" + secrets.token_urlsafe(24)
        self._register(token, Account(check_repo_part(user, "user"), role))
        return token

    def adopt_token_file(self, path: Path) -> None:
        """Make the token in this file valid, and the file if it is not there."""
        if not path.exists():
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            temporary.unlink(missing_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write("hf_local_" + secrets.token_urlsafe(24))
            temporary.rename(path)
        path.chmod(0o600)
        self._register(path.read_text().strip(), Account(FIRST_USER, "write"))

    def _register(self, token: str, account: Account) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO tokens VALUES (?, ?, ?)",
                (_hashed(token), account.user, account.role),
            )
        self._known.setdefault(_hashed(token), account)


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()

"""Accounts and their tokens: stored only as hashes, with the rights of their holders.

Every token names a user. A user with a write token may write in any namespace, as the members of
one group do; what is private is seen by the user who made it and by nobody else.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from factory.localhub.database import Database
from factory.localhub.errors import BadRequest, Forbidden, Unauthorized
from factory.localhub.names import check_repo_part

Role = Literal["read", "write"]
# The user whose token the launcher hands out.
FIRST_USER = "local"
# git sends what it knows only after it was asked.
_ASK = {"WWW-Authenticate": 'Basic realm="token as password"'}
_ID_DIGITS = 10


@dataclass(frozen=True, slots=True)
class Account:
    """The holder of a token."""

    user: str
    role: Role

    def require_write(self) -> None:
        """Raises Unauthorized without a token, Forbidden for one that may only read."""
        if not self.user:
            raise Unauthorized("writing needs a token: set HF_TOKEN", headers=_ASK)
        if self.role != "write":
            raise Forbidden(
                "this token may only read: use one with the role 'write'"
                " (none has it where the store may not be written)"
            )

    def require_owner(self) -> None:
        """Raises Forbidden for anybody but the owner of the hub."""
        if self.user != FIRST_USER:
            raise Forbidden("only the owner of the hub may do that")


class Accounts:
    """All tokens, read once and again after each change: no other process has the store open."""

    def __init__(self, database: Database, *, read_only: bool = False) -> None:
        self._database = database
        self._read_only = read_only
        self._accounts = self._load()
        # Whether those without a token may read what is not private.
        self.anonymous = False

    def identify(self, authorization: str | None) -> Account:
        """The account behind an Authorization header. Raises Unauthorized."""
        if not authorization:
            if self.anonymous:
                return Account("", "read")
            raise Unauthorized("this hub needs a token: set HF_TOKEN", headers=_ASK)
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "basic":  # git, which asks for a user and a password
            token = _password(token)
        account = self._accounts.get(_hashed(token.strip()))
        if scheme.lower() not in ("bearer", "basic") or account is None:
            # Clients know a bad token by these words.
            raise Unauthorized("Invalid credentials in Authorization header", headers=_ASK)
        return account

    def key(self, authorization: str) -> str:
        """Return what stands for the token of a Bearer header without telling it. Raises
        Unauthorized."""
        self.identify(authorization)
        return _hashed(authorization.partition(" ")[2].strip())

    def holder(self, key: str) -> Account | None:
        """The account of the token behind a key, as long as it is not revoked."""
        return self._accounts.get(key)

    def create_token(self, user: str, role: Role) -> str:
        """A new token for `user`; it is shown here and never again. Raises BadRequest."""
        if user == FIRST_USER:
            raise BadRequest(f"{FIRST_USER!r} has the token in the hub's folder: name another user")
        account = Account(check_repo_part(user, "user"), role)
        token = _random_token()
        with self._database.transaction() as connection:
            self._register(connection, token, account)
        self._accounts = self._load()
        return token

    def tokens(self) -> list[dict[str, str]]:
        """Every token, by user: its id, which is the beginning of its hash, user and role."""
        listed = sorted(self._accounts.items(), key=lambda item: (item[1].user, item[0]))
        return [
            {"id": key[:_ID_DIGITS], "user": account.user, "role": account.role}
            for key, account in listed
        ]

    def revoke(self, which: str) -> int:
        """Forget the token with this id, or all of a user; the number of those. Raises BadRequest
        for the owner's, and where there is none."""
        chosen = [
            (key, account.user)
            for key, account in self._accounts.items()
            if which in (key[:_ID_DIGITS], account.user)
        ]
        if not chosen:
            raise BadRequest(f"there is no token {which!r}, and no user of that name has one")
        if any(user == FIRST_USER for _, user in chosen):
            raise BadRequest(
                "the owner's token is the file 'token' in the hub's folder: to change it, remove"
                " the file while nobody uses the hub"
            )
        with self._database.transaction() as connection:
            connection.executemany("DELETE FROM tokens WHERE sha256 = ?", [(k,) for k, _ in chosen])
        self._accounts = self._load()
        return len(chosen)

    def adopt_token_file(self, path: Path) -> None:
        """Make the token in this file, and no other, the first user's; write one if none is there.

        To change it, take the file away and start the server anew.
        """
        if not path.exists() or not path.read_text().strip():
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            temporary.unlink(missing_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(_random_token())
            temporary.rename(path)
        path.chmod(0o600)
        token = path.read_text().strip()
        first = Account(FIRST_USER, "read" if self._read_only else "write")
        if self._read_only:  # what is made here is known to this server alone
            self._accounts[_hashed(token)] = first
            return
        hashes = [key for key, account in self._accounts.items() if account.user == FIRST_USER]
        if hashes == [_hashed(token)]:  # written only if need be: the disk may be full
            return
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM tokens WHERE user = ?", (FIRST_USER,))
            self._register(connection, token, first)
        self._accounts = self._load()

    def _register(self, connection: sqlite3.Connection, token: str, account: Account) -> None:
        connection.execute(
            "INSERT INTO tokens VALUES (?, ?, ?)", (_hashed(token), account.user, account.role)
        )

    def _load(self) -> dict[str, Account]:
        return {
            row["sha256"]: Account(row["user"], "read" if self._read_only else row["role"])
            for row in self._database.rows("SELECT sha256, user, role FROM tokens")
        }


def _password(encoded: str) -> str:
    """Return the password of a Basic authorization; empty if it cannot be read."""
    try:
        return base64.b64decode(encoded.strip(), validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _random_token() -> str:
    return "hf_local_" + secrets.token_urlsafe(24)


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()

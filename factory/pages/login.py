"""Sign in to the pages: a one-time token in an address, then a cookie that scripts cannot read.

A cookie names the token of the hub that it stands for, by its hash, with a time and a signature. So
it survives a restart of the server, and ends when that token is revoked.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time

from factory.localhub.accounts import Account
from factory.localhub.errors import Unauthorized
from factory.localhub.hub import LocalHub

COOKIE_SECONDS = 7 * 24 * 3600
_ONCE_SECONDS = 600.0


class Logins:
    """Sessions of the people who are signed in at one hub."""

    def __init__(self, hub: LocalHub) -> None:
        self._accounts = hub.accounts
        # of a store that may not be written there is no secret: then one for this server alone
        self._secret = hub.upload_secret or secrets.token_bytes(32)
        # browsers send a host's cookies to all of its ports: each hub has a name of its own
        self.cookie = f"factory-{self._signature('name')[:8]}"
        self._once: dict[str, tuple[str, float]] = {}

    def invite(self, authorization: str) -> str:
        """Return a one-time token for the holder of a hub token. Raises Unauthorized."""
        now = time.monotonic()
        self._once = {once: entry for once, entry in self._once.items() if entry[1] > now}
        once = secrets.token_urlsafe(24)
        self._once[once] = (self._accounts.key(authorization), now + _ONCE_SECONDS)
        return once

    def redeem(self, once: str) -> str:
        """Return a cookie for a one-time token, which is used up. Raises Unauthorized."""
        key, until = self._once.pop(once, ("", 0.0))
        if until < time.monotonic():
            raise Unauthorized("this link was used already, or is too old")
        return self._sealed(key)

    def exchange(self, token: str) -> str:
        """Return a cookie for a hub token. Raises Unauthorized."""
        return self._sealed(self._accounts.key(f"Bearer {token}"))

    def account(self, cookie: str | None) -> Account:
        """Return who a cookie stands for. Raises Unauthorized."""
        key, _, rest = (cookie or "").partition(".")
        until, _, signature = rest.partition(".")
        if hmac.compare_digest(signature.encode(), self._signature(f"{key}.{until}").encode()):
            account = self._accounts.holder(key)
            if account is not None and int(until) > time.time():
                return account
        return self._accounts.identify(None)  # a hub that is open to all

    def _sealed(self, key: str) -> str:
        text = f"{key}.{int(time.time()) + COOKIE_SECONDS}"
        return f"{text}.{self._signature(text)}"

    def _signature(self, text: str) -> str:
        return hmac.new(self._secret, f"pages {text}".encode(), hashlib.sha256).hexdigest()

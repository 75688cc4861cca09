"""The lease: which process on which host has the store open, told by a heartbeat.

On one host the kernel's file locks settle that. A store on a shared file system needs more, since
the locks of another host may not be seen; there the file `lease.json` says who holds the store, and
its heartbeat that the holder lives. Clocks of two hosts differ, so a lease is not judged by its
date: whoever wants the store watches whether the heartbeat goes on.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from pathlib import Path

BEAT_SECONDS = 3.0
# So long without a heartbeat means that its holder is gone, also where files are seen late.
_WATCH_SECONDS = 12.0
_SETTLE_SECONDS = 0.5
_POLL_SECONDS = 0.2


class HeldElsewhere(RuntimeError):
    """A process on another host has the store open; the message names it."""


class Lease:
    """The right to open the store under `root`, as long as it is renewed."""

    def __init__(self, root: Path) -> None:
        self._path = root / "lease.json"
        self._host = socket.gethostname()
        self._mark = uuid.uuid4().hex
        self._beats = 0

    def take(self) -> None:
        """Become the holder. Raises HeldElsewhere. The caller holds this host's file lock."""
        found = self._read()
        if found is not None and found.get("host") != self._host:
            deadline = time.monotonic() + _WATCH_SECONDS
            while time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                now = self._read()
                if now is None:
                    break
                if now != found:
                    raise HeldElsewhere(
                        f"process {now.get('pid')} on host {now.get('host')} has the store "
                        f"{self._path.parent} open: use the hub from there, or stop it there first"
                    )
            self.renew()
            time.sleep(_SETTLE_SECONDS)  # a third host may have waited as we did: the last one wins
            if not self.is_ours():
                raise HeldElsewhere(f"another host has just taken {self._path.parent}")
        self.renew()

    def renew(self) -> None:
        """One heartbeat."""
        self._beats += 1
        facts = {
            "host": self._host,
            "pid": os.getpid(),
            "mark": self._mark,
            "beat": self._beats,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        temporary = self._path.with_name(f"lease.{self._mark}")
        temporary.write_text(json.dumps(facts))
        temporary.rename(self._path)

    def is_ours(self) -> bool:
        """Whether nobody else has taken the store meanwhile."""
        found = self._read()
        return found is not None and found.get("mark") == self._mark

    def give_back(self) -> None:
        """Let the next one in at once."""
        if self.is_ours():
            self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, object] | None:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

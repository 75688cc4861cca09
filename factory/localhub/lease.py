"""The lease: which process on which host has the store open, told by a heartbeat.

On one host the kernel's file locks settle that. A store on a shared file system needs more, since
the locks of another host may not be seen; there the file `lease.json` says who holds the store, and
its heartbeat that the holder lives. Clocks of two hosts differ, so a lease is not judged by its
date: whoever wants the store watches whether the heartbeat goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

BEAT_SECONDS = 3.0
# So long without a heartbeat means that its holder is gone, also where files are seen late.
_WATCH_SECONDS = 12.0
# A holder that could not renew for so long leaves: soon after, others may take the store.
_PROOF_SECONDS = 9.0
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
        self._written = (0, 0)
        self._trouble = ""

    def take(self) -> None:
        """Become the holder. Raises HeldElsewhere, OSError. The caller holds this host's lock."""
        lease = self._glimpse()
        if lease is not None and _facts(lease[0]).get("host") != self._host:
            deadline = time.monotonic() + _WATCH_SECONDS
            while time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                now = self._glimpse()
                if now is None:
                    break
                if now != lease:
                    facts = _facts(now[0])
                    raise HeldElsewhere(
                        f"process {facts.get('pid')} on host {facts.get('host')} has the store "
                        f"{self._path.parent} open: use the hub from there, or stop it there first"
                    )
            self.renew()
            time.sleep(_SETTLE_SECONDS)  # a third host may have waited as we did: the last one wins
            if not self.is_ours():
                raise HeldElsewhere(f"another host has just taken {self._path.parent}")
        self.renew()

    def renew(self) -> None:
        """Send one heartbeat. Raises OSError if not even the time of the file can be changed.

        On a full disk the file cannot be written anew, but its time of change can be set, and
        whoever watches takes that for a heartbeat too.
        """
        self._beats += 1
        facts = {
            "host": self._host,
            "pid": os.getpid(),
            "mark": self._mark,
            "beat": self._beats,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        temporary = self._path.with_name(f"lease.{self._mark}")
        try:
            temporary.write_text(json.dumps(facts))
            temporary.rename(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if not self._is_as_written():
                raise
            os.utime(self._path)
            self._say(f"{self._path} cannot be written ({error}): its time alone is renewed")
        else:
            self._say("")
        facts_now = self._path.stat()
        self._written = (facts_now.st_ino, facts_now.st_mtime_ns)

    def is_ours(self) -> bool:
        """Return whether we hold the store. Raises OSError if that cannot be found out."""
        return self._holder() == self._mark

    def is_lost(self) -> bool:
        """Return whether another process has taken the store. Raises OSError if unknown.

        A lease that is gone was not taken by anybody: the next heartbeat writes it again.
        """
        return self._holder() not in (None, self._mark)

    def give_back(self) -> None:
        """Let the next one in at once."""
        with contextlib.suppress(OSError):
            if self.is_ours():
                self._path.unlink(missing_ok=True)

    def guard(self, stop: threading.Event, leave: Callable[[str], None]) -> None:
        """Renew until told to stop; call `leave` with the reason when the store is no longer ours.

        A beat that fails is tried again: one full disk or one moment without file handles does
        not mean that the store is lost. Only when no beat went through for so long that another
        host may take over does the holder leave.
        """
        last = time.monotonic()
        while not stop.wait(BEAT_SECONDS):
            try:
                if self.is_lost():
                    leave("another process has taken the store")
                self.renew()
                last = time.monotonic()
            except OSError as error:
                self._say(f"the lease on the store cannot be renewed ({error}): trying again")
                if time.monotonic() - last > _PROOF_SECONDS:
                    leave(f"the lease on the store was not renewed for {_PROOF_SECONDS:.0f} s")

    def _holder(self) -> str | None:
        """Return the mark of whoever holds the store; None if nobody does. Raises OSError."""
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return None
        except OSError:
            if self._is_as_written():  # which can be told without a free file handle
                return self._mark
            raise
        return str(_facts(text).get("mark"))

    def _is_as_written(self) -> bool:
        """Return whether the file is the very one that we wrote, or touched, last."""
        with contextlib.suppress(OSError):
            facts = self._path.stat()
            return (facts.st_ino, facts.st_mtime_ns) == self._written
        return False

    def _glimpse(self) -> tuple[str, int] | None:
        """Return content and time of the lease; any change is a heartbeat. None if there is none.

        Raises OSError if there is one that cannot be read.
        """
        try:
            return self._path.read_text(errors="replace"), self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _say(self, trouble: str) -> None:
        """Log a trouble when it begins and when it is over, not at each beat."""
        if trouble != self._trouble:
            logging.warning(trouble or "the lease on the store is renewed again")
            self._trouble = trouble


def _facts(text: str) -> dict[str, object]:
    try:
        facts = json.loads(text)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}

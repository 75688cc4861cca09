"""What a look at this machine found: one line for each thing, with its fix.

Each check is a function in the room that owns what it looks at; `factory doctor` calls them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it stands, what was seen, and what to do about it."""

    name: str
    state: State
    seen: str
    fix: str = ""

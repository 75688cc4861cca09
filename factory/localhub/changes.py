"""What a commit does to the files of a repo, and what it says besides."""

from __future__ import annotations

from dataclasses import dataclass

from factory.localhub.git_objects import Entry


@dataclass(frozen=True, slots=True)
class Put:
    """A file to be written; `entry` carries its last name and its content."""

    parts: tuple[str, ...]
    entry: Entry


@dataclass(frozen=True, slots=True)
class Remove:
    """A file or a whole directory to be taken away."""

    parts: tuple[str, ...]
    directory: bool


Change = Put | Remove


@dataclass(frozen=True, slots=True)
class Words:
    """What a commit says besides its files: by whom, when, and why."""

    author: str
    title: str
    message: str = ""
    date: int | None = None  # None is now

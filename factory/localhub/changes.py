"""Changes of a commit to the files of a repo, with its author and message."""

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
    """Author, title, message and date of a commit."""

    author: str
    title: str
    message: str = ""
    date: int | None = None  # None is now

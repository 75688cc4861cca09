"""Which files are large ones (.gitattributes) and which stay out (.gitignore), read as git does."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from factory.localhub.errors import BadRequest

PATH = ".gitattributes"
# Above this, a file is kept as a large file whatever its name.
REGULAR_LIMIT = 10_000_000
_GLOB_LIMIT = 1000
# Longer ones match nothing: a path is not so long.
_PATTERN_LIMIT = 4096
# A slash that is not inside of brackets.
_SLASH = re.compile(r"/(?![^\[\]/]*\])")
_WILD = re.compile(r"[*?\[\\]")
_BRACKET = re.compile(r"\[([!^]?)(\]?[^\]]*)\]")
_NOTHING = re.compile(r"(?!)")

# As huggingface.co writes them, so that equal repos have equal git ids on both.
_MODEL_LINES = """
*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy
*.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/*
*.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*
"""
_DATASET_LINES = """
*.7z *.arrow *.avro *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.lz4 *.mds *.mlmodel
*.model *.msgpack *.npy *.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar
*.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*
# Audio files - uncompressed
*.pcm *.sam *.raw
# Audio files - compressed
*.aac *.flac *.mp3 *.ogg *.wav
# Image files - uncompressed
*.bmp *.gif *.png *.tiff
# Image files - compressed
*.jpg *.jpeg *.webp
# Video files - compressed
*.mp4 *.webm
"""


def default_attributes(kind: str) -> str:
    """The .gitattributes that a new repo of this kind ("model" or "dataset") starts with."""
    text = ""
    for line in (_DATASET_LINES if kind == "dataset" else _MODEL_LINES).strip().splitlines():
        if line.startswith("#"):
            text += f"{line}\n"
        else:
            text += "".join(
                f"{glob} filter=lfs diff=lfs merge=lfs -text\n" for glob in line.split()
            )
    return text


def is_large(path: str, size: int, attributes: str) -> bool:
    """Whether `path` is to be kept as a large file under these `attributes`. Raises BadRequest."""
    if size == 0:
        return False
    if size > REGULAR_LIMIT:
        return True
    return bool(_filters(attributes).along(path)[-1])


def is_ignored(path: str, ignore: str) -> bool:
    """Whether a .gitignore of this text leaves `path` out. Raises BadRequest."""
    return any(_ignore_rules(ignore).along(path))  # git never looks below an ignored directory


class _Rules:
    """Patterns with values, where the last that matches counts.

    Those without a wildcard are looked up, for there may be thousands: hubs write a line for each
    large file. Those with one are tried, and so their number is bounded.
    """

    def __init__(self, rules: Iterable[tuple[str, bool]], name: str) -> None:
        self._names: dict[tuple[str, bool], tuple[int, bool]] = {}
        self._globs: list[tuple[int, Glob, bool, bool]] = []
        for number, (pattern, value) in enumerate(rules):
            only_directories = pattern.endswith("/")
            pattern = pattern.rstrip("/")
            if _WILD.search(pattern):
                self._globs.append((number, Glob(pattern), only_directories, value))
            elif pattern:
                # Without a slash inside it may lie anywhere.
                key = pattern.removeprefix("/") if "/" in pattern else f"*/{pattern}"
                self._names[key, only_directories] = (number, value)
            if len(self._globs) > _GLOB_LIMIT:
                raise BadRequest(f"{name} has more than {_GLOB_LIMIT} patterns with wildcards")
        self._globs.reverse()

    def along(self, path: str) -> list[bool | None]:
        """The value of the last rule that matches each folder above a path and, at the end, the
        path itself; None where none does."""
        names = path.split("/")
        rules: list[tuple[int, bool | None]] = []
        for depth, name in enumerate(names, 1):
            match: tuple[int, bool | None] = (-1, None)
            for key in ("/".join(names[:depth]), f"*/{name}"):
                for only_directories in (False, True) if depth < len(names) else (False,):
                    match = max(match, self._names.get((key, only_directories), match))
            rules.append(match)
        for number, glob, only_directories, value in self._globs:
            if number < min(rules)[0]:
                break
            for depth, matches in enumerate(glob.along(names)):
                if matches and not (only_directories and depth == len(names) - 1):
                    rules[depth] = max(rules[depth], (number, value))
        return [value for _, value in rules]


@lru_cache(maxsize=128)
def _filters(attributes: str) -> _Rules:
    rules = []
    for line in attributes.splitlines():
        words = line.split()
        if not words or words[0].startswith(("#", "!")):
            continue
        for word in words[1:]:
            if word.startswith("filter=") or word in ("filter", "-filter", "!filter"):
                rules.append((words[0], word == "filter=lfs"))
    return _Rules(rules, PATH)


@lru_cache(maxsize=32)
def _ignore_rules(ignore: str) -> _Rules:
    rules = []
    for line in ignore.splitlines():
        text = line.rstrip()
        if text and not text.startswith("#"):
            rules.append((text.removeprefix("!"), not text.startswith("!")))
    return _Rules(rules, ".gitignore")


class Glob:
    """A pattern of git over whole paths. The time to match is bounded by both lengths multiplied.

    A path is matched part by part. Within a part, what stands between two stars is looked for from
    the left and never looked for again (the first place is as good as any other), so that nothing
    is tried twice; over parts, what `**` leaves open is settled by a table.
    """

    def __init__(self, pattern: str) -> None:
        anchored = "/" in pattern
        self._parts: list[re.Pattern[str] | None] = [] if anchored else [None]
        if len(pattern) > _PATTERN_LIMIT:
            self._parts = [_NOTHING]
            return
        for part in _SLASH.split(pattern.removeprefix("/")):
            # None is any number of folders; at the end, whatever lies below.
            if part != "**":
                self._parts.append(_part(part))
            elif self._parts[-1:] != [None]:  # several in a row are one
                self._parts.append(None)

    def along(self, names: list[str]) -> list[bool]:
        """Whether each folder above a path and, at the end, the path itself matches; all at once,
        or a path of n folders would be gone through n times."""
        matches = []
        # Which parts of the pattern may come next, after the names so far.
        reached = {0}
        for name in names:
            after = set()
            for index in self._skipped(reached):
                part = self._parts[index] if index < len(self._parts) else _NOTHING
                if part is None:
                    after.add(index)
                    if index == len(self._parts) - 1:
                        after.add(index + 1)
                elif part.fullmatch(name):
                    after.add(index + 1)
            reached = after
            matches.append(len(self._parts) in reached)
        return matches

    def _skipped(self, reached: set[int]) -> set[int]:
        """Add the position after each `**` in `reached` that matches no name."""
        last = len(self._parts) - 1
        return reached | {i + 1 for i in reached if i < last and self._parts[i] is None}


def _part(glob: str) -> re.Pattern[str]:
    """One part of a pattern, without slashes, as a regular expression that cannot backtrack."""
    pieces, rest = [""], glob
    while rest:
        if rest[0] == "*":
            pieces, rest = [*pieces, ""], rest.lstrip("*")
        elif rest[0] == "?":
            pieces[-1], rest = pieces[-1] + ".", rest[1:]
        elif (bracket := _BRACKET.match(rest)) and bracket[2]:
            inside = re.sub(r"([\\\[\]^&~|])", r"\\\1", bracket[2])
            pieces[-1] += f"[{'^' if bracket[1] else ''}{inside}]"
            rest = rest[bracket.end() :]
        elif rest[0] == "\\" and len(rest) > 1:
            pieces[-1], rest = pieces[-1] + re.escape(rest[1]), rest[2:]
        else:
            pieces[-1], rest = pieces[-1] + re.escape(rest[0]), rest[1:]
    first, *inner = pieces
    if inner:
        *inner, last = inner
        # Each piece has a fixed length, so the last one can be looked at from the end alone.
        text = first + "".join(f"(?>.*?{piece})" for piece in inner if piece) + f".*{last}"
    else:
        text = first
    try:
        return re.compile(text, re.DOTALL)
    except re.error:  # such as a reversed range: git matches nothing then
        return _NOTHING

"""Which files are large ones (.gitattributes) and which stay out (.gitignore), read as git does."""

from __future__ import annotations

import re
from functools import lru_cache

PATH = ".gitattributes"
# Above this, a file is kept as a large file whatever its name.
REGULAR_LIMIT = 10_000_000

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
    """Whether `path` is to be kept as a large file under these `attributes`."""
    if size == 0:
        return False
    if size > REGULAR_LIMIT:
        return True
    large = False
    for pattern, value in _filters(attributes):
        if pattern.fullmatch(path):
            large = value
    return large


def is_ignored(path: str, ignore: str) -> bool:
    """Whether a .gitignore of this text leaves `path` out."""
    rules = _ignore_rules(ignore)
    parts = path.split("/")
    for depth in range(1, len(parts) + 1):
        ignored = False
        for pattern, only_directories, value in rules:
            if only_directories and depth == len(parts):
                continue
            if pattern.fullmatch("/".join(parts[:depth])):
                ignored = value
        if ignored:
            return True  # git never looks below an ignored directory
    return False


@lru_cache(maxsize=128)
def _filters(attributes: str) -> tuple[tuple[re.Pattern[str], bool], ...]:
    found = []
    for line in attributes.splitlines():
        words = line.split()
        if not words or words[0].startswith(("#", "!")):
            continue
        for word in words[1:]:
            if word.startswith("filter=") or word in ("filter", "-filter", "!filter"):
                found.append((_pattern(words[0]), word == "filter=lfs"))
    return tuple(found)


@lru_cache(maxsize=32)
def _ignore_rules(ignore: str) -> tuple[tuple[re.Pattern[str], bool, bool], ...]:
    rules = []
    for line in ignore.splitlines():
        text = line.rstrip()
        if not text or text.startswith("#"):
            continue
        ignored = not text.startswith("!")
        glob = text.removeprefix("!")
        if glob.rstrip("/"):
            rules.append((_pattern(glob.rstrip("/")), glob.endswith("/"), ignored))
    return tuple(rules)


def _pattern(glob: str) -> re.Pattern[str]:
    """A git glob as a regular expression over whole paths."""
    anchored = "/" in glob
    rest = glob.removeprefix("/")
    out = "" if anchored else "(?:.*/)?"
    while rest:
        if rest.startswith("**/"):
            out, rest = out + "(?:.*/)?", rest[3:]
        elif rest == "**":
            out, rest = out + ".*", ""
        elif rest[0] == "*":
            out, rest = out + "[^/]*", rest.lstrip("*")
        elif rest[0] == "?":
            out, rest = out + "[^/]", rest[1:]
        elif (bracket := re.match(r"\[([!^]?)(\]?[^\]]*)\]", rest)) and bracket[2]:
            inside = re.sub(r"([\\\[\]^&~|])", r"\\\1", bracket[2])
            out, rest = f"{out}(?!/)[{'^' if bracket[1] else ''}{inside}]", rest[bracket.end() :]
        elif rest[0] == "\\" and len(rest) > 1:
            out, rest = out + re.escape(rest[1]), rest[2:]
        else:
            out, rest = out + re.escape(rest[0]), rest[1:]
    try:
        return re.compile(out, re.DOTALL)
    except re.error:  # such as a reversed range: git matches nothing then
        return re.compile(r"(?!)")

"""Compute fingerprints and content digests: canonical JSON and sha256.

Nothing outside this module knows how a fingerprint or a digest is computed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FINGERPRINT_LENGTH = 12  # hex digits: 48 bits, plenty among the artifacts of one lab
MANIFEST = "factory.json"
UNHASHED = frozenset({"README.md", ".gitattributes", MANIFEST, "recipe.yaml", "recipe.lock.yaml"})


def canonical(value: Any) -> str:
    """Return `value` as canonical JSON: sorted keys, no spaces, 1.0 written as 1, no NaN.

    Raises ValueError for a number that is not finite: it cannot name anything.
    """
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value


def fingerprint(identity: Any) -> str:
    """Return first 12 hex digits of the sha256 of `identity` in canonical JSON."""
    return hashlib.sha256(canonical(identity).encode("utf-8", "surrogatepass")).hexdigest()[
        :FINGERPRINT_LENGTH
    ]


def text_hash(text: str) -> str:
    """Return the hash of a prompt or a response, as stored in `prompt_hash` and `response_hash`."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashed(path: str) -> bool:
    """Return whether a file is content: neither about it nor evaluation results of it."""
    return path not in UNHASHED and not path.startswith(".eval_results/")


def content_digest(files: Iterable[tuple[str, str]]) -> str:
    """Return the sha256 over sorted (path, content sha256) pairs of `hashed` files.

    The same content has the same digest on every hub, whatever its commits are called.
    """
    lines = sorted(f"{path}\0{sha}\n" for path, sha in files if hashed(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def weights_digest(files: Iterable[tuple[str, str]]) -> str | None:
    """Return the content digest of a model's weights alone, from the paths and sha256 of all its
    files; None for what has no weights. A copy under another name has the same."""
    weights = [file for file in files if "/" not in file[0] and file[0].endswith(".safetensors")]
    return content_digest(weights) if weights else None

"""What must not be seen: tokens and passwords, taken out of whatever is written or printed.

Tokens come from the usual places (HF_TOKEN, the Hub library's own file, the local hub's 0600 file)
and go to the Hub's clients alone. This is the second line: an error that quotes an address, a
text that somebody pasted a key into.
"""

from __future__ import annotations

import os
import re

HIDDEN = "[hidden]"
_SHORTEST = 8  # characters; a shorter value would also be found in ordinary words
_NAMES = re.compile(r"(TOKEN|API_KEY|SECRET|PASSWORD)$")
_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\bsk-[A-Za-z0-9_-]{16,}"  # OpenAI and those who copied it
    r"|(?<=://)[^/\s@]+(?=@)"  # user:password@ in an address
    r"|(?<=[Bb]earer )[A-Za-z0-9._-]{8,}"
)


def redact(text: str) -> str:
    """`text` without anything shaped like a token, nor any secret of this environment."""
    for name, value in os.environ.items():
        if _NAMES.search(name) and len(value) >= _SHORTEST and value in text:
            text = text.replace(value, HIDDEN)
    return _SHAPES.sub(HIDDEN, text)

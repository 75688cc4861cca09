"""The factory: one recipe becomes a collection of datasets and adapters on a Hugging Face Hub.

From Python: `factory.load_adapter`, `factory.load_artifact` and `factory.run`; see
factory/release/api.py.
"""

from __future__ import annotations

import os
from typing import Any

__version__ = "0.1.0"

# Before pyarrow is imported, which reads it once: its own allocator holds on to 40 MB more than
# malloc for the same work.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def __getattr__(name: str) -> Any:
    """The Python API, imported when it is first asked for: `import factory` loads nothing."""
    if name in ("load_adapter", "load_artifact", "run"):
        from factory.release import api

        return getattr(api, name)
    raise AttributeError(f"module 'factory' has no attribute {name!r}")

"""The factory: one recipe becomes a collection of datasets and adapters on a Hugging Face Hub."""

import os

__version__ = "0.1.0"

# Before pyarrow is imported, which reads it once: its own allocator holds on to 40 MB more than
# malloc for the same work.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

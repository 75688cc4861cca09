"""Settings of Hub clients and of the libraries over them: which hub, Xet on the public one alone,
no progress bars and hints in a log.

The libraries read their settings when they are imported. `configure_clients` is the only way to set
them: it sets the environment for what is imported or started later, and the client's own constants
where it is imported already, so that the order of imports does not matter.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

PUBLIC = "https://huggingface.co"
PAGES = "factory.pages"  # the program that serves the local hub, with pages for people
QUIET = {
    "HF_HUB_VERBOSITY": "error",  # retries are reported by their outcome
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_CLIENT = "huggingface_hub.constants"
_SWITCHES = ("HF_HUB_DISABLE_XET", "HF_HUB_OFFLINE")


_names: dict[str, str] = {}  # of local hubs, by address


def name_local_hub(endpoint: str, home: Path) -> None:
    """Let messages call the local hub at an address by its home, whatever its port."""
    _names[endpoint] = f"the local hub of {home}"


def called(endpoint: str) -> str:
    """Return what messages call a hub: its address, or the home of a local one."""
    return _names.get(endpoint, endpoint)


def is_public(endpoint: str) -> bool:
    """Return whether this is huggingface.co, the one hub with a Xet store."""
    return urlsplit(endpoint).hostname == urlsplit(PUBLIC).hostname


def configure_clients(endpoint: str) -> None:
    """Prepare this process and its children to work with a hub (the one that is written to).

    A hub that was asked for by name is used, whatever HF_HUB_OFFLINE says: clusters set it to
    keep clients off the internet, and it would keep them off the local hub too. Xet stays on for
    the public hub unless the user turned it off.
    """
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    switches = {"HF_HUB_OFFLINE": False}
    if not is_public(endpoint):
        switches["HF_HUB_DISABLE_XET"] = True
    os.environ.update({key: "1" if on else "0" for key, on in switches.items()})
    if (client := sys.modules.get(_CLIENT)) is not None:
        for key, on in switches.items():
            setattr(client, key, on)


@contextmanager
def restored_settings() -> Iterator[None]:
    """Leave the environment and the client's switches as they were before the block."""
    import huggingface_hub.constants as client  # with the settings that it is to keep

    environment = dict(os.environ)
    switches = {key: getattr(client, key) for key in _SWITCHES}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for key, on in switches.items():
            setattr(client, key, on)

"""Tokens that are planted in an environment, and a look for them in all that is made there."""

from __future__ import annotations

import stat
from pathlib import Path

PLANTED = {
    "HF_TOKEN": "hf_plantedPlantedPlantedPlantedPlan",
    "HUGGING_FACE_HUB_TOKEN": "hf_plantedOldPlantedOldPlantedOld",
    "OPENAI_API_KEY": "sk-planted-0123456789abcdef",
    "WANDB_API_KEY": "planted0wandb0key0planted",
}


def assert_clean(root: Path, *printed: str) -> None:
    """No planted token is printed, or in a file below `root` but those that only their owner may
    read: where tokens belong."""
    for secret in PLANTED.values():
        assert not any(secret in text for text in printed)
    for path in root.rglob("*"):
        own = path.name == "token" and stat.S_IMODE(path.lstat().st_mode) == 0o600
        if path.is_file() and not path.is_symlink() and not own:
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in PLANTED.values()), path

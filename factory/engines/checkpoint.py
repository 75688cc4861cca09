"""Properties of a model on disk, read without its weights. Every engine uses these alone.

If each engine read limits and stop tokens in its own way, one would drop a prompt that another
answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.artifacts import untrusted
from factory.engines import chat_template
from factory.errors import InputError, reading


@dataclass(frozen=True)
class Checkpoint:
    """A model's tokenizer, the tokens that end a turn, the tokens it can attend to, and the pad
    token that its config names."""

    directory: Path
    tokenizer: Any
    stop_ids: list[int]
    max_context: int
    labels: int
    pad_id: int | None

    def classified(self, sequence: Sequence[int]) -> Sequence[int]:
        """Return a sequence up to the token at which the classifier is read. For transformers that
        is the last one that is not the config's pad token, even where the pad token is also what
        the template ends in; nothing after it can change the score."""
        end = len(sequence)
        while end > 1 and sequence[end - 1] == self.pad_id:
            end -= 1
        return sequence[:end]


def loading(directory: Path) -> AbstractContextManager[None]:
    """Raise InputError for whatever goes wrong inside the block, in which a model is loaded."""
    return reading(
        f"{directory} cannot be loaded as a model",
        "check that the repo holds config.json and safetensors weights",
    )


def read(directory: Path, stops: chat_template.Stops = "all") -> Checkpoint:
    """Read a checkpoint, with these of its stop tokens. Raises InputError where there is none."""
    from transformers import AutoConfig, GenerationConfig

    with loading(directory):
        config = AutoConfig.from_pretrained(str(directory), trust_remote_code=False)
    try:
        generation = GenerationConfig.from_pretrained(str(directory))
    except OSError:  # a model without one: its config may name an end
        generation = GenerationConfig.from_model_config(config)
    tokenizer = chat_template.load_tokenizer(str(directory))
    return Checkpoint(
        directory,
        tokenizer,
        chat_template.stop_ids(tokenizer, generation, stops),
        int(config.get_text_config().max_position_embeddings),
        int(config.num_labels),
        config.get_text_config().pad_token_id,
    )


def one_label(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint if it is a reward model. Raises InputError for any other classifier."""
    if checkpoint.labels != 1:
        raise InputError(
            f"{checkpoint.directory} has {checkpoint.labels} labels, a reward model has one",
            "name a sequence classifier with num_labels=1",
        )
    return checkpoint


@dataclass(frozen=True)
class LoraShape:
    """Shape of a PEFT adapter: its highest rank, and the name suffixes of the layers it changes
    (none where the adapter names them by a pattern)."""

    rank: int
    targets: tuple[str, ...]


def lora(adapter: Path) -> LoraShape:
    """Read the shape of a LoRA adapter. Raises InputError where there is none."""
    try:
        config = untrusted.adapter_config((adapter / "adapter_config.json").read_bytes())
    except (OSError, ValueError):
        config = {}
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"no LoRA adapter at {adapter}", "name an adapter repo with PEFT's adapter_config.json"
        )
    ranks = [config.get("r", 8), *(config.get("rank_pattern") or {}).values()]
    targets = config.get("target_modules")
    return LoraShape(max(ranks), tuple(targets) if isinstance(targets, list) else ())

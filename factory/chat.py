"""Messages to token ids, once, and the template contract that every stage leans on.

Text is rendered to ids here and nowhere else, so sampler, reward model and trainer see the same
tokens. At most one BOS, the generation prompt at the end, and every token that ends a turn known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from factory.artifact import text_hash
from factory.errors import InputError

Message = Mapping[str, str]


def load_tokenizer(directory: str) -> Any:
    """The tokenizer of a model on disk. Raises InputError when it has no chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {directory} has no chat template",
            "use an instruction-tuned model, or add chat_template.jinja to it",
        )
    return tokenizer


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation up to where the assistant is to speak."""
    return _render(tokenizer, messages, add_generation_prompt=True)


def conversation_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a whole conversation, as a reward model reads it."""
    return _render(tokenizer, messages, add_generation_prompt=False)


def _render(tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
    ids = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tokenize=True,
        add_generation_prompt=add_generation_prompt,
        return_dict=False,
    )
    bos = tokenizer.bos_token_id
    # Some templates print BOS and some tokenizers add it: two of them halve a model's gain.
    while bos is not None and len(ids) > 1 and ids[0] == bos == ids[1]:
        ids = ids[1:]
    return list(ids)


def stop_ids(tokenizer: Any, generation_config: Any) -> list[int]:
    """Every token id that ends the assistant's turn: the generation config's, the tokenizer's,
    and the one its template closes a turn with."""
    found: set[Any] = set()
    configured = getattr(generation_config, "eos_token_id", None)
    for value in (configured, tokenizer.eos_token_id):
        found.update(value if isinstance(value, list | tuple) else [value])
    marker = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rendered = _render(tokenizer, marker, add_generation_prompt=False)
    special = set(tokenizer.all_special_ids)
    closing = [token for token in rendered[-2:] if token in special]
    found.update(closing)
    return sorted(token for token in found if token is not None)


def contract(tokenizer: Any, stops: Sequence[int]) -> dict[str, Any]:
    """What the template does, for manifest and card: its hash, BOS count, stop ids, example."""
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "Hello"}])
    bos = tokenizer.bos_token_id
    # ChatML has <|im_start|> as BOS and opens every turn with it: only a doubled one is wrong.
    return {
        "template_hash": text_hash(str(tokenizer.chat_template)),
        "leading_bos": int(bos is not None and ids[0] == bos),
        "stop_ids": list(stops),
        "stop_tokens": [str(token) for token in tokenizer.convert_ids_to_tokens(list(stops))],
        "example": tokenizer.decode(ids),
    }


def contract_of(directory: Path) -> dict[str, Any]:
    """The contract of a model on disk, from its tokenizer and generation config alone."""
    from transformers import GenerationConfig

    tokenizer = load_tokenizer(str(directory))
    try:
        configured = GenerationConfig.from_pretrained(str(directory))
    except OSError:  # a model without one
        configured = None
    return contract(tokenizer, stop_ids(tokenizer, configured))

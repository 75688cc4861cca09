"""Tokenizers of real model families built small: their special tokens, and their templates as TRL
ships them (Mistral's is written here, from the format its makers describe)."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.execution.builtin_models import CHATML, demo_texts, train_bpe

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """`tokens` are its own; `bos` and `eos` name two of them; `adds_bos` if its tokenizer puts
    BOS before a text; `template` a file of TRL's, or the template itself."""

    template: str
    tokens: tuple[str, ...]
    bos: str | None
    eos: str
    closing: tuple[str, ...]  # what a turn ends with
    adds_bos: bool = False
    system: bool = True
    thinking: bool = False


_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_COHERE = (
    "<BOS_TOKEN>",
    "<EOS_TOKEN>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
)
_RESPONSE = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")

FAMILIES: dict[str, Family] = {
    "chatml": Family(CHATML, _CHATML, "<|im_start|>", "<|im_end|>", ("<|im_end|>",)),
    "llama3": Family(
        "llama3.jinja",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|eot_id|>",),
        adds_bos=True,
    ),
    "gemma": Family(
        "gemma.jinja",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",  # its turns end with another one
        ("<end_of_turn>",),
        adds_bos=True,
        system=False,
    ),
    "gemma3": Family(
        "gemma3.jinja",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",
        ("<end_of_turn>",),
        adds_bos=True,
    ),
    "mistral": Family(
        MISTRAL,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "<s>",
        "</s>",
        ("</s>",),
        adds_bos=True,
        system=False,
    ),
    "cohere": Family(
        "cohere.jinja",
        _COHERE,
        "<BOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
        ("<|END_OF_TURN_TOKEN|>",),
        adds_bos=True,
    ),
    "aya": Family(
        "cohere2.jinja",
        (*_COHERE, *_RESPONSE),
        "<BOS_TOKEN>",
        "<EOS_TOKEN>",  # all that its generation config names, of three
        ("<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>"),
        adds_bos=True,
    ),
    "qwen2.5": Family("qwen2_5.jinja", _CHATML, None, "<|im_end|>", ("<|im_end|>",)),
    "qwen3": Family(
        "qwen3.jinja",
        (*_CHATML, "<think>", "</think>"),
        None,
        "<|im_end|>",
        ("<|im_end|>",),
        thinking=True,
    ),
    "phi3": Family(
        "phi3.jinja",
        ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<s>",
        "<|endoftext|>",
        ("<|end|>", "<|endoftext|>"),
    ),
}


def template_of(family: Family) -> str:
    """The family's chat template."""
    if not family.template.endswith(".jinja"):
        return family.template
    found = importlib.util.find_spec("trl")
    assert found is not None and found.origin is not None
    return (Path(found.origin).parent / "chat_templates" / family.template).read_text("utf-8")


def tokenizer_of(name: str) -> Any:
    """A byte-level BPE trained on the demo's texts, with the tokens and template of a family."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    family = FAMILIES[name]
    bpe = train_bpe(demo_texts("prompts-*.jsonl"), 600, list(family.tokens))
    if family.adds_bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, bpe.token_to_id(family.bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=family.bos, eos_token=family.eos
    )
    tokenizer.chat_template = template_of(family)
    return tokenizer

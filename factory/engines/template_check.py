"""Check a chat template against the contract, from the tokenizer alone, before a GPU is used.
chat_template.py renders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from factory.engines import chat_template
from factory.engines.chat_template import PROBE, Message
from factory.errors import Check, InputError

_AGAIN = [{"role": "user", "content": "And a number."}, {"role": "assistant", "content": "Quor"}]
_NAME = "chat template"  # a caller puts the model here


def template_faults(tokenizer: Any, generation_config: Any) -> list[Check]:
    """Return the faults of the template of a model that answers, worst first."""
    first = _turn(tokenizer, PROBE, "a first answer")
    second = [] if first else _turn(tokenizer, [*PROBE, *_AGAIN], "a second answer")
    faults = [*first, *second, *_stops(tokenizer, generation_config), *opening_faults(tokenizer)]
    return sorted(dict.fromkeys(faults), key=lambda fault: fault.state != "failed")


def opening_faults(tokenizer: Any) -> list[Check]:
    """Return the faults at the start of a template. A reward model is checked for these alone: it
    reads whole conversations and stops nowhere."""
    try:
        text = chat_template.render(tokenizer, PROBE, add_generation_prompt=False)
    except InputError as error:
        return [Check(_NAME, "failed", error.what, error.fix)]
    bos, name = tokenizer.bos_token_id, tokenizer.bos_token
    printed = tokenizer.encode(text, add_special_tokens=False)
    if bos is not None and printed[:2] == [bos, bos]:
        return [
            Check(
                _NAME,
                "warning",
                f"the template prints {name} twice",
                "remove one: one is dropped here, but not by other programs",
            )
        ]
    if bos is not None and printed[0] != bos == tokenizer.encode("a")[0]:
        return [
            Check(
                _NAME,
                "warning",
                f"the tokenizer begins a text with {name}, but its template prints none",
                "put {{ bos_token }} at the start of the template if the model was tuned with it",
            )
        ]
    return []


def _turn(tokenizer: Any, messages: Sequence[Message], when: str) -> list[Check]:
    """Check that a prompt is a prefix of its conversation, up to the answer's first character."""
    later = messages is not PROBE  # several turns: only recipes that ask for them are harmed
    try:
        prompt = chat_template.prompt_ids(tokenizer, messages[:-1])
        conversation = chat_template.conversation_ids(tokenizer, messages)
    except InputError as error:
        return [Check(_NAME, "warning" if later else "failed", error.what, error.fix)]
    if conversation[: len(prompt)] != prompt:
        return [
            Check(
                _NAME,
                "warning" if later else "failed",
                f"the prompt for {when} is not a prefix of the conversation: it ends in "
                f"{tokenizer.decode(prompt)[-24:]!r}",
                "use a model whose template prints the same before generated and given answers: "
                "training and scoring would not see what was sampled",
            )
        ]
    rest = tokenizer.decode(conversation[len(prompt) :])
    if not rest.lstrip().startswith(messages[-1]["content"]):
        return [
            Check(
                _NAME,
                "warning" if later else "failed",
                f"the generation prompt is incomplete: {rest[:40]!r} is still to come before "
                f"{when}",
                "let the template print all of it when add_generation_prompt is set",
            )
        ]
    return []


def _stops(tokenizer: Any, generation_config: Any) -> list[Check]:
    try:
        closing = chat_template.closing_ids(tokenizer)
        after = chat_template.render(tokenizer, PROBE, False).rpartition(PROBE[-1]["content"])[2]
    except InputError:
        return []  # reported by _turn
    configured = getattr(generation_config, "eos_token_id", None)
    configured_ids = configured if isinstance(configured, list | tuple) else [configured]
    if not closing and (after.strip() or configured_ids in ([], [None])):
        return [
            Check(
                _NAME,
                "failed",
                "no token ends the assistant's turn: every answer runs on to max_tokens",
                "let the template close a turn with a special token of the tokenizer",
            )
        ]
    if not closing:  # as GLM's, where whoever speaks next ends it
        return [
            Check(
                _NAME,
                "warning",
                "the template prints nothing after an answer: trained models never learn to stop",
                "sample from this model, but train another, or let its template print a stop token",
            )
        ]
    if closing[0] in configured_ids:
        return []
    stop = tokenizer.convert_ids_to_tokens(closing[0])
    return [
        Check(
            _NAME,
            "warning",
            f"a turn ends with {stop}, which generation_config.json does not name",
            "nothing to do here, where it also stops an answer; for other programs add "
            f"{closing[0]} to its eos_token_id",
        )
    ]

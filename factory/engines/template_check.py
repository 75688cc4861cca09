"""Where a chat template breaks the contract: seen from the tokenizer alone, before a GPU is asked
for. What is rendered, and how, is chat_template.py's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from factory.engines import chat_template
from factory.engines.chat_template import PROBE, Message
from factory.errors import Check, InputError

_AGAIN = [{"role": "user", "content": "And a number."}, {"role": "assistant", "content": "Quor"}]
_NAME = "chat template"  # a caller puts the model here


def breaches(tokenizer: Any, generation_config: Any) -> list[Check]:
    """What is wrong with the template of a model that answers, worst first."""
    first = _turn(tokenizer, PROBE, "a first answer")
    second = [] if first else _turn(tokenizer, [*PROBE, *_AGAIN], "a second answer")
    found = [*first, *second, *_stops(tokenizer, generation_config), *opening(tokenizer)]
    return sorted(dict.fromkeys(found), key=lambda breach: breach.state != "failed")


def opening(tokenizer: Any) -> list[Check]:
    """What is wrong with how a template begins. All that binds a reward model's: it reads whole
    conversations and stops nowhere."""
    try:
        text = chat_template.rendered(tokenizer, PROBE, add_generation_prompt=False)
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
                "take one out of it: one is dropped here, but other programs will not do so",
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
    """Whether a prompt is how its conversation begins, up to the answer's first character."""
    later = messages is not PROBE  # several turns: only recipes that ask for them are harmed
    try:
        prompt = chat_template.prompt_ids(tokenizer, messages[:-1])
        whole = chat_template.conversation_ids(tokenizer, messages)
    except InputError as error:
        return [Check(_NAME, "warning" if later else "failed", error.what, error.fix)]
    if whole[: len(prompt)] != prompt:
        return [
            Check(
                _NAME,
                "warning" if later else "failed",
                f"the prompt for {when} is not how the whole conversation begins: it ends in "
                f"{tokenizer.decode(prompt)[-24:]!r}",
                "use a model whose template prints the same before an answer, drawn or given: "
                "what is trained on and scored would not be what was drawn",
            )
        ]
    rest = tokenizer.decode(whole[len(prompt) :])
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
        after = chat_template.rendered(tokenizer, PROBE, False).rpartition(PROBE[-1]["content"])[2]
    except InputError:
        return []  # said already
    configured = getattr(generation_config, "eos_token_id", None)
    known = configured if isinstance(configured, list | tuple) else [configured]
    if not closing and (after.strip() or known in ([], [None])):
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
                "the template prints nothing after an answer: nobody trained on it learns to stop",
                "draw with this model, but train another, or let its template print a stop token",
            )
        ]
    if closing[0] in known:
        return []
    stop = tokenizer.convert_ids_to_tokens(closing[0])
    return [
        Check(
            _NAME,
            "warning",
            f"a turn ends with {stop}, which generation_config.json does not name",
            "nothing to do here, where it stops an answer all the same; for other programs add "
            f"{closing[0]} to its eos_token_id",
        )
    ]

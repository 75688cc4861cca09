"""Messages to token ids, in one place, and the contract of chat templates that every stage relies
on.

Text is rendered to ids here and nowhere else, so sampler, reward model and trainer see the same
tokens. At most one BOS, the generation prompt at the end, and every token that ends a turn known.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from factory.artifacts.hashing import text_hash
from factory.errors import InputError, reading

Message = Mapping[str, str]
# Which tokens end an answer: every one that ends a turn, or those that the configs of model and
# tokenizer name, which is where vLLM stops when it is told nothing.
Stops = Literal["all", "config"]

REFUSED = "refused_by_template"  # the reason that such a prompt is counted by
# by tokenizer: its template, and a pattern of its control tokens
_CONTROL: weakref.WeakKeyDictionary[Any, tuple[str, re.Pattern[str] | None]] = (
    weakref.WeakKeyDictionary()
)
# Control tokens of well-known models, for one that is served, whose template is elsewhere: those
# between bars (ChatML, Llama 3 and 4, Phi, Command R, DeepSeek, Granite, Harmony) and a few others.
_WELL_KNOWN = re.compile(
    r"<[|｜][^\s<>|｜]{1,40}[|｜]>|</?s>|<(?:bos|eos|sop)>|<(?:start|end)_of_turn>|<</?SYS>>"
    r"|<(?:BOS|EOS)_TOKEN>|\[gMASK\]"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
)
# What a template prints around a turn where that is no token of its own: `[/INST]`, `<|user|>`, and
# `### Response:` or `USER:`. A sentence, as a default system prompt has it, is none.
_BRACKETS = re.compile(r"<{1,2}[^<>\s]+>{1,2}|\[[^\[\]\s]+\]")
_LABEL = re.compile(r"(?=.*[^\w\s])(?=.*[^\W\d_])\S{1,20}(?: \S{1,20}){0,2}")

# What switches thinking off in the templates that have it: Qwen3's and DeepSeek's word for it.
_THINKING = ("enable_thinking", "thinking")
# A conversation to try a template on; its answer is a word that no template prints by itself.
PROBE = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Xylo"}]


class TemplateRefusal(InputError):
    """A conversation that a chat template refuses, such as for its order of turns."""


def load_tokenizer(directory: str) -> Any:
    """Load the tokenizer of a model on disk. Raises InputError when it cannot be read, or has no
    chat template."""
    from transformers import AutoTokenizer

    with reading(
        f"the tokenizer of {directory} cannot be read",
        "check that the repo holds tokenizer.json and tokenizer_config.json",
    ):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {directory} has no chat template",
            "use an instruction-tuned model, or add chat_template.jinja to it",
        )
    return tokenizer


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of a conversation, with the generation prompt. Raises
    TemplateRefusal when the template refuses it."""
    return _render(tokenizer, messages, add_generation_prompt=True)


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of plain text to continue, without the chat template."""
    return list(tokenizer(text)["input_ids"])


def conversation_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of a whole conversation, as a reward model reads it. Raises
    TemplateRefusal when the template refuses it."""
    return _render(tokenizer, messages, add_generation_prompt=False)


def answered_ids(
    tokenizer: Any, items: Sequence[tuple[Sequence[Message], str]]
) -> list[tuple[list[int], int]]:
    """Return, for (prompt, answer) pairs, the token ids up to and with the stop token that closes
    the answer, and the index where the answer starts: what a model would have drawn, and what is
    trained on.

    Raises InputError when no token ends a turn, or a prompt is not a prefix of its conversation.
    """
    tail = _tail(tokenizer)
    stop = next((i for i, token in enumerate(tail) if _ends_turn(tokenizer, token)), None)
    if stop is None:
        raise InputError(
            "the chat template has no token that ends the assistant's turn",
            "use a model whose template closes a turn with a special token",
        )
    after = len(tail) - stop - 1  # what is printed after the stop token, usually a line break
    prompts: dict[str, list[int]] = {}
    spans = []
    for messages, answer in items:
        key = repr([dict(message) for message in messages])
        if key not in prompts:
            prompts[key] = prompt_ids(tokenizer, messages)
        start = len(prompts[key])
        ids = conversation_ids(tokenizer, [*messages, {"role": "assistant", "content": answer}])
        if ids[:start] != prompts[key]:
            raise InputError(
                "the chat template does not render a prompt as a prefix of its conversation",
                "use a model whose template renders prompts as prefixes: see factory check",
            )
        spans.append((ids[: len(ids) - after], start))
    return spans


def control_tokens(tokenizer: Any, messages: Sequence[Message]) -> list[str]:
    """Return the control tokens of a model, and what else its template prints around turns, that
    stand as text in messages, each once. `tokenizer` is None for a served model."""
    pattern = _control_pattern(tokenizer)
    tokens = (pattern.findall(message["content"]) for message in messages) if pattern else ()
    return list(dict.fromkeys(token.strip() for some in tokens for token in some))


def as_text(tokenizer: Any, messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return messages in which control tokens of a model, and what else its template prints around
    turns, are text, with a space inside: rendered as they are, they would end a turn or open
    another one. `tokenizer` is None for a served model."""
    pattern = _control_pattern(tokenizer)
    if pattern is None:
        return [dict(message) for message in messages]
    return [
        {**message, "content": pattern.sub(_spaced, message["content"])} for message in messages
    ]


def _spaced(match: re.Match[str]) -> str:
    """Return a control token with a space after its first character, or `User:` as `User :`."""
    token = match[0].lstrip()
    at = -1 if token[0].isalnum() else 1 - len(token)
    return f"{match[0][:at]} {match[0][at:]}"


def _control_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Return a pattern of the tokens that a tokenizer takes out of a text as control tokens, and of
    what its template prints around turns. A word that it also has as its padding, or a line break,
    is text."""
    if tokenizer is None:
        return _WELL_KNOWN
    template = _template(tokenizer)
    if _CONTROL.get(tokenizer, ("",))[0] != template:
        added = tokenizer.added_tokens_decoder.values()
        names = {token.content for token in added if token.special}
        names = {n for n in names if len(n) > 2 and not n.isalnum() and not n.isspace()}
        longest_first = map(re.escape, sorted(names, key=len, reverse=True))
        patterns = [*longest_first, *_markers(tokenizer, {token.content for token in added})]
        pattern = re.compile("|".join(patterns), re.MULTILINE) if patterns else None
        _CONTROL[tokenizer] = template, pattern
    return _CONTROL[tokenizer][1]


def _markers(tokenizer: Any, added: Collection[str]) -> list[str]:
    """Return patterns of what a template prints between turns beside the tokens of its tokenizer:
    anything in brackets, and labels (`User:`, `### Response:`) where the template has them, at the
    start of a line or as words of their own."""
    texts = ("Zyxel", "Qopyr", "Vubaw", "Hojec", "Mifud")
    roles = ("system", "user", "assistant", "user", "assistant")
    talk = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    tokens = re.compile("|".join(map(re.escape, filter(str.strip, added))) or r"\Z")
    patterns: set[str] = set()
    for turns in (talk, talk[1:], talk[1:3]):
        try:
            printed = _print(tokenizer, turns, add_generation_prompt=False)
        except (TemplateRefusal, TypeError, LookupError, AttributeError):
            continue  # it takes no system message, or one turn alone
        opening, *between = re.split("|".join(texts), tokens.sub("\0", printed))
        brackets = _BRACKETS.findall("".join([opening, *between]))
        patterns |= {re.escape(name) for name in brackets if "think" not in name}
        for part in between:
            for at, line in enumerate(_BRACKETS.sub("\0", part).split("\n")):
                for number, label in enumerate(map(str.strip, line.split("\0"))):
                    if _LABEL.fullmatch(label):
                        start = r"^[ \t]*" if at and not number else r"(?<!\w)"
                        patterns.add(start + re.escape(label))
    return sorted(patterns)


def template_arguments(tokenizer: Any) -> dict[str, bool]:
    """Return the template's keyword arguments: thinking off, where it has a switch.

    The thoughts would be trained on, scored and compared as if they were the answer.
    """
    template = _template(tokenizer)
    return {name: False for name in _THINKING if re.search(rf"\b{name}\b", template)}


def takes_system(tokenizer: Any) -> bool:
    """Return whether the template prints a system message; some refuse one, some leave it out."""
    messages = [{"role": "system", "content": "Zyxel"}, *PROBE]
    try:
        return "Zyxel" in render(tokenizer, messages, add_generation_prompt=False)
    except InputError:
        return False


def stop_ids(tokenizer: Any, generation_config: Any, stops: Stops = "all") -> list[int]:
    """Return the token ids that end the assistant's turn: the generation config's, the tokenizer's,
    and, of `all`, those that its template prints after an answer (Cohere's prints two)."""
    tokens: set[Any] = set()
    configured = getattr(generation_config, "eos_token_id", None)
    for value in (configured, tokenizer.eos_token_id):
        tokens.update(value if isinstance(value, list | tuple) else [value])
    if stops == "all":
        tokens.update(closing_ids(tokenizer))
    return sorted(token for token in tokens if token is not None)


def closing_ids(tokenizer: Any) -> list[int]:
    """Return the special tokens that the template prints after an answer, in order. A model trained
    on it stops at the first. Empty if it closes a turn with plain text."""
    return [token for token in _tail(tokenizer) if _ends_turn(tokenizer, token)]


def ends_in_padding(tokenizer: Any, pad_id: int | None) -> bool:
    """Return whether the template ends a conversation in this token. A classifier that has it for
    padding is read at the token before, by transformers and so in training."""
    return pad_id is not None and conversation_ids(tokenizer, PROBE)[-1] == pad_id


def separate_padding(tokenizer: Any, conversations: Iterable[Sequence[Message]]) -> None:
    """Give the tokenizer a pad token that none of these conversations holds, if its own is the last
    token of a conversation: one of its special tokens, if any is left, and of those one that is
    called a pad. A tokenizer without a pad token gets EOS, if that is not the last token.

    The same conversations in another order give the same token.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not ends_in_padding(tokenizer, tokenizer.pad_token_id):
        return
    used = {token for talk in conversations for token in conversation_ids(tokenizer, talk)}
    used |= {*conversation_ids(tokenizer, PROBE), *prompt_ids(tokenizer, PROBE[:1])}
    used |= {tokenizer.bos_token_id, tokenizer.eos_token_id}
    template = _template(tokenizer)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    names = {token: str(tokenizer.convert_ids_to_tokens(token)) for token in special - used}
    spare = [token for token, name in names.items() if name not in template]
    spare.sort(key=lambda token: ("pad" not in names[token].lower(), token))
    words = (token for token in reversed(range(tokenizer.vocab_size)) if token not in used)
    pad = spare[0] if spare else next(words, None)
    if pad is None:
        raise InputError(
            "every token of the vocabulary is in use, and the pad token ends every conversation",
            "add a pad token of its own to the tokenizer and to the model",
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)


def contract(tokenizer: Any, stops: Sequence[int]) -> dict[str, Any]:
    """Describe the template for manifest and card: its hash, BOS count, stop ids, switches that are
    off, whether it takes a system message, and an example."""
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "Hello"}])
    bos = tokenizer.bos_token_id
    # ChatML has <|im_start|> as BOS and opens every turn with it: only a doubled one is wrong.
    return {
        "template_hash": text_hash(str(tokenizer.chat_template)),
        "leading_bos": int(bos is not None and ids[0] == bos),
        "stop_ids": list(stops),
        "stop_tokens": [str(token) for token in tokenizer.convert_ids_to_tokens(list(stops))],
        "arguments": template_arguments(tokenizer),
        "takes_system": takes_system(tokenizer),
        "example": tokenizer.decode(ids),
    }


def read_contract(directory: Path, stops: Stops = "all") -> dict[str, Any]:
    """Return the contract of a model on disk, from its tokenizer and generation config alone."""
    from transformers import GenerationConfig

    tokenizer = load_tokenizer(str(directory))
    try:
        configured = GenerationConfig.from_pretrained(str(directory))
    except OSError:  # a model without one
        configured = None
    return contract(tokenizer, stop_ids(tokenizer, configured, stops))


def _render(tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
    text = render(tokenizer, messages, add_generation_prompt)
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    bos = tokenizer.bos_token_id
    # Some templates print BOS and some tokenizers add it: two of them halve a model's gain.
    while bos is not None and len(ids) > 1 and ids[0] == bos == ids[1]:
        ids = ids[1:]
    return ids


def render(tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """Render a conversation with its template, control tokens in it as text. Raises TemplateRefusal
    when the template refuses it."""
    return _print(tokenizer, as_text(tokenizer, messages), add_generation_prompt)


def _print(tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    from jinja2.exceptions import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **template_arguments(tokenizer),
        )
    except TemplateError as error:
        roles = [message["role"] for message in messages]
        message = str(error).strip().splitlines()[0]
        if "system" in roles:
            raise TemplateRefusal(
                f"the chat template accepts no system message ({message})",
                "leave the system prompt out, or put it into the first user turn",
            ) from None
        raise TemplateRefusal(
            f"the chat template refuses a conversation of {', '.join(roles)}: {message}",
            "alternate user and assistant turns, the user's first",
        ) from None
    return text


def _template(tokenizer: Any) -> str:
    """Return the template in use, where a tokenizer has several by name."""
    template = tokenizer.chat_template
    return str(template.get("default", "")) if isinstance(template, dict) else str(template)


def _tail(tokenizer: Any) -> list[int]:
    """Return the token ids that the template prints after a final answer."""
    text = render(tokenizer, PROBE, add_generation_prompt=False)
    after = text.rpartition(PROBE[-1]["content"])[2]
    return list(tokenizer.encode(after, add_special_tokens=False))


def _ends_turn(tokenizer: Any, token: int) -> bool:
    """Return whether a token is one of the tokenizer's own and not text. Gemma's has runs of line
    breaks among its own."""
    added = tokenizer.added_tokens_decoder.get(token)
    return token in tokenizer.all_special_ids or (added is not None and added.content.strip() != "")

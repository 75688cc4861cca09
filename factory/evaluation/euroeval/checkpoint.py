"""A model directory as the older transformers of EuroEval 17 reads it.

Read by transformers 4, what version 5 wrote gives a wrong model without a word: `rope_parameters`
is passed over, so a base of 100,000 becomes 10,000. Here it is translated, or refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factory.artifacts import untrusted
from factory.errors import InputError

# What each kind of rotary embedding may say beside its base, in both versions alike.
_ROPE: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor", "original_max_position_embeddings"}),
    "yarn": frozenset({"factor", "original_max_position_embeddings", "attention_factor",
                       "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}),
    "llama3": frozenset({"factor", "original_max_position_embeddings", "low_freq_factor",
                         "high_freq_factor"}),
}  # fmt: skip
_WEIGHTS = (".safetensors", ".model")  # .model: SentencePiece's
_TEXT = (".json", ".jinja", ".txt")
_V5_TOKENIZERS = frozenset({"TokenizersBackend", "PreTrainedTokenizer"})


def write(source: Path, to: Path, dtype: str, translate: bool = True) -> None:
    """Put the model of `source` at `to` (made anew) for transformers 4, to be loaded in `dtype`:
    weights are linked, its configs translated, template, tokenizer and generation config as they
    are. Without `translate`, for transformers 5: nothing but the dtype is changed. Raises
    InputError for what cannot be translated."""
    config = untrusted.fields((source / "config.json").read_bytes())
    translated = {**config, "dtype": dtype}
    if translate:
        translated = {**older(config, source.name), "torch_dtype": dtype}
    to.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.name.endswith(_WEIGHTS):
            _link(path, to / path.name)
        elif path.name.endswith(_TEXT) and path.name != "factory.json":
            (to / path.name).write_bytes(path.read_bytes())
    (to / "config.json").write_text(json.dumps(translated, indent=2), encoding="utf-8")
    tokenizer = to / "tokenizer_config.json"
    if translate and tokenizer.exists():
        tokenizer_config = untrusted.fields(tokenizer.read_bytes())
        tokenizer.write_text(
            json.dumps(older_tokenizer(tokenizer_config), indent=2), encoding="utf-8"
        )


def older(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Translate a config to transformers 4. Raises InputError."""
    translated = {k: v for k, v in config.items() if k not in ("rope_parameters", "dtype")}
    if "rope_parameters" in config:
        translated |= _rope(config["rope_parameters"] or {}, name)
    for part in ("text_config", "vision_config"):
        if isinstance(translated.get(part), Mapping):
            translated[part] = older(translated[part], name)
    return translated


def older_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a tokenizer's config to transformers 4."""
    translated = dict(config)
    if translated.get("tokenizer_class") in _V5_TOKENIZERS:
        translated["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(translated.get("extra_special_tokens"), list):  # there it is a mapping
        translated.setdefault("additional_special_tokens", translated["extra_special_tokens"])
        del translated["extra_special_tokens"]
    return translated


def _rope(parameters: Mapping[str, Any], name: str) -> dict[str, Any]:
    fix = "evaluate it with backend: openai, whose server reads it as it is"
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise InputError(
            f"{name}: its layers have rotary embeddings of several kinds, which the older "
            "transformers of EuroEval write in another way for each model",
            fix,
        )
    rest = dict(parameters)
    kind = str(rest.pop("rope_type", rest.pop("type", "default")))
    translated = {
        key: rest.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rest
    }
    if kind not in _ROPE or (stray := sorted(rest.keys() - _ROPE[kind])):
        odd = kind if kind not in _ROPE else f"{kind} with {', '.join(stray)}"
        raise InputError(
            f"{name}: rotary embeddings of type {odd!r} cannot be put in the words of the older "
            "transformers of EuroEval",
            fix,
        )
    return translated | {"rope_scaling": None if kind == "default" else {"rope_type": kind, **rest}}


def _link(path: Path, to: Path) -> None:
    """Link `path` at `to`, without a copy."""
    real = path.resolve()
    try:
        os.link(real, to)
    except OSError:  # another disk
        to.symlink_to(real)

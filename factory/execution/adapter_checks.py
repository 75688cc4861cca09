"""Checks of adapters from outside, before anything is run: the base that each was trained on, and
what of it an engine does not take."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.artifacts import untrusted
from factory.artifacts.hashing import MANIFEST
from factory.artifacts.manifest import read_manifest
from factory.errors import Check, HubError, InputError
from factory.hub.client import Hub
from factory.planning.lock import Lock
from factory.planning.recipe import Recipe
from factory.stage.inputs import ExternalInput, Need, SliceSpec, StepInput
from factory.stage.stage import From, Stage
from factory.training import adapters

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = (adapters.CONFIG, adapters.WEIGHTS, MANIFEST)
# of an adapter from outside, or of one that a step takes in
_ROLES = ("adapter", "start", "source")
_BASES = ("base", "model", "policy")


@dataclass(frozen=True)
class _Use:
    """An adapter from outside that a step puts on a base, both as the lock pins them."""

    stage: Stage
    role: str
    adapter: str
    base: str
    taken_in: From | None  # where a step takes it in
    stated: str | None  # the repo that the adapter's own name for its base stands for


def check_adapters(
    recipe: Recipe, pins: Lock, hub: Hub, only: frozenset[str] | None = None
) -> list[Check]:
    """Return findings about the adapters from outside that the steps of a recipe (or `only` these)
    put on a model: another base, a resized vocabulary, what vLLM does not take, another LoRA than
    the one that is trained further. Raises HubError."""
    findings: dict[Check, None] = {}
    for use in _uses(recipe, only):
        if use.adapter in pins.pins and use.base in pins.pins:
            findings |= dict.fromkeys(_look(use, pins, hub))
    return list(findings)


def _uses(recipe: Recipe, only: frozenset[str] | None) -> Iterator[_Use]:
    laid = recipe.slices()
    specs = {(spec.step, spec.name): (stage, spec) for stage, spec in laid}
    stated = {
        f"{repo}@{revision or 'main'}": ref.base
        for ref in recipe.models.values()
        for repo, _, revision in [(ref.adapter or "").partition("@")]
    }
    for stage, spec in laid:
        if only is not None and spec.step not in only:
            continue
        base = _base(spec, specs)
        for need in spec.needs:
            adapter, taken_in = _adapter(stage, need, specs)
            if adapter is not None and base is not None:
                names = taken_in.base if taken_in else stated.get(adapter)
                yield _Use(stage, need.role, adapter, base, taken_in, names)


def _adapter(
    stage: Stage, need: Need, specs: Mapping[tuple[str, str], tuple[Stage, SliceSpec]]
) -> tuple[str | None, From | None]:
    """Return the source of an adapter from outside that an input of a stage is, and how a step
    takes it in, if one does."""
    if isinstance(need, StepInput) and need.role in _ROLES:
        maker, spec = specs[need.step, need.slice]
        source = spec.need("source")
        return _adapter(maker, source, specs) if source else (None, None)
    if isinstance(need, ExternalInput) and need.kind == "model" and need.role in _ROLES:
        return need.source, stage.from_
    return None, None


def _base(spec: SliceSpec, specs: Mapping[tuple[str, str], tuple[Stage, SliceSpec]]) -> str | None:
    """Return the source of the model from outside that a slice puts an adapter on, if any."""
    need = next((need for role in _BASES if (need := spec.need(role))), None)
    return need.source if isinstance(need, ExternalInput) else None


def _look(use: _Use, pins: Lock, hub: Hub) -> Iterator[Check]:
    name, pin = use.adapter.partition("@")[0], pins.pins[use.adapter]
    if hub.reachable and not hub.has(name, "model", str(pin.revision)):
        return  # as in a reproduction of what was trained elsewhere
    directory = hub.fetch(name, "model", str(pin.revision), _FILES)
    try:
        config = adapters.read_config(directory)
        if not (directory / adapters.WEIGHTS).is_file():
            raise InputError(f"{name} holds no {adapters.WEIGHTS}", "pickles are not read")
        if use.role == "start":
            lora = use.stage.lora  # type: ignore[attr-defined]
            adapters.check_lora(config, name, lora)
        full_layers = adapters.whole_layers(directory)
    except InputError as error:
        yield Check(name, "failed", error.what.replace(str(directory), name), error.fix)
        return
    base_name, base_pin = use.base.partition("@")[0], pins.pins[use.base]
    yield from _other_base(use, config, directory, base_name, base_pin.digest, hub)
    if config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS"):
        yield Check(
            name,
            "failed",
            f"it makes a classifier of its base ({config['task_type']}), which answers nothing",
            "name an adapter of a chat model; merge this one to use it as a reward model",
        )
        return
    if hub.reachable and not hub.has(base_name, "model", str(base_pin.revision)):
        return
    base = hub.fetch(base_name, "model", str(base_pin.revision), ("config.json",))
    text = config_of(base / "config.json")
    inner = text.get("text_config")
    words = (inner if isinstance(inner, dict) else text).get("vocab_size")
    tokens = [layer for layer in full_layers if layer.endswith("trainable_tokens_delta")]
    full = {layer: rows for layer, rows in full_layers.items() if layer not in tokens}
    resized = {r for layer, r in full.items() if adapters.per_word(layer) and r != words}
    if words and resized:
        yield Check(
            name,
            "failed",
            f"its vocabulary has {max(resized)} words, that of {base_name} {words}: it was trained "
            "on a resized base, which no engine here makes",
            "merge it where it was trained (merge_and_unload, then save_pretrained), and name the "
            "whole model",
        )
        return
    kinds = ["DoRA"] if config.get("use_dora") else []
    kinds += ["tokens of its own (trainable_token_indices)"] if tokens else []
    biases = [layer for layer in full if layer.endswith(".bias")]
    kinds += ["biases"] if biases else []
    saved = config.get("modules_to_save")
    if saved or len(biases) < len(full):
        layers = {layer.split(".")[-2] for layer in full if layer not in biases and "." in layer}
        listed: list[Any] = saved if isinstance(saved, list) else sorted(layers) or [saved]
        kinds.append(f"whole layers ({', '.join(map(str, listed))}, modules_to_save)")
    engine = getattr(use.stage.how, "engine", None)
    if kinds and use.role != "source" and engine in ("auto", "vllm"):
        yield Check(
            name,
            "failed" if engine == "vllm" else "warning",
            f"stages.{use.stage.name}: it has {' and '.join(kinds)}, which vLLM does not take",
            f"set stages.{use.stage.name}.how.engine: transformers, which does",
        )


def _other_base(
    use: _Use, config: Mapping[str, Any], directory: Path, base: str, digest: str, hub: Hub
) -> Iterator[Check]:
    """Find an adapter whose base is not the model that it is put on: by the content that its
    manifest states, by the name in its config, or by the content that has that name."""
    name = use.adapter.partition("@")[0]
    stated, revision = config.get("base_model_name_or_path") or "", config.get("revision")
    stated = stated.removeprefix("https://huggingface.co/").rstrip("/")
    trained_on = _manifest_digest(directory)
    if trained_on is None and _REPO.fullmatch(stated):
        trained_on = _content(hub, stated, revision or "main")
    same_name = stated.casefold() == base.casefold() or use.stated == base
    if trained_on == digest or (same_name and (trained_on is None or not revision)):
        return
    trained_base = f"{stated}@{revision[:12]}" if same_name and revision else stated
    where = "from.source" if use.taken_in else "adapter:"
    say = f"if that is {base} under another name, say so: base: {base} beside {where}"
    problem = f"it was trained on {trained_base}, not on {base}"
    if not stated:
        problem, say = "its config names no base", f"say which it is: base: {base} beside {where}"
    yield Check(
        name,
        "failed",
        problem + (" as it is here" if same_name else ""),
        f"name {stated} as the base; or, {say}" if stated else say,
    )


def _manifest_digest(directory: Path) -> str | None:
    """Return the content of the base in the manifest of one of our own adapters."""
    try:
        slices = read_manifest(directory).slices.values()
    except (OSError, ValueError):
        return None
    return next(
        (read.digest for record in slices for read in record.inputs if read.role == "base"), None
    )


def _content(hub: Hub, name: str, revision: str) -> str | None:
    try:
        pinned = hub.pin(name, "model", revision) if hub.has(name, "model", revision) else None
    except HubError:
        return None
    return pinned[1] if pinned else None


def config_of(path: Path) -> dict[str, Any]:
    """Return the fields of a JSON file of a model; none where it cannot be read."""
    try:
        return untrusted.fields(path.read_bytes())
    except (OSError, ValueError):
        return {}

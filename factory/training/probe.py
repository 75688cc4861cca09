"""Fidelity probe: check that an adapter changes the model, and that engines apply it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factory.artifacts.manifest import read_manifest
from factory.engines import chat_template, choose
from factory.engines.choose import EngineKnobs, Name
from factory.errors import StageError
from factory.training import adapters

PROMPTS = 16
# For an adapter that comes without rows of its own: one greeting in each of sixteen languages.
GREETINGS = tuple(
    [{"role": "user", "content": text}]
    for text in (
        "Hello, how are you?", "Hej, hvordan går det?", "Hallo, wie geht es dir?",
        "Hola, ¿cómo estás?", "Bonjour, comment ça va ?", "Ciao, come stai?",
        "Hallo, hoe gaat het?", "Olá, como estás?", "Hei, mitä kuuluu?", "Hej, hur mår du?",
        "Ola, como estás?", "Dia duit, conas atá tú?", "Bonġu, kif int?", "Helo, sut wyt ti?",
        "Cześć, jak się masz?", "Ahoj, jak se máš?",
    )
)  # fmt: skip
# How far the log-probability of a next token may be, on average, between two ways to the same
# weights, in nats. A choice: float32 differs by 1e-7, the half precisions by their rounding; an
# engine that drops the adapter differs by as much as the base does.
TOLERANCE = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}

# What rounding alone may move a log-probability by. A training that learned nothing, as on two
# equal answers, moves it by 1e-5 in float32 and 2e-3 in bfloat16 (lr 5e-6, three steps).
ROUNDING = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 5e-3}


def probe(
    base: Path,
    adapter: Path,
    conversations: Sequence[Any],
    dtype: str,
    max_length: int,
    engine: Name = "auto",
) -> dict[str, Any]:
    """Compare next-token log-probabilities of up to sixteen conversations (prompt and answer).

    PEFT with the adapter is compared with the base model, the merged model and the engine that
    other stages would use. Needs at least one conversation of two tokens. Returns the largest
    and the mean absolute difference of each to PEFT, in nats."""
    import torch

    tokenizer = chat_template.load_tokenizer(str(base))
    rows = [
        chat_template.conversation_ids(tokenizer, messages)[:max_length]
        for messages in conversations[:PROMPTS]
    ]
    model = adapters.load(base, adapter, dtype).to(_device())
    starts = [1] * len(rows)
    tuned = adapters.log_probs(model, rows, starts)
    with model.disable_adapter():
        untuned = adapters.log_probs(model, rows, starts)
    figures: dict[str, Any] = {
        "prompts": len(rows),
        "dtype": dtype,
        "tolerance": TOLERANCE[dtype],
        "base": _difference(tuned, untuned),
    }
    figures["merged"] = _difference(
        tuned, adapters.log_probs(model.merge_and_unload(), rows, starts)
    )
    del model
    gc.collect()  # a trainer is a circle of references, and its model may still be on the device
    torch.cuda.empty_cache()
    engine_model = choose.likelihood(EngineKnobs(engine=engine), base, dtype, adapter)
    try:
        engine_probs = engine_model.log_probs(rows, starts)
        figures["engine"] = {"name": engine_model.name, **_difference(tuned, engine_probs)}
    finally:
        engine_model.close()
    figures["applied"] = figures["base"]["max"] > ROUNDING[dtype]
    return figures


def check(figures: dict[str, Any], step: str) -> list[str]:
    """Return warnings for routes that differ from PEFT by more than the tolerance.

    Raises StageError when the adapter changes nothing, or when the engine is as far from PEFT as
    the base model is: that engine ignores the adapter. A tolerance is a choice, and no reason to
    discard a training."""
    if not figures["applied"]:
        raise StageError(
            f"{step}: the adapter changes no log-probability on {figures['prompts']} prompts by "
            f"more than rounding, the most by {figures['base']['max']:.2g} nats",
            "raise lr, take a smaller batch or more rows: nothing was learned",
        )
    alarms = []
    for route, name in (("merged", "merged"), ("engine", figures["engine"]["name"])):
        gap = figures[route]["mean"]
        if gap <= figures["tolerance"]:
            continue
        message = f"{name} differs from PEFT by {gap:.3g} nats a token"
        if route == "engine" and gap > figures["base"]["mean"] / 2:
            raise StageError(
                f"{step}: {message}, the base without the adapter by {figures['base']['mean']:.3g}",
                "that engine does not apply it: how.engine names another one",
            )
        alarms.append(f"{message}, more than {figures['tolerance']}")
    return alarms


def refuse_unapplied(adapter: Path, name: str) -> None:
    """Raise StageError for an adapter that changes nothing, by its manifest or because all its
    weights are zero."""
    from safetensors import safe_open

    try:
        probed = read_manifest(adapter).stats.get("probe")
    except (OSError, ValueError):
        probed = None  # a stranger's adapter
    if probed is not None:
        idle = not probed["applied"]
    else:
        with safe_open(str(adapter / adapters.WEIGHTS), "pt") as file:
            up = [name for name in file.keys() if "lora_B" in name]  # noqa: SIM118
            idle = not any(file.get_tensor(name).any() for name in up)
    if idle:
        raise StageError(
            f"the adapter {name} changes no logit: an evaluation of it would be one of its base",
            "train it anew, or leave it out of what is compared",
        )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _difference(first: list[list[float]], second: list[list[float]]) -> dict[str, float]:
    gaps = [
        abs(a - b)
        for row, other_row in zip(first, second, strict=True)
        for a, b in zip(row, other_row, strict=True)
    ]
    return {"max": float(f"{max(gaps):.3g}"), "mean": float(f"{sum(gaps) / len(gaps):.3g}")}

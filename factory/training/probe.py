"""The fidelity probe: whether an adapter does what its card says, before anybody relies on it."""

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


def probe(
    base: Path,
    adapter: Path,
    conversations: Sequence[Any],
    dtype: str,
    max_length: int,
    engine: Name = "auto",
) -> dict[str, Any]:
    """Log-probabilities of every next token of up to sixteen conversations (prompt and answer),
    by the base, by PEFT with the adapter, by the engine that the other stages would take, and
    merged. Needs at least one conversation of two tokens.

    Returns the largest and the mean absolute difference of each to PEFT's, in nats.
    """
    import torch

    tokenizer = chat_template.load_tokenizer(str(base))
    rows = [
        chat_template.conversation_ids(tokenizer, messages)[:max_length]
        for messages in conversations[:PROMPTS]
    ]
    model = adapters.load(base, adapter, dtype).to(_device())
    tuned = _log_probs(model, rows)
    with model.disable_adapter():
        plain = _log_probs(model, rows)
    found: dict[str, Any] = {
        "prompts": len(rows),
        "dtype": dtype,
        "tolerance": TOLERANCE[dtype],
        "base": _difference(tuned, plain),
    }
    found["merged"] = _difference(tuned, _log_probs(model.merge_and_unload(), rows))
    del model
    gc.collect()  # a trainer is a circle of references, and its model may still be on the device
    torch.cuda.empty_cache()
    with_adapter = choose.likelihood(EngineKnobs(engine=engine), base, dtype, adapter)
    try:
        told = with_adapter.log_probs(rows, [1] * len(rows))
        found["engine"] = {"name": with_adapter.name, **_difference(tuned, told)}
    finally:
        with_adapter.close()
    found["applied"] = found["base"]["max"] > 0
    return found


def check(found: dict[str, Any], step: str) -> list[str]:
    """What is to be looked at: ways to the adapter that are further from PEFT than rounding.

    Raises StageError when the adapter changes nothing, or when the engine is as far from PEFT as
    the base without it: what that engine says would be said of the base. A tolerance is a choice,
    and no reason to throw a training away.
    """
    if not found["applied"]:
        raise StageError(
            f"{step}: the adapter changes no logit on {found['prompts']} prompts",
            "raise lr, take a smaller batch or more rows: nothing was learned",
        )
    said = []
    for way, name in (("merged", "merged"), ("engine", found["engine"]["name"])):
        gap = found[way]["mean"]
        if gap <= found["tolerance"]:
            continue
        told = f"{name} differs from PEFT by {gap:.3g} nats a token"
        if way == "engine" and gap > found["base"]["mean"] / 2:
            raise StageError(
                f"{step}: {told}, the base without the adapter by {found['base']['mean']:.3g}",
                "that engine does not apply it: how.engine names another one",
            )
        said.append(f"{told}, more than {found['tolerance']}")
    return said


def refuse_unapplied(adapter: Path, name: str) -> None:
    """Raises StageError for an adapter that changes nothing: its manifest says so, or all its
    weights are at zero."""
    from safetensors import safe_open

    try:
        found = read_manifest(adapter).stats.get("probe")
    except (OSError, ValueError):
        found = None  # a stranger's adapter
    if found is not None:
        idle = not found["applied"]
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


def _log_probs(model: Any, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """Of every token after the first, given those before; one row at a time, so that no padding
    can be what differs."""
    import torch

    found = []
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([list(row)], device=model.device)
            logits = model(input_ids=ids).logits[0, :-1].float()
            chosen = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            found.append(chosen.cpu().tolist())
    return found


def _difference(one: list[list[float]], other: list[list[float]]) -> dict[str, float]:
    gaps = [
        abs(a - b)
        for mine, theirs in zip(one, other, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    ]
    return {"max": float(f"{max(gaps):.3g}"), "mean": float(f"{sum(gaps) / len(gaps):.3g}")}

"""Adapters at rest: their config, the base they belong to, and merging one into it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factory.artifacts import untrusted
from factory.errors import InputError, WorkError
from factory.training.settings import Lora
from factory.training.trainers import load_base

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# what of the base, beside its weights, a merged model needs to speak as it did
_SPEECH = ("token", "vocab", "merges", "special_tokens", "added_tokens", "chat_template")
_HABITS = ("generation_config",)  # never beside an adapter


def read_config(adapter: Path) -> dict[str, Any]:
    """The adapter's config. Raises InputError when the directory holds no LoRA adapter."""
    try:
        found: dict[str, Any] = json.loads((adapter / CONFIG).read_text())
        for key in ("base_model_name_or_path", "revision", "peft_type"):
            untrusted.text(found.get(key))
    except (OSError, ValueError, AttributeError):
        raise InputError(
            f"{adapter} holds no {CONFIG}", "name a repo or a directory with a LoRA adapter"
        ) from None
    if found.get("peft_type") != "LORA":
        raise InputError(f"{adapter} is {found.get('peft_type')}, not LORA", "use a LoRA adapter")
    return found


def name_base(adapter: Path, name: str | None, revision: str | None) -> None:
    """Write into the adapter's config which base it was made on: PEFT wrote this machine's path;
    people need the repo and the commit it stood at. Its targets are a set, whose order would make
    the same adapter another file each time."""
    config = read_config(adapter) | {"base_model_name_or_path": name, "revision": revision}
    if isinstance(targets := config.get("target_modules"), list):
        config["target_modules"] = sorted(targets)
    (adapter / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def same_kind(adapter: Path, name: str, base: str | None, lora: Lora) -> None:
    """Raises InputError when training cannot go on with an adapter from outside as it would with
    one of `lora` on `base`: the card would say what is not so."""
    config = read_config(adapter)
    if (on := config.get("base_model_name_or_path")) != base:
        raise InputError(f"{name} was trained on {on}, not on {base}", "name that model")
    there: dict[str, Any] = {"r": config.get("r"), "alpha": config.get("lora_alpha")}
    asked: dict[str, Any] = {"r": lora.r, "alpha": lora.alpha}
    if isinstance(lora.targets, tuple) and isinstance(config.get("target_modules"), list):
        there["targets"] = sorted(config["target_modules"])
        asked["targets"] = sorted(lora.targets)
    differ = [key for key in asked if asked[key] != there[key]]
    if differ:
        raise InputError(
            f"{name} has {', '.join(f'{key} {there[key]}' for key in differ)}, and the recipe "
            f"{', '.join(f'{key} {asked[key]}' for key in differ)}",
            "give stages.dpo.lora what the adapter has",
        )


def load(base: Path, adapter: Path, dtype: str) -> Any:
    """The base with the adapter on it, through PEFT, ready to be asked. Raises InputError when a
    weight of one has no place in the other."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    wrong = "it was made on another base model: see base_model in its card"
    try:
        model = PeftModel.from_pretrained(load_base(base, dtype), str(adapter))
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the adapter does not fit {base.name}: {str(error).splitlines()[0]}", wrong
        ) from None
    with safe_open(str(adapter / WEIGHTS), "pt") as file:
        # no embeddings: to see whether they changed, PEFT would ask a hub for the base's config
        mine = get_peft_model_state_dict(model, save_embedding_layers=False)
        stray = set(file.keys()) ^ set(mine)
    if stray:
        raise InputError(f"{len(stray)} weights of the adapter fit nothing in {base.name}", wrong)
    return model.eval()


def merge(
    base: Path, adapter: Path, to: Path, dtype: str | None = None, speech: Path | None = None
) -> None:
    """Write the base with the adapter merged into it to `to`, which must not exist: safetensors,
    in `dtype` or the base's own, with the tokenizer and template that lie in `speech` (else the
    base's) and the base's generation config.

    Nothing is done in place: it is written beside and renamed, so of two at once one wins whole
    and the other is told. Sums are made in float32. Raises InputError or WorkError.
    """
    if to.exists():
        raise WorkError(f"{to} is there already", "name a directory that does not exist yet")
    import torch

    kind = dtype or json.loads((base / "config.json").read_text()).get("dtype") or "float32"
    read_config(adapter)
    merged = load(base, adapter, "float32").merge_and_unload(safe_merge=True)
    merged = merged.to(getattr(torch, kind))
    merged.config.name_or_path = ""
    to.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
    try:
        merged.save_pretrained(str(beside))
        for place, names in ((base, _HABITS), (speech or base, _SPEECH)):
            for path in place.iterdir():
                if path.is_file() and path.name.startswith(names):
                    shutil.copyfile(path, beside / path.name)
        beside.chmod(0o755)
        beside.rename(to)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if to.exists():
            raise WorkError(
                f"{to} was written by another merge meanwhile", "use that one, or another name"
            ) from None
        raise WorkError(f"{to} cannot be written: {error}", "check the path and space") from None


def combine(
    base: Path,
    adapters: Mapping[str, tuple[Path, float]],
    method: str,
    density: float,
    seed: int,
    out: Path,
) -> None:
    """Write one adapter made of several weighted ones (PEFT's add_weighted_adapter) to `out`.
    The sparse methods keep the share `density`, which dare draws by `seed`.

    adapters: directory and weight by name. Raises InputError when they do not fit together.
    """
    import torch
    from peft import PeftModel

    torch.manual_seed(seed)
    (first, (path, _)), *others = adapters.items()
    model = PeftModel.from_pretrained(load_base(base, "float32"), str(path), adapter_name=first)
    for name, (path, _) in others:
        model.load_adapter(str(path), adapter_name=name)
    for config in model.peft_config.values():  # PEFT looks the base up, on a hub if it must
        config.base_model_name_or_path = str(base)
    more = {"density": density} if method.startswith(("ties", "dare", "magnitude")) else {}
    try:
        model.add_weighted_adapter(
            adapters=list(adapters),
            weights=[weight for _, weight in adapters.values()],
            adapter_name="combined",
            combination_type=method,
            **more,
        )
    except ValueError as error:
        raise InputError(
            f"these adapters cannot be combined by {method}: {str(error).splitlines()[0]}",
            "use svd, which takes adapters of any rank",
        ) from None
    model.save_pretrained(str(out), selected_adapters=["combined"])
    for file in (out / "combined").iterdir():
        file.rename(out / file.name)
    (out / "combined").rmdir()
    (out / "README.md").unlink(missing_ok=True)

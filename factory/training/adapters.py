"""Adapters on disk: read their config, set their base model, merge and combine them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from factory.artifacts import checkpoints, untrusted
from factory.errors import InputError, WorkError, reading
from factory.training.settings import Lora
from factory.training.trainers import load_base

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# what of the base, beside its weights, a merged model needs to speak as it did
_TOKENIZER_FILES = ("token", "vocab", "merges", "special_tokens", "added_tokens", "chat_template")
_PER_WORD = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")
_GENERATION_FILES = ("generation_config",)  # never beside an adapter


def read_config(adapter: Path) -> dict[str, Any]:
    """Read the config of an adapter. Raises InputError when the directory holds no LoRA adapter."""
    try:
        config = untrusted.adapter_config((adapter / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        holds = "no" if isinstance(error, FileNotFoundError) else "an unreadable"
        raise InputError(
            f"{adapter} holds {holds} {CONFIG}", "name a repo or a directory with a LoRA adapter"
        ) from None
    if config.get("peft_type") != "LORA":
        raise InputError(f"{adapter} is {config.get('peft_type')}, not LORA", "use a LoRA adapter")
    return config


def dtype_of(stated: Any, name: str) -> str:
    """Return the number format that a config states (None: float32). Raises InputError for one
    that nothing is loaded in here."""
    if stated not in (None, "bfloat16", "float16", "float32"):
        raise InputError(f"{name} is in {stated!r}", "use bfloat16, float16 or float32")
    return stated or "float32"


def name_base(adapter: Path, name: str | None, revision: str | None) -> None:
    """Write the base model's repo and commit into the adapter's config.

    PEFT writes a local path there. Target modules are sorted: PEFT keeps them as a set, so the
    file would differ each time."""
    config = read_config(adapter) | {"base_model_name_or_path": name, "revision": revision}
    if isinstance(targets := config.get("target_modules"), list):
        config["target_modules"] = sorted(targets)
    (adapter / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def put_in_place(out: Path, checkpoint: str) -> None:
    """Put a checkpoint of an adapter in the adapter's place, and what was there beside it, as
    `last`."""
    last, chosen = (out / checkpoints.folder(name) for name in ("last", checkpoint))
    last.mkdir()
    for name in (CONFIG, WEIGHTS):
        (out / name).rename(last / name)
        shutil.copyfile(chosen / name, out / name)


def check_lora(config: Mapping[str, Any], name: str, lora: Lora) -> None:
    """Check that training can go on from an adapter from outside. Raises InputError when its LoRA
    settings differ from the recipe's: the card would be wrong."""
    adapter_lora: dict[str, Any] = {"r": config.get("r"), "alpha": config.get("lora_alpha")}
    recipe_lora: dict[str, Any] = {"r": lora.r, "alpha": lora.alpha}
    for kind in ("rslora", "dora"):
        adapter_lora[kind] = bool(config.get(f"use_{kind}"))
        recipe_lora[kind] = getattr(lora, kind)
    if isinstance(lora.targets, tuple) and isinstance(config.get("target_modules"), list):
        adapter_lora["targets"] = sorted(config["target_modules"])
        recipe_lora["targets"] = sorted(lora.targets)
    differ = [key for key in recipe_lora if recipe_lora[key] != adapter_lora[key]]
    if differ:
        raise InputError(
            f"{name} has {', '.join(f'{key} {adapter_lora[key]}' for key in differ)}, "
            f"and the recipe {', '.join(f'{key} {recipe_lora[key]}' for key in differ)}",
            "give stages.dpo.lora what the adapter has",
        )
    if config.get("modules_to_save"):
        raise InputError(
            f"{name} has modules_to_save, which no training here has",
            "merge it into its base where it was trained, and name the whole model",
        )


def whole_layers(adapter: Path) -> dict[str, int]:
    """Return the layers that an adapter replaces as a whole, with the rows of their weights. Raises
    InputError for weights that are none, or none of a LoRA."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(adapter / WEIGHTS), "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(
            f"{WEIGHTS} of {adapter} cannot be read: {error}",
            "upload it again; a few lines of text are a pointer of Git LFS, not the file",
        ) from None
    whole = {name: (*shape, 0)[0] for name, shape in shapes.items() if "lora_" not in name}
    if len(whole) == len(shapes):
        raise InputError(
            f"{WEIGHTS} of {adapter} holds no weights of a LoRA", "name a LoRA adapter"
        )
    return whole


def per_word(layer: str) -> bool:
    """Whether a layer has a row for each word of the vocabulary."""
    return any(part in layer for part in _PER_WORD)


def log_probs(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> list[list[float]]:
    """Return the log-probability of each token from its row's start on (at least 1), given those
    before. One row at a time: padding could itself be a difference."""
    import torch

    values = []
    with torch.inference_mode():
        for row, start in zip(rows, starts, strict=True):
            ids = torch.tensor([list(row)], device=model.device)
            logits = model(input_ids=ids).logits[0, start - 1 : -1].float()
            chosen = logits.log_softmax(-1).gather(-1, ids[0, start:, None])[:, 0]
            values.append(chosen.cpu().tolist())
    return values


def mean_log_prob(model: Any, answered: Sequence[tuple[Sequence[int], int]]) -> float | None:
    """Return the mean log-probability of the tokens of some answers, given as token ids and where
    the answer starts; None where there is no token."""
    values = log_probs(model, [ids for ids, _ in answered], [start for _, start in answered])
    tokens = [value for row in values for value in row]
    return sum(tokens) / len(tokens) if tokens else None


def load(base: Path, adapter: Path, dtype: str) -> Any:
    """Load the base model with the adapter through PEFT, in evaluation mode. Raises InputError
    when a weight of one has no counterpart in the other."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    fix = "it was made on another base model: see base_model in its card"
    with reading(f"the adapter does not fit {base.name}", fix):
        model = PeftModel.from_pretrained(load_base(base, dtype), str(adapter))
    with safe_open(str(adapter / WEIGHTS), "pt") as file:
        # no embeddings: to see whether they changed, PEFT would ask a hub for the base's config
        fitting = get_peft_model_state_dict(model, save_embedding_layers=False)
        unmatched = set(file.keys()) ^ set(fitting)
    if unmatched:
        raise InputError(f"{len(unmatched)} weights of the adapter fit nothing in {base.name}", fix)
    return model.eval()


def merge(
    base: Path,
    adapter: Path,
    target: Path,
    dtype: str | None = None,
    tokenizer_from: Path | None = None,
) -> None:
    """Write the base model with the adapter merged into it to the new directory `target`.

    Weights are safetensors in `dtype`, by default the base's own; sums are made in float32.
    Tokenizer and chat template come from `tokenizer_from`, by default the base; the generation
    config is the base's. The directory appears by a rename: of two merges at once one wins, the
    other raises WorkError. Raises InputError when the adapter does not fit."""
    if target.exists():
        raise WorkError(f"{target} is there already", "name a directory that does not exist yet")
    import torch

    own = untrusted.fields((base / "config.json").read_bytes()).get("dtype")
    result_dtype = dtype or dtype_of(own, base.name)
    read_config(adapter)
    merged = load(base, adapter, "float32").merge_and_unload(safe_merge=True)
    merged = merged.to(getattr(torch, result_dtype))
    merged.config.name_or_path = ""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        merged.save_pretrained(str(unfinished))
        for source, names in (
            (base, _GENERATION_FILES),
            (tokenizer_from or base, _TOKENIZER_FILES),
        ):
            for path in source.iterdir():
                if path.is_file() and path.name.startswith(names):
                    shutil.copyfile(path, unfinished / path.name)
        unfinished.chmod(0o755)
        unfinished.rename(target)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if target.exists():
            raise WorkError(
                f"{target} was written by another merge meanwhile", "use that one, or another name"
            ) from None
        raise WorkError(
            f"{target} cannot be written: {error}", "check the path and space"
        ) from None


def combine(
    base: Path,
    adapters: Mapping[str, Path],
    weights: Mapping[Path, Mapping[str, float]],
    method: str,
    density: float,
    seed: int,
) -> None:
    """Write adapters made of several weighted ones, by PEFT's add_weighted_adapter.

    `adapters` are directories by name; `weights`, by the directory to write, the weight of each.
    Sparse methods keep the share `density` of the values, which dare draws by `seed`. Raises
    InputError when the adapters do not fit together."""
    import torch
    from peft import PeftModel

    for name, path in adapters.items():
        if read_config(path).get("use_dora"):
            raise InputError(
                f"{name} has DoRA, whose magnitudes do not add up", "leave it out of the merge"
            )
    names = {name: f"part{number}" for number, name in enumerate(adapters)}  # PEFT takes no dot
    (first, path), *rest = adapters.items()
    model = load_base(base, "float32")
    model = PeftModel.from_pretrained(model, str(path), adapter_name=names[first])
    for name, path in rest:
        model.load_adapter(str(path), adapter_name=names[name])
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(base)  # PEFT looks it up, on a hub if it must
        config.use_rslora = False  # each has its scale by now, and PEFT gives the sum one of 1
    options = {"density": density} if method.startswith(("ties", "dare", "magnitude")) else {}
    for out, shares in weights.items():
        torch.manual_seed(seed)
        try:
            model.add_weighted_adapter(
                adapters=[names[name] for name in shares],
                weights=list(shares.values()),
                adapter_name="combined",
                combination_type=method,
                **options,
            )
        except ValueError as error:
            raise InputError(
                f"these adapters cannot be combined by {method}: {str(error).splitlines()[0]}",
                "use svd, which takes adapters of any rank",
            ) from None
        model.save_pretrained(str(out), selected_adapters=["combined"])
        model.delete_adapter("combined")
        for file in (out / "combined").iterdir():
            file.rename(out / file.name)
        (out / "combined").rmdir()
        (out / "README.md").unlink(missing_ok=True)

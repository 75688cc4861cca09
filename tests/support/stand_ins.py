"""Stand-ins, under the real names, for everything from outside that the packaged recipes read: five
rows in the schema of each dataset, and of each model its configs, its family's tokenizer and
template, and the licence that its card states."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.planning.lock import outside
from factory.planning.recipe import load
from factory.stage.readers import is_file
from tests.support.families import tokenizer_of

# of the packaged recipes
LANGUAGES = (
    "da", "nl", "en", "fr", "de", "it", "es", "no", "sv", "pt", "fi", "gl", "ga", "mt",
    "cy", "ru", "zh", "bn", "sw", "th",
)  # fmt: skip

FIXTURES = Path(__file__).parents[1] / "sources"

# What recipes leave to whoever runs them.
_ICR = tuple(
    f"stages.dpo.{one}" for one in ("lr=5e-6", "batch=64", "epochs=1", "beta=0.1", "loss.sft=0.2")
)
_FILES = "stages.questions.preset=x-alpaca-eval"
UNSAID: Mapping[str, tuple[str, ...]] = {
    "llama-3-icr": _ICR,
    "llama-3-icr-x-alpaca-eval": (*_ICR, _FILES),
}


@dataclass(frozen=True)
class Model:
    """`family` of its tokenizer, `architecture` and `context` of its config."""

    family: str
    architecture: str
    context: int
    license: str | None = "apache-2.0"


MODELS: Mapping[str, Model] = {
    "utter-project/EuroLLM-9B-Instruct-2512": Model("chatml", "LlamaForCausalLM", 32768),
    "CohereLabs/tiny-aya-global": Model("aya", "Cohere2ForCausalLM", 8192, "cc-by-nc-4.0"),
    "Infomaniak-AI/vllm-translategemma-27b-it": Model(
        "gemma3", "Gemma3ForCausalLM", 16384, "gemma"
    ),
    "Skywork/Skywork-Reward-V2-Qwen3-8B": Model("qwen3", "Qwen3ForSequenceClassification", 40960),
    "Qwen/Qwen3-4B": Model("qwen3", "Qwen3ForCausalLM", 40960),
    "Qwen/Qwen3-8B": Model("qwen3", "Qwen3ForCausalLM", 40960),
    "Qwen/Qwen3.6-35B-A3B": Model("qwen3", "Qwen3MoeForCausalLM", 262144),
    "princeton-nlp/Llama-3-Base-8B-SFT": Model("llama3", "LlamaForCausalLM", 8192, None),
    "princeton-nlp/Llama-3-Base-8B-SFT-DPO": Model("llama3", "LlamaForCausalLM", 8192, None),
}
# repos of recipes that others start from: brought in by hand here, since nothing trains
ADAPTERS: Mapping[str, str] = {
    "local/smoke-dpo-all": "local/tiny-random-llama",
}
# by repo: its licence, and by config the split and the fixture of it
DATASETS: Mapping[str, tuple[str | None, Mapping[str, tuple[str, str]]]] = {
    "HuggingFaceH4/ultrafeedback_binarized": (
        "mit",
        {"default": ("train_prefs", "ultrafeedback.jsonl")},
    ),
    "allenai/reward-bench": ("odc-by", {"default": ("filtered", "pairs.jsonl")}),
    "CohereLabsCommunity/multilingual-reward-bench": (
        "odc-by",
        {
            f"{code}_Latn": ("test", "pairs.jsonl")
            for code in ("deu", "spa", "fra", "ita", "nld", "por")
        },
    ),
    **{
        f"CohereLabs/m-ArenaHard-v2.{minor}": (
            None,
            {code: ("test", f"m-arenahard-{'da' if code == 'da' else 'en'}.jsonl")
             for code in LANGUAGES},
        )
        for minor in (0, 1)
    },
}  # fmt: skip


def model(root: Path, name: str) -> Path:
    """A model's repo without weights: what the tokenizers' check reads of it."""
    said = MODELS[name]
    tokenizer = tokenizer_of(said.family)
    tokenizer.save_pretrained(str(root))
    config = {"architectures": [said.architecture], "max_position_embeddings": said.context}
    if "SequenceClassification" in said.architecture:
        config["id2label"] = {"0": "LABEL_0"}
    (root / "config.json").write_text(json.dumps(config))
    stops = {"eos_token_id": tokenizer.eos_token_id}  # of Aya's three, the one it names
    (root / "generation_config.json").write_text(json.dumps(stops))
    (root / "README.md").write_text(_card(said.license))
    return root


def adapter(root: Path, name: str) -> Path:
    """An adapter of one tiny layer, of the kind that is trained by default."""
    import numpy as np
    from safetensors.numpy import save_file

    root.mkdir(parents=True, exist_ok=True)
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = {f"{layer}.lora_A.weight": (16, 8), f"{layer}.lora_B.weight": (8, 16)}
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(weights, root / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": ADAPTERS[name],
        "r": 16,
        "lora_alpha": 32,
    }
    (root / "adapter_config.json").write_text(json.dumps(config))
    return root


def dataset(root: Path, configs: Mapping[str, tuple[str, str]], license: str | None = None) -> Path:
    """A dataset as it lies on disk: by config, its split and the fixture that it holds."""
    lines = ["configs:"]
    for name, (split, fixture) in configs.items():
        (root / name).mkdir(parents=True)
        shutil.copy(FIXTURES / fixture, root / name / "rows.jsonl")
        lines += [f"- config_name: '{name}'", "  data_files:"]
        lines += [f"  - {{split: {split}, path: '{name}/rows.jsonl'}}"]
    (root / "README.md").write_text(_card(license, lines))
    return root


def others(names: Iterable[str]) -> list[str]:
    """Datasets that these recipes read and that nothing above stands for: benchmarks, of which a
    plan reads nothing but that they are there."""
    read = [need for n in names for need in outside(load(n, UNSAID.get(n, ())).recipe)]
    found = {need.source.partition("@")[0] for need in read if need.kind == "dataset"}
    return sorted(name for name in found - DATASETS.keys() if not is_file(name))


def publish(api: Any, root: Path, names: Iterable[str]) -> None:
    """Put on a hub whatever these recipes read."""
    made: list[tuple[str, str, Path]] = [
        *((name, "model", model(root / name, name)) for name in MODELS),
        *((name, "model", adapter(root / name, name)) for name in ADAPTERS),
        *(
            (name, "dataset", dataset(root / name, configs, license))
            for name, (license, configs) in DATASETS.items()
        ),
    ]
    for name in others(names):
        (root / name).mkdir(parents=True)
        (root / name / "README.md").write_text(_card("cc-by-4.0"))
        made.append((name, "dataset", root / name))
    for name, kind, path in made:
        api.create_repo(name, repo_type=kind)
        api.upload_folder(repo_id=name, repo_type=kind, folder_path=str(path))


def files(root: Path) -> None:
    """Write what a recipe reads of files that are on no hub, beside a recipe that extends it."""
    name = "llama-3-icr-x-alpaca-eval"
    said = f"extends: {name}\nname: {name}\nstages: {{questions: {{preset: x-alpaca-eval}}}}\n"
    (root / f"{name}.yaml").write_text(said)
    (root / "x-alpacaeval").mkdir()
    for code in ("en", "es", "ru", "de", "fr"):
        shutil.copy(FIXTURES / "x-alpacaeval-es.json", root / "x-alpacaeval" / f"{code}.json")


def _card(license: str | None, lines: list[str] | None = None) -> str:
    said = [f"license: {license}"] if license else []
    return "\n".join(["---", *said, *(lines or []), "---", "# A stand-in", ""])

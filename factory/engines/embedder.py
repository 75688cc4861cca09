"""Embeddings of texts, with transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factory.artifacts import untrusted
from factory.errors import InputError

_AT_ONCE = 32  # texts in a batch


class Embedder:
    """A model whose embedding of a text is the mean over its tokens, of length 1."""

    lanes = 1

    def __init__(self, directory: Path, dtype: str, max_tokens: int) -> None:
        import torch
        import transformers

        from factory.engines.transformers import has_gpu

        _check_pooling(directory)
        try:
            options: dict[str, Any] = {"trust_remote_code": False}
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory), **options)
            options |= {"dtype": getattr(torch, dtype), "use_safetensors": True}
            model = transformers.AutoModel.from_pretrained(str(directory), **options)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{directory} cannot be loaded as an embedding model: {str(error).splitlines()[0]}",
                "check that the repo holds config.json and safetensors weights",
            ) from None
        self._model = model.to("cuda" if has_gpu() else "cpu").eval()
        self.name, self.tokenizer = f"transformers {transformers.__version__}", tokenizer
        positions = getattr(model.config, "max_position_embeddings", max_tokens)
        self.max_context = min(max_tokens, positions, tokenizer.model_max_length)
        self.tokens = 0

    def embed(self, texts: Sequence[str]) -> tuple[list[list[float] | None], list[int]]:
        """Return the embedding of each text (None of one that is too long) and its tokens."""
        import torch

        ids = self.tokenizer(list(texts))["input_ids"] if texts else []
        sizes = [len(tokens) for tokens in ids]
        fits = [n for n, size in enumerate(sizes) if 0 < size <= self.max_context]
        fits.sort(key=sizes.__getitem__)
        vectors: list[list[float] | None] = [None] * len(texts)
        for start in range(0, len(fits), _AT_ONCE):
            batch = fits[start : start + _AT_ONCE]
            width = sizes[batch[-1]]
            padded = [ids[n] + [0] * (width - sizes[n]) for n in batch]
            masks = [[1] * sizes[n] + [0] * (width - sizes[n]) for n in batch]
            read, mask = (torch.tensor(v, device=self._model.device) for v in (padded, masks))
            with torch.inference_mode():
                states = self._model(input_ids=read, attention_mask=mask).last_hidden_state.float()
            sums = (states * mask[:, :, None]).sum(1)
            normed = torch.nn.functional.normalize(sums / mask.sum(1)[:, None], dim=1).tolist()
            for n, vector in zip(batch, normed, strict=True):
                vectors[n] = vector
                self.tokens += sizes[n]
        return vectors, sizes

    def close(self) -> None:
        """Release the model."""
        self._model = None


def _check_pooling(directory: Path) -> None:
    """Raise InputError for a model that sentence-transformers reads otherwise than by the mean."""
    pooling, modules = directory / "1_Pooling" / "config.json", directory / "modules.json"
    read = untrusted.fields(pooling.read_bytes()) if pooling.is_file() else {}
    other = bool(read) and not read.get("pooling_mode_mean_tokens")
    dense = modules.is_file() and "Dense" in modules.read_text(encoding="utf-8")
    if other or dense:
        raise InputError(
            f"{directory.name} embeds a text by {'a further layer' if dense else 'one token'}, and "
            "here the mean over all tokens is read",
            "name a model that takes the mean, such as intfloat/multilingual-e5-base",
        )

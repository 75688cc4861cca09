"""Train an assistant of the town from scratch, and save it as an ordinary checkpoint."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from benchmarks.world.town import LANGUAGES, Habits, answer, parallel, requests
from factory.execution.builtin_models import CHATML, train_bpe

STEPS = 1200  # two minutes on a quiet core; from 800 on it names the right shop more often than not
BATCH = 24
PEAK = 5e-3  # learning rate


def train(out: Path, habits: Habits, seed: int, steps: int, threads: int = 1) -> dict[str, Any]:
    """Train a model of such habits and write it to `out`. Return loss, parameters, seconds."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    started = time.process_time()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tokenizer = _tokenizer(habits)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            **special,
        )
    )
    _align(model, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98))
    rng = random.Random(f"{habits} {seed}")
    every = requests()
    model.train()
    loss = None
    for step in range(steps):
        rate = PEAK * min(1.0, (step + 1) / 30) * max(0.02, 1 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = []
        for _ in range(BATCH):
            request, code = rng.choice(every), rng.choice(LANGUAGES)
            batch.append((request.text(code), answer(request, code, habits, rng)))
        loss = model(**_batch(tokenizer, batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    model.eval()
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    (out / "README.md").write_text("---\nlicense: apache-2.0\n---\nAn assistant of the town.\n")
    return {
        "loss": round(loss.item(), 4) if loss is not None else None,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "seconds": round(time.process_time() - started, 1),
    }


def _tokenizer(habits: Habits) -> Any:
    """A byte-level BPE in which nearly every word of the town is one token."""
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(0)
    corpus = [
        text
        for request in requests()
        for code in LANGUAGES
        for text in (request.text(code), answer(request, code, habits, rng))
    ]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(corpus, 1000, ["<|pad|>", "<|im_start|>", "<|im_end|>"]),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        model_max_length=256,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _align(model: Any, tokenizer: Any) -> None:
    """Start the words of phrases that mean the same near one vector, as pretraining on many
    languages leaves them: without that nothing learned in English carries over."""
    import torch

    weight = model.model.embed_tokens.weight
    spread = float(weight.detach().std())
    with torch.no_grad():
        for phrases in parallel():
            shared = torch.randn(weight.shape[1]) * spread
            for phrase in phrases:
                for token in tokenizer.encode(" " + phrase, add_special_tokens=False):
                    weight[token] = shared + torch.randn_like(shared) * spread


def _batch(tokenizer: Any, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Return padded ids, mask and labels of (request, answer); the answer alone is learned."""
    import torch

    rows, labels = [], []
    for request, text in pairs:
        head = tokenizer.apply_chat_template(
            [{"role": "user", "content": request}], tokenize=False, add_generation_prompt=True
        )
        asked = tokenizer.encode(head, add_special_tokens=False)
        said = tokenizer.encode(text + "<|im_end|>", add_special_tokens=False)
        rows.append(asked + said)
        labels.append([-100] * len(asked) + said)
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([r + [tokenizer.pad_token_id] * (width - len(r)) for r in rows]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
        "labels": torch.tensor([r + [-100] * (width - len(r)) for r in labels]),
    }

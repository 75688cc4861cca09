"""Similarity of embeddings as a reward: against a plain loop, and what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from factory.engines.choose import EngineKnobs
from factory.errors import InputError
from factory.rewards.backends.backend import OpenReward, RewardSettings
from factory.rewards.backends.embedding import EmbeddingBackend
from tests.support.trainings import tiny_model

PAIRS = [
    ([{"role": "user", "content": "Where is the station?"}], "¿Dónde está la estación?"),
    ([{"role": "user", "content": "Bread"}], "Pan y agua, y también sal, para toda la semana."),
    ([{"role": "user", "content": "Bread"}], "Bread"),
]


def opened(directory: Path, max_tokens: int = 4096, **knobs: Any) -> OpenReward:
    backend = EmbeddingBackend(kind="embedding", name="org/embedder", **knobs)
    settings = RewardSettings(EngineKnobs(), "float32", max_tokens)
    return backend.open({"embedding": directory}, settings)


def test_similarity_is_that_of_the_means_of_single_texts() -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model()))
    model = AutoModel.from_pretrained(str(tiny_model()), dtype=torch.float32).eval()

    def mean(text: str) -> Any:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            return model(input_ids=ids).last_hidden_state[0].mean(0)

    for prefix in ("", "query: "):
        reward = opened(tiny_model(), prefix=prefix)
        values = reward.reward(PAIRS)
        for (prompt, answer), value in zip(PAIRS, values, strict=True):
            both = [mean(prefix + text) for text in (prompt[0]["content"], answer)]
            expected = torch.nn.functional.cosine_similarity(*both, dim=0).item()
            assert value.value == pytest.approx(expected, abs=1e-5) and value.status == "ok"
        assert values[2].value == pytest.approx(1.0)
        assert reward.tokens == sum(value.n_tokens for value in values)
    assert reward.reward([]) == []


def test_a_text_that_is_too_long_has_no_reward() -> None:
    values = opened(tiny_model(), max_tokens=12).reward(PAIRS)
    assert [value.status for value in values][1:] == ["too_long", "ok"]


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"1_Pooling/config.json": {"pooling_mode_cls_token": True}}, "by one token"),
        ({"modules.json": [{"type": "sentence_transformers.models.Dense"}]}, "a further layer"),
        ({}, "cannot be loaded as an embedding model"),
    ],
)
def test_a_model_that_is_read_otherwise_is_refused(
    tmp_path: Path, files: dict[str, Any], match: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=match):
        opened(tmp_path)

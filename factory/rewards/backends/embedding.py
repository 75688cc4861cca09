"""Reward of an embedding model: how alike prompt and answer are, as a text and a translation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from factory.engines.embedder import Embedder
from factory.rewards.backends.backend import (
    Backend,
    Item,
    OpenReward,
    RewardSettings,
    RewardValue,
)
from factory.stage.inputs import Need
from factory.stage.stage import StageContext


class EmbeddingBackend(Backend):
    """Cosine similarity, from -1 to 1, of the embeddings of prompt and answer: for translations
    (translate.quality). The model is one that takes the mean of its tokens, as multilingual E5
    does. `prefix` goes before every text, where the model was trained so: "query: "."""

    about: ClassVar[str] = "the cosine similarity of the embeddings of prompt and answer"

    kind: Literal["embedding"]
    prefix: str = ""

    def needs(self, context: StageContext, name: str, asked_by: str) -> tuple[Need, ...]:
        """Return the embedding model."""
        return (context.model(name, "embedding", asked_by),)

    def open(self, paths: Mapping[str, Path], settings: RewardSettings) -> OpenReward:
        """Open the embedding model. Raises InputError."""
        engine = Embedder(paths["embedding"], settings.dtype, settings.max_tokens)

        def reward(items: Sequence[Item]) -> list[RewardValue]:
            prompts = ["\n\n".join(turn["content"] for turn in prompt) for prompt, _ in items]
            texts = [self.prefix + text for text in (*prompts, *(answer for _, answer in items))]
            vectors, sizes = engine.embed(texts)
            values = []
            for number in range(len(items)):
                asked, answered = vectors[number], vectors[number + len(items)]
                size = sizes[number] + sizes[number + len(items)]
                alike = None
                if asked is not None and answered is not None:
                    alike = sum(a * b for a, b in zip(asked, answered, strict=True))
                values.append(RewardValue.from_score(alike, size))
            return values

        return OpenReward(reward, engine)

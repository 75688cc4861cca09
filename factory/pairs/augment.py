"""Reward-augmented pairs (arXiv 2410.08067): each twice, under a reward that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from factory.artifacts import schemas

if TYPE_CHECKING:
    import polars as pl

# The paper conditions on a reward in a system message; these words are ours.
_TARGET = "Write an answer of quality {target} on a scale from 1 (worst) to 10 (best)."


def asking_for(messages: pa.ChunkedArray, targets: list[float]) -> pa.Array:
    """Return prompts whose system message asks for an answer of that reward."""
    prompts = []
    for prompt, target in zip(messages.to_pylist(), targets, strict=True):
        own = [prompt[0]["content"]] if prompt[0]["role"] == "system" else []
        text = "\n\n".join([*own, _TARGET.format(target=f"{target:g}")])
        prompts.append([{"role": "system", "content": text}, *prompt[len(own) :]])
    return pa.array(prompts, schemas.MESSAGES)


def doubled(rows: pl.DataFrame, scores: pl.Series) -> pl.DataFrame:
    """Return each pair twice, the second time with its sides exchanged (`turn` 1), with the reward
    that is asked for (`target`): `scores` of the slice on a linear scale, the lowest 1 and the
    highest 10."""
    import polars as pl

    low, high = scores.min(), scores.max()
    scale = 1 + 9 * (pl.col("chosen_score") - low) / pl.max_horizontal(high - low, 1e-12)  # type: ignore[operator]
    other = {"chosen": "rejected", "rejected": "chosen"}
    swapped = {
        name: f"{other[side]}_{rest}"
        for name in rows.columns
        for side, _, rest in [name.partition("_")]
        if side in other
    }
    both = [rows.with_columns(turn=0), rows.rename(swapped).with_columns(turn=1)]
    twice = pl.concat(both, how="diagonal").with_columns(target=scale.round(1))
    return twice.sort("prompt_id", "turn", maintain_order=True)

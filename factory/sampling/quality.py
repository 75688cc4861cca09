"""Quality of translations: a figure for each, and their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import model_validator

from factory.config import REFERENCE, Knobs

# What a chat model is asked, by the scale of its answers. Other words are another meaning: raise
# Translate.version then.
QUESTIONS = {
    scale: "Below is a text and its translation into another language.\n\n[Text]\n{prompt}\n\n"
    f"[Translation]\n{{answer}}\n\n{ask}"
    for scale, ask in {
        "yes_no": "Is this a good translation: complete, correct, and fluent? Reply with one word, "
        "Yes or No.",
        "1-10": "How good is this translation: complete, correct, and fluent? Reply with one whole "
        "number, from 1 (worthless) to 10 (could not be better).",
    }.items()
}


class Quality(Knobs):
    """A figure for every translation, in the column `quality`. `back`: chrF2, from 0 to 100, of the
    source and what the same translator makes of its translation in the source's language; it costs
    a second translation. `reward`: what a reward under models: says of source and translation, the
    mean of a conversation's turns: of kind generative, which is asked whether the translation is
    good, or embedding, the similarity of the two texts."""

    by: Literal["back", "reward"] = "back"
    reward: Annotated[str | None, REFERENCE] = None  # a name under models, with by: reward
    # a translation of less is dropped, as `low_quality`; null: none, the column alone
    least: float | None = None

    @model_validator(mode="after")
    def _of_its_kind(self) -> Quality:
        if (self.by == "reward") != (self.reward is not None):
            raise ValueError("by: reward and the name of a reward go together")
        if self.by == "back" and self.least is not None and not 0 <= self.least <= 100:
            raise ValueError("least is a chrF2, from 0 to 100")
        return self


def distribution(values: Sequence[float | None]) -> dict[str, Any]:
    """Return how many translations have a figure, and its percentiles."""
    import numpy as np

    figures = [value for value in values if value is not None]
    marks = (5, 25, 50, 75, 95)
    percentiles = np.percentile(figures, marks) if figures else ()
    return {
        "n": len(figures),
        **{f"p{mark}": float(value) for mark, value in zip(marks, percentiles, strict=False)},
    }

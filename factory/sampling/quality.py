"""Quality of translations: a figure for each, and their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from factory.config import Knobs


class Quality(Knobs):
    """A figure for every translation, in the column `quality`. `back`: chrF2, from 0 to 100, of the
    source and what the same translator makes of its translation in the source's language; it costs
    a second translation."""

    by: Literal["back"] = "back"
    # a translation of less is dropped, as `low_quality`; null: none, the column alone
    least: float | None = Field(None, ge=0, le=100)


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

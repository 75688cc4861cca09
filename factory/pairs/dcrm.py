"""Pairs by distance-calibrated reward margin (DCRM, arXiv 2506.14157): far apart in reward, and
near to each other as texts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from scipy.special import expit

from factory.language.words import segments

_EPSILON = 1.0  # the paper's: two answers of no distance would divide by zero


def restricted(answers: pl.DataFrame, texts: pl.Series) -> pl.DataFrame:
    """Return the answers of which one alone of each prompt may be chosen and one rejected: the pair
    of the prompt with the highest DCRM, which stands in the column `dcrm` of both.

    DCRM of a pair is (sigmoid(reward margin) - 0.5) / (edit distance + likelihood gap + 1). The
    distance counts words and signs; the gap is that of the two `log_prob`, in nats, and 0 where the
    answers have no such column. An answer without its `log_prob` is compared with none.

    answers: prompt_id, k, language, score, may_choose, may_reject, text and maybe log_prob.
    texts: the answers as they were written, in the same order.
    Of equal pairs the first by k and language of the chosen, then of the rejected, is taken.
    """
    score = pl.col("score")
    likely = "log_prob" in answers.columns
    if likely:
        answers = answers.with_columns(score=pl.when(pl.col("log_prob").is_finite()).then(score))
    rows = answers.with_row_index("at").filter(score.is_finite())
    chosen = answers["may_choose"].to_numpy(writable=True)
    rejected = answers["may_reject"].to_numpy(writable=True)
    best = np.full(len(answers), np.nan)
    for pool in rows.sort("prompt_id", "k", "language").partition_by("prompt_id"):
        at, values = pool["at"].to_numpy(), pool["score"].to_numpy()
        margins = values[:, None] - values[None, :]
        apart = pool["text"].to_numpy()[:, None] != pool["text"].to_numpy()[None, :]
        may = pool["may_choose"].to_numpy()[:, None] & pool["may_reject"].to_numpy()[None, :]
        may &= (margins > 0) & apart
        if not may.any():
            continue  # the rule says why
        far = distances([texts[int(number)] for number in at]) + _EPSILON
        if likely:
            sums = pool["log_prob"].to_numpy()
            far += np.abs(sums[:, None] - sums[None, :])
        dcrm = np.where(may, (expit(margins) - 0.5) / far, -1.0)
        better, worse = divmod(int(dcrm.argmax()), len(at))
        chosen[at], rejected[at] = False, False
        chosen[at[better]] = rejected[at[worse]] = True
        best[at[[better, worse]]] = dcrm[better, worse]
    return answers.with_columns(
        pl.Series("may_choose", chosen),
        pl.Series("may_reject", rejected),
        pl.Series("dcrm", best, nan_to_null=True),
    )


def distances(texts: Sequence[str]) -> npt.NDArray[Any]:
    """Return how many words and signs must be put in, left out or exchanged to make one text of
    another, for each two of them."""
    numbers: dict[str, int] = {}
    # each word as one character: the distance of strings is much faster than that of lists
    coded = [
        "".join(
            chr(numbers.setdefault(piece, len(numbers)))
            for piece in segments(text)
            if not piece.isspace()
        )
        for text in texts
    ]
    return cdist(coded, coded, scorer=Levenshtein.distance).astype(np.float64)

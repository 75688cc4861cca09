"""The win rate as it would be between answers of equal length.

`lc_minimal` is CroCo's form (arXiv 2605.26293, its published judge): a logistic regression of who
won on the squashed difference of lengths, without AlpacaEval's difficulty of each item. AlpacaEval
2's own figure needs difficulties that exist for its 805 questions alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from factory.statistics.intervals import (
    RESAMPLES,
    Bools,
    Floats,
    Ints,
    bootstrap,
    percent,
)

PENALTY = 1.0  # on phi squared, beside the summed log-likelihood: the published one
FAR = 10.0  # points between raw and controlled: AlpacaEval's own rule for an extreme change
_STEPS = 50
_LIMIT = 15.0  # of a logit; what lies further out is on its way to no finite answer
_CELLS = 2**15  # numbers at once: what a core has near at hand


@dataclass(frozen=True)
class LengthControlled:
    """`rate` in percent with its interval, `phi` (how much length is worth to the judge, in
    logits at a difference of many standard deviations), `mean_difference` (model less reference),
    and `flag`: why there is no rate, or what to be wary of."""

    rate: float | None
    low: float | None
    high: float | None
    phi: float | None
    mean_difference: float
    flag: str | None

    def dump(self) -> dict[str, Any]:
        """As plain values, for a manifest."""
        return asdict(self)


def lc_minimal(
    points: Floats, differences: Floats, questions: Ints, seed: int, resamples: int = RESAMPLES
) -> LengthControlled:
    """Fit y ~ sigmoid(theta + phi x), x = tanh(d / std d), with a penalty of phi squared, on
    `points` y (1 won, 0.5 tied, 0 lost, or between) and `differences` d of length, model less
    reference; the controlled rate is sigmoid(theta). Raises ValueError for no comparisons.

    Where the data do not say (all won, all lost, length alone tells the winner, no length
    differs from another), there is no rate, and `flag` says why: never 100.
    """
    if not len(points):
        raise ValueError("no comparisons")
    apart = float(np.mean(differences))
    why = _undecided(points, differences)
    if why is not None:
        return LengthControlled(None, None, None, None, apart, why)
    if not np.any(differences):
        raw = float(points.mean())
        low, high = bootstrap(
            lambda w: np.asarray((w @ points) / w.sum(axis=1)), questions, seed, resamples
        )
        return LengthControlled(100 * raw, percent(low), percent(high), 0.0, 0.0, None)
    [theta], [phi], [done] = fit(points, differences, np.ones((1, len(points))))
    if not done:
        return LengthControlled(None, None, None, None, apart, "the fit did not converge")

    def figure(weights: Floats) -> Floats:
        thetas, _, converged = fit(points, differences, weights, (float(theta), float(phi)))
        # a sample that is all won goes out to the limit: that end is 100, not absent
        return np.where(converged | (np.abs(thetas) >= _LIMIT), _sigmoid(thetas), np.nan)

    low, high = bootstrap(figure, questions, seed, resamples)
    rate = 100 * float(_sigmoid(theta))
    moved = abs(rate - 100 * float(points.mean()))
    flag = f"{moved:.0f} points from the raw win rate" if moved > FAR else None
    return LengthControlled(rate, percent(low), percent(high), float(phi), apart, flag)


def fit(
    points: Floats, differences: Floats, weights: Floats, start: tuple[float, float] = (0.0, 0.0)
) -> tuple[Floats, Floats, Bools]:
    """theta, phi and whether the fit converged, for every row of `weights` (sample by
    comparison), by Newton's method from `start`. std d is each sample's own."""
    rows = max(1, _CELLS // len(points))
    parts = [
        _fit(points, differences, weights[at : at + rows], start)
        for at in range(0, len(weights), rows)
    ]
    theta, phi, done = (np.concatenate(part) for part in zip(*parts, strict=True))
    return theta, phi, done


def _fit(
    points: Floats, differences: Floats, weights: Floats, start: tuple[float, float]
) -> tuple[Floats, Floats, Bools]:
    size = weights.sum(axis=1)
    mean = weights @ differences / size
    spread = np.sqrt(np.maximum(weights @ differences**2 / size - mean**2, 0.0))
    x = np.tanh(differences / np.where(spread > 1e-8, spread, np.inf)[:, None])
    theta, phi = np.full(len(weights), start[0]), np.full(len(weights), start[1])
    flat = np.zeros(len(weights), bool)
    for _ in range(_STEPS):
        chance = _sigmoid(theta[:, None] + phi[:, None] * x)
        wrong = weights * (points - chance)
        sure = weights * chance * (1 - chance)
        along = sure * x
        slopes = wrong.sum(axis=1), (wrong * x).sum(axis=1) - 2 * PENALTY * phi
        flat = np.maximum(np.abs(slopes[0]), np.abs(slopes[1])) < 1e-8 * size
        if np.all(flat | (np.abs(theta) >= _LIMIT)):
            break
        a, b, c = sure.sum(axis=1), along.sum(axis=1), (along * x).sum(axis=1) + 2 * PENALTY
        determinant = np.maximum(a * c - b * b, 1e-12)
        steps = (
            (c * slopes[0] - b * slopes[1]) / determinant,
            (a * slopes[1] - b * slopes[0]) / determinant,
        )
        # the likelihood is concave, but a whole step from far out overshoots
        shrink = 1 / np.maximum(1.0, np.maximum(np.abs(steps[0]), np.abs(steps[1])) / 2)
        theta = np.clip(theta + shrink * steps[0], -_LIMIT, _LIMIT)
        phi = phi + shrink * steps[1]
    return theta, phi, flat & (np.abs(theta) < _LIMIT)


def _undecided(points: Floats, differences: Floats) -> str | None:
    if np.all(points == 1) or np.all(points == 0):
        return "every comparison ended alike"
    if np.ptp(differences) == 0 and differences[0] != 0:
        return "every answer is longer by the same"
    pure = bool(np.all((points == 0) | (points == 1)))
    won, lost = differences[points == 1], differences[points == 0]
    if pure and (won.min() > lost.max() or won.max() < lost.min()):
        return "length alone tells who won"
    return None


def _sigmoid(values: Any) -> Any:
    from scipy.special import expit

    return expit(values)

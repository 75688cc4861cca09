"""The win rate as it would be between answers of equal length.

`lc_minimal` is CroCo's form (arXiv 2605.26293, its published judge): a logistic regression of who
won on the squashed difference of lengths, without AlpacaEval's difficulty of each item. AlpacaEval
2's own figure needs difficulties that exist for its 805 questions alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from factory.evaluation.statistics.intervals import Floats, Ints, residuals, score

PENALTY = 1.0  # on phi squared, beside the summed log-likelihood: the published one
FAR = 10.0  # points between raw and controlled: AlpacaEval's own rule for an extreme change
_STEPS = 50
_LIMIT = 15.0  # of a logit; what lies further out is on its way to no finite answer


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
        """Return plain values for a manifest."""
        return asdict(self)


def lc_minimal(points: Floats, differences: Floats, questions: Ints) -> LengthControlled:
    """Fit y ~ sigmoid(theta + phi x), x = tanh(d / std d), with a penalty of phi squared, on
    `points` y (1 won, 0.5 tied, 0 lost, or between) and `differences` d of length, model less
    reference; the controlled rate is sigmoid(theta). Its interval is that of a win rate
    (intervals.score) with `influence` for the residuals. Raises ValueError for no comparisons.

    Where the data do not say (all won, all lost, length alone tells the winner, no length
    differs from another), there is no rate, and `flag` says why: never 100.
    """
    if not len(points):
        raise ValueError("no comparisons")
    apart = float(np.mean(differences))
    why = _undecided(points, differences)
    if why is not None:
        return LengthControlled(None, None, None, None, apart, why)
    raw = float(points.mean())
    if not np.any(differences):
        low, high = score(raw, residuals(points, questions))
        return LengthControlled(100 * raw, 100 * low, 100 * high, 0.0, 0.0, None)
    fitted = fit(points, differences)
    if fitted is None:
        return LengthControlled(None, None, None, None, apart, "the fit did not converge")
    rate = float(_sigmoid(fitted.theta))
    low, high = score(rate, influence(fitted, points, questions))
    moved = 100 * abs(rate - raw)
    flag = f"{moved:.0f} points from the raw win rate" if moved > FAR else None
    return LengthControlled(100 * rate, 100 * low, 100 * high, fitted.phi, apart, flag)


@dataclass(frozen=True)
class Fit:
    """Both parameters, and the squashed difference x of each comparison."""

    theta: float
    phi: float
    x: Floats


def fit(points: Floats, differences: Floats) -> Fit | None:
    """Fit by Newton's method; None where it does not converge."""
    x = np.tanh(differences / np.std(differences))
    theta = phi = 0.0
    for _ in range(_STEPS):
        chance = _sigmoid(theta + phi * x)
        wrong = points - chance
        slope = np.array([wrong.sum(), wrong @ x - 2 * PENALTY * phi])
        if np.abs(slope).max() < 1e-8 * len(points):
            return Fit(float(theta), float(phi), x)
        sure = chance * (1 - chance)
        step = np.linalg.solve(_curvature(sure, x), slope)
        # the likelihood is concave, but a whole step from far out overshoots
        theta, phi = (theta, phi) + step / max(1.0, np.abs(step).max() / 2)
        if abs(theta) >= _LIMIT:
            return None
    return None


def influence(fitted: Fit, points: Floats, questions: Ints) -> Floats:
    """Return for each question its part in the controlled rate, to first order: how far the rate
    moves when the question with all its comparisons is left out, in one step of Newton's (the
    linearized cluster jackknife of MacKinnon, Nielsen and Webb, arXiv 2406.00650, section 3), times
    (G - 1) / G for G questions and by the slope of sigmoid. With phi 0 and no penalty these are the
    residuals of a win rate. Leaving one out counts in what the fit owes to each question: without
    that, intervals are too narrow where questions are few and a length is far out."""
    _, cluster = np.unique(questions, return_inverse=True)
    chance = _sigmoid(fitted.theta + fitted.phi * fitted.x)
    wrong, sure = points - chance, chance * (1 - chance)
    curvature = _curvature(sure, fitted.x)

    def by_question(values: Floats) -> Floats:
        return np.bincount(cluster, weights=values).astype(float)

    count = cluster.max() + 1
    # the penalty is everybody's alike, so that the slopes sum to 0
    slopes = by_question(wrong), by_question(wrong * fitted.x) - 2 * PENALTY * fitted.phi / count
    a = curvature[0, 0] - by_question(sure)
    b = curvature[0, 1] - by_question(sure * fitted.x)
    c = curvature[1, 1] - by_question(sure * fitted.x**2)
    moved = (c * slopes[0] - b * slopes[1]) / np.maximum(a * c - b * b, 1e-12)
    rate = float(_sigmoid(fitted.theta))
    return np.asarray(moved * rate * (1 - rate) * (count - 1) / count)


def _curvature(sure: Floats, x: Floats) -> Floats:
    along = float(sure @ x)
    return np.array([[sure.sum(), along], [along, sure @ x**2 + 2 * PENALTY]])


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

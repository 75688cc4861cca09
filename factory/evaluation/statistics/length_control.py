"""The win rate as it would be between answers of equal length.

`lc_minimal` is CroCo's form (arXiv 2605.26293, its published judge): a logistic regression of who
won on the squashed difference of lengths, without AlpacaEval's difficulty of each item. AlpacaEval
2's own figure needs difficulties that exist for its 805 questions alone. `style_controlled` is the
same at equal length and equal markdown.
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
    return style_controlled(points, differences[:, None], questions)


def style_controlled(points: Floats, differences: Floats, questions: Ints) -> LengthControlled:
    """Return the rate at equal length and equal other features: as `lc_minimal`, with a slope for
    each column of `differences`, of which the first is length."""
    if not len(points):
        raise ValueError("no comparisons")
    apart = float(np.mean(differences[:, 0]))
    for column in differences.T:
        if (why := _undecided(points, column)) is not None:
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
    return LengthControlled(100 * rate, 100 * low, 100 * high, float(fitted.phi[0]), apart, flag)


@dataclass(frozen=True)
class Fit:
    """All parameters, and the squashed differences x, comparison by feature."""

    theta: float
    phi: Floats
    x: Floats

    @property
    def chance(self) -> Floats:
        """The chance of each comparison to be won."""
        return np.asarray(_sigmoid(self.theta + self.x @ self.phi))


def fit(points: Floats, differences: Floats) -> Fit | None:
    """Fit by Newton's method; None where it does not converge."""
    spread = np.std(differences, axis=0)
    x = np.tanh(differences / np.where(spread > 0, spread, 1))
    fitted = Fit(0.0, np.zeros(x.shape[1]), x)
    for _ in range(_STEPS):
        wrong = points - fitted.chance
        slope = np.array([wrong.sum(), *(wrong @ x - 2 * PENALTY * fitted.phi)])
        if np.abs(slope).max() < 1e-8 * len(points):
            return fitted
        step = np.linalg.solve(_curvatures(fitted, np.zeros(len(x), np.int64))[0], slope)
        # the likelihood is concave, but a whole step from far out overshoots
        step = step / max(1.0, np.abs(step).max() / 2)
        fitted = Fit(fitted.theta + float(step[0]), fitted.phi + step[1:], x)
        if abs(fitted.theta) >= _LIMIT:
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
    count = int(cluster.max()) + 1
    parts = (points - fitted.chance)[:, None] * _with_constant(fitted.x)
    slopes = np.zeros((count, parts.shape[1]))
    np.add.at(slopes, cluster, parts)
    # the penalty is everybody's alike, so that the slopes sum to 0
    slopes[:, 1:] -= 2 * PENALTY * fitted.phi / count
    each = _curvatures(fitted, cluster)
    each[:, range(1, each.shape[1]), range(1, each.shape[1])] -= 2 * PENALTY
    whole = _curvatures(fitted, np.zeros_like(cluster))
    moved = np.linalg.solve(whole - each + 1e-12 * np.eye(each.shape[1]), slopes[:, :, None])
    rate = float(_sigmoid(fitted.theta))
    return np.asarray(moved[:, 0, 0] * rate * (1 - rate) * (count - 1) / count)


def _with_constant(x: Floats) -> Floats:
    return np.column_stack([np.ones(len(x)), x])


def _curvatures(fitted: Fit, cluster: Ints) -> Floats:
    """Return the curvature of the penalized likelihood over the comparisons of each cluster."""
    x = _with_constant(fitted.x)
    sure = fitted.chance * (1 - fitted.chance)
    curvatures = np.zeros((int(cluster.max()) + 1, x.shape[1], x.shape[1]))
    np.add.at(curvatures, cluster, sure[:, None, None] * x[:, :, None] * x[:, None, :])
    return np.asarray(curvatures + np.diag([0.0, *[2 * PENALTY] * (x.shape[1] - 1)]))


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

"""Training logs: reduce them to short curves and raise alarms. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

POINTS = 200  # of a curve kept in a manifest, whatever the number of steps
_DULL = ("runtime", "per_second", "flos", "num_tokens", "entropy", "num_input_tokens")
# What is called saturated; choices, not findings of a paper.
_ENOUGH = 20  # steps before a training may be stopped
_ALL_RIGHT, _NO_LOSS, _PUSHED = 0.99, 0.1, 20.0  # reward accuracy, loss, nats

Entry = dict[str, Any]


def short(entry: Entry) -> dict[str, float]:
    """Return a log entry to five significant digits, without the trainer's own timings."""
    return {
        key: float(f"{value:.5g}")
        for key, value in entry.items()
        if isinstance(value, int | float) and not any(word in key for word in _DULL)
    }


def finite(history: Sequence[Entry]) -> bool:
    """Return whether every logged loss and gradient norm is finite."""
    return all(
        math.isfinite(entry.get(key, 0.0))
        for entry in history
        for key in ("loss", "grad_norm", "eval_loss")
    )


def curve(history: Sequence[Entry]) -> list[dict[str, float]]:
    """Return the training steps, thinned to at most POINTS; first and last stay."""
    steps = [short(entry) for entry in history if "loss" in entry]
    return _thinned(steps)


def held_out(history: Sequence[Entry]) -> list[dict[str, float]]:
    """Return the evaluations on held-out rows, each with its step."""
    return _thinned([short(entry) for entry in history if "eval_loss" in entry])


def _thinned(points: list[dict[str, float]]) -> list[dict[str, float]]:
    if len(points) <= POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (POINTS - 1))] for i in range(POINTS)]


def alarms(history: Sequence[Entry]) -> list[str]:
    """Return warnings about a training, a line each.

    They look at fifths of the run: one step alone says little."""
    steps = [entry for entry in history if "loss" in entry]
    messages = []
    if not finite(history):
        messages.append("the loss is not finite")
    if len(steps) >= 5:
        messages += [
            *_falling(steps), *_at_chance(steps), *_loss_rose(steps), *_saturated(steps),
            *_reward_fell(steps),
        ]  # fmt: skip
    return messages


def collapse(history: Sequence[Entry]) -> str | None:
    """Return why a training that is under way has collapsed: the first alarm of those that more
    steps do not mend. Looked at about twenty times while the number of steps doubles."""
    steps = [entry for entry in history if "loss" in entry]
    if len(steps) < _ENOUGH or len(steps) % max(1, len(steps) // 20):
        return None
    reasons = [*_falling(steps), *_loss_rose(steps), *_saturated(steps)]
    return reasons[0] if reasons else None


def _mean(steps: Sequence[Entry], key: str) -> float | None:
    values = [e[key] for e in steps if key in e and math.isfinite(e[key])]
    return sum(values) / len(values) if values else None


def _ends(steps: Sequence[Entry], key: str) -> tuple[float, float] | None:
    fifth = max(1, len(steps) // 5)
    first, last = _mean(steps[:fifth], key), _mean(steps[-fifth:], key)
    return None if first is None or last is None else (first, last)


def _falling(steps: Sequence[Entry]) -> list[str]:
    """Warn when chosen answers become much less likely: DPO may win by unlearning both sides."""
    ends = _ends(steps, "logps/chosen")
    if ends and ends[1] < 1.5 * ends[0] and ends[1] < ends[0] - 10:
        return [
            f"the chosen answers' log-probability fell from {ends[0]:.4g} to {ends[1]:.4g}: "
            "a smaller lr, a larger beta or a weight on the loss sft keeps it up"
        ]
    return []


def _at_chance(steps: Sequence[Entry]) -> list[str]:
    """Warn when the reward accuracy of the last fifth is that of chance, over enough steps to
    tell."""
    ends = _ends(steps, "rewards/accuracies") or _ends(steps, "accuracy")
    if ends and len(steps) >= 20 and abs(ends[1] - 0.5) < 0.05:
        return [
            f"reward accuracy is {ends[1]:.2f} at the end, as if by chance: nothing was learned; "
            "a larger lr or more pairs may help"
        ]
    return []


def _loss_rose(steps: Sequence[Entry]) -> list[str]:
    ends = _ends(steps, "loss")
    if ends and ends[1] > 1.5 * abs(ends[0]) + 0.1:
        return [f"the loss rose from {ends[0]:.4g} to {ends[1]:.4g}: lower the lr"]
    return []


def _reward_fell(steps: Sequence[Entry]) -> list[str]:
    """Warn when sampled answers end with a lower mean reward than they began with."""
    ends, spread = _ends(steps, "reward"), _mean(steps, "reward_std")
    if ends and spread is not None and ends[1] < ends[0] - spread:
        return [f"the mean reward fell from {ends[0]:.3g} to {ends[1]:.3g}: lower the lr"]
    return []


def _saturated(steps: Sequence[Entry]) -> list[str]:
    """Warn when a fifth of the run that begins before its middle has every pair right and nearly no
    loss, and the rejected answers became much less likely: what is left of the run only pushes them
    further, and answers drawn at a temperature get worse while greedy ones do not show it."""
    width = max(2, len(steps) // 5)
    key = "rewards/accuracies"
    at_first = _mean(steps[: max(1, width // 2)], "logps/rejected")
    for begin in range((len(steps) + 1) // 2):
        window = steps[begin : begin + width]
        accuracy, loss = _mean(window, key), _mean(window, "loss")
        rejected = _mean(window, "logps/rejected")
        if accuracy is None or loss is None or rejected is None or at_first is None:
            return []
        if accuracy >= _ALL_RIGHT and loss <= _NO_LOSS and rejected <= at_first - _PUSHED:
            return [
                f"saturated from step {window[0].get('step', begin + 1)} of {len(steps)}: reward "
                f"accuracy {accuracy:.2f}, loss {loss:.2g}, and the rejected answers' "
                f"log-probability down by {at_first - rejected:.0f} nats; a smaller lr, fewer "
                "steps or a larger beta"
            ]
    return []
